"""Where a partition begins that neither a checkpoint nor the broker knows.

`latest` draws one line through all partitions that there are when a group begins, and has the broker keep it: a
partition that was empty then is read from there after a restart too, and one that appears later from its beginning.
"""

from __future__ import annotations

from collections.abc import Collection

from kafka import KafkaConsumer, TopicPartition
from kafka.structs import OffsetAndMetadata


def begin_at_beginning(consumer: KafkaConsumer, partitions: Collection[TopicPartition]) -> None:
    """With the oldest record that there is."""
    consumer.seek_to_beginning(*partitions)


def begin_at_line(
    consumer: KafkaConsumer, partitions: Collection[TopicPartition], *, began: bool, timeout_ms: int
) -> None:
    """At the end of the log as it was when the group began, which may be now.

    Args:
        consumer: has these partitions.
        partitions: of which no offset is known.
        began: a checkpoint has offsets of other partitions: the group has read before, whatever the broker remembers.
        timeout_ms: of each question to the broker.
    """
    line = {}
    for tp in (everything := _everything(consumer)):
        if (offset := consumer.committed(tp, timeout_ms=timeout_ms)) is not None:
            line[tp] = offset
    if not line and not began:
        line = consumer.end_offsets(everything, timeout_ms=timeout_ms)
        consumer.commit({tp: OffsetAndMetadata(end, "", -1) for tp, end in line.items()}, timeout_ms=timeout_ms)
    for tp in partitions:
        if tp in line:
            consumer.seek(tp, line[tp])
        else:
            begin_at_beginning(consumer, [tp])


def _everything(consumer: KafkaConsumer) -> list[TopicPartition]:
    """Every partition of the topics that are read, also those of other members."""
    topics = {tp.topic for tp in consumer.assignment()} | set(consumer.subscription() or ())
    return [TopicPartition(topic, n) for topic in sorted(topics) for n in consumer.partitions_for_topic(topic) or ()]
