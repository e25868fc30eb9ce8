"""A bad network, and poison: no record is lost, none comes twice, each is refused for its own reason."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamlearn.envelope import parse
from streamlearn.errors import MessageError
from streamlearn.records import Position, Record
from tests.kafka_broker import KafkaBroker
from tests.kafka_proxy import proxied
from tests.kafka_source import NewTopic, OpenSource, collect, numbers, options, send, until, values

pytestmark = pytest.mark.slow


def test_a_broker_throttled_to_50_kb_a_second_costs_time_and_nothing_else(
    own_kafka: KafkaBroker, new_topic: NewTopic, open_source: OpenSource
) -> None:
    topic = new_topic()
    sent = [b"%d" % n + bytes(10_000) for n in range(15)]
    send(own_kafka, topic, sent)
    with proxied(own_kafka) as proxy:
        proxy.bytes_per_s = 50_000
        # A fetch of 150 kB takes 3 s: longer than the session may be silent, and than a request's timeout allows.
        source = open_source(
            options(own_kafka, topic, bootstrap_servers=[proxy.address], session_timeout_ms=2_000)
        )  # fmt: skip
        assert values(collect(source, len(sent))) == sent
        assert source.poll(0.2) == []
        assert source.restarts == 0
        source.close()


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


GOOD = {"captions": ["a red circle"], "media_b64": base64.b64encode(b"film").decode()}

#: One way to be wrong each, with the code that it must get.
POISON: dict[str, tuple[st.SearchStrategy[Any], str]] = {
    "no JSON": (st.text(min_size=1, max_size=50).map(lambda t: b"{" + t.encode("utf-8", "replace")), "invalid_json"),
    "no UTF-8": (st.binary(max_size=20).map(lambda b: b"\xff\xfe" + b), "invalid_utf8"),
    "nothing": (st.just(b""), "empty_value"),
    "not an object": (st.one_of(st.integers(), st.lists(st.integers(), max_size=3), st.booleans()), "invalid_json"),
    "no captions": (st.just({k: v for k, v in GOOD.items() if k != "captions"}), "missing_field"),
    "no media": (st.just({k: v for k, v in GOOD.items() if k != "media_b64"}), "missing_field"),
    "captions of a wrong type": (st.integers().map(lambda n: GOOD | {"captions": n}), "invalid_field"),
    "a caption of spaces": (st.integers(1, 9).map(lambda n: GOOD | {"captions": [" " * n]}), "invalid_field"),
    "no base64": (st.integers(0, 99).map(lambda n: GOOD | {"media_b64": f"$$${n}"}), "invalid_base64"),
    "a split there is not": (st.just(GOOD | {"split": "perhaps"}), "invalid_field"),
}


def encoded(value: Any) -> bytes:
    return value if isinstance(value, bytes) else json.dumps(value).encode()


@pytest.mark.parametrize("kind", list(POISON))
def test_each_kind_of_poison_gets_its_code(kind: str) -> None:
    strategy, code = POISON[kind]

    @settings(max_examples=50, deadline=None, database=None, derandomize=True)
    @given(strategy)
    def check(value: Any) -> None:
        with pytest.raises(MessageError) as refused:
            parse(Record(b"v", encoded(value), Position("c", "0", 0)), max_bytes=2**20, max_caption_chars=1000)
        assert refused.value.code == code

    check()
