"""Dead letters in a real broker, and the producer behind them."""

from collections.abc import Callable, Iterator

import pytest
from kafka import KafkaConsumer, TopicPartition
from kafka.admin import ConfigResource

from streamlearn.connectors.kafka_producer import KafkaDeadLetters
from streamlearn.errors import SourceError
from streamlearn.records import Position, Record, Rejected
from streamlearn.settings import KafkaSettings
from tests.kafka_broker import KafkaBroker

pytestmark = pytest.mark.slow

OpenDeadLetters = Callable[[str], KafkaDeadLetters]

ABOUT = {
    "streamlearn.error.code": b"invalid_json",
    "streamlearn.error.message": b"the value is no JSON: send a clip message \xe2\x80\x94 as JSON",
    "streamlearn.error.stage": b"validate",
    "streamlearn.source.topic": b"clips",
    "streamlearn.source.partition": b"3",
    "streamlearn.source.offset": b"42",
    "streamlearn.source.timestamp": b"1234",
}


def rejected(value: bytes | None = b"{", key: bytes | None = b"v1", offset: int = 42) -> Rejected:
    record = Record(key, value, Position("clips", "3", offset), (("caption", b"\xff"),), 1234)
    message = "the value is no JSON: send a clip message \u2014 as JSON"
    return Rejected(record, "invalid_json", "validate", message)


@pytest.fixture
def open_dead_letters(kafka: KafkaBroker) -> Iterator[OpenDeadLetters]:
    opened: list[KafkaDeadLetters] = []

    def make(topic: str) -> KafkaDeadLetters:
        options = KafkaSettings(bootstrap_servers=[kafka.bootstrap], dead_letter_topic=topic, request_timeout_ms=2_000)
        opened.append(KafkaDeadLetters(options))
        return opened[-1]

    yield make
    for letters in opened:
        letters.close()


def read(kafka: KafkaBroker, topic: str) -> list[Record]:
    """Everything in partition 0."""
    tp = TopicPartition(topic, 0)
    consumer = KafkaConsumer(bootstrap_servers=kafka.bootstrap)
    records: list[Record] = []
    try:
        consumer.assign([tp])
        consumer.seek_to_beginning(tp)
        end = consumer.end_offsets([tp])[tp]
        while consumer.position(tp) < end:
            for r in consumer.poll(timeout_ms=1000).get(tp, []):
                records.append(Record(r.key, r.value, Position(topic, "0", r.offset), tuple(r.headers)))
    finally:
        consumer.close()
    return records


def test_a_dead_letter_has_the_key_value_and_headers_of_its_record_and_says_why(
    kafka: KafkaBroker, new_topic: Callable[..., str], open_dead_letters: OpenDeadLetters
) -> None:
    topic = new_topic()
    letters = open_dead_letters(topic)
    letters.write(rejected())
    letters.flush()
    (letter,) = read(kafka, topic)
    assert (letter.key, letter.value) == (b"v1", b"{")
    assert letter.headers == (("caption", b"\xff"), *ABOUT.items())


def test_records_of_nothing_are_dead_letters_too(
    kafka: KafkaBroker, new_topic: Callable[..., str], open_dead_letters: OpenDeadLetters
) -> None:
    topic = new_topic()
    letters = open_dead_letters(topic)
    for key, value in ((None, b"{"), (b"k", None), (None, None), (b"", b"")):
        letters.write(rejected(value, key))
    letters.flush()
    assert [(r.key, r.value) for r in read(kafka, topic)] == [(None, b"{"), (b"k", None), (b"", None), (b"", b"")]


def test_the_topic_is_made_where_the_broker_allows_it(
    kafka: KafkaBroker, new_topic: Callable[..., str], open_dead_letters: OpenDeadLetters
) -> None:
    topic = f"{new_topic()}-dlq"
    letters = open_dead_letters(topic)
    letters.write(rejected())
    letters.flush()
    assert len(read(kafka, topic)) == 1


def test_a_record_that_is_too_large_for_the_topic_goes_there_without_its_value(
    kafka: KafkaBroker, new_topic: Callable[..., str], open_dead_letters: OpenDeadLetters
) -> None:
    topic = new_topic(configs={"max.message.bytes": "2000"})
    letters = open_dead_letters(topic)
    letters.write(rejected(bytes(5_000), key=None))
    letters.write(rejected(b"small"))
    letters.flush()
    small, large = sorted(read(kafka, topic), key=lambda r: r.value is None)
    assert small.value == b"small"
    assert large.value is None
    assert dict(large.headers) | ABOUT == dict(large.headers)
    assert dict(large.headers)["streamlearn.source.value_bytes"] == b"5000"


def test_a_record_whose_headers_are_too_large_for_the_topic_is_a_dead_letter_with_ours_alone(
    kafka: KafkaBroker, new_topic: Callable[..., str], open_dead_letters: OpenDeadLetters
) -> None:
    topic = new_topic(configs={"max.message.bytes": "2000"})
    letters = open_dead_letters(topic)
    record = Record(b"k", b"v", Position("clips", "3", 42), (("caption", bytes(5_000)),), 1234)
    letters.write(Rejected(record, "invalid_json", "validate", ABOUT["streamlearn.error.message"].decode()))
    letters.flush()
    (letter,) = read(kafka, topic)
    assert dict(letter.headers) == ABOUT | {"streamlearn.source.value_bytes": b"1"}


def test_a_topic_too_small_for_any_dead_letter_is_one_sentence_and_nothing_is_lost(
    kafka: KafkaBroker, new_topic: Callable[..., str], open_dead_letters: OpenDeadLetters
) -> None:
    topic = new_topic(configs={"max.message.bytes": "200"})
    letters = open_dead_letters(topic)
    letters.write(rejected())
    with pytest.raises(SourceError, match=r"max\.message\.bytes"):
        letters.flush()
    with kafka.admin() as admin:
        admin.alter_configs([ConfigResource("TOPIC", topic, {"max.message.bytes": "2000"})])
    letters.flush()
    assert len(read(kafka, topic)) == 1


def test_a_write_flushes_when_too_much_waits(
    kafka: KafkaBroker, new_topic: Callable[..., str], open_dead_letters: OpenDeadLetters
) -> None:
    topic = new_topic()
    letters = open_dead_letters(topic)
    for offset in range(KafkaDeadLetters.MAX_WAITING):
        letters.write(rejected(offset=offset))
    assert len(read(kafka, topic)) == KafkaDeadLetters.MAX_WAITING


def test_letters_beyond_what_may_wait_are_kept_and_say_so_while_the_broker_is_away(
    own_kafka: KafkaBroker, new_topic: Callable[..., str], open_dead_letters: OpenDeadLetters
) -> None:
    topic = new_topic()
    letters = open_dead_letters(topic)
    own_kafka.kill()
    for offset in range(3):  # one attempt for all of them, not one each
        letters.write(rejected(bytes(KafkaDeadLetters.MAX_WAITING_BYTES - 1000), offset=offset))
    assert letters.full
    own_kafka.start()
    letters.flush()
    assert not letters.full


def test_a_flush_that_the_broker_does_not_acknowledge_raises_and_a_later_one_delivers(
    own_kafka: KafkaBroker, new_topic: Callable[..., str], open_dead_letters: OpenDeadLetters
) -> None:
    topic = new_topic()
    never_connected, connected = open_dead_letters(topic), open_dead_letters(topic)
    connected.write(rejected(b"before"))
    connected.flush()
    own_kafka.kill()
    for letters, value in ((never_connected, b"one"), (connected, b"two")):
        letters.write(rejected(value))
        with pytest.raises(SourceError, match="cannot be reached"):
            letters.flush()
    connected.write(rejected(b"three"))
    own_kafka.start()
    never_connected.flush()
    connected.flush()
    values = [r.value for r in read(own_kafka, topic)]
    assert set(values) == {b"before", b"one", b"two", b"three"}
    assert values[0] == b"before"
