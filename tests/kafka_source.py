"""What tests of the Kafka source share: settings, records to send, and waiting for what comes of them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from threading import Event
from typing import Any

from kafka import KafkaProducer

from streamlearn.connectors.kafka import KafkaSource
from streamlearn.errors import SourceError
from streamlearn.records import Record
from streamlearn.settings import KafkaSettings
from tests.kafka_broker import SASL_USER, KafkaBroker

DEADLINE_S = 60.0

NewTopic = Callable[..., str]
OpenSource = Callable[..., KafkaSource]


def options(broker: KafkaBroker, topic: str, **others: Any) -> KafkaSettings:
    given: dict[str, Any] = {
        "bootstrap_servers": [broker.bootstrap],
        "topics": [topic],
        "group_id": f"{topic}-group",
        "session_timeout_ms": 3_000,
        "request_timeout_ms": 5_000,
    }
    return KafkaSettings.model_validate(given | others)


def send(broker: KafkaBroker, topic: str, values: Sequence[bytes | None], partition: int = 0, **others: Any) -> None:
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap, max_request_size=2**24)
    try:
        futures = [producer.send(topic, value, b"key", partition=partition, **others) for value in values]
        for future in futures:
            future.get(DEADLINE_S)
    finally:
        producer.close()


def numbers(count: int, start: int = 0) -> list[bytes]:
    return [b"%d" % n for n in range(start, start + count)]


def values(records: Sequence[Record]) -> list[bytes | None]:
    return [record.value for record in records]


def collect(source: KafkaSource, count: int) -> list[Record]:
    """Poll until `count` records came, however often the broker is away meanwhile."""
    records: list[Record] = []
    deadline = time.monotonic() + DEADLINE_S
    while len(records) < count:
        assert time.monotonic() < deadline, f"{len(records)} of {count} records came in {DEADLINE_S} s"
        with contextlib.suppress(SourceError):
            records += source.poll(0.5)
    return records


def trouble(source: KafkaSource) -> SourceError:
    """Poll until the source says that something is wrong."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        try:
            assert source.poll(0.5) == []
        except SourceError as error:
            return error
    raise AssertionError("the source said nothing")


def until(condition: Callable[[], object]) -> None:
    deadline, tick = time.monotonic() + DEADLINE_S, Event()
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        tick.wait(0.02)


def make_anew(kafka: KafkaBroker, topic: str) -> None:
    """Delete a topic and create it again, once the broker has forgotten the old one."""
    with kafka.admin() as admin:
        admin.delete_topics([topic])
        until(lambda: topic not in admin.list_topics())
    kafka.create_topic(topic)


def members(broker: KafkaBroker, group: str) -> dict[str, list[Any]]:
    """Member ids and what they were assigned."""
    with broker.admin() as admin:
        described = admin.describe_groups([group])
    return {m["member_id"]: m["member_assignment"] for m in described[group]["members"]}


def sasl(broker: KafkaBroker, password: str) -> dict[str, Any]:
    """Settings of a user of the broker's SASL listener."""
    return {
        "bootstrap_servers": [broker.secure["SASL"]],
        "client": {
            "security_protocol": "SASL_PLAINTEXT",
            "sasl_mechanism": "PLAIN",
            "sasl_plain_username": SASL_USER,
            "sasl_plain_password": password,
        },
    }
