"""Dead letters as a list, and on their way back into the stream: what `streamlearn dlq` does, without the terminal.

A letter stays where it is. That it was sent again is a mark among the letters, written after the last one was
acknowledged: so a second `replay` sends only what has come since, and what could not be sent, on whichever machine it
runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from streamlearn.connectors.folder_inbox import FolderInbox
from streamlearn.connectors.kafka_client import KafkaOptions
from streamlearn.connectors.kafka_letters import letter_of, lost_value_bytes, mark_of, replay_mark
from streamlearn.connectors.kafka_producer import AcknowledgedProducer, Message
from streamlearn.connectors.kafka_range import read, resolve, whole_topics
from streamlearn.deadletters import Mark, append_mark, read_letters
from streamlearn.errors import SettingsError
from streamlearn.records import Position, Rejected

_FLUSH_LETTERS = 500
_FLUSH_BYTES = 8 * 2**20
_VALUE_BYTES = 400  # of a value, shown


class Letter(NamedTuple):
    """A dead letter and where it lies; `lost_value_bytes` where it had to leave its value out."""

    rejected: Rejected
    partition: str
    offset: int
    lost_value_bytes: int | None = None


class Place(Protocol):
    """Where dead letters lie, and how to send them back to where they came from."""

    def letters(self) -> Iterator[Letter | Mark]:
        """Letters and marks, oldest first within a partition, up to now."""
        ...

    def send(self, letter: Letter) -> str | None:
        """Send one back, with the next `flush` at the latest; or say why it cannot be."""
        ...

    def flush(self) -> None:
        """Return when everything sent is durable."""
        ...

    def mark(self, mark: Mark) -> None:
        """Note what was sent."""
        ...


@dataclass
class Summary:
    """What lies in a place.

    Attributes:
        codes: letters by code.
        replayed: of those, how many were sent again.
        samples: the newest of each code.
    """

    codes: Counter[str] = field(default_factory=Counter)
    replayed: Counter[str] = field(default_factory=Counter)
    samples: dict[str, list[Letter]] = field(default_factory=dict)


@dataclass(frozen=True)
class ReplayedLetters:
    """What was sent back, by code; and what could not be, with the reason."""

    sent: Counter[str]
    problems: tuple[tuple[str, str], ...]


def summarise(place: Place, *, samples: int = 3) -> Summary:
    """Count, and keep a few of each code.

    Raises:
        SourceError: the place is away.
    """
    summary, marks, letters = Summary(), list[Mark](), list[tuple[str, str, int]]()
    for entry in place.letters():
        if isinstance(entry, Mark):
            marks.append(entry)
            continue
        code = entry.rejected.code
        summary.codes[code] += 1
        letters.append((code, entry.partition, entry.offset))
        newest = summary.samples.setdefault(code, [])
        newest.append(entry)
        del newest[:-samples]
    for code, partition, offset in letters:
        summary.replayed[code] += any(mark.covers(code, partition, offset) for mark in marks)
    return summary


def replay(
    place: Place,
    codes: Collection[str] = (),
    *,
    again: bool = False,
    dry_run: bool = False,
    on_progress: Callable[[int], None] = lambda letters: None,
) -> ReplayedLetters:
    """Send letters back to where they came from, each record once, as it was.

    Args:
        place: where they lie.
        codes: which; none: all.
        again: those too that were sent before.
        dry_run: send nothing.
        on_progress: told the letters looked at, now and then.

    Raises:
        SourceError: what was not acknowledged is not marked, and is sent again by the next call.
    """
    marks = [entry for entry in place.letters() if isinstance(entry, Mark)]
    ends: dict[str, int] = {}
    done: dict[Position, str | None] = {}  # and why it could not be sent
    left: dict[str, list[int]] = {}
    sent, problems = Counter[str](), list[tuple[str, str]]()
    for number, entry in enumerate(place.letters(), 1):
        if number % _FLUSH_LETTERS == 0:
            place.flush()
            on_progress(number)
        if isinstance(entry, Mark):
            continue
        rejected, partition, offset, _ = entry
        ends[partition] = offset + 1
        code = rejected.code
        if codes and code not in codes:
            continue
        if not again and any(mark.covers(code, partition, offset) for mark in marks):
            continue
        record = rejected.record
        if record.position not in done:  # a record may lie there twice, after a crash
            problem = done[record.position] = None if dry_run else place.send(entry)
            if problem is None:
                sent[code] += 1
            else:
                problems.append((code, problem))
        if done[record.position] is not None:
            left.setdefault(partition, []).append(offset)
    place.flush()
    if sent and not dry_run:
        place.mark(Mark(tuple(sorted(codes)), ends, left))
    return ReplayedLetters(sent, tuple(problems))


class FilePlace:
    """The file of a source without a place of its own, and the folder that it reads."""

    def __init__(self, path: Path, folder: Path | None) -> None:
        """`folder`: where rows go back to; None: letters can be listed only."""
        self._path = path
        self._inbox = None if folder is None else FolderInbox(folder)

    def letters(self) -> Iterator[Letter | Mark]:
        """Letters and marks, oldest first."""
        for offset, entry in read_letters(self._path):
            yield entry if isinstance(entry, Mark) else Letter(entry, "0", offset)

    def send(self, letter: Letter) -> str | None:
        """Append the row to the manifest again, or touch the file."""
        if self._inbox is None:
            raise SettingsError(
                "these letters come from a source of your own, which alone can take them back; `dlq ls --json` has them"
            )
        return self._inbox.requeue(letter.rejected.record)

    def flush(self) -> None:
        """Each was durable when it was sent."""

    def mark(self, mark: Mark) -> None:
        """Note what was sent."""
        append_mark(self._path, mark)


class KafkaPlace:
    """The dead letter topic of a cluster, whose letters go back to their own topics."""

    def __init__(self, options: KafkaOptions, topic: str) -> None:
        self._options, self._topic = options, topic
        self._producer = AcknowledgedProducer(options, too_large=lambda message: message)
        self._waiting_bytes = 0

    def letters(self) -> Iterator[Letter | Mark]:
        """Letters and marks up to now."""
        for record in read(self._options, resolve(self._options, whole_topics(self._options, [self._topic]))):
            mark = mark_of(record)
            if mark is not None:
                yield Mark.from_json(mark)
            else:
                _, partition, offset = record.position
                yield Letter(letter_of(record), partition, offset, lost_value_bytes(record))

    def send(self, letter: Letter) -> str | None:
        """The original key, value and headers to the original topic."""
        record = letter.rejected.record
        if not record.position.topic:
            return "it has none of our headers: it is no dead letter of streamlearn"
        if letter.lost_value_bytes is not None:
            at = ":".join(map(str, record.position))
            return (
                f"its value of {letter.lost_value_bytes} bytes was too large for {self._topic}; the original is at {at}"
            )
        if record.key is None and record.value is None:
            return "it has neither key nor value"
        # Into its own partition, behind whose records it belongs: the key need not have been what chose it.
        number = record.position.partition
        place = int(number) if number.isdecimal() else None
        self._producer.send(Message(record.position.topic, record.key, record.value, record.headers, place))
        self._waiting_bytes += len(record.value or b"")
        if self._waiting_bytes > _FLUSH_BYTES:
            self.flush()
        return None

    def flush(self) -> None:
        """Return when the broker has acknowledged everything.

        Raises:
            SourceError: it has not.
        """
        self._producer.flush()
        self._waiting_bytes = 0

    def mark(self, mark: Mark) -> None:
        """Note what was sent, in the topic itself."""
        self._producer.send(replay_mark(self._topic, mark.to_json()))
        self._producer.flush()

    def close(self) -> None:
        """Disconnect."""
        self._producer.close()


def describe(letter: Letter) -> dict[str, object]:
    """A letter for a person or a script; of its value the beginning."""
    record = letter.rejected.record
    return {
        "code": letter.rejected.code,
        "stage": letter.rejected.stage,
        "message": letter.rejected.message,
        "topic": record.position.topic,
        "partition": record.position.partition,
        "offset": record.position.offset,
        "timestamp_ms": record.timestamp_ms,
        "key": None if record.key is None else record.key.decode("utf-8", "backslashreplace"),
        "value": None if record.value is None else record.value[:_VALUE_BYTES].decode("utf-8", "backslashreplace"),
        "value_bytes": len(record.value or b""),
        "letter": f"{letter.partition}:{letter.offset}",
    }
