"""What lies between the thread that fetches and the caller of `poll`: records, and where each partition stands.

It knows no Kafka and no thread of its own. Its one promise: however often a partition goes and comes back, each of
its records is handed over once, in order, if the fetching thread reads on from where `assign` says.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import takewhile
from typing import NamedTuple

from streamlearn.errors import SourceError
from streamlearn.records import Offsets, Partition, Record


class _Chunk(NamedTuple):
    """Records of one partition that came together, and go together where the limit allows it."""

    partition: Partition
    records: Sequence[Record]
    size_bytes: int


class Handover:
    """A bounded queue that forgets the records of a partition that is taken away.

    The bound is soft by one `put`: the fetching thread asks `full` before it fetches, and what it has fetched is
    never refused.

    Attributes:
        resumed: whether there was anything to go on from.
    """

    def __init__(self, offsets: Offsets, *, max_records: int, max_bytes: int) -> None:
        self._condition = threading.Condition()
        self._queue: deque[_Chunk] = deque()
        self._records = self._bytes = 0  # in the queue
        self._max_records = max_records
        self._max_bytes = max_bytes
        self.resumed = bool(offsets)  # rather than begun
        self._next = dict(offsets)  # to hand over next; kept when a partition goes
        self._owned: set[Partition] = set()
        self._revoked: set[Partition] = set()  # of which the caller may still hold records
        self._unsaved: set[Partition] = set()  # of which it holds none any more, but has made no checkpoint since
        self._checkpoint: dict[Partition, int] = {}
        self._attended = False
        self._paused = False
        self._trouble: SourceError | None = None
        self._failure: SourceError | None = None

    @property
    def wants_more(self) -> bool:
        """Whether to fetch: not paused, and room in the queue."""
        with self._condition:
            return self._has_room()

    def wait_for_room(self, timeout_s: float) -> None:
        """Return when `wants_more`, or after `timeout_s`."""
        with self._condition:
            self._condition.wait_for(self._has_room, timeout_s)

    def peek(self, timeout_s: float) -> Record | None:
        """The record that `take` would give first, left where it is; otherwise as `take`."""
        with self._condition:
            return self._queue[0].records[0] if self._wait(timeout_s) else None

    def take(self, limit: int, timeout_s: float, usable: Callable[[Record], bool] | None = None) -> Sequence[Record]:
        """Up to `limit` records, waiting for the first, up to one that is not usable; none while paused.

        Raises:
            SourceError: what `report` was given, once; what `fail` was given, whenever there are no records.
        """
        with self._condition:
            taken: list[Record] = []
            if not self._wait(timeout_s):
                return taken
            while self._queue and len(taken) < limit:
                count = limit - len(taken)
                if usable is not None:
                    count = len(list(takewhile(usable, self._queue[0].records[:count])))
                if count == 0:
                    break
                chunk = self._take_chunk(count)
                self._next[chunk.partition] = chunk.records[-1].position.offset + 1
                taken += chunk.records
            self._condition.notify_all()
            return taken

    def put(self, partition: Partition, records: Sequence[Record]) -> None:
        """Queue records of one partition, in order, fetched since it was last assigned; none if it is not ours."""
        size = sum(map(_size, records))
        with self._condition:
            if partition not in self._owned or not records:
                return
            self._next.setdefault(partition, records[0].position.offset)
            self._queue.append(_Chunk(partition, records, size))
            self._records += len(records)
            self._bytes += size
            self._condition.notify_all()

    def assign(self, partition: Partition) -> int | None:
        """The partition is ours now: where to go on, None for wherever the source begins."""
        with self._condition:
            self._owned.add(partition)
            self._revoked.discard(partition)  # what the caller holds of it is its to finish
            return self._next.get(partition)

    def owns(self, partition: Partition) -> bool:
        """Whether it is ours, and is not going."""
        with self._condition:
            return partition in self._owned

    def stands(self, partition: Partition) -> int | None:
        """What is to be handed over next of a partition, once that is known."""
        with self._condition:
            return self._next.get(partition)

    def revoke(self, partitions: Iterable[Partition] | None = None) -> set[Partition]:
        """These partitions (all of them for None) go; what was not handed over is for their next owner to read.

        Returns those that were ours.
        """
        with self._condition:
            gone = self._owned.intersection(self._owned if partitions is None else partitions)
            self._owned -= gone
            self._forget(gone)
            return gone

    def ask_back(self, partitions: Iterable[Partition]) -> None:
        """Let `revoked` name these, which have gone; in vain where nobody has ever asked for it."""
        with self._condition:
            if self._attended:
                self._revoked.update(partitions)

    def revoked(self) -> frozenset[Partition]:
        """Partitions that have gone, and of which the caller has not yet given back what it holds."""
        with self._condition:
            self._attended = True
            return frozenset(self._revoked)

    def give_back(self, held: Mapping[Partition, int | None]) -> set[Partition]:
        """The caller will not use what it was handed over from these offsets on; None: it holds nothing.

        Returns the partitions of which that is so. Others have come back meanwhile, and are read on behind what it
        holds, which it must use.
        """
        with self._condition:
            taken = self._revoked.intersection(held)
            self._next.update({p: offset for p in taken if (offset := held[p]) is not None})
            self._revoked -= taken
            self._unsaved |= taken
            return taken

    def saved(self, offsets: Offsets) -> None:
        """A checkpoint up to `offsets` is durable, with all that was used of what was given back before."""
        with self._condition:
            self._checkpoint.update(offsets)
            self._unsaved.clear()

    def finished(self, partitions: Iterable[Partition]) -> bool:
        """Whether nothing is held of these partitions, and everything used is in a checkpoint."""
        with self._condition:
            return (self._revoked | self._unsaved).isdisjoint(partitions)

    def checkpoint(self, partitions: Iterable[Partition]) -> Offsets:
        """How far the newest checkpoint has them; what it has never heard of is not named."""
        with self._condition:
            return {p: self._checkpoint[p] for p in partitions if p in self._checkpoint}

    def move(self, partition: Partition, offset: int) -> int | None:
        """Go on from `offset`, backwards too, when the log itself has changed or another member has read on.

        Returns what was to be handed over next, where that was known: of what lay before, nothing comes any more.
        """
        with self._condition:
            stood = self._next.get(partition)
            if partition in self._owned:
                self._forget({partition})
                self._next[partition] = offset
            return stood

    def passed(self, partition: Partition, offset: int) -> None:
        """The fetching thread stands at `offset`: what it skipped (transaction markers, gaps) needs no hand-over."""
        with self._condition:
            waiting = any(chunk.partition == partition for chunk in self._queue)
            if partition in self._owned and not waiting:
                self._next[partition] = max(offset, self._next.get(partition, 0))

    def pause(self) -> None:
        """Hand nothing over until `resume`; nothing is forgotten."""
        with self._condition:
            self._paused = True

    def resume(self) -> None:
        """Hand over again."""
        with self._condition:
            self._paused = False
            self._condition.notify_all()

    def report(self, trouble: SourceError | None) -> None:
        """Let the next `take` raise `trouble`; None: it is over, and need not be raised any more."""
        with self._condition:
            self._trouble = trouble
            self._condition.notify_all()

    def fail(self, failure: SourceError) -> None:
        """Nothing will ever be put again, for this reason."""
        with self._condition:
            self._failure = failure
            self._condition.notify_all()

    def lag(self, ends: Mapping[Partition, int]) -> dict[Partition, int]:
        """Records not handed over yet, of the partitions we own, given the ends of their logs."""
        with self._condition:
            return {p: max(0, ends[p] - self._next[p]) for p in self._owned if p in ends and p in self._next}

    def _wait(self, timeout_s: float) -> bool:
        """For a record that may be handed over; with the lock held."""
        deadline = time.monotonic() + timeout_s
        while self._paused or not self._queue:
            if self._failure is not None:
                raise self._failure
            if self._trouble is not None:
                trouble, self._trouble = self._trouble, None
                raise trouble
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            self._condition.wait(left)
        return True

    def _has_room(self) -> bool:
        return not self._paused and self._records < self._max_records and self._bytes < self._max_bytes

    def _take_chunk(self, limit: int) -> _Chunk:
        chunk = self._queue.popleft()
        if len(chunk.records) > limit:
            first, rest = chunk.records[:limit], chunk.records[limit:]
            size = sum(map(_size, first))
            self._queue.appendleft(_Chunk(chunk.partition, rest, chunk.size_bytes - size))
            chunk = _Chunk(chunk.partition, first, size)
        self._records -= len(chunk.records)
        self._bytes -= chunk.size_bytes
        return chunk

    def _forget(self, partitions: set[Partition]) -> None:
        self._queue = deque(chunk for chunk in self._queue if chunk.partition not in partitions)
        self._records = sum(len(chunk.records) for chunk in self._queue)
        self._bytes = sum(chunk.size_bytes for chunk in self._queue)


def _size(record: Record) -> int:
    headers = sum(len(k) + len(v) for k, v in record.headers) if record.headers else 0
    return len(record.key or b"") + len(record.value or b"") + headers
