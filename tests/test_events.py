"""Events as others get them: from the daemon by a real topic, and while nobody takes them."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry

from streamlearn.app import Daemon
from streamlearn.connectors.kafka import KafkaSource
from streamlearn.connectors.kafka_events import KafkaEvents
from streamlearn.errors import SettingsError, SourceError
from streamlearn.events import Events
from streamlearn.metrics import Metrics
from streamlearn.settings import KafkaSettings, load
from streamlearn.source import EventSink
from tests.daemon import until
from tests.kafka_broker import KafkaBroker
from tests.kafka_source import NewTopic, send
from tests.test_daemon import Stream
from tests.test_kafka_dead_letters import read


def settings(folder: Path, kafka: KafkaBroker, topic: str, **changes: Any) -> Any:
    named = {
        "source": "streamlearn.connectors.kafka:KafkaSource",
        "state_dir": folder / "state",
        "kafka.bootstrap_servers": [kafka.bootstrap],
        "kafka.topics": [topic],
        "kafka.group_id": f"{topic}-group",
        "kafka.events_topic": f"{topic}-events",
        "api.port": 0,
        "model.threads": 1,
        "learner.batch_size": 8,
        "learner.max_wait_s": 0.3,
        "media.size_px": 32,
        "evaluate.heldout_ratio": 0.0,
        "checkpoint.interval_clips": 1000,
        **changes,
    }
    return load(None, named)


def events(kafka: KafkaBroker, topic: str) -> list[dict[str, Any]]:
    """What is in the topic, each a CloudEvent as its Kafka binding wants it."""
    out = []
    for record in read(kafka, f"{topic}-events"):
        assert record.headers == (("content-type", b"application/cloudevents+json; charset=UTF-8"),)
        event = json.loads(record.value or b"")
        assert (event["specversion"], event["datacontenttype"]) == ("1.0", "application/json")
        assert record.key == event["source"].encode() == f"/streamlearn/{topic}-group".encode()
        out.append(event)
    return out


def sent(running: Daemon, count: int) -> None:
    def reached() -> bool:
        return running.registry.get_sample_value("streamlearn_events_total", {"delivery": "sent"}) == count

    until(reached, f"{count} events are delivered")


def told(events: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    return [(event["type"], event["subject"]) for event in events]


@pytest.mark.slow
def test_tasks_checkpoints_and_a_rollback_are_told_in_order_and_what_is_told_again_has_its_id(
    kafka: KafkaBroker, new_topic: NewTopic, tmp_path: Path
) -> None:
    topic, stream = new_topic(), Stream()
    named = [*stream.clips("studio", 8, task="day"), *stream.clips("night", 8, task="night")]
    send(kafka, topic, [record.value for record in named])
    with Daemon(settings(tmp_path, kafka, topic)) as running:
        sent(running, 3)
        version = running.state.model_version
    with Daemon(settings(tmp_path, kafka, topic)) as running:
        sent(running, 1)
        send(kafka, topic, [record.value for record in stream.clips("paper", 8, task="day")])
        sent(running, 3)
        answer = httpx.post(
            f"{running.url}/v1/generations/1/rollback", json={"resume_from": "latest"}, timeout=60
        ).json()
        sent(running, 4)
    day, night, first, restored, again, second, back = events(kafka, topic)
    assert told([day, night, first, again, second, back]) == [
        ("task.started", "day"),
        ("task.started", "night"),
        ("checkpoint.published", "1"),
        ("task.started", "day"),
        ("checkpoint.published", "2"),
        ("rollback.done", "3"),
    ]
    assert (day["data"]["cause"], night["data"]["cause"]) == ("start", "operator")
    assert [event["data"]["returns"] for event in (day, night, again)] == [False, False, True]
    assert night["data"]["position"] == {"topic": topic, "partition": "0", "offset": 8}
    assert night["data"]["first_clip"] == "night-8"
    assert first["data"]["offsets"] == {topic: {"0": 16}}
    assert (first["data"]["clips"], first["data"]["searchable"], first["data"]["task"]) == (16, 16, "night")
    assert first["data"]["model_version"] == version
    assert {name: back["data"][name] for name in answer} == answer
    assert (restored["id"], restored["data"]) == (first["id"], first["data"])  # after a restart it is told again
    assert len({event["id"] for event in (day, night, first, again, second, back)}) == 6


def test_events_have_no_topic_of_clips_or_dead_letters_and_none_unless_it_is_named(tmp_path: Path) -> None:
    for name in ("clips", "clips.dlq"):
        with pytest.raises(SettingsError, match="name another one"):
            load(None, {"kafka.events_topic": name})
    assert KafkaSource(KafkaSettings()).events() is None
    assert isinstance(KafkaEvents(KafkaSettings(), "streamlearn.events"), EventSink)


@pytest.mark.slow
def test_a_broker_that_is_away_is_a_sentence_for_who_delivers() -> None:
    away = KafkaSettings(bootstrap_servers=["127.0.0.1:1"], request_timeout_ms=1_000)
    sink = KafkaEvents(away, "streamlearn.events")
    for _ in range(2):
        with pytest.raises(SourceError, match=r"127\.0\.0\.1:1 cannot be reached"):
            sink.deliver([{"id": "1"}])
    sink.close()


# --- while nobody takes them


class Away:
    """A sink that refuses events until `back`, and says how often it was asked."""

    source = "/streamlearn/test"

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error or SourceError("the broker is away")
        self.asked, self.back, self.closed = threading.Semaphore(0), threading.Event(), False
        self.delivered: list[Mapping[str, Any]] = []

    def deliver(self, events: Sequence[Mapping[str, Any]]) -> None:
        self.asked.release()
        if not self.back.is_set():
            raise self.error
        self.delivered += events

    def close(self) -> None:
        self.closed = True


def tell(events: Events, *generations: int) -> None:
    for number in generations:
        events.checkpoint_published({"generation": number, "model_version": "v"})


@pytest.fixture
def metrics() -> Metrics:
    return Metrics.create(CollectorRegistry())


def counts(metrics: Metrics) -> tuple[float, float, float]:
    sent, dropped = (metrics.events_total.labels(d)._value.get() for d in ("sent", "dropped"))
    return sent, dropped, metrics.events_waiting._value.get()


@pytest.mark.parametrize("error", [SourceError("the broker is away"), ZeroDivisionError("a bug")])
def test_events_wait_in_order_while_the_sink_is_away_and_who_tells_them_waits_not(
    metrics: Metrics, error: Exception
) -> None:
    sink = Away(error)
    with closing(Events(sink, metrics, first_delay_s=0.01)) as events:
        tell(events, 1, 2)
        assert sink.asked.acquire(timeout=60)
        tell(events, 3)
        assert sink.asked.acquire(timeout=60)
        sink.back.set()
        until(lambda: len(sink.delivered) == 3, "they are delivered")
    assert [event["subject"] for event in sink.delivered] == ["1", "2", "3"]
    assert sink.closed
    assert counts(metrics) == (3, 0, 0)


def test_beyond_the_bound_the_oldest_are_dropped_and_counted(
    metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    sink = Away()
    with caplog.at_level(logging.WARNING, "streamlearn"), closing(Events(sink, metrics, capacity=2)) as events:
        tell(events, 1)
        assert sink.asked.acquire(timeout=60)
        until(lambda: counts(metrics)[2] == 1, "it waits again")
        tell(events, 2, 3)
        assert counts(metrics) == (0, 1, 2)
    assert counts(metrics)[:2] == (0, 3)  # the daemon has ended, and nobody took the last two
    assert "2 events were not delivered: the broker is away" in caplog.text
    assert sink.closed


def test_what_waits_for_another_try_gets_it_when_the_daemon_ends(metrics: Metrics) -> None:
    sink = Away()
    with closing(Events(sink, metrics, first_delay_s=3600)) as events:
        tell(events, 1)
        assert sink.asked.acquire(timeout=60)
        until(lambda: counts(metrics)[2] == 1, "it waits")
        sink.back.set()
    assert [event["subject"] for event in sink.delivered] == ["1"]
    assert counts(metrics) == (1, 0, 0)


def test_numbers_that_json_does_not_have_are_left_out(metrics: Metrics) -> None:
    from streamlearn.records import Position
    from streamlearn.tasks import Task

    sink = Away()
    sink.back.set()
    task = Task(
        "t2", 2, "drift", float("inf"), 3, 40, 320, Position("clips", "0", 290), threshold=float("nan"), shift=2.5
    )
    with closing(Events(sink, metrics)) as events:
        events.task_started(task, returns=False, model_version="v")
    (event,) = sink.delivered
    assert json.loads(json.dumps(event, allow_nan=False))["data"]["score"] is None
    assert (event["data"]["threshold"], event["data"]["shift"]) == (None, 2.5)


def test_without_a_sink_nothing_is_kept(metrics: Metrics) -> None:
    with closing(Events(None, metrics)) as events:
        tell(events, 1)
    assert counts(metrics) == (0, 0, 0)
