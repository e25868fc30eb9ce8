"""The verbs of generations: of a state directory that no daemon uses, or with --url of a running daemon."""

from __future__ import annotations

import json
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from streamlearn.cli_common import AsJson, ConfigFile, Overrides, ask, console, settings_of
from streamlearn.errors import StateError

if TYPE_CHECKING:
    from streamlearn.checkpoint import Generations

app = typer.Typer(no_args_is_help=True, help="Checkpoints: what is kept, pins, and going back.")
out = console()

Url = Annotated[
    str | None,
    typer.Option("--url", help="Ask the daemon there; otherwise the state directory of the settings is used."),
]
Number = Annotated[int, typer.Argument(min=1, metavar="NUMBER")]

_ROLLBACK_TIMEOUT_S = 600.0


class ResumeFrom(StrEnum):
    """Where learning goes on after a rollback."""

    generation = "generation"
    latest = "latest"


@app.command()
def ls(url: Url = None, config: ConfigFile = None, override: Overrides = None, as_json: AsJson = False) -> None:
    """List what is kept, newest first."""
    if url is not None:
        rows = ask(url, "/v1/generations")
    else:
        from streamlearn.generation_facts import overview

        rows = overview(_generations(config, override))
    if as_json:
        typer.echo(json.dumps(rows))
        return
    table = Table("generation", "created", "clips", "tasks", "eras", "MB", "lineage", "")
    for row in rows:
        if "damaged" in row:
            table.add_row(str(row["number"]), "", "", "", "", "", "", f"damaged: {row['damaged']}")
            continue
        notes = ["current"] * row["current"] + ["pinned"] * row["pinned"]
        notes += [f"back to {row['rolled_back_to']}"] if row["rolled_back_to"] is not None else []
        table.add_row(
            str(row["number"]), row["created"].replace("T", " "), str(row["clips"]), str(row["tasks"]),
            str(row["eras"]), f"{row['bytes'] / 1e6:.0f}", row["lineage"], ", ".join(notes),
        )  # fmt: skip
    out.print(table)


@app.command()
def show(number: Number, url: Url = None, config: ConfigFile = None, override: Overrides = None) -> None:
    """Print what a generation says of itself, as JSON."""
    typer.echo(json.dumps(_manifest(number, url, config, override), indent=1))


@app.command()
def diff(older: Number, newer: Number, url: Url = None, config: ConfigFile = None, override: Overrides = None) -> None:
    """Print what two generations do not have in common, older to newer, as JSON: clips, vectors, tasks, recall ..."""
    if url is not None:
        found: dict[str, Any] = ask(url, f"/v1/generations/{older}/diff/{newer}")
    else:
        from streamlearn.catalog_cuts import changes
        from streamlearn.catalog_file import reading_only
        from streamlearn.generation_facts import compared

        generations = _generations(config, override)
        generations.manifest(older)  # or what is told is missing would be the catalog
        with reading_only(generations.state_dir / "catalog.db") as db:
            found = compared(generations, partial(changes, db), older, newer)
    typer.echo(json.dumps(found, indent=1))


@app.command()
def pin(number: Number, url: Url = None, config: ConfigFile = None, override: Overrides = None) -> None:
    """Keep a generation, whatever the settings of checkpoints say."""
    if url is not None:
        ask(url, f"/v1/generations/{number}/pin", method="PUT")
    else:
        _generations(config, override).pin(number)
    typer.echo(f"generation {number} is pinned: it is kept until it is unpinned")


@app.command()
def unpin(number: Number, url: Url = None, config: ConfigFile = None, override: Overrides = None) -> None:
    """Keep a generation no longer than the settings of checkpoints say."""
    if url is not None:
        ask(url, f"/v1/generations/{number}/pin", method="DELETE")
    else:
        _generations(config, override).pin(number, pinned=False)
    typer.echo(f"generation {number} is not pinned: the next checkpoint may drop it")


@app.command()
def rollback(
    number: Number,
    resume_from: Annotated[
        ResumeFrom,
        typer.Option(help="generation: read again all that came after it; latest: skip that, go on with what comes."),
    ] = ResumeFrom.generation,
    url: Url = None,
    config: ConfigFile = None,
    override: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Go back to a generation: weights, queues, eras, index, tasks, scores and offsets, as one. Newer ones are gone."""
    if url is not None:
        done: dict[str, Any] = ask(
            url, f"/v1/generations/{number}/rollback", {"resume_from": resume_from.value},
            timeout_s=_ROLLBACK_TIMEOUT_S,
        )  # fmt: skip
    else:
        from streamlearn.process import lock_state
        from streamlearn.rollback import roll_back_offline

        generations = _generations(config, override)
        if not generations.folder.is_dir():  # or the lock would make the state directory
            raise StateError(f"there is no generation {number} in {generations.folder}")
        with lock_state(generations.state_dir):
            done = vars(roll_back_offline(generations, number, resume_from.value)).copy()
    if as_json:
        typer.echo(json.dumps(done))
        return
    again = "skipped" if done["resume_from"] == "latest" else "read again"
    typer.echo(
        f"generation {done['generation']} equals {done['went_back_to']}; {done['undone_clips']} clips that came after"
        f" it are {again}; gone: {', '.join(map(str, done['dropped'])) or 'none'}"
    )


def _generations(config: Path | None, override: list[str] | None) -> Generations:
    from streamlearn.checkpoint import Generations
    from streamlearn.generation_facts import retention

    settings = settings_of(config, override)
    return Generations(settings.state_dir, retention(settings.checkpoint))


def _manifest(number: int, url: str | None, config: Path | None, override: list[str] | None) -> dict[str, Any]:
    if url is not None:
        manifest: dict[str, Any] = ask(url, f"/v1/generations/{number}")
        return manifest
    return _generations(config, override).manifest(number)
