"""A whole daemon that Kafka does not let read: one sentence, a gauge, and searches are answered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from kafka.admin import ACL, ACLOperation, ACLPermissionType, ResourcePattern, ResourceType

from streamlearn.app import Daemon
from streamlearn.connectors.kafka import KafkaSource
from streamlearn.settings import load
from tests.kafka_broker import SASL_PASSWORD, KafkaBroker
from tests.kafka_source import NewTopic, options, sasl, until

pytestmark = pytest.mark.slow


def reserve(broker: KafkaBroker, topic: str) -> None:
    """For somebody else alone."""
    pattern = ResourcePattern(ResourceType.TOPIC, topic)
    somebody = ACL("User:somebody", "*", ACLOperation.ALL, ACLPermissionType.ALLOW, pattern)
    with broker.admin() as admin:
        admin.create_acls([somebody])


@pytest.mark.parametrize(
    ("why", "sentence"),
    [
        ("unreachable", "cannot be reached"),
        ("unknown topic", "has no topic"),
        ("wrong credentials", "credentials"),
        ("unauthorised topic", "grant Read and Describe"),
    ],
)
def test_a_daemon_says_why_it_reads_nothing_and_stays_ready(
    own_kafka: KafkaBroker, new_topic: NewTopic, tmp_path: Path, why: str, sentence: str
) -> None:
    topic = new_topic()
    how: dict[str, Any] = {}
    match why:
        case "unreachable":
            how = {"bootstrap_servers": ["127.0.0.1:1"]}
        case "unknown topic":
            topic = f"{topic}-not-there"
        case "wrong credentials":
            how = sasl(own_kafka, "a wrong one")
        case "unauthorised topic":
            reserve(own_kafka, topic)
            how = sasl(own_kafka, SASL_PASSWORD)
    settings = load(None, {"state_dir": tmp_path / "state", "api.port": 0, "model.threads": 1, "media.size_px": 32})
    with Daemon(settings, KafkaSource(options(own_kafka, topic, **how))) as running:
        until(lambda: sentence in (httpx.get(f"{running.url}/v1/status").json()["detail"] or ""))
        assert "a wrong one" not in httpx.get(f"{running.url}/v1/status").text
        assert httpx.get(f"{running.url}/readyz").status_code == 200
        assert "\nstreamlearn_source_connected 0.0" in httpx.get(f"{running.url}/metrics").text
        found = httpx.post(f"{running.url}/v1/search", json={"query": {"text": "a circle"}}, timeout=60)
        assert (found.status_code, found.json()["results"]) == (200, [])
