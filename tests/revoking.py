"""A list whose partitions can go to another reader."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from typing import Any

from streamlearn.records import Offsets, Partition
from streamlearn.testing import ListSource


class RevokingSource(ListSource):
    """`revoke` takes partitions away.

    Attributes:
        returned: partitions that were taken away and came back before anybody was told.
        given_back: from where on the daemon will not use what it was given.
        was_given_back: set by it.
        commits: all of them since.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._going: set[Partition] = set()
        self.returned: set[Partition] = set()
        self.given_back: dict[Partition, int | None] = {}
        self.was_given_back, self.was_committed = threading.Event(), threading.Event()
        self.commits: list[Offsets] = []

    def revoke(self, *partitions: Partition) -> None:
        self._going |= set(partitions)

    def revoked(self) -> Collection[Partition]:
        return frozenset(self._going)

    def give_back(self, held: Mapping[Partition, int | None]) -> Collection[Partition]:
        taken = self._going.intersection(held) - self.returned
        self.given_back.update({partition: held[partition] for partition in taken})
        self._going.clear()
        self.was_given_back.set()
        return taken

    def commit(self, offsets: Offsets) -> None:
        super().commit(offsets)
        if self.was_given_back.is_set():
            self.commits.append(offsets)
            self.was_committed.set()
