"""What was read from a source and is not handed over: records, events being decoded, the batch that is gathered.

It knows neither source nor decoder, and no lock: each of its calls is made with its owner's.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future
from typing import NamedTuple, Protocol

from streamlearn.records import Clip, Event, Partition, Position, Record, Rejected, named_tasks

_MAX_BYTES = 256 * 2**20  # of records in flight
_MAX_EVENTS = 512  # of a batch: tombstones and rejected records fill none, and must not pile up
_MAX_REJECTED_BYTES = 32 * 2**20  # of a batch, for they are kept whole


class Decoder(Protocol):
    """What turns records into events; `streamlearn.loader.Loader` is one."""

    def submit(self, record: Record) -> Future[Event]:
        """Begin; the future never fails because of the record."""
        ...


class InFlight(NamedTuple):
    """A record that is being decoded, or has been."""

    position: Position
    size_bytes: int
    event: Future[Event]


class Backlog:
    """In the source's order throughout.

    Attributes:
        ahead: of one poll, beyond what may be in flight: frames are larger than records.
        flight: being decoded.
        batch: events of the next batch, or of the rest of one.
        shown: clips of that batch which were handed over already, to be seen before the batch is whole.
    """

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self.clear()

    def clear(self) -> None:
        """Drop everything."""
        self.ahead: deque[Record] = deque()
        self.flight: deque[InFlight] = deque()
        self.batch: list[Event] = []
        self.shown = 0
        self._begun_at = self._unseen_from = self._kept_at = 0.0
        self._part_at, self._part_took_s = -math.inf, 0.0  # when the last one was handed over
        self._bytes = self._rejected_bytes = 0  # in flight; in the batch

    @property
    def full(self) -> bool:
        """Whether no more may be sent to the decoder."""
        return len(self.flight) >= 4 * self._batch_size or self._bytes >= _MAX_BYTES

    @property
    def batch_full(self) -> bool:
        """Whether the batch is to be handed over."""
        roomy = len(self.batch) < _MAX_EVENTS and self._rejected_bytes < _MAX_REJECTED_BYTES
        return not roomy or self.shown + _clips(self.batch) >= self._batch_size

    @property
    def begun(self) -> bool:
        """Whether there is something of a batch: here, or handed over already."""
        return bool(self.batch or self.shown)

    @property
    def silent_s(self) -> float:
        """How long ago the newest event of a batch came."""
        return time.monotonic() - self._kept_at

    @property
    def age_s(self) -> float:
        """How long the first event of the batch has waited for the rest; 0 where there is none."""
        return time.monotonic() - self._begun_at if self.begun else 0.0

    def to_show(self, after_s: float) -> bool:
        """Whether what there is is to be handed over as a part: after that time, sooner where there is time to spare.

        That is where nothing is under way, nothing came for a tenth of the time, and the last part is 20 times as long
        ago as it took (5 %).

        Not sooner where the batch, as fast as it filled so far, will be whole within the time, as a part is encoded
        twice; and where that is much of the batch, after twice the time.
        """
        if not self.batch:
            return False
        new = _clips(self.batch)
        clips = self.shown + new
        soon = clips > 0 and self.age_s * (self._batch_size - clips) / clips <= after_s
        late = 2 * after_s if soon and 4 * new >= self._batch_size else after_s
        now = time.monotonic()
        return now - self._unseen_from >= late or (not soon and now >= self._quiet_from(after_s))

    def show_in_s(self, after_s: float) -> float:
        """For how long `to_show` stays false for sure, if nothing comes."""
        if not self.batch:
            return math.inf
        return min(self._unseen_from + after_s, self._quiet_from(after_s)) - time.monotonic()

    def _quiet_from(self, after_s: float) -> float:
        if self.flight or self.ahead:
            return math.inf
        return max(self._kept_at + after_s / 10, self._part_at + 20 * self._part_took_s)

    def part_is_done(self) -> None:
        """What was handed over last, as a part, is found by now."""
        self._part_took_s = time.monotonic() - self._part_at

    def launch(self, record: Record, event: Future[Event]) -> None:
        """The record is being decoded."""
        self.flight.append(InFlight(record.position, size := len(record.value or b""), event))
        self._bytes += size

    def land(self) -> Event | None:
        """Take the first event in flight, if it is decoded."""
        if not self.flight or not self.flight[0].event.done():
            return None
        first = self.flight.popleft()
        self._bytes -= first.size_bytes
        return first.event.result()

    def keep(self, event: Event) -> None:
        """Into the batch."""
        self._kept_at = now = time.monotonic()
        if not self.begun:
            self._begun_at = now
        if not self.batch:
            self._unseen_from = now
        self.batch.append(event)
        self._rejected_bytes += _rejected_bytes(event)

    def hand_over(self) -> list[Event]:
        """The batch, or what there is since a part of it was handed over; another one begins."""
        part, self.batch, self._rejected_bytes, self.shown = self.batch, [], 0, 0
        return part

    def hand_over_part(self) -> list[Event]:
        """What there is of the batch, which goes on."""
        shown, part = self.shown, self.hand_over()
        self.shown, self._part_at = shown + _clips(part), time.monotonic()
        return part

    def held(self, partitions: Collection[Partition]) -> Mapping[Partition, int | None]:
        """The lowest offset that is here of each of these partitions, None where there is nothing."""
        lowest: dict[Partition, int | None] = dict.fromkeys(partitions)
        for topic, number, offset in self._positions():
            if (partition := Partition(topic, number)) in lowest:
                before = lowest[partition]
                lowest[partition] = offset if before is None else min(before, offset)
        return lowest

    def opens(self, event: Event | None, begins: Callable[[str], bool]) -> bool:
        """Whether an event is the first of a task, which a batch begins with; of a batch's own tasks it is not."""
        task = event.task if isinstance(event, Clip) else None
        return task is not None and task not in named_tasks(self.batch) and begins(task)

    def drop(self, partitions: Collection[Partition]) -> None:
        """Forget what is here of these partitions."""

        def stays(position: Position) -> bool:
            return Partition(*position[:2]) not in partitions

        for one in self.flight:
            if not stays(one.position):
                one.event.cancel()  # where its decoding has not begun
        self.ahead = deque(record for record in self.ahead if stays(record.position))
        self.flight = deque(one for one in self.flight if stays(one.position))
        self._bytes = sum(one.size_bytes for one in self.flight)
        self.batch = [event for event in self.batch if stays(event.position)]
        self._rejected_bytes = sum(map(_rejected_bytes, self.batch))

    def _positions(self) -> Iterator[Position]:
        yield from (event.position for event in self.batch)
        yield from (one.position for one in self.flight)
        yield from (record.position for record in self.ahead)


def _clips(events: Collection[Event]) -> int:
    return sum(isinstance(event, Clip) for event in events)


def _rejected_bytes(event: Event) -> int:
    return len(event.record.value or b"") if isinstance(event, Rejected) else 0
