"""Ranges of Kafka's logs as a source that ends: what a replay learns from.

It knows how its positions are told from the live topic's, and leaves the reading to `kafka_range`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from threading import Event
from typing import Any

from streamlearn.connectors.kafka_client import KafkaOptions
from streamlearn.connectors.kafka_range import Bounded, Range, resolve, whole_topics
from streamlearn.connectors.kafka_schemas import SchemaRegistry
from streamlearn.records import Offsets, Partition, Position, Record
from streamlearn.source import EndOfStream


class RangeSource:
    """A source that delivers ranges and then ends.

    Its positions carry the range's start in the topic's name, and whose it is (`clips@100@8f14e45f`, which no topic can
    be called): a state directory that has learned a range goes on with the live topic where it was, and a range that
    was cut short or is asked for again with a later end goes on too, but not one of a topic that was made anew. Dead
    letters stay in the state directory; the topic's own reader has sent them to theirs.
    """

    def __init__(self, options: KafkaOptions, ranges: Sequence[Range]) -> None:
        """Connects with the first `poll`.

        Raises:
            SettingsError: an option that the client does not know, or a secret file that cannot be read.
        """
        self._bounded = Bounded(options, ranges)
        self._registry = SchemaRegistry.of(options)
        self._read: list[Record] = []  # and not handed over: their schemas are not known yet
        self._paused = False
        self._closed = Event()

    @classmethod
    def from_settings(cls, settings: Any) -> RangeSource:
        """All that the topics of the `kafka` section hold now."""
        return cls(settings.kafka, resolve(settings.kafka, whole_topics(settings.kafka)))

    def start(self, offsets: Offsets) -> None:
        """Go on behind what a checkpoint holds of the same ranges."""
        for each, begin in self._bounded.next.items():
            self._bounded.next[each] = max(begin, offsets.get(_named(each), begin))

    def poll(self, timeout_s: float) -> Sequence[Record]:
        """The next records.

        Raises:
            EndOfStream: every range is delivered.
            SourceError: the broker, or the registry, is away.
            StreamlearnError: retention has removed what comes next, or the topic was made anew.
        """
        if (self._bounded.left() == 0 and not self._read) or self._closed.is_set():
            raise EndOfStream
        if self._paused:
            self._closed.wait(timeout_s)
            return []
        self._read = self._read or [
            Record(r.key, r.value, Position(*_named(each), r.position.offset), r.headers, r.timestamp_ms)
            for each, records in self._bounded.poll(timeout_s).items()
            for r in records
        ]
        if self._registry is not None:
            for record in self._read:
                self._registry.learn(record)
            self._read = [self._registry.attach(record) for record in self._read]
        records, self._read = self._read, []
        return records

    def done(self, offsets: Offsets) -> int:
        """How many offsets of the ranges lie before `offsets`."""
        return sum(min(each.end, offsets.get(_named(each), each.start)) - each.start for each in self._bounded.next)

    def pause(self) -> None:
        """Read nothing until `resume`."""
        self._paused = True

    def resume(self) -> None:
        """Read again."""
        self._paused = False

    def commit(self, offsets: Offsets) -> None:
        """Do nothing: there is no group."""

    def lag(self) -> Mapping[Partition, int]:
        """Offsets that are left, by the topic's own partitions."""
        left: dict[Partition, int] = {}
        for each, begin in self._bounded.next.items():
            partition = Partition(each.topic, str(each.partition))
            left[partition] = left.get(partition, 0) + max(0, each.end - begin)
        return left

    def close(self) -> None:
        """Disconnect."""
        self._closed.set()
        self._bounded.close()
        if self._registry is not None:
            self._registry.close()


def _named(each: Range) -> Partition:
    log = "" if each.log is None else f"@{each.log[:8]}"
    return Partition(f"{each.topic}@{each.start}{log}", str(each.partition))
