"""Rows to publish, one after the other: clip messages as records, each with the place where it stands.

Knows lines of JSON and folders of videos; `publish_csv` and `publish_tar` know theirs. Whether a row is a valid clip
message is not asked here. What cannot even be read becomes a `Problem`, and the rows after it are read all the same.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from streamlearn.connectors.folder_readers import VIDEO_SUFFIXES, FilesReader, parsed, record_of
from streamlearn.records import Position, Record

_MAX_LINE_BYTES = 128 * 2**20
_FILES = 64


@dataclass(frozen=True, slots=True)
class Row:
    """One row.

    Attributes:
        where: "path/manifest.jsonl:12", the video file, or "shard.tar:000012".
        record: the clip message; its media a `file:` URI where it is a local file.
        smaller: how else the same clip could be published where this message is too large.
    """

    where: str
    record: Record
    smaller: str = "name the video by path or uri"


@dataclass(frozen=True, slots=True)
class Problem:
    """A row that cannot be published.

    Attributes:
        where: as a row's.
        code: as a dead letter's; `unreadable` for the rest of a file, `no_clips` for a source without any.
        message: what is wrong and how to put it right.
    """

    where: str
    code: str
    message: str


Rows = Iterator[Row | Problem]


def jsonl_rows(path: Path) -> Rows:
    """The lines of a manifest. `path` in a row is relative to the manifest's folder.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        number = 0
        while line := file.readline(_MAX_LINE_BYTES):
            number += 1
            where = f"{path}:{number}"
            if len(line) == _MAX_LINE_BYTES and not line.endswith(b"\n"):
                _skip_line(file)
                yield Problem(where, "message_too_large", f"the line has more than {_MAX_LINE_BYTES} bytes")
            elif line.strip():
                position = Position(str(path), "", number)
                row = parsed(line)
                if row is None:
                    yield Row(where, Record(None, line.rstrip(b"\r\n"), position))
                else:
                    yield Row(where, record_of(row, path.parent, position))


def _skip_line(file: IO[bytes]) -> None:
    while (chunk := file.readline(2**20)) and not chunk.endswith(b"\n"):
        pass


def count_lines(path: Path) -> int:
    """How many rows a JSONL manifest has, blank lines included."""
    with path.open("rb") as file:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(2**20), b""))


def video_rows(folder: Path) -> Rows:
    """The video files of a folder and of those in it, the one changed longest ago first, with their sidecars."""
    reader = FilesReader(folder, folder.name, {}, False)
    while records := reader.read(_FILES):
        for record in records:
            yield Row(str(folder / record.position.partition.rpartition("#")[0]), record)


def count_videos(folder: Path) -> int:
    """How many video files `video_rows` will find."""
    count = 0
    for _, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        count += sum(os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES and not name.startswith(".") for name in names)
    return count
