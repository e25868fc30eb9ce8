"""The verbs. Each reads the settings, builds what it needs, and says in one sentence what went wrong."""

from __future__ import annotations

import atexit
import gc
import json
import logging
import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from streamlearn import __version__, cli_bench, cli_eval, cli_generations, cli_publish, cli_streams, cli_tasks
from streamlearn.cli_common import AsJson, ConfigFile, Overrides, Url, ask, console, settings_of
from streamlearn.errors import StreamlearnError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Learns continually from a stream of video-caption pairs and answers text-to-video search the whole time.",
)
config_app = typer.Typer(no_args_is_help=True, help="Settings: defaults < TOML file < environment < flags.")
app.add_typer(config_app, name="config")
app.add_typer(cli_generations.app, name="generations")
app.add_typer(cli_streams.dlq, name="dlq")
app.add_typer(cli_bench.bench_app, name="bench")
app.add_typer(cli_tasks.tasks, name="tasks")
app.command()(cli_publish.publish)
app.command()(cli_streams.replay)
app.command("eval")(cli_eval.evaluate)


class OnMismatch(StrEnum):
    """What to do with vectors that were made otherwise."""

    refuse = "refuse"
    carry = "carry"


_URL = "http://127.0.0.1:8080"

out, err = console(), Console(stderr=True)


@app.command()
def run(
    config: ConfigFile = None,
    override: Overrides = None,
    on_mismatch: Annotated[
        OnMismatch | None, typer.Option(help="Where media settings are not those of the state: checkpoint.on_mismatch.")
    ] = None,
) -> None:
    """Run the daemon: learn from the source, answer searches, until SIGTERM or Ctrl-C."""
    from streamlearn.app import Daemon
    from streamlearn.process import setup_logging, stop_signal

    chosen = [] if on_mismatch is None else [f"checkpoint.on_mismatch={on_mismatch.value}"]
    settings = settings_of(config, [*(override or ()), *chosen])
    setup_logging(settings.log)
    stop = stop_signal()
    log = logging.getLogger("streamlearn")
    try:
        with Daemon(settings) as daemon:
            log.info("streamlearn %s answers at %s", __version__, daemon.url)
            stop.wait()
            log.info("told to stop: the batch in hand is ended, and what is new goes into a last checkpoint")
    except StreamlearnError as error:
        if settings.log.format == "text":
            raise
        log.critical("%s", error)  # whoever collects objects would lose a bare sentence
        raise typer.Exit(2) from error
    log.info("stopped")


@app.command()
def demo(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0: any free one.")] = 8080,
    clips_per_domain: Annotated[int, typer.Option(min=1, help="Clips of each of the five domains.")] = 1600,
    state_dir: Annotated[Path | None, typer.Option(help="Keep the state here; otherwise it is thrown away.")] = None,
    seed: Annotated[int, typer.Option(help="Of the rendered clips.")] = 0,
    leave: Annotated[bool, typer.Option("--exit", help="End when the stream has been learned.")] = False,
) -> None:
    """See it work: five domains of rendered clips arrive, are learned, and can be searched at once."""
    from streamlearn.demo import run_demo

    run_demo(out, host=host, port=port, clips_per_domain=clips_per_domain, state_dir=state_dir, seed=seed, leave=leave)


@app.command()
def search(
    text: Annotated[str, typer.Argument(help="What the video shows.")],
    limit: Annotated[int, typer.Option(min=1)] = 10,
    url: Url = _URL,
    as_json: AsJson = False,
) -> None:
    """Ask a running daemon."""
    answer = ask(url, "/v1/search", {"query": {"text": text}, "limit": limit})
    if as_json:
        typer.echo(json.dumps(answer))
        return
    table = Table("rank", "score", "video", "task", "caption")
    for hit in answer["results"]:
        facts = (str(hit["rank"]), f"{hit['score']:.3f}", hit["video_id"], hit["task"], hit["captions"][0])
        table.add_row(*map(Text, facts))  # or a caption with brackets would be read as markup
    out.print(table)
    out.print(f"{answer['took_ms']:.1f} ms, model {answer['model_version']}", style="dim", highlight=False)


@app.command()
def status(url: Url = _URL, as_json: AsJson = False) -> None:
    """What a running daemon is doing."""
    answer = ask(url, "/v1/status")
    if as_json:
        typer.echo(json.dumps(answer))
        return
    for name, value in _leaves(answer):
        out.print(Text.assemble((f"{name:>20}", "dim"), f"  {value}"), soft_wrap=True)


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Every value of a document by its dotted name, an element of a list each on its own."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}.{key}" if name else key)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner, name)
    else:
        yield name, "-" if value is None else str(value)


@config_app.command("check")
def config_check(config: ConfigFile = None, override: Overrides = None) -> None:
    """Say whether the settings are right; exit 2 where they are not."""
    settings_of(config, override)
    out.print("the settings are valid")


@config_app.command("show")
def config_show(
    config: ConfigFile = None,
    override: Overrides = None,
    defaults: Annotated[bool, typer.Option("--defaults", help="Every setting with its meaning.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the settings in force, or all of them with their meaning."""
    from streamlearn.settings import describe

    settings = settings_of(config, override)
    if as_json:
        typer.echo(settings.model_dump_json(indent=1))
        return
    for name, value, text in describe(None if defaults else settings):
        out.print(
            f"{name} = {value}" + (f"   # {text}" if defaults else ""), highlight=False, markup=False, soft_wrap=True
        )


@app.command()
def schema(kind: Annotated[str, typer.Argument(help="clip")] = "clip") -> None:
    """Print the JSON Schema of a clip message."""
    from streamlearn.envelope import clip_schema

    if kind != "clip":
        raise typer.BadParameter("there is one schema: clip")
    typer.echo(json.dumps(clip_schema(), indent=1))


@app.command()
def warmup(
    path: Annotated[Path, typer.Argument(help="The .safetensors file to write.")],
    scenes: Annotated[int, typer.Option(min=1000, help="Distinct rendered clips.")] = 48_000,
    epochs: Annotated[int, typer.Option(min=1)] = 5,
    seed: int = 0,
) -> None:
    """Train the tiny towers' warm checkpoint on the synthetic generic domain; minutes to half an hour."""
    from rich.progress import Progress

    from streamlearn.warmup import warm_up

    with Progress(console=err) as bar:
        work = bar.add_task("rendering", total=None)

        def progress(step: int, total: int, loss: float) -> None:
            bar.update(work, completed=step, total=total, description=f"loss {loss:.3f}")

        recall = warm_up(path, scenes=scenes, epochs=epochs, seed=seed, progress=progress)
    out.print(f"{path}: R@5 {recall:.1%} among 400 unseen clips")


def main() -> None:
    """Entry point: errors that have a sentence end with it, not with a traceback."""
    # At exit nothing is worth collecting any more: to look through all that torch made would take over a second of CPU.
    atexit.register(gc.freeze)
    try:
        app()
    except StreamlearnError as error:
        err.print(f"streamlearn: {error}", highlight=False, markup=False, style="red", soft_wrap=True)
        sys.exit(2)
