"""Ranges of a real broker's log: what is in them, where they end, what a replay of them learns."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import OffsetOutOfRangeError

from streamlearn.connectors.kafka_range import (
    Range,
    Wanted,
    parse_range,
    read,
    resolve,
    since,
    whole_topics,
)
from streamlearn.connectors.kafka_replay import RangeSource
from streamlearn.errors import SettingsError, SourceError, StreamlearnError
from streamlearn.records import Partition, Record
from streamlearn.replay import replay
from streamlearn.settings import KafkaSettings, load
from streamlearn.source import EndOfStream, Source
from tests.kafka_broker import KafkaBroker
from tests.kafka_source import make_anew
from tests.test_daemon import Stream

NewTopic = Callable[..., str]


def options(broker: KafkaBroker, topic: str) -> KafkaSettings:
    return KafkaSettings(bootstrap_servers=[broker.bootstrap], topics=[topic], request_timeout_ms=10_000)


def send(broker: KafkaBroker, topic: str, values: list[bytes], partition: int = 0, begin_ms: int = 1_000) -> None:
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap, acks="all")
    for i, value in enumerate(values):
        producer.send(topic, value, partition=partition, timestamp_ms=begin_ms + i, headers=[("n", str(i).encode())])
    producer.flush()
    producer.close()


def everything(source: RangeSource) -> list[Record]:
    records: list[Record] = []
    while True:
        try:
            records += source.poll(1)
        except SourceError:
            continue  # asked again, as the daemon does
        except EndOfStream:
            return records


def values(records: list[Record]) -> list[bytes | None]:
    return [record.value for record in records]


def numbers(n: int, start: int = 0) -> list[bytes]:
    return [str(i).encode() for i in range(start, start + n)]


def named(ranges: Sequence[Range]) -> list[str]:
    return list(map(str, ranges))


# --- what a person may write


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("clips:0:10:20", Wanted("clips", 0, 10, 20)),
        ("a.b-c_d:12::20", Wanted("a.b-c_d", 12, None, 20)),
        ("clips:0:10:", Wanted("clips", 0, 10, None)),
        ("clips:0::", Wanted("clips", 0, None, None)),
    ],
)
def test_a_range_is_read_as_it_is_written(text: str, meant: Wanted) -> None:
    assert parse_range(text) == meant


NO_RANGES = (
    *("", "clips", "clips:0", "clips:0:1", ":0:1:2", "clips::1:2", "clips:0:2:2", "clips:0:3:2"),
    *("clips:a:1:2", "clips:0:-1:2", "clips:0:1:2:3"),
)


@pytest.mark.parametrize("text", NO_RANGES)
def test_what_is_no_range_is_refused_with_its_form(text: str) -> None:
    with pytest.raises(SettingsError, match="TOPIC:PARTITION:START:END"):
        parse_range(text)


# --- against a broker


@pytest.mark.slow
def test_a_range_delivers_just_its_records_and_ends_while_the_topic_goes_on(
    kafka: KafkaBroker, new_topic: NewTopic
) -> None:
    topic = new_topic(2)
    send(kafka, topic, numbers(300))
    send(kafka, topic, numbers(10, 1000), partition=1)
    source = RangeSource(options(kafka, topic), [Range(topic, 0, 100, 250), Range(topic, 1, 0, 3)])
    assert isinstance(source, Source)
    source.start({})
    assert source.lag() == {Partition(topic, "0"): 150, Partition(topic, "1"): 3}
    records = everything(source)
    assert values([r for r in records if r.position.partition == "0"]) == numbers(150, 100)
    assert values([r for r in records if r.position.partition == "1"]) == numbers(3, 1000)
    assert {r.position.topic for r in records} == {f"{topic}@100", f"{topic}@0"}
    assert records[0].headers == (("n", str(records[0].position.offset).encode()),)
    assert source.lag() == {Partition(topic, "0"): 0, Partition(topic, "1"): 0}
    source.close()
    source.close()


@pytest.mark.slow
def test_two_ranges_of_one_partition_are_both_read(kafka: KafkaBroker, new_topic: NewTopic) -> None:
    topic = new_topic()
    send(kafka, topic, numbers(100))
    found = read(options(kafka, topic), [Range(topic, 0, 80, 90), Range(topic, 0, 10, 20), Range(topic, 0, 15, 17)])
    assert sorted(values(list(found))) == sorted(numbers(10, 80) + numbers(10, 10) + numbers(2, 15))


@pytest.mark.slow
def test_a_range_resumes_at_every_offset_of_a_checkpoint(kafka: KafkaBroker, new_topic: NewTopic) -> None:
    topic = new_topic()
    send(kafka, topic, numbers(10))
    for done in range(2, 9):
        source = RangeSource(options(kafka, topic), [Range(topic, 0, 2, 8)])
        source.start({Partition(f"{topic}@2", "0"): done, Partition(topic, "0"): 9})  # the live topic's do not count
        assert values(everything(source)) == numbers(8 - done, done)
        source.close()


@pytest.mark.slow
def test_a_range_of_a_topic_that_was_made_anew_is_another_one(kafka: KafkaBroker, new_topic: NewTopic) -> None:
    """What was learned of the one before is not learned of this one."""
    topic = new_topic()
    send(kafka, topic, numbers(10))
    settings = options(kafka, topic).model_copy(update={"client": {"metadata_max_age_ms": 200}, "max_poll_records": 2})
    ranges = resolve(settings, [Wanted(topic, 0, 2, 8)])
    source, cut_short = RangeSource(settings, ranges), RangeSource(settings, ranges)
    learned = {Partition(*r.position[:2]): r.position.offset + 1 for r in everything(source)}
    source.close()
    again = RangeSource(settings, resolve(settings, [Wanted(topic, 0, 2, 8)]))
    again.start(learned)
    assert everything(again) == []
    again.close()
    make_anew(kafka, topic)
    send(kafka, topic, numbers(10, 1000))
    anew = RangeSource(settings, resolve(settings, [Wanted(topic, 0, 2, 8)]))
    anew.start(learned)
    assert values(everything(anew)) == numbers(6, 1002)
    anew.close()
    with pytest.raises(StreamlearnError, match=rf"{topic} was deleted and made anew.*ask for a range of the new one"):
        everything(cut_short)  # as if that came after the question
    cut_short.close()


@pytest.mark.slow
def test_an_offset_that_the_broker_refuses_and_holds_is_asked_for_again(
    kafka: KafkaBroker, new_topic: NewTopic, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic, poll = new_topic(), KafkaConsumer.poll
    send(kafka, topic, numbers(10))
    refused = [OffsetOutOfRangeError({TopicPartition(topic, 0): 2})]

    def refusing_once(consumer: KafkaConsumer, **how: Any) -> Any:
        if refused:
            raise refused.pop()
        return poll(consumer, **how)

    monkeypatch.setattr(KafkaConsumer, "poll", refusing_once)
    source = RangeSource(options(kafka, topic), [Range(topic, 0, 2, 8)])
    source.start({})
    with pytest.raises(SourceError):
        source.poll(1)
    assert values(everything(source)) == numbers(6, 2)
    source.close()


@pytest.mark.slow
def test_a_pause_loses_nothing(kafka: KafkaBroker, new_topic: NewTopic) -> None:
    topic = new_topic()
    send(kafka, topic, numbers(1200))
    source = RangeSource(options(kafka, topic), [Range(topic, 0, 0, 1200)])
    source.start({})
    first: list[Record] = []
    while not first:
        first = list(source.poll(1))
    source.pause()
    assert source.poll(0.01) == []
    source.resume()
    assert values(first + everything(source)) == numbers(1200)
    source.close()


@pytest.mark.slow
def test_ends_that_are_not_given_are_those_of_the_log(kafka: KafkaBroker, new_topic: NewTopic) -> None:
    topic = new_topic(3)
    send(kafka, topic, numbers(5))
    send(kafka, topic, numbers(7), partition=2)
    settings = options(kafka, topic)
    assert named(resolve(settings, whole_topics(settings))) == [f"{topic}:0:0:5", f"{topic}:2:0:7"]
    assert named(resolve(settings, [Wanted(topic, 2, 3, None)])) == [f"{topic}:2:3:7"]


@pytest.mark.slow
def test_a_time_is_the_first_record_of_each_partition_that_is_not_older(
    kafka: KafkaBroker, new_topic: NewTopic
) -> None:
    topic = new_topic(3)
    send(kafka, topic, numbers(10), begin_ms=1_000)
    send(kafka, topic, numbers(10), partition=1, begin_ms=1_004)
    send(kafka, topic, numbers(3), partition=2, begin_ms=10)
    settings = options(kafka, topic)
    assert named(resolve(settings, since(settings, 1_006))) == [f"{topic}:0:6:10", f"{topic}:1:2:10"]


@pytest.mark.slow
def test_what_the_log_does_not_hold_is_a_sentence(kafka: KafkaBroker, new_topic: NewTopic) -> None:
    topic = new_topic()
    send(kafka, topic, numbers(10))
    with kafka.admin() as admin:
        admin.delete_records({TopicPartition(topic, 0): 4})
    settings = options(kafka, topic)
    with pytest.raises(StreamlearnError, match=rf"holds offsets 4 to 10 .*Ask for {topic}:0:4:8"):
        resolve(settings, [Wanted(topic, 0, 2, 8)])
    with pytest.raises(StreamlearnError, match=rf"Ask for {topic}:0:5:10"):
        resolve(settings, [Wanted(topic, 0, 5, 11)])
    with pytest.raises(StreamlearnError, match="has no partition 7, it has 1"):
        resolve(settings, [Wanted(topic, 7, None, None)])
    with pytest.raises(SourceError, match="no topic 'nowhere'"):
        resolve(settings, [Wanted("nowhere", 0, None, None)])
    source = RangeSource(settings, [Range(topic, 0, 2, 8)])  # as if retention came after the question
    source.start({})
    with pytest.raises(StreamlearnError, match=f"retention has removed .*{topic}:0 at 2"):
        everything(source)
    source.close()


@pytest.mark.slow
def test_a_broker_that_goes_away_in_the_middle_costs_no_record(own_kafka: KafkaBroker, new_topic: NewTopic) -> None:
    topic = new_topic()
    large = [str(i).encode() * 10_000 for i in range(100, 200)]  # each larger than a batch of the producer
    send(own_kafka, topic, large)
    few = {"max_partition_fetch_bytes": 500, "fetch_max_bytes": 500}  # so that most are not fetched ahead
    changes = {"max_poll_records": 50, "request_timeout_ms": 2_000, "client": few}
    settings = options(own_kafka, topic).model_copy(update=changes)
    source = RangeSource(settings, [Range(topic, 0, 0, 100)])
    source.start({})
    records: list[Record] = []
    while not records:
        records += source.poll(1)
    own_kafka.kill()
    away = 0
    while True:
        try:
            records += source.poll(1)
        except SourceError:
            away += 1
            if away == 1:
                own_kafka.start()
        except EndOfStream:
            break
    assert away
    assert values(records) == large
    source.close()


@pytest.mark.slow
def test_a_replay_learns_the_range_resumes_it_and_leaves_the_live_offsets_alone(
    kafka: KafkaBroker, new_topic: NewTopic, tmp_path: Path
) -> None:
    topic = new_topic()
    stream = Stream()
    clips = [record.value or b"" for record in stream.clips("studio", 24)]
    send(kafka, topic, [*clips[:10], b"{", *clips[10:]])
    settings = load(
        None,
        {
            "state_dir": tmp_path / "state",
            "kafka.bootstrap_servers": [kafka.bootstrap],
            "kafka.topics": [topic],
            "api.port": 0,
            "model.threads": 1,
            "learner.batch_size": 8,
            "learner.max_wait_s": 0.3,
            "media.size_px": 32,
        },
    )
    seen: list[tuple[int, int]] = []
    report = replay(
        settings,
        [Range(topic, 0, 4, 16)],
        stop=threading.Event(),
        on_progress=lambda done, total, _: seen.append((done, total)),
    )
    assert (report.finished, report.ranges, report.detail) == (True, (f"{topic}:0:4:16",), None)
    assert report.counts["learned"] + report.counts["held_out"] == 11
    assert report.counts["dead_lettered"] == 1
    assert seen[-1] == (12, 12)
    letters = (tmp_path / "state" / "dead_letters.jsonl").read_text().splitlines()
    assert [json.loads(line)["offset"] for line in letters] == [10]
    further = replay(settings, [Range(topic, 0, 4, 25)], stop=threading.Event())
    assert further.counts["learned"] + further.counts["held_out"] == 20
    assert further.generation == report.generation + 1
