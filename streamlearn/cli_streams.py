"""The verbs around the stream: replay a range of the log, look at dead letters and send them again."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from streamlearn.cli_common import AsJson, ConfigFile, Overrides, console, settings_of
from streamlearn.cli_progress import progress
from streamlearn.errors import SettingsError
from streamlearn.settings import Settings

if TYPE_CHECKING:
    from streamlearn.dlq import Place

err = Console(stderr=True)


def replay(
    ranges: Annotated[
        list[str] | None,
        typer.Option(
            "--range", help="May be given several times; END is not read.", metavar="TOPIC:PARTITION:START:END"
        ),
    ] = None,
    from_time: Annotated[
        datetime | None, typer.Option(help="All partitions of kafka.topics from this time on, UTC unless it says.")
    ] = None,
    from_offset: Annotated[int | None, typer.Option(min=0, help="All partitions from this offset on.")] = None,
    config: ConfigFile = None,
    override: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Learn a range of the log into the state directory and end; exit 1 where it ends early.

    Without an end of its own a range ends where the log ends now. Nothing is committed to the broker.
    """
    from streamlearn.connectors.kafka_range import parse_range, resolve, since, whole_topics
    from streamlearn.process import setup_logging, stop_signal
    from streamlearn.replay import replay as learn

    if sum(bool(given) for given in (ranges, from_time, from_offset is not None)) != 1:
        raise typer.BadParameter("give one of --range, --from-time and --from-offset")
    # It answers searches meanwhile, but must not be in the way of the daemon that runs.
    here = ["log.level=warning", "api.host=127.0.0.1", "api.port=0"]
    settings = settings_of(config, [*here, *(override or [])])
    if ranges:
        wanted = [parse_range(text) for text in ranges]
    elif from_time:
        moment = from_time if from_time.tzinfo else from_time.replace(tzinfo=UTC)
        wanted = since(settings.kafka, round(1000 * moment.timestamp()))
    else:
        wanted = [each._replace(start=from_offset) for each in whole_topics(settings.kafka)]
    found = resolve(settings.kafka, wanted)
    if not found:
        raise SettingsError("the log holds nothing there; nothing was learned")
    setup_logging(settings.log)
    stop = stop_signal()
    with progress("learning") as told:
        report = learn(settings, found, stop=stop, on_progress=told)
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(report)))
    else:
        counts = ", ".join(f"{number} {outcome}" for outcome, number in report.counts.items() if number)
        typer.echo(f"{', '.join(report.ranges)} {'learned' if report.finished else 'not finished'}")
        typer.echo(f"{settings.state_dir}, generation {report.generation}: {counts or 'nothing learned'}")
    if not report.finished:
        err.print(report.detail or "stopped; the same command goes on from here", markup=False, highlight=False)
        raise typer.Exit(1)


dlq = typer.Typer(no_args_is_help=True, help="Dead letters: what was rejected, and sending it again after a fix.")

Topic = Annotated[str | None, typer.Option(help="Another topic than kafka.dead_letter_topic.")]
File = Annotated[
    Path | None, typer.Option("--file", help="Another file than dead_letters.jsonl of the state directory.")
]


@dlq.command("ls")
def dlq_ls(
    samples: Annotated[int, typer.Option(min=0, help="Of each code, the newest.")] = 1,
    topic: Topic = None,
    file: File = None,
    config: ConfigFile = None,
    override: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Count dead letters by code and show some: those in a Kafka source's topic, otherwise in the state directory."""
    from streamlearn.dlq import describe, summarise

    with dead_letters(settings_of(config, override), topic, file) as (name, place):
        summary = summarise(place, samples=samples)
    if as_json:
        codes = {
            code: {
                "letters": number,
                "replayed": summary.replayed[code],
                "samples": [describe(letter) for letter in summary.samples.get(code, ())],
            }
            for code, number in summary.codes.most_common()
        }
        typer.echo(json.dumps({"from": name, "letters": summary.codes.total(), "codes": codes}))
        return
    table = Table("code", "letters", "sent again", "sample")
    for code, number in summary.codes.most_common():
        shown = [describe(letter) for letter in summary.samples.get(code, ())]
        lines = [f"{s['topic']}:{s['partition']}:{s['offset']} key {s['key']!r}: {s['message']}" for s in shown]
        table.add_row(code, str(number), str(summary.replayed[code] or ""), Text("\n".join(lines)))
    console().print(table)
    typer.echo(f"{summary.codes.total()} dead letters in {name}")


@dlq.command("replay")
def dlq_replay(
    code: Annotated[list[str] | None, typer.Option("--code", help="Only these; may be given several times.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Also those that were sent again before.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be sent.")] = False,
    topic: Topic = None,
    file: File = None,
    config: ConfigFile = None,
    override: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Send dead letters back where they came from: key, value and headers as they were; exit 1 where some cannot be.

    A clip that has come in a better version since is replaced by the letter's: choose by --code.
    """
    from streamlearn.dlq import replay as send_again
    from streamlearn.errors import CODES

    known = {each for stage in CODES.values() for each in stage}
    if unknown := set(code or ()) - known:
        raise typer.BadParameter(f"there is no code {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    with dead_letters(settings_of(config, override), topic, file) as (name, place), progress("letters") as told:
        report = send_again(
            place, code or (), again=again, dry_run=dry_run, on_progress=lambda letters: told(letters, None, "")
        )
    if as_json:
        typer.echo(json.dumps({"from": name, "sent": report.sent, "problems": report.problems, "dry_run": dry_run}))
    else:
        for problem_code, problem in report.problems:
            typer.echo(f"{problem_code}: {problem}")
        each = ", ".join(f"{number} {sent}" for sent, number in report.sent.most_common())
        typer.echo(
            f"{'would send' if dry_run else 'sent'} {report.sent.total()} again from {name}" + (each and f": {each}")
        )
    if report.problems:
        raise typer.Exit(1)


@contextmanager
def dead_letters(settings: Settings, topic: str | None, file: Path | None) -> Iterator[tuple[str, Place]]:
    """Where the dead letters of these settings lie, with a name for it."""
    from streamlearn.connectors.folder import FolderSource
    from streamlearn.dlq import FilePlace, KafkaPlace
    from streamlearn.source import load_source_class

    if topic is not None and file is not None:
        raise typer.BadParameter("give --topic or --file, not both")
    source = load_source_class(settings.source)
    if topic is not None or (file is None and hasattr(source, "dead_letters")):
        name = topic or settings.kafka.dead_letter_topic
        with closing(KafkaPlace(settings.kafka, name)) as place:
            yield f"topic {name}", place
        return
    path = file or settings.state_dir / "dead_letters.jsonl"
    if file is not None and not file.is_file():
        raise SettingsError(f"--file {file}: there is no such file")
    yield str(path), FilePlace(path, settings.folder.path if issubclass(source, FolderSource) else None)
