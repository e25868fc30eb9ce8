"""A folder as a source: the rows of its `manifest.jsonl`, or else its video files with their sidecars.

Knows when to look and when to wait; `folder_readers` knows what is there. A video is best moved into place, or given
its row or sidecar last; one without a manifest that is caught half-written is read again as its file goes on changing.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Event
from typing import Any

from streamlearn.connectors.folder_inbox import FolderInbox
from streamlearn.connectors.folder_readers import MANIFEST, FilesReader, ManifestReader
from streamlearn.errors import SettingsError, SourceError
from streamlearn.records import Offsets, Partition, Record
from streamlearn.source import EndOfStream


class FolderSource:
    """Reads a folder once, or follows it as it grows.

    Args:
        path: the folder.
        watch: whether to wait for more; otherwise the stream ends with what is there.
        poll_interval_s: how often a folder with nothing new is looked at.
        max_records: handed over by one poll.
    """

    def __init__(self, path: Path, *, watch: bool, poll_interval_s: float, max_records: int = 64) -> None:
        self._folder = path.resolve()
        self._topic = self._folder.name or "folder"
        self._watch = watch
        self._poll_interval_s = poll_interval_s
        self._max_records = max_records
        self._paused = False
        self._ended = False
        self._closed = False
        self._nudged = Event()  # to end a wait: look, or be closed
        self._look_at_s = -float("inf")
        self._offsets: Offsets = {}
        self._reader: ManifestReader | FilesReader = FilesReader(self._folder, self._topic, {}, watch)

    @classmethod
    def from_settings(cls, settings: Any) -> FolderSource:
        """Build from `folder.path`, `folder.watch` and `folder.poll_interval_s`."""
        folder = settings.folder
        return cls(folder.path, watch=folder.watch, poll_interval_s=folder.poll_interval_s)

    def publisher(self) -> FolderInbox:
        """Where clips that come over HTTP go: the folder's own manifest."""
        return FolderInbox(self._folder, watched=self._watch)

    def start(self, offsets: Offsets) -> None:
        """Begin at `offsets`; one inside a manifest's line means the line after it.

        Raises:
            SettingsError: there is no such folder.
        """
        if not self._folder.is_dir():
            raise SettingsError(
                f"folder.path = {str(self._folder)!r}: there is no such folder; make it or name another"
            )
        self._offsets = offsets
        self._reader = FilesReader(self._folder, self._topic, offsets, self._watch)
        self._prefer_manifest()

    def poll(self, timeout_s: float) -> Sequence[Record]:
        """Return the next records, waiting up to `timeout_s` where there are none; `look` and `close` end the wait.

        Raises:
            EndOfStream: everything is delivered, and the folder is not watched.
            SourceError: the folder or its manifest cannot be read.
        """
        deadline_s = time.monotonic() + timeout_s
        while not self._closed:
            if self._ended:
                raise EndOfStream
            if not self._paused and time.monotonic() >= self._look_at_s:
                if records := self._look():
                    return records
                self._ended = not self._watch
                self._look_at_s = time.monotonic() + self._poll_interval_s
                continue
            until_s = deadline_s if self._paused else min(deadline_s, self._look_at_s)
            if self._nudged.wait(max(0.0, until_s - time.monotonic())):
                self._nudged.clear()  # before looking: what is written after that asks for another look
                self._look_at_s = -float("inf")
            elif time.monotonic() >= deadline_s:
                break
        return []

    def look(self) -> None:
        """Let `poll` look at once, as something was written; from any thread."""
        self._nudged.set()

    def pause(self) -> None:
        """Read nothing until `resume`."""
        self._paused = True

    def resume(self) -> None:
        """Read again, at once."""
        self._paused = False
        self._look_at_s = -float("inf")

    def commit(self, offsets: Offsets) -> None:
        """Do nothing: a folder keeps no account of its readers."""

    def lag(self) -> Mapping[Partition, int]:
        """Rows beyond the last one delivered, or files found and not yet delivered, under one key."""
        return {Partition(self._topic, "0"): self._reader.pending()}

    def close(self) -> None:
        """End a waiting `poll`; from any thread."""
        self._closed = True
        self._nudged.set()

    def _look(self) -> list[Record]:
        if not self._folder.is_dir():
            raise SourceError(f"{self._folder} is gone")
        self._prefer_manifest()
        try:
            return self._reader.read(self._max_records)
        except OSError as error:
            raise SourceError(f"{self._folder} cannot be read: {error}") from error

    def _prefer_manifest(self) -> None:
        # Asked again until something is delivered: who fills a watched folder may begin only after us.
        if isinstance(self._reader, FilesReader) and not self._reader.delivered and (self._folder / MANIFEST).exists():
            self._reader = ManifestReader(self._folder, self._topic, self._offsets, self._watch)
