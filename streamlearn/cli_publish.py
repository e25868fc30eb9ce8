"""The verb publish: folders and manifests of clips to a Kafka topic."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from streamlearn.cli_common import AsJson, ConfigFile, Overrides, settings_of
from streamlearn.cli_progress import progress

if TYPE_CHECKING:
    from streamlearn.publish import Report

_INTERRUPTED = 130  # as a shell counts Ctrl-C


def publish(
    paths: Annotated[
        list[Path],
        typer.Argument(
            help="Folders with a manifest.jsonl, or of videos with .txt or .json sidecars; manifests (.jsonl, .csv,"
            " .tsv); WebDataset shards (.tar, .tar.gz ...)."
        ),
    ],
    topic: Annotated[str | None, typer.Option(help="Where to; the first of kafka.topics otherwise.")] = None,
    inline: Annotated[
        bool, typer.Option("--inline", help="Send the videos' bytes, not their addresses; what is in a tar always is.")
    ] = False,
    rate: Annotated[
        float | None, typer.Option(help="Clips a second at most; as fast as it goes otherwise.", metavar="CLIPS")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Validate everything, list what is wrong, send nothing.")
    ] = False,
    journal: Annotated[
        Path | None,
        typer.Option(
            help="Where progress is kept until everything is sent, a file or a folder;"
            " ~/.local/state/streamlearn/publish otherwise.",
            metavar="PATH",
        ),
    ] = None,
    anew: Annotated[bool, typer.Option("--anew", help="Send again what an interrupted run has sent.")] = False,
    config: ConfigFile = None,
    override: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Publish clips to a Kafka topic; exit 1 where some are not valid, which are listed and not sent.

    Interrupted, it goes on with the same command from what the broker has acknowledged.
    """
    from streamlearn.publish import publish as send
    from streamlearn.publish import validate
    from streamlearn.publish_messages import Rules
    from streamlearn.publish_pace import Pace
    from streamlearn.publish_sources import count

    if rate is not None and not 0 < rate < float("inf"):
        raise typer.BadParameter("--rate: give a number of clips a second above 0")
    settings = settings_of(config, override)
    rules = Rules(settings.media.max_bytes, settings.media.max_caption_chars, inline)
    name = topic or settings.kafka.topics[0]
    with progress("clips") as told:
        total = count(paths)
        try:
            if dry_run:
                report = validate(paths, rules, on_progress=lambda rows: told(rows, total, "validating"))
            else:
                report = send(
                    paths,
                    rules,
                    settings.kafka,
                    topic=name,
                    journal=_journals() if journal is None else journal,
                    anew=anew,
                    pace=Pace(rate),
                    on_progress=lambda rows: told(rows, total, "publishing"),
                )
        except KeyboardInterrupt:
            typer.echo("interrupted; the same command goes on from what was acknowledged", err=True)
            raise typer.Exit(_INTERRUPTED) from None
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(report), default=str))
    else:
        _say(report, "valid" if dry_run else f"published to {name}")
    if report.problems:
        raise typer.Exit(1)


def _say(report: Report, published: str) -> None:
    for problem in report.problems:
        line = f"{problem.where}: {problem.code}: {problem.message}"
        typer.echo(line.encode("utf-8", "backslashreplace").decode())  # names of files need not be Unicode
    before = f", {report.before} were before (--anew sends these too)" if report.before else ""
    typer.echo(f"{report.published} {published}{before}, {len(report.problems)} not valid")
    if report.journal is not None and report.problems:
        typer.echo("mend these and give the same command again: it sends only what is missing")


def _journals() -> Path | None:
    """The folder of journals (XDG Base Directory: state); None, with a warning, where it cannot be had."""
    try:
        home = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
        folder = home / "streamlearn" / "publish"
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
        reason = "it is not writable"
    except (OSError, RuntimeError) as error:  # no home
        reason = str(error)
    typer.echo(
        f"progress is not kept ({reason}): interrupted, this begins anew; --journal names another place", err=True
    )
    return None
