"""Dead letters in a file: for sources that have no place of their own for them.

One JSON object a line. A line that a crash cut short is not a letter: its write was never confirmed, and the record
comes again.
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, NamedTuple

from streamlearn.errors import SourceError
from streamlearn.records import Position, Record, Rejected

log = logging.getLogger(__name__)

_MAX_WAITING_BYTES = 16 * 2**20  # before a flush that nobody asked for


class FileDeadLetters:
    """Appends to a file, and to disk at `flush`."""

    def __init__(self, path: Path) -> None:
        """Opens the file with the first letter: a stream without one leaves no file.

        Args:
            path: made, with its folders, when it is not there.
        """
        self._path = path
        self._file: BinaryIO | None = None
        self._unwritten: list[bytes] = []
        self._waiting_bytes = 0

    @property
    def full(self) -> bool:
        """Whether more waits than should, because the disk did not take it."""
        return self._waiting_bytes > _MAX_WAITING_BYTES

    def write(self, rejected: Rejected) -> None:
        """Take one rejected record."""
        was_full = self.full
        self._unwritten.append(json.dumps(_to_json(rejected)).encode() + b"\n")
        self._waiting_bytes += len(self._unwritten[-1])
        if self.full and not was_full:
            with contextlib.suppress(
                SourceError
            ):  # not lost: the caller's flush raises if they still cannot be written
                self.flush()

    def flush(self) -> None:
        """Return when everything written is on disk.

        Raises:
            SourceError: it is not (no room, no permission); everything is kept for the next flush.
        """
        if not self._unwritten:
            return
        try:
            if self._file is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self._path.open("ab", buffering=0)
                _sync_folder(self._path.parent)
            _cut_torn_line(self._path)
            data = memoryview(b"".join(self._unwritten))
            while data:  # a write to a nearly full disk is short before it fails
                data = data[self._file.write(data) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            self.close()
            raise SourceError(f"dead letters cannot be written to {self._path}: {error.strerror or error}") from error
        self._unwritten.clear()
        self._waiting_bytes = 0

    def close(self) -> None:
        """Close the file; call `flush` first."""
        if self._file is not None:
            self._file.close()
            self._file = None


class Mark(NamedTuple):
    """Letters of these codes (all, if none) that lie before these offsets of their partition were sent again.

    Attributes:
        left: the offsets of those among them that were not, because they could not be.
    """

    codes: tuple[str, ...]
    ends: Mapping[str, int]
    left: Mapping[str, Collection[int]] = MappingProxyType({})

    def covers(self, code: str, partition: str, offset: int) -> bool:
        """Whether a letter is among them."""
        asked = not self.codes or code in self.codes
        return asked and offset < self.ends.get(partition, 0) and offset not in self.left.get(partition, ())

    def to_json(self) -> dict[str, Any]:
        """As it is written."""
        return {
            "replayed": list(self.codes),
            "ends": dict(self.ends),
            "left": {partition: sorted(offsets) for partition, offsets in self.left.items()},
        }

    @classmethod
    def from_json(cls, mark: Mapping[str, Any]) -> Mark:
        """As it was written, also by who knew of nothing that is left."""
        left = {partition: frozenset(offsets) for partition, offsets in mark.get("left", {}).items()}  # asked a letter
        return cls(tuple(mark["replayed"]), mark["ends"], left)


def read_dead_letters(path: Path) -> Iterator[Rejected]:
    """The letters of a file, oldest first; none if there is no file.

    A record whose flush failed half-way, or that was read again after a crash, may be there twice.
    """
    for _, entry in read_letters(path):
        if isinstance(entry, Rejected):
            yield entry


def read_letters(path: Path) -> Iterator[tuple[int, Rejected | Mark]]:
    """Letters and marks with the byte at which they begin."""
    if not path.exists():
        return
    offset = 0
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                try:
                    entry = json.loads(line)
                except ValueError:  # torn by a crash, before a mark; its record is read again after the crash
                    log.warning("%s: the line at byte %d is no letter and is passed over", path, offset)
                else:
                    yield (
                        offset,
                        Mark.from_json(entry) if "replayed" in entry else _from_json(entry),
                    )
            offset += len(line)


def append_mark(path: Path, mark: Mark) -> None:
    """Note what was sent again; a daemon may be writing to the file.

    Raises:
        SourceError: it cannot be written.
    """
    try:
        # One write of one line: letters that are appended meanwhile come before or after it.
        line = json.dumps(mark.to_json()).encode() + b"\n"
        with path.open("a+b", buffering=0) as file:
            if end := file.seek(0, os.SEEK_END):
                file.seek(end - 1)
                line = line if file.read(1) == b"\n" else b"\n" + line  # not onto what a crash cut short
            file.write(line)
            os.fsync(file.fileno())
    except OSError as error:
        raise SourceError(
            f"{path} cannot be written: {error.strerror or error}; the letters were sent again"
        ) from error


def _to_json(rejected: Rejected) -> dict[str, Any]:
    record = rejected.record
    return {
        "code": rejected.code,
        "stage": rejected.stage,
        "message": rejected.message,
        "topic": record.position.topic,
        "partition": record.position.partition,
        "offset": record.position.offset,
        "timestamp": record.timestamp_ms,
        "key": _encode(record.key),
        "value": _encode(record.value),
        "headers": [[name, _encode(value)] for name, value in record.headers],
    }


def _from_json(letter: dict[str, Any]) -> Rejected:
    record = Record(
        key=_decode(letter["key"]),
        value=_decode(letter["value"]),
        position=Position(letter["topic"], letter["partition"], letter["offset"]),
        headers=tuple((name, base64.b64decode(value)) for name, value in letter["headers"]),
        timestamp_ms=letter["timestamp"],
    )
    return Rejected(record, letter["code"], letter["stage"], letter["message"])


def _encode(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(data).decode()


def _decode(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text)


def _cut_torn_line(path: Path) -> None:
    """Make the file end with a whole line, or be empty: what follows a torn one would be unreadable."""
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        keep = end
        while keep:
            start = max(0, keep - 2**16)
            file.seek(start)
            newline = file.read(keep - start).rfind(b"\n")
            if newline >= 0:
                keep = start + newline + 1
                break
            keep = start
        if keep < end:
            file.truncate(keep)


def _sync_folder(folder: Path) -> None:
    """A new file's name is durable only when its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
