"""The verbs of tasks: list them, begin one, rename one, merge two, try other settings of the detector."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from streamlearn.cli_common import AsJson, ConfigFile, Overrides, Url, ask, console, settings_of
from streamlearn.era_decisions import sentence
from streamlearn.errors import SettingsError

out = console()
tasks = typer.Typer(invoke_without_command=True, help="Tasks: list them, begin, rename or merge one.")
_URL = "http://127.0.0.1:8080"
_Name = Annotated[str, typer.Argument(help="Of a task.")]


@tasks.callback()
def ls(context: typer.Context, url: Url = _URL, as_json: AsJson = False) -> None:
    """The task log of a running daemon: recall, forgetting, and what was decided about each era and why.

    A task was noticed when so many clips had been processed; its own begin before, where the drift did.
    """
    if context.invoked_subcommand is not None:
        return
    answer = ask(url, "/v1/tasks")
    if as_json:
        typer.echo(json.dumps(answer))
        return
    columns = ("task", "cause", "noticed at", "until", "clips", "pairs")
    table, decided = Table(*columns, "R@5 served", "R@5 learner", "forgetting served"), []
    for task in answer:
        recall, forgetting = task["recall"], task["forgetting"]["served"]
        table.add_row(
            Text(task["name"]), task["cause"], str(task["started_clips"]), str(task["ended_clips"] or ""),
            str(task["clips"]), str(task["pairs"]),
            *(_percent(recall[view].get("5")) for view in ("served", "learner")),
            _percent(forgetting),
        )  # fmt: skip
        decided += [Text(f"{task['name']}, {sentence(decision)}") for decision in task["decisions"]]
    out.print(table, *decided, sep="\n")


@tasks.command()
def mark(
    name: Annotated[str | None, typer.Argument(help="Of the task that begins; else the next free one.")] = None,
    url: Url = _URL,
    as_json: AsJson = False,
) -> None:
    """Begin a task with the next clip."""
    answer = ask(url, "/v1/tasks", {"name": name}, timeout_s=90)
    typer.echo(json.dumps(answer) if as_json else f"task {answer['name']} begins after clip {answer['started_clips']}")


@tasks.command()
def rename(task: _Name, to: Annotated[str, typer.Argument(help="A name that no task has.")], url: Url = _URL) -> None:
    """Give a task another name."""
    ask(url, "/v1/tasks/rename", {"task": task, "to": to}, timeout_s=90)
    typer.echo(f"task {task} is now {to}")


@tasks.command()
def merge(task: _Name, into: Annotated[str, typer.Argument(help="The task that stays.")], url: Url = _URL) -> None:
    """Make a task part of another: clips, held-out ones too, and eras."""
    ask(url, "/v1/tasks/merge", {"task": task, "to": into}, timeout_s=90)
    typer.echo(f"task {task} is now part of {into}")


@tasks.command()
def tune(
    from_log: Annotated[bool, typer.Option("--from-log", help="Replay state_dir/drift.jsonl; there is no other way.")],
    plot: Annotated[Path | None, typer.Option(help="Draw it into this file, too; needs matplotlib.")] = None,
    config: ConfigFile = None,
    override: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Where other settings of `drift` would have suspected boundaries in the stream as it was. Needs no daemon.

    Say which by --set drift.clips_per_false_boundary=10000, and so on. A suspicion that the frozen judge has not seen
    is shown as "not judged".
    """
    from streamlearn import tune as tuning
    from streamlearn.drift_log import read_log

    settings = settings_of(config, override)
    entries = read_log(settings.state_dir) if from_log else []
    if not entries:
        raise SettingsError(f"{settings.state_dir / 'drift.jsonl'} holds nothing: run the daemon with drift.log = true")
    found, scores = tuning.replay(entries, settings.drift)
    if plot is not None:
        tuning.plot(entries, scores, found, plot)
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(suspicion) for suspicion in found]))
        return
    table = Table("at clip", "began at", "score", "threshold", "when it was learned")
    for s in found:
        said = {"": "not judged", "drift": "a boundary", "refused": "refused", "seen": "the judge's own"}[s.logged]
        table.add_row(str(s.clips), str(s.onset_clips), f"{s.score:.1f}", f"{s.threshold:.1f}", said)
    out.print(table)
    drawn = [str(e.clips) for e in entries if e.outcome in ("drift", "seen")]
    out.print(f"{len(entries)} batches; boundaries drawn at clips {', '.join(drawn) or 'none'}", highlight=False)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"
