"""`auto_offset_reset = "latest"`: the end of what there was when the group began, and not a record later."""

from __future__ import annotations

from typing import Any

import pytest
from kafka.admin import NewPartitions

from streamlearn.connectors.kafka import KafkaSource
from streamlearn.records import Partition
from streamlearn.settings import KafkaSettings
from tests.kafka_broker import KafkaBroker
from tests.kafka_source import NewTopic, OpenSource, collect, options, send, until, values

pytestmark = pytest.mark.slow


def latest(kafka: KafkaBroker, topic: str, **others: Any) -> KafkaSettings:
    return options(kafka, topic, auto_offset_reset="latest", client={"metadata_max_age_ms": 500}, **others)


def placed(source: KafkaSource, partitions: int) -> None:
    """Wait until it stands somewhere in each of them."""
    until(lambda: source.poll(0) == [] and len(source.lag()) == partitions)


def add_partition(kafka: KafkaBroker, topic: str, partitions: int, *values: bytes) -> None:
    with kafka.admin() as admin:
        admin.create_partitions({topic: NewPartitions(partitions)})
        until(lambda: len(admin.describe_topics([topic])[0]["partitions"]) == partitions)
    send(kafka, topic, values, partition=partitions - 1)


def test_partitions_that_were_empty_and_those_with_records_are_read_on_after_a_restart(
    kafka: KafkaBroker, new_topic: NewTopic, open_source: OpenSource
) -> None:
    topic = new_topic(partitions=2)
    send(kafka, topic, [b"before"], partition=0)
    source = open_source(latest(kafka, topic))
    placed(source, 2)
    source.close()  # without a checkpoint: nothing had come
    for partition in (0, 1):
        send(kafka, topic, [b"while it was down"], partition)
    again = open_source(latest(kafka, topic))
    assert values(collect(again, 2)) == [b"while it was down"] * 2
    assert again.poll(0.2) == []


def test_what_another_source_has_left_in_the_state_directory_is_no_beginning(
    kafka: KafkaBroker, new_topic: NewTopic, open_source: OpenSource
) -> None:
    """As a folder does, and a replay."""
    topic = new_topic()
    send(kafka, topic, [b"before"])
    others = {Partition("films", "manifest.jsonl#0a1b2c3d4e5f"): 900, Partition(f"{topic}@0", "0"): 1}
    source = open_source(latest(kafka, topic), others)
    until(lambda: len(source.lag()) == 1)
    send(kafka, topic, [b"first"])
    assert values(collect(source, 1)) == [b"first"]


def test_a_partition_that_is_added_while_it_reads_is_read_from_its_beginning(
    kafka: KafkaBroker, new_topic: NewTopic, open_source: OpenSource
) -> None:
    topic = new_topic()
    send(kafka, topic, [b"before"])
    source = open_source(latest(kafka, topic))
    placed(source, 1)
    add_partition(kafka, topic, 2, b"first", b"second")
    assert values(collect(source, 2)) == [b"first", b"second"]


def test_a_partition_that_is_added_while_it_is_down_is_read_from_its_beginning(
    kafka: KafkaBroker, new_topic: NewTopic, open_source: OpenSource
) -> None:
    topic = new_topic()
    source = open_source(latest(kafka, topic))
    placed(source, 1)
    source.close()
    add_partition(kafka, topic, 2, b"first", b"second")
    assert values(collect(open_source(latest(kafka, topic)), 2)) == [b"first", b"second"]


def test_a_checkpoint_says_that_it_began_where_the_broker_remembers_nothing(
    kafka: KafkaBroker, new_topic: NewTopic, open_source: OpenSource
) -> None:
    """The broker forgets a group's offsets after a week; another group's name has none either."""
    topic = new_topic()
    send(kafka, topic, [b"learned", b"next"])
    add_partition(kafka, topic, 2, b"first")
    source = open_source(latest(kafka, topic, group_id=f"{topic}-other"), {Partition(topic, "0"): 1})
    assert sorted(values(collect(source, 2))) == [b"first", b"next"]  # type: ignore[type-var]


def test_a_member_that_joins_later_keeps_to_the_line_that_the_first_one_drew(
    kafka: KafkaBroker, new_topic: NewTopic, open_source: OpenSource
) -> None:
    topic = new_topic(partitions=2)
    send(kafka, topic, [b"before"], partition=0)
    send(kafka, topic, [b"before"], partition=1)
    first = open_source(latest(kafka, topic))
    placed(first, 2)
    second = open_source(latest(kafka, topic))
    until(lambda: len(first.lag()) == 1 and len(second.lag()) == 1)
    for partition in (0, 1):
        send(kafka, topic, [b"after"], partition)
    assert values([*collect(first, 1), *collect(second, 1)]) == [b"after"] * 2


def test_a_topic_that_a_pattern_finds_later_is_read_from_its_beginning(
    kafka: KafkaBroker, new_topic: NewTopic, open_source: OpenSource
) -> None:
    base = new_topic()
    send(kafka, base, [b"before"])
    source = open_source(latest(kafka, base, topic_pattern=rf"{base}.*"))
    placed(source, 1)
    send(kafka, kafka.create_topic(f"{base}-later"), [b"first"])
    assert values(collect(source, 1)) == [b"first"]


def test_named_partitions_keep_to_the_line_too(
    kafka: KafkaBroker, new_topic: NewTopic, open_source: OpenSource
) -> None:
    topic = new_topic(partitions=2)
    send(kafka, topic, [b"before"], partition=1)
    source = open_source(latest(kafka, topic, partitions=[f"{topic}:1"]))
    placed(source, 1)
    source.close()
    send(kafka, topic, [b"after"], partition=1)
    assert values(collect(open_source(latest(kafka, topic, partitions=[f"{topic}:1"])), 1)) == [b"after"]
