"""Clips that are being deleted: their tombstone was read, and its turn has not come. Searches leave them out at once.

A tombstone waits like any record: for the clips before it, for its batch, for a checkpoint that is being written. One
thread reads and another applies what was read; anybody may ask.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable

from streamlearn.envelope import parse
from streamlearn.errors import MessageError
from streamlearn.records import Event, Partition, Position, Record, Tombstone


class Deleting:
    """Ids of clips; `in` is cheap, and no lock is held for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._read: dict[Position, str] = {}
        self._ids: frozenset[str] = frozenset()

    def __contains__(self, video_id: object) -> bool:
        return video_id in self._ids

    def note(self, records: Iterable[Record]) -> None:
        """Records that were read; tombstones among them count from now on."""
        found = {}
        for record in records:
            if record.value is None:
                try:
                    message = parse(record, max_bytes=0, max_caption_chars=0)
                except MessageError:
                    continue  # a dead letter, when its turn comes
                assert isinstance(message, Tombstone)
                found[record.position] = message.video_id
        if found:
            with self._lock:
                self._show(self._read | found)

    def applied(self, events: Collection[Event]) -> None:
        """Events whose turn has come: what they delete is gone."""
        done = {event.position for event in events}
        with self._lock:
            if self._read:
                self._show({position: name for position, name in self._read.items() if position not in done})

    def drop(self, partitions: Collection[Partition]) -> None:
        """What was read of these is another reader's affair."""
        with self._lock:
            if self._read:
                self._show({p: name for p, name in self._read.items() if Partition(*p[:2]) not in partitions})

    def clear(self) -> None:
        """Nothing was read."""
        with self._lock:
            self._show({})

    def _show(self, read: dict[Position, str]) -> None:
        """With the lock held since `read` was made of the one before: a change in between would be undone for good."""
        self._read = read
        self._ids = frozenset(read.values())
