"""A bad network, and poison: no record is lost, none comes twice, each is refused for its own reason."""

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from hypothesis import given, settings

from streamlearn.connectors.kafka import KafkaSource
from streamlearn.connectors.kafka_schemas import SchemaRegistry
from streamlearn.errors import CODES, RejectedClip
from streamlearn.loader import Loader, LoadOptions, load
from streamlearn.records import Clip, Position, Record
from streamlearn.settings import KafkaSettings
from tests.kafka_broker import KafkaBroker
from tests.kafka_proxy import proxied
from tests.kafka_source import NewTopic, OpenSource, collect, numbers, options, send, until, values
from tests.media import load_options, raw_record, video
from tests.poison import KINDS, MAX_BYTES, MAX_CAPTION_CHARS, MAX_PIXELS, Place, encoded, place

pytestmark = pytest.mark.slow


def read_at_50_kb_a_second(
    broker: KafkaBroker, topic: str, open_source: OpenSource, records: int, **limits: int
) -> KafkaSource:
    """So many records of 10 kB each, all and once; returns the source, closed."""
    sent = [b"%d" % n + bytes(10_000) for n in range(records)]
    send(broker, topic, sent)
    with proxied(broker) as proxy:
        proxy.bytes_per_s = 50_000
        source = open_source(options(broker, topic, bootstrap_servers=[proxy.address], **limits))
        assert values(collect(source, records)) == sent
        assert source.poll(0.2) == []
        source.close()
    return source


def test_a_broker_that_is_slower_than_the_session_costs_time_and_nothing_else(
    own_kafka: KafkaBroker, new_topic: NewTopic, open_source: OpenSource
) -> None:
    # A fetch of 150 kB takes 3 s: longer than the session may be silent.
    source = read_at_50_kb_a_second(own_kafka, new_topic(), open_source, 15, session_timeout_ms=2_000)
    assert source.restarts == 0


def test_what_cannot_come_within_a_requests_timeout_is_asked_for_in_small_pieces(
    own_kafka: KafkaBroker, new_topic: NewTopic, open_source: OpenSource
) -> None:
    # One fetch would bring all 300 kB, in 6 s; a request may take 2, and is then made anew: for ever.
    read_at_50_kb_a_second(own_kafka, new_topic(), open_source, 30, request_timeout_ms=2_000)


def test_connections_that_are_reset_again_and_again_lose_and_double_nothing(
    own_kafka: KafkaBroker, new_topic: NewTopic, open_source: OpenSource
) -> None:
    topic = new_topic(partitions=2)
    with proxied(own_kafka) as proxy:
        source = open_source(options(own_kafka, topic, bootstrap_servers=[proxy.address], max_poll_records=20))
        records = []
        for round_ in range(4):
            for partition in (0, 1):
                send(own_kafka, topic, numbers(50, start=50 * round_), partition)
            records += collect(source, 30)
            before = proxy.connections
            proxy.cut()
            until(lambda before=before: proxy.connections > before)
        records += collect(source, 400 - len(records))
        assert source.poll(0.5) == []
        source.close()
    for partition in ("0", "1"):
        assert values([r for r in records if r.position.partition == partition]) == numbers(200)


@pytest.fixture(scope="module")
def poisonous(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with place(tmp_path_factory.mktemp("media")) as found:
        yield found


@pytest.fixture(scope="module")
def limits(poisonous: Place) -> LoadOptions:
    return load_options(
        allowed_roots=(poisonous.root,),
        allowed_schemes=("file", "http"),
        allowed_hosts=(poisonous.host,),
        max_bytes=MAX_BYTES,
        max_pixels=MAX_PIXELS,
        max_caption_chars=MAX_CAPTION_CHARS,
        timeout_s=3.0,
    )


def test_poison_has_every_code_that_a_dead_letter_can_have() -> None:
    assert {kind.code for kind in KINDS.values()} == {code for stage in CODES.values() for code in stage}


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if not kind.costly])
def test_each_kind_of_poison_gets_its_code(name: str, poisonous: Place, limits: LoadOptions) -> None:
    kind = KINDS[name]
    registry = SchemaRegistry.of(KafkaSettings(schema_registry_url=poisonous.registry))
    assert registry is not None

    @settings(max_examples=50, deadline=None, database=None, derandomize=True)
    @given(kind.values(poisonous))
    def check(value: Any) -> None:
        record = Record(b"v", encoded(value), Position("c", "0", 0), kind.headers)
        registry.learn(record)
        with pytest.raises(RejectedClip) as refused:
            load(registry.attach(record), limits)
        assert refused.value.code == kind.code

    with closing(registry):
        check()


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.costly])
def test_poison_that_takes_its_decoder_along_costs_one_record(name: str, poisonous: Place, limits: LoadOptions) -> None:
    kind = KINDS[name]

    @settings(max_examples=1, deadline=None, database=None, derandomize=True)
    @given(kind.values(poisonous))
    def check(value: Any) -> None:
        with closing(Loader(limits, workers=1)) as loader:
            bad = loader.submit(Record(b"v", encoded(value), Position("c", "0", 0), kind.headers))
            good = loader.submit(raw_record(video(width=32, height=32)))
            assert getattr(bad.result(60), "code", None) == kind.code
            assert isinstance(good.result(60), Clip)

    check()
