"""What the Kafka source reads: topics, a pattern, named partitions; and what it does when the log itself changes."""

import logging
import re
from types import SimpleNamespace
from typing import Any

import pytest
from kafka import TopicPartition
from kafka.admin import NewPartitions

from streamlearn.connectors import kafka_subscription
from streamlearn.connectors.kafka_subscription import Subscription
from streamlearn.errors import SourceLostError
from streamlearn.records import Partition
from streamlearn.settings import KafkaSettings
from tests.kafka_broker import KafkaBroker
from tests.kafka_source import (
    NewTopic,
    OpenSource,
    collect,
    make_anew,
    members,
    numbers,
    options,
    send,
    trouble,
    until,
    values,
)

pytestmark = pytest.mark.slow

SOON = {"metadata_max_age_ms": 500}


@pytest.fixture
def looks_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_subscription, "_LOOK_AGAIN_S", 0.5)


@pytest.mark.usefixtures("looks_soon")
def test_one_missing_topic_keeps_no_other_waiting_and_is_read_once_it_is_there(
    kafka: KafkaBroker, new_topic: NewTopic, open_source: OpenSource
) -> None:
    here = new_topic()
    later = f"{here}-later"
    send(kafka, here, numbers(3))
    source = open_source(options(kafka, here, topics=[later, here], client=SOON))
    assert values(collect(source, 3)) == numbers(3)
    assert f"has no topic '{later}'" in str(source.waiting)
    assert "the others are read" in str(source.waiting)
    kafka.create_topic(later)
    send(kafka, later, numbers(2))
    assert values(collect(source, 2)) == numbers(2)
    until(lambda: source.waiting is None)


def test_a_pattern_reads_every_topic_of_such_a_name_new_ones_too_and_never_what_we_write(
    kafka: KafkaBroker, new_topic: NewTopic, open_source: OpenSource
) -> None:
    base = new_topic()
    names = [kafka.create_topic(f"{base}.{n}") for n in ("a", "b", "dlq", "events")]
    for name in (*names, base):
        send(kafka, name, [name.encode()])
    settings = options(
        kafka,
        base,
        topic_pattern=rf"{base}\.\w+",
        dead_letter_topic=f"{base}.dlq",
        events_topic=f"{base}.events",
        client=SOON,
    )
    source = open_source(settings)
    assert {record.position.topic for record in collect(source, 2)} == {f"{base}.a", f"{base}.b"}
    kafka.create_topic(f"{base}.c")
    send(kafka, f"{base}.c", [b"new"])
    assert values(collect(source, 1)) == [b"new"]
    assert source.poll(0.5) == []
    assert source.waiting is None


def test_a_pattern_that_matches_nothing_says_so_and_reads_what_comes_to_match(
    kafka: KafkaBroker, new_topic: NewTopic, open_source: OpenSource
) -> None:
    base = new_topic()
    source = open_source(options(kafka, base, topic_pattern=rf"{base}\.\w+", client=SOON))
    until(lambda: source.waiting is not None)
    assert "kafka.topic_pattern" in str(source.waiting)
    assert source.connected
    kafka.create_topic(f"{base}.a")
    send(kafka, f"{base}.a", numbers(2))
    assert values(collect(source, 2)) == numbers(2)
    until(lambda: source.waiting is None)


def test_named_partitions_are_read_alone_from_their_offsets_by_no_member_of_the_group(
    kafka: KafkaBroker, new_topic: NewTopic, open_source: OpenSource
) -> None:
    topic = new_topic(partitions=3)
    for partition in range(3):
        send(kafka, topic, numbers(5, start=10 * partition), partition)
    settings = options(kafka, topic, partitions=[f"{topic}:0", f"{topic}:2"])
    source = open_source(settings, {Partition(topic, "2"): 3})
    records = collect(source, 7)
    assert sorted(values(records), key=lambda v: int(v or b"")) == [*numbers(5), *numbers(2, start=23)]
    until(lambda: source.lag() == {Partition(topic, "0"): 0, Partition(topic, "2"): 0})
    assert (source.waiting, members(kafka, settings.group_id)) == (None, {})
    source.commit({Partition(topic, "0"): 4})
    source.close()
    with kafka.admin() as admin:
        assert admin.list_group_offsets(settings.group_id)[settings.group_id][TopicPartition(topic, 0)].offset == 4


@pytest.mark.usefixtures("looks_soon")
def test_a_named_partition_that_is_not_there_is_one_sentence(
    kafka: KafkaBroker, new_topic: NewTopic, open_source: OpenSource
) -> None:
    topic = new_topic()
    send(kafka, topic, numbers(1))
    alone = open_source(options(kafka, topic, partitions=[f"{topic}:1"]))
    assert "has no partition 1, only 1" in str(trouble(alone))
    source = open_source(options(kafka, topic, partitions=[f"{topic}:0", f"{topic}:1"]))
    assert values(collect(source, 1)) == numbers(1)
    assert "has no partition 1, only 1" in str(source.waiting)
    with kafka.admin() as admin:
        admin.create_partitions({topic: NewPartitions(2)})
    send(kafka, topic, [b"new"], partition=1)
    assert values(collect(source, 1)) == [b"new"]


def cut(kafka: KafkaBroker, topic: str, before: int) -> None:
    """As retention does it."""
    with kafka.admin() as admin:
        admin.delete_records({TopicPartition(topic, 0): before})


def test_lost_records_are_counted_where_the_source_goes_on(
    kafka: KafkaBroker, new_topic: NewTopic, open_source: OpenSource
) -> None:
    topic = new_topic()
    send(kafka, topic, numbers(100))
    cut(kafka, topic, 60)
    source = open_source(options(kafka, topic), {Partition(topic, "0"): 20})
    assert values(collect(source, 40)) == numbers(40, start=60)
    assert source.lost == {Partition(topic, "0"): 40}


def test_with_on_truncated_error_the_lost_range_is_said_and_the_stream_ends_there(
    kafka: KafkaBroker, new_topic: NewTopic, open_source: OpenSource
) -> None:
    topic = new_topic()
    send(kafka, topic, numbers(100))
    cut(kafka, topic, 60)
    source = open_source(options(kafka, topic, on_truncated="error"), {Partition(topic, "0"): 20})
    said = trouble(source)
    assert isinstance(said, SourceLostError)
    assert f"{topic}/0: offsets 20 to 59 are lost" in str(said)
    assert "would go on from offset 60" in str(said)
    assert not said.retriable
    with pytest.raises(SourceLostError):
        source.poll(0.1)


@pytest.mark.parametrize("anew", [5, 100], ids=["shorter", "longer"])
def test_a_topic_that_is_made_anew_while_it_is_read_is_read_from_its_beginning(
    anew: int, kafka: KafkaBroker, new_topic: NewTopic, open_source: OpenSource, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where the new log is longer than our offset in the old one: no offset is out of range then."""
    topic = new_topic()
    send(kafka, topic, numbers(50))
    source = open_source(options(kafka, topic, client=SOON))
    collect(source, 50)
    with caplog.at_level(logging.WARNING, "streamlearn"):
        make_anew(kafka, topic)
        send(kafka, topic, numbers(anew, start=1000))
        seen: dict[int, bytes | None] = {}
        while len(seen) < anew:
            seen |= {record.position.offset: record.value for record in collect(source, 1)}
    assert [seen[offset] for offset in range(anew)] == numbers(anew, start=1000)
    assert "made anew" in caplog.text
    assert source.lost == {Partition(topic, "0"): 1}  # how long the old log was is not known


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"topic_pattern": "clips("}, "no regular expression"),
        ({"partitions": ["clips"]}, "clips:0"),
        ({"partitions": ["clips:0"], "topic_pattern": "c.*"}, "exclude each other"),
        ({"topics": ["clips", "clips.dlq"]}, "read again"),
        ({"partitions": ["clips:0", "clips.dlq:1"]}, "read again"),
        ({"events_topic": "clips"}, "name another one"),
        ({"events_topic": "events", "partitions": ["events:0"]}, "name another one"),
        ({"on_truncated": "ignore"}, "on_truncated"),
    ],
)
def test_what_cannot_be_read_is_refused_with_a_sentence(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        KafkaSettings.model_validate(wrong)


@pytest.mark.parametrize(
    ("pattern", "topic", "read"),
    [
        ("(?i)clips.*", "CLIPS.night", True),
        ("(?i)clips.*", "clips.dlq", False),
        ("(?i)clips.*", "CLIPS.DLQ", True),  # another topic: their names differ by case
        ("(?i)(?s)a|clips", "CLIPS", True),
        ("(?x) clips # of cameras", "clips", True),
        ("a|clips", "clips", True),
        ("a|clips", "a.clips", False),
        ("clips", "clips.night", False),
    ],
)
def test_a_pattern_is_of_whole_names_whatever_flags_it_begins_with(pattern: str, topic: str, read: bool) -> None:
    subscription = Subscription(KafkaSettings(topic_pattern=pattern), {})
    subscribed: list[str] = []
    consumer: Any = SimpleNamespace(subscribe=lambda *, pattern, listener: subscribed.append(pattern))
    subscription.begin(consumer, consumer)
    assert bool(re.match(subscribed[0], topic)) is read
