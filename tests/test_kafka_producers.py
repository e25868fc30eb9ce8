"""What other producers may write: names that are no UTF-8, transactions, every codec, times before the epoch."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import pytest
from kafka import KafkaProducer

from streamlearn.connectors.kafka_letters import letter_of
from streamlearn.records import Partition, Rejected
from tests.kafka_broker import KafkaBroker
from tests.kafka_source import NewTopic, OpenSource, collect, numbers, options, send, until, values

pytestmark = pytest.mark.slow


class RawName(str):
    """A header's name of bytes that are no UTF-8, as a producer in another language may send it."""

    __slots__ = ()

    def encode(self, *_: Any) -> bytes:
        return b"\xffcamera"


def test_a_header_whose_name_is_no_utf_8_does_not_stop_the_stream(
    kafka: KafkaBroker, new_topic: NewTopic, open_source: OpenSource
) -> None:
    topic = new_topic()
    send(kafka, topic, [b"0"])
    send(kafka, topic, [b"1"], headers=[(RawName("camera"), b"7"), ("caption", b"a red ball")])
    send(kafka, topic, [b"2"])
    records = collect(open_source(options(kafka, topic)), 3)
    assert values(records) == numbers(3)
    assert records[1].headers == (("\udcffcamera", b"7"), ("caption", b"a red ball"))


def test_such_a_record_is_a_dead_letter_as_it_was(
    kafka: KafkaBroker, new_topic: NewTopic, open_source: OpenSource
) -> None:
    topic, dead = new_topic(), new_topic()
    send(kafka, topic, [b"{"], headers=[(RawName("camera"), b"7")])
    source = open_source(options(kafka, topic, dead_letter_topic=dead))
    (record,) = collect(source, 1)
    letters = source.dead_letters()
    letters.write(Rejected(record, "invalid_json", "validate", "no JSON"))
    letters.flush()
    letters.close()
    (letter,) = collect(open_source(options(kafka, dead, dead_letter_topic="others")), 1)
    assert letter_of(letter).record == record


def test_what_a_transaction_took_back_is_not_read_and_its_marks_are_no_lag(
    kafka: KafkaBroker, new_topic: NewTopic, open_source: OpenSource
) -> None:
    topic = new_topic()
    with closing(KafkaProducer(bootstrap_servers=kafka.bootstrap, transactional_id=topic, max_block_ms=30_000)) as own:
        own.init_transactions()
        for value, end in ((b"kept", own.commit_transaction), (b"taken back", own.abort_transaction)):
            own.begin_transaction()
            own.send(topic, value, partition=0)
            own.flush()
            end()
    source = open_source(options(kafka, topic))
    assert values(collect(source, 1)) == [b"kept"]
    until(lambda: source.lag() == {Partition(topic, "0"): 0})
    send(kafka, topic, [b"later"])
    later = collect(source, 1)
    assert values(later) == [b"later"]
    source.close()
    # Every offset of a checkpoint can be resumed from, those of marks and of what was taken back too.
    for offset in range(later[0].position.offset):
        resumed = open_source(options(kafka, topic, group_id=f"{topic}-{offset}"), {Partition(topic, "0"): offset})
        assert collect(resumed, 1)[0].value == (b"kept" if offset == 0 else b"later")
        resumed.close()


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_every_codec_that_producers_use_is_read(
    codec: str, kafka: KafkaBroker, new_topic: NewTopic, open_source: OpenSource
) -> None:
    topic = new_topic()
    with closing(KafkaProducer(bootstrap_servers=kafka.bootstrap, compression_type=codec, linger_ms=50)) as producer:
        for value in numbers(100):
            producer.send(topic, value)
        producer.flush()
    assert values(collect(open_source(options(kafka, topic)), 100)) == numbers(100)


def test_a_record_without_a_time_has_none(kafka: KafkaBroker, new_topic: NewTopic, open_source: OpenSource) -> None:
    topic = new_topic()
    send(kafka, topic, [b"timeless"], timestamp_ms=-1)
    (record,) = collect(open_source(options(kafka, topic)), 1)
    assert record.timestamp_ms is None
