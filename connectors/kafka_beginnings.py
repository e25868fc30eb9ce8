"""Where a partition begins that neither a checkpoint nor the broker knows.

`latest` draws one line through all partitions that there are when a group begins, and has the broker keep it: a
partition that was empty then is read from there after a restart too, and one that appears later from its beginning.
"""

from __future__ import annotations

from collections.abc import Mapping

from kafka import KafkaConsumer, TopicPartition
from kafka.structs import OffsetAndMetadata


def draw_line(consumer: KafkaConsumer, *, began: bool, timeout_ms: int) -> Mapping[TopicPartition, OffsetAndMetadata]:
    """The end of each log as it was when the group began, which may be now; a partition without one came later.

    Args:
        consumer: of a member.
        began: a checkpoint has offsets of other partitions: the group has read before, whatever the broker remembers.
        timeout_ms: of each question to the broker.
    """
    line = {}
    for tp in (everything := _everything(consumer)):
        if (committed := consumer.committed(tp, metadata=True, timeout_ms=timeout_ms)) is not None:
            line[tp] = committed
    if not line and not began:
        ends = consumer.end_offsets(everything, timeout_ms=timeout_ms)
        line = {tp: OffsetAndMetadata(end, "", -1) for tp, end in ends.items()}
        consumer.commit(line, timeout_ms=timeout_ms)
    return line


def _everything(consumer: KafkaConsumer) -> list[TopicPartition]:
    """Every partition of the topics that are read, also those of other members."""
    topics = {tp.topic for tp in consumer.assignment()} | set(consumer.subscription() or ())
    return [TopicPartition(topic, n) for topic in sorted(topics) for n in consumer.partitions_for_topic(topic) or ()]
