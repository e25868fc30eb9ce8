"""Ranges of Kafka's logs, read once: from offset to offset, by assignment, as a member of no group.

It knows where a range begins and ends and when it is over. It commits nothing and follows nobody: whoever reads a
range twice gets the same records.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any, NamedTuple

from kafka import KafkaConsumer, TopicPartition
from kafka import errors as kafka_errors

from streamlearn.connectors.kafka_client import (
    CLIENT_ERRORS,
    KafkaOptions,
    as_source_error,
    client_config,
    open_client,
    topic_id,
)
from streamlearn.connectors.kafka_records import records_of
from streamlearn.errors import SettingsError, SourceError, StreamlearnError
from streamlearn.records import Record

_POLL_S = 1.0
_SILENCE_S = 2.0


class Range(NamedTuple):
    """A stretch of one partition; `end` is the first offset that does not belong to it any more.

    `log` is the topic's id; None: whichever topic has the name.
    """

    topic: str
    partition: int
    start: int
    end: int
    log: str | None = None

    def __str__(self) -> str:
        return f"{self.topic}:{self.partition}:{self.start}:{self.end}"


class Wanted(NamedTuple):
    """A range as somebody asked for it; None: from the log's beginning, or to its end of now."""

    topic: str
    partition: int
    start: int | None
    end: int | None


class Bounded:
    """Reads ranges with one consumer, which is made anew after trouble.

    Attributes:
        next: the offset that comes next, by range; at its end the range is over.
    """

    def __init__(self, options: KafkaOptions, ranges: Sequence[Range]) -> None:
        self.next = {each: each.start for each in ranges}
        self._options = options
        self._config = _config(options)
        self._consumer: KafkaConsumer | None = None
        self._heard_at = 0.0

    def left(self) -> int:
        """How many offsets are still to come; records are fewer where a log was compacted."""
        return sum(max(0, each.end - begin) for each, begin in self.next.items())

    def poll(self, timeout_s: float) -> dict[Range, list[Record]]:
        """Records by their range, in order.

        Raises:
            SourceError: the broker is away; ask again.
            StreamlearnError: retention has removed what comes next, or the topic is another by now.
        """
        try:
            if self._consumer is None:
                self._consumer = open_client(KafkaConsumer, self._config)
                self._assign(self._consumer)
                self._heard_at = time.monotonic()
            fetched = self._consumer.poll(timeout_ms=max(1, round(1000 * timeout_s)))
            if fetched:
                self._heard_at = time.monotonic()
            elif time.monotonic() - self._heard_at > _SILENCE_S:
                # There is more, and nothing comes: the client says nothing of a broker that is away unless asked.
                self._consumer.end_offsets(list(self._consumer.assignment()), timeout_ms=1000 * _SILENCE_S)
                self._heard_at = time.monotonic()
            self._refuse_others(self._consumer)
            return self._within(self._consumer, fetched)
        except kafka_errors.OffsetOutOfRangeError as error:
            gone = self._gone(error.args[0])
            self.close()
            if gone:
                raise StreamlearnError(f"retention has removed what is to be read next: {gone}") from error
            raise as_source_error(error, self._options) from error
        except CLIENT_ERRORS as error:
            self.close()
            raise as_source_error(error, self._options) from error

    def _refuse_others(self, consumer: KafkaConsumer) -> None:
        """What a topic of the same name holds at these offsets was never asked for."""
        for each in self.next:
            if each.log is not None and topic_id(consumer, each.topic) not in (None, each.log):
                self.close()
                raise StreamlearnError(f"{each.topic} was deleted and made anew: ask for a range of the new one")

    def _gone(self, refused: Mapping[TopicPartition, int]) -> str:
        """Those of the refused offsets that the log has no more: a broker was seen to refuse one that it held."""
        assert self._consumer is not None
        try:
            begin = self._consumer.beginning_offsets(list(refused), timeout_ms=1000 * _SILENCE_S)
            end = self._consumer.end_offsets(list(refused), timeout_ms=1000 * _SILENCE_S)
        except CLIENT_ERRORS:
            return ""  # asked again
        return ", ".join(
            f"{tp.topic}:{tp.partition} at {offset}"
            for tp, offset in refused.items()
            if not begin[tp] <= offset <= end[tp]
        )

    def close(self) -> None:
        """Disconnect; idempotent."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            consumer.close(timeout_ms=1_000)

    def _assign(self, consumer: KafkaConsumer) -> None:
        # Of several ranges of a partition one after the other: a consumer has one position in it.
        first: dict[TopicPartition, int] = {}
        for each, begin in sorted(self.next.items()):
            if begin < each.end:
                first.setdefault(_tp(each), begin)
        consumer.assign(list(first))
        for tp, offset in first.items():
            consumer.seek(tp, offset)

    def _within(self, consumer: KafkaConsumer, fetched: Mapping[TopicPartition, Any]) -> dict[Range, list[Record]]:
        found: dict[Range, list[Record]] = {}
        current = {_tp(each): each for each in sorted(self.next, reverse=True) if self.next[each] < each.end}
        moved = False
        for tp, each in current.items():
            begin = self.next[each]
            records = records_of(tp, (r for r in fetched.get(tp, ()) if begin <= r.offset < each.end))
            if records:
                found[each] = records
                self.next[each] = records[-1].position.offset + 1
            # Offsets without a record, as transactions and compaction leave them, are passed over by the client.
            if (position := consumer.position(tp, timeout_ms=200)) is not None and position >= each.end:
                self.next[each] = each.end
                moved = True
        if moved and self.left():
            self._assign(consumer)
        return found


def read(options: KafkaOptions, ranges: Sequence[Range]) -> Iterator[Record]:
    """Every record of the ranges, in the order of its partition.

    Raises:
        SourceError: the broker is away.
    """
    with closing(Bounded(options, ranges)) as bounded:
        while bounded.left():
            for records in bounded.poll(_POLL_S).values():
                yield from records


def whole_topics(options: KafkaOptions, topics: Sequence[str] = ()) -> list[Wanted]:
    """All of some topics, of those of the settings if none are named, as they are now.

    Raises:
        SourceError: the broker is away, or has no such topic.
    """
    return [
        Wanted(topic, partition, None, None)
        for topic, partitions in _partitions(options, topics or options.topics).items()
        for partition in partitions
    ]


def since(options: KafkaOptions, time_ms: int) -> list[Wanted]:
    """All partitions of the settings' topics from a time on.

    Raises:
        SourceError: the broker is away, or has no such topic.
    """
    wanted = whole_topics(options)
    with _asking(options) as consumer:
        found = consumer.offsets_for_times({_tp(each): time_ms for each in wanted})
        ends = consumer.end_offsets([_tp(each) for each in wanted])
    return [
        each._replace(start=found[_tp(each)].offset if found.get(_tp(each)) else ends[_tp(each)]) for each in wanted
    ]


def resolve(options: KafkaOptions, wanted: Sequence[Wanted]) -> list[Range]:
    """Ranges with both ends, as the log is now; empty ones are left out.

    Raises:
        SourceError: the broker is away, or has no such topic.
        StreamlearnError: the log does not hold the whole range: the sentence says what it holds.
    """
    held = _partitions(options, sorted({each.topic for each in wanted}))
    for each in wanted:
        if each.partition not in held[each.topic]:
            raise StreamlearnError(f"{each.topic} has no partition {each.partition}, it has {len(held[each.topic])}")
    with _asking(options) as consumer:
        begins = consumer.beginning_offsets([_tp(each) for each in wanted])
        ends = consumer.end_offsets([_tp(each) for each in wanted])
        logs = {topic: topic_id(consumer, topic) for topic in held}
    ranges = []
    for each in wanted:
        begin, end = begins[_tp(each)], ends[_tp(each)]
        got = Range(
            each.topic,
            each.partition,
            begin if each.start is None else each.start,
            end if each.end is None else each.end,
            logs[each.topic],
        )
        if got.start < begin or got.end > end:
            raise StreamlearnError(
                f"{got}: the log holds offsets {begin} to {end} there; retention removes old ones. Ask for"
                f" {each.topic}:{each.partition}:{max(begin, got.start)}:{min(end, got.end)}"
            )
        if got.start < got.end:
            ranges.append(got)
    return ranges


def parse_range(text: str) -> Wanted:
    """`topic:partition:start:end`; an empty start or end is the log's own.

    Raises:
        SettingsError: it is written otherwise.
    """
    topic, *numbers = text.split(":")
    if topic and len(numbers) == 3 and numbers[0] and all(n.isdecimal() or not n for n in numbers):
        partition, start, end = (int(n) if n else None for n in numbers)
        if partition is not None and (start is None or end is None or start < end):
            return Wanted(topic, partition, start, end)
    raise SettingsError(f"{text}: write TOPIC:PARTITION:START:END, such as clips:0:1000:2000; END is not read any more")


def _partitions(options: KafkaOptions, topics: Sequence[str]) -> dict[str, list[int]]:
    with _asking(options) as consumer:
        found = {topic: sorted(consumer.partitions_for_topic(topic) or ()) for topic in topics}
    for topic, partitions in found.items():
        if not partitions:
            where = ", ".join(options.bootstrap_servers)
            raise SourceError(f"Kafka at {where} has no topic {topic!r}: create it, or correct its name")
    return found


@contextmanager
def _asking(options: KafkaOptions) -> Iterator[KafkaConsumer]:
    """A consumer for a few questions; its errors become sentences."""
    try:
        with closing(open_client(KafkaConsumer, _config(options))) as consumer:
            yield consumer
    except CLIENT_ERRORS as error:
        raise as_source_error(error, options) from error


def _config(options: KafkaOptions) -> dict[str, Any]:
    return client_config(
        options,
        KafkaConsumer,
        defaults={
            "group_id": None,
            "enable_auto_commit": False,
            "auto_offset_reset": "none",
            "isolation_level": "read_committed",
            "allow_auto_create_topics": False,
            "max_poll_records": options.max_poll_records,
            "bootstrap_timeout_ms": min(10_000, options.request_timeout_ms),
        },
    )


def _tp(each: Range | Wanted) -> TopicPartition:
    return TopicPartition(each.topic, each.partition)
