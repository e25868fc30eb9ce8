"""Writing into the folder that a folder source reads: rows at the end of its manifest, media beside it.

It knows files and rows, and nothing of who reads them. A row is appended whole and is on disk before a call returns.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from streamlearn.connectors.folder_readers import MANIFEST, FilesReader, known_name
from streamlearn.errors import SourceError, SourceRefusedError
from streamlearn.records import Partition, Record

MEDIA_FOLDER = "posted"


class FolderInbox:
    """The writing end of a folder; a `streamlearn.source.Publisher` too.

    Args:
        folder: that the source reads.
        watched: whether what is written will be read.
    """

    def __init__(self, folder: Path, *, watched: bool = True) -> None:
        self._folder = folder.resolve()
        self._watched = watched
        self._lock = threading.Lock()
        self._manifest = self._folder / MANIFEST

    def put(self, message: dict[str, Any], media: bytes | None, partition: Partition | None = None) -> None:
        """Append a clip message, with the bytes of its video in a file of their own.

        Raises:
            SourceRefusedError: the folder cannot be written, or is read by its files.
            SourceError: somebody else is writing the manifest's last row; try again.
        """
        self._need_manifest()
        with self._writing():
            if media is not None:
                message = message | {"path": self._store(media)}
            self._append(json.dumps(message).encode())

    def delete(self, video_id: str, partition: Partition | None = None) -> None:
        """Append that a clip goes.

        Raises:
            SourceError: as `put`.
        """
        self._need_manifest()
        with self._writing():
            self._append(json.dumps({"video_id": video_id, "deleted": True}).encode())

    def close(self) -> None:
        """Nothing is kept open."""

    def requeue(self, record: Record) -> str | None:
        """Let a record be read again: its row is appended, its file touched. Returns why that cannot be, or None.

        Raises:
            SourceError: as `put`.
        """
        name = known_name(record.position.partition)
        if name == MANIFEST:
            with self._writing():
                if record.value is None:
                    row = (
                        {"deleted": True} if record.key is None else {"video_id": record.key.decode(), "deleted": True}
                    )
                    self._append(json.dumps(row).encode())
                else:
                    self._append(record.value)
            return None
        path = self._folder / name
        if not path.is_file():
            return f"{path} is gone"
        with self._writing():
            os.utime(path)
        return None

    def _need_manifest(self) -> None:
        if not self._watched:
            raise SourceRefusedError("folder.watch is off, so nothing that is added will be read: set it")
        if not self._manifest.exists() and FilesReader(self._folder, "", {}, False).read(1):
            raise SourceRefusedError(
                f"{self._folder} is read by its video files: put the video and its .txt or .json there; deleting, and"
                f" clips over HTTP, need a {MANIFEST}"
            )

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            with self._lock:
                yield
        except OSError as error:
            raise SourceRefusedError(
                f"{self._folder} cannot be written ({error.strerror or error}): let the daemon write there, or add the"
                f" row to its {MANIFEST} yourself"
            ) from error

    def _append(self, row: bytes) -> None:
        descriptor = os.open(self._manifest, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            line = row.replace(b"\n", b" ") + b"\n"
            if not self._ends_with_a_row(descriptor):
                line = b"\n" + line
            written = os.write(descriptor, line)
            if written < len(line):  # a disk that has just filled up; a torn row would take the next one with it
                os.ftruncate(descriptor, os.fstat(descriptor).st_size - written)
                raise OSError(28, "No space left on device")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _ends_with_a_row(self, descriptor: int) -> bool:
        """Whether the last line has its end; a row that is complete but for that may get it from us."""
        size = os.fstat(descriptor).st_size
        if size == 0 or os.pread(descriptor, 1, size - 1) == b"\n":
            return True
        tail = os.pread(descriptor, min(size, 2**20), max(0, size - 2**20))
        try:
            json.loads(tail.rpartition(b"\n")[2])
        except ValueError:
            raise SourceError(f"the last row of {self._manifest} is still being written: try again") from None
        return False

    def _store(self, media: bytes) -> str:
        """Under a name of its content, so that the same clip sent twice is stored once."""
        relative = f"{MEDIA_FOLDER}/{hashlib.sha256(media).hexdigest()[:32]}.video"
        path = self._folder / relative
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            aside = path.with_suffix(f".{os.getpid()}.part")
            with aside.open("wb") as file:
                file.write(media)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        return relative
