"""The two ways of reading a folder: the lines of a growing manifest, and video files beside their sidecars.

Each knows its records by what they are, not by where the folder lies: a folder that was moved goes on, another one of
the same name begins. Both give clip messages whose media is a `file://` URI. What cannot be understood is passed on as
it is, so that it becomes a dead letter and is never silently dropped. Neither waits, nor opens a video.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import deque
from pathlib import Path
from typing import IO, Any

from streamlearn.records import Offsets, Partition, Position, Record

MANIFEST = "manifest.jsonl"
#: Files that are taken for videos where there is no manifest.
VIDEO_SUFFIXES = frozenset(
    (".3gp", ".avi", ".flv", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".webm", ".wmv")
)
_HELDOUT_SPLITS = ("val", "validation", "test")
_HEAD_BYTES = 2**16  # of a manifest's first line, by which it is known
_MAX_BYTES = 128 * 2**20  # of one line or sidecar, and about of what one poll returns

_log = logging.getLogger(__name__)


class ManifestReader:
    """One partition: a record is a line, its offset the byte at which the line starts.

    The partition is named after the manifest's first line, which stays when rows are appended: offsets of another
    manifest of the same name do not count. An incomplete last line is not delivered while the folder is watched.
    """

    def __init__(self, folder: Path, topic: str, offsets: Offsets, watch: bool) -> None:
        self._folder = folder
        self._path = folder / MANIFEST
        self._topic = topic
        self._offsets = offsets
        self._watch = watch
        self._partition: Partition | None = None
        self._begin(0)

    def _begin(self, offset: int) -> None:
        self._next = offset
        self._aligned = offset <= 0  # whether `_next` is known to be the start of a line
        self._counted = offset  # up to here lines have been counted,
        self._ahead = 0  # and so many of them lie beyond `_next`

    def read(self, limit: int) -> list[Record]:
        """Return up to `limit` records from the next line on; none for now, or no more."""
        records: list[Record] = []
        with self._path.open("rb") as file:
            if not self._identify(file):
                return []
            size = os.fstat(file.fileno()).st_size
            if size < self._next:
                _log.warning(
                    "%s has %d bytes, fewer than the %d already read: it was cut or replaced; it is read again,"
                    " clips that are known are replaced by themselves",
                    *(self._path, size, self._next),
                )
                self._begin(0)
            if not self._align(file):
                return []
            taken = 0
            while len(records) < limit and (taken < _MAX_BYTES or not records):
                line = file.readline(_MAX_BYTES)
                complete = line.endswith(b"\n")
                if not line or (self._watch and not complete and len(line) < _MAX_BYTES):
                    break  # the end, or a row that is still being written
                if line.strip():
                    records.append(self._record(line.rstrip(b"\r\n")))
                self._next, self._aligned = file.tell(), complete
                self._ahead = max(0, self._ahead - 1)
                taken += len(line)
                if not complete:
                    break  # what follows, if anything, is the rest of the same line
        return records

    def pending(self) -> int:
        """Count the lines beyond the last one delivered; only what was appended since the last count is read."""
        try:
            with self._path.open("rb") as file:
                if not self._identify(file) or not self._align(file):
                    return 0
                if self._counted < self._next:
                    self._counted, self._ahead = self._next, 0
                file.seek(self._counted)
                while chunk := file.read(2**20):
                    self._ahead += chunk.count(b"\n")
                    self._counted += len(chunk)
        except OSError:
            pass  # `read` will say it
        return self._ahead

    def _identify(self, file: IO[bytes]) -> bool:
        """Find the partition, and where to go on in it; False where there is no first line yet."""
        head = file.readline(_HEAD_BYTES)
        if not head or (self._watch and len(head) < _HEAD_BYTES and not head.endswith(b"\n")):
            return False
        name = f"{MANIFEST}#{hashlib.sha256(head.rstrip()).hexdigest()[:12]}"
        if self._partition is not None and self._partition.partition == name:
            return True
        if self._partition is not None:
            _log.warning("%s begins with another line than before: it was replaced, and is read anew", self._path)
        self._partition = Partition(self._topic, name)
        # Checkpoints of earlier versions knew a manifest by its folder's name alone.
        known = any(p.topic == self._topic and p.partition.startswith(f"{MANIFEST}#") for p in self._offsets)
        begin = 0 if known else self._offsets.get(Partition(self._topic, MANIFEST), 0)
        self._begin(self._offsets.get(self._partition, begin))
        return True

    def _align(self, file: IO[bytes]) -> bool:
        """Go to `_next`, moved to the start of a line; False where no line has started there yet."""
        if not self._aligned:
            file.seek(self._next - 1)
            while not (chunk := file.readline(2**20)).endswith(b"\n"):
                if not chunk:
                    return False
            self._next, self._aligned = file.tell(), True
        file.seek(self._next)
        return True

    def _record(self, line: bytes) -> Record:
        assert self._partition is not None
        position = Position(*self._partition, self._next)
        row = parsed(line)
        if row is None:
            return Record(None, line, position)
        return record_of(row, self._folder, position)


class FilesReader:
    """A partition a file of a size: its offset is its time of change in nanoseconds.

    So a replaced file is read again, also one that is older than its predecessor, as in another folder of this name.
    """

    def __init__(self, folder: Path, topic: str, offsets: Offsets, watch: bool) -> None:
        self._folder = folder
        self._topic = topic
        self._watch = watch
        self._next = {p.partition: offset for p, offset in offsets.items() if p.topic == topic}
        self._found: deque[tuple[int, str, int]] = deque()  # (mtime_ns, path below the folder, bytes)
        self.delivered = False

    def read(self, limit: int) -> list[Record]:
        """Return up to `limit` records, the file changed longest ago first; looks for more when none are left."""
        if not self._found:
            self._found.extend(sorted(self._scan()))
        records = [self._record(*self._found.popleft()) for _ in range(min(limit, len(self._found)))]
        self.delivered = self.delivered or bool(records)
        return records

    def pending(self) -> int:
        """Count the files found and not yet delivered."""
        return len(self._found)

    def _scan(self) -> list[tuple[int, str, int]]:
        found = []
        for root, folders, names in os.walk(self._folder):
            folders[:] = [name for name in folders if not name.startswith(".")]
            present = set(names)
            for name in names:
                stem, suffix = os.path.splitext(name)
                if suffix.lower() not in VIDEO_SUFFIXES or name.startswith("."):
                    continue
                if self._watch and not present & {f"{stem}.json", f"{stem}.txt"}:
                    continue  # its sidecar is still to come
                path = os.path.join(root, name)
                try:
                    status = os.stat(path)
                except OSError:
                    continue  # gone again, or a link to nowhere
                relative = os.path.relpath(path, self._folder)
                if status.st_mtime_ns >= self._expected(relative, status.st_size):
                    found.append((status.st_mtime_ns, relative, status.st_size))
        return found

    def _expected(self, relative: str, size: int) -> int:
        # Checkpoints of earlier versions knew a file by its path alone.
        name = printable(relative)
        return self._next.get(f"{name}#{size}", self._next.get(name, 0))

    def _record(self, mtime_ns: int, relative: str, size: int) -> Record:
        partition, stem = f"{printable(relative)}#{size}", os.path.splitext(relative)[0]
        self._next[partition] = mtime_ns + 1
        position = Position(self._topic, partition, mtime_ns)
        row = self._row(stem)
        if isinstance(row, bytes):
            return Record(printable(stem).encode(), row, position, timestamp_ms=mtime_ns // 1_000_000)
        if "id" not in row:
            row.setdefault("video_id", printable(stem))
        return record_of(row | {"path": relative}, self._folder, position)

    def _row(self, stem: str) -> dict[str, Any] | bytes:
        """What the sidecar says; its bytes where they cannot be understood."""
        if (content := _content(self._folder / f"{stem}.json")) is not None:
            return parsed(content) or content
        if (content := _content(self._folder / f"{stem}.txt")) is not None:
            try:
                lines = content.decode("utf-8-sig").splitlines()
            except UnicodeDecodeError:
                return content
            return {"captions": [line.strip() for line in lines if line.strip()]}
        return {}


def _content(path: Path) -> bytes | None:
    """What a sidecar holds; None where it is absent or cannot be read, which leaves its clip without captions."""
    try:
        with path.open("rb") as file:
            return file.read(_MAX_BYTES)
    except OSError:
        return None


def parsed(line: bytes) -> dict[str, Any] | None:
    """A JSON object, or None where the bytes are none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # not JSON, not UTF-8, a number of absurd length; or absurdly nested
        return None
    return row if isinstance(row, dict) else None


def record_of(row: dict[str, Any], folder: Path | None, position: Position) -> Record:
    """A row as a clip message: `id`, `path` and the usual names of splits are put into the contract's terms.

    `"deleted": true` makes it a tombstone.

    Args:
        row: is changed.
        folder: what `path` is relative to; None: no file is meant by it.
        position: of the row.
    """
    if "id" in row and "video_id" not in row and "specversion" not in row:  # a CloudEvent's id is its own
        row["video_id"] = row.pop("id")
    video_id = row.get("video_id")
    key = video_id.encode("utf-8", "backslashreplace") if isinstance(video_id, str) else None
    if row.get("deleted") is True:
        return Record(key, None, position)
    if row.get("split") in _HELDOUT_SPLITS:
        row["split"] = "heldout"
    timestamp_ms = None
    if folder is not None and isinstance(row.get("path"), str):
        try:
            path = (folder / row["path"]).resolve()
            row["uri"] = path.as_uri()
            del row["path"]
            timestamp_ms = path.stat().st_mtime_ns // 1_000_000
        except (OSError, ValueError, RuntimeError):
            pass  # no file, or no possible path: whoever validates or fetches has the words for it
    return Record(key, json.dumps(row).encode(), position, timestamp_ms=timestamp_ms)


def known_name(partition: str) -> str:
    """What a partition is called without that by which it is told from others of the name."""
    return partition.rpartition("#")[0] or partition


def printable(path: str) -> str:
    """A path as text that can be stored: names that are not UTF-8 have their bytes escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace").replace(os.sep, "/")
