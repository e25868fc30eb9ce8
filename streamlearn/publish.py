"""Folders and manifests of clips to a Kafka topic: what `streamlearn publish` does, without the terminal.

The media stays where it is and the message names it, unless it is asked for inline. What the broker has acknowledged
is in a journal, so that the same publication, started again, sends the rest. Sending twice is harmless: the same
`video_id` replaces.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from streamlearn.connectors.kafka_client import KafkaOptions
from streamlearn.connectors.kafka_producer import AcknowledgedProducer, Message
from streamlearn.connectors.kafka_topic import writable_topic
from streamlearn.errors import SourceError
from streamlearn.publish_journal import Entry, Journal, publication_name
from streamlearn.publish_messages import Outgoing, Rules, check, outgoing
from streamlearn.publish_pace import Pace
from streamlearn.publish_rows import Problem, Rows
from streamlearn.publish_sources import rows_of

_FLUSH_ROWS = 500
_FLUSH_BYTES = 8 * 2**20


@dataclass(frozen=True, slots=True)
class Report:
    """What became of all rows.

    Attributes:
        published: acknowledged now; the valid ones where nothing was to be sent.
        before: acknowledged by an earlier run that did not come to its end.
        problems: of the others.
        journal: where that is kept as long as rows are missing, so that the same again sends them alone; else None.
    """

    published: int
    before: int
    problems: tuple[Problem, ...]
    journal: Path | None = None


def validate(paths: Sequence[Path], rules: Rules, *, on_progress: Callable[[int], None] = lambda rows: None) -> Report:
    """Look at every row as `publish` would, and connect nowhere.

    Args:
        paths: folders (with a manifest.jsonl, or videos with sidecars), and files: .jsonl, .csv, .tsv, .tar.
        rules: what is valid.
        on_progress: told the rows read so far, now and then.

    Raises:
        SettingsError: a path is none of these.
    """
    problems: list[Problem] = []
    number = 0
    for number, row in enumerate(rows_of(paths, max_bytes=rules.max_bytes), 1):
        checked = check(row, rules)
        found = checked if isinstance(checked, Problem) else outgoing(checked, rules)
        if isinstance(found, Problem):
            problems.append(found)
        if number % _FLUSH_ROWS == 0:
            on_progress(number)
    on_progress(number)
    return Report(number - len(problems), 0, tuple(problems))


def publish(
    paths: Sequence[Path],
    rules: Rules,
    options: KafkaOptions,
    *,
    topic: str,
    journal: Path | None = None,
    anew: bool = False,
    pace: Pace | None = None,
    on_progress: Callable[[int], None] = lambda rows: None,
) -> Report:
    """Publish every valid row; list the others.

    Args:
        paths: as for `validate`.
        rules: what is valid.
        options: where and how to connect.
        topic: where to publish.
        journal: a file, or a folder where each publication has its own; None: an interrupted run begins anew.
        anew: send what an interrupted run has sent, too.
        pace: how fast.
        on_progress: told the rows read so far, now and then.

    Raises:
        SettingsError: a path is none of these, an option is wrong, or the journal is in use.
        SourceError: Kafka is away, or refuses us; what was acknowledged before is in the journal.
        StateError: the journal cannot be written any more.
    """
    rows = rows_of(paths, max_bytes=rules.max_bytes)
    name = publication_name(writable_topic(options, topic), paths, inline=rules.inline)
    notes, finished = Journal(journal, name), False
    try:
        if anew:
            notes.forget()
        with closing(_Outlet(options, topic, notes)) as outlet:
            try:
                before = outlet.send_all(rows, rules, pace or Pace(None), on_progress)
            except SourceError as error:
                raise type(error)(f"{error}; {outlet.published} clips were published") from error
        finished = not outlet.problems
    finally:
        notes.close(finished=finished)
    return Report(outlet.published, before, tuple(outlet.problems), None if finished else notes.path)


@dataclass
class _Waiting:
    message: Message
    where: str
    smaller: str
    entry: Entry
    refused: bool = False


class _Outlet:
    """Sends messages, and notes in the journal which were acknowledged, also where a flush fails."""

    def __init__(self, options: KafkaOptions, topic: str, journal: Journal) -> None:
        self.published = 0
        self.problems: list[Problem] = []
        self._topic, self._journal = topic, journal
        self._waiting: deque[_Waiting] = deque()  # as the producer has them, and in its order
        self._waiting_bytes = 0
        self._producer = AcknowledgedProducer(options, too_large=self._refused)

    def send_all(self, rows: Rows, rules: Rules, pace: Pace, on_progress: Callable[[int], None]) -> int:
        """Send what is due; returns how many rows were acknowledged before."""
        number = before = 0

        def flush() -> None:
            self._flush()
            on_progress(number)

        for number, row in enumerate(rows, 1):
            if isinstance(checked := check(row, rules), Problem):
                self.problems.append(checked)
            elif (entry := self._journal.due(checked.video_id, checked.digest())) is None:
                before += 1
            elif isinstance(message := outgoing(checked, rules), Problem):
                self.problems.append(message)
            else:
                pace.take(flush)
                self._send(checked.row.where, message, entry)
            if number % _FLUSH_ROWS == 0 or self._waiting_bytes >= _FLUSH_BYTES:
                flush()
        flush()
        return before

    def _send(self, where: str, outgoing: Outgoing, entry: Entry) -> None:
        message = Message(self._topic, outgoing.key, outgoing.value)
        self._journal.begin(entry)
        self._waiting.append(_Waiting(message, where, outgoing.smaller, entry))
        self._waiting_bytes += len(message.value or b"")
        self._producer.send(message)

    def _flush(self) -> None:
        """Return when all is acknowledged and noted."""
        self._journal.note()  # ahead of the broker: a row that is sent anew counts as sent no longer
        try:
            self._producer.flush()
        finally:
            done = [self._waiting.popleft() for _ in range(len(self._waiting) - len(self._producer))]
            acknowledged = [each.entry for each in done if not each.refused]
            self.published += len(acknowledged)
            self._waiting_bytes = sum(len(each.message.value or b"") for each in self._waiting)
            self._journal.note(acknowledged)

    def close(self) -> None:
        """Disconnect; what is not flushed is not sent."""
        self._producer.close()

    def _refused(self, message: Message) -> None:
        (each,) = (each for each in self._waiting if each.message is message)
        each.refused = True
        size = len(message.value or b"")
        said = f"the topic takes no message of {size} bytes; raise its max.message.bytes, or {each.smaller}"
        self.problems.append(Problem(each.where, "message_too_large", said))
