"""Clips over HTTP: what is refused, what the source gets, and a daemon that learns and forgets them."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from prometheus_client import CollectorRegistry
from starlette.testclient import TestClient

from streamlearn.api import create_app
from streamlearn.catalog import Catalog
from streamlearn.clip_writer import ClipWriter
from streamlearn.connectors.folder import FolderSource
from streamlearn.connectors.folder_inbox import FolderInbox
from streamlearn.connectors.kafka_publisher import KafkaPublisher
from streamlearn.connectors.kafka_range import read, resolve, whole_topics
from streamlearn.errors import SourceError, SourceRefusedError
from streamlearn.metrics import Metrics
from streamlearn.records import Partition
from streamlearn.routes_clips import clip_routes
from streamlearn.settings import ApiSettings, KafkaSettings
from streamlearn.source import Publisher
from streamlearn.testing import FakeService, ListSource, fake_clips
from tests.daemon import until
from tests.kafka_broker import KafkaBroker
from tests.parts import BLANK
from tests.test_daemon import Stream, daemon, settled

CLIP = {"video_id": "a", "caption": "a cat", "uri": "file:///clips/a.mp4"}


class Taken:
    """A publisher that remembers, or fails."""

    def __init__(self) -> None:
        self.puts: list[tuple[dict[str, Any], bytes | None, Partition | None]] = []
        self.deletes: list[tuple[str, Partition | None]] = []
        self.failure: Exception | None = None

    def put(self, message: dict[str, Any], media: bytes | None, partition: Partition | None) -> None:
        if self.failure is not None:
            raise self.failure
        self.puts.append((message, media, partition))

    def delete(self, video_id: str, partition: Partition | None) -> None:
        if self.failure is not None:
            raise self.failure
        self.deletes.append((video_id, partition))

    def close(self) -> None:
        pass


@contextmanager
def serving(folder: Path, publisher: Publisher | None) -> Iterator[TestClient]:
    registry = CollectorRegistry()
    with closing(Catalog(folder / "catalog.db")) as catalog:
        catalog.put([replace(BLANK, video_id="known", captions=("c",), topic="cams", partition="3")])
        writer = ClipWriter(publisher, source="a:Source", catalog=catalog, max_bytes=10_000, max_caption_chars=100)
        app = create_app(
            FakeService(fake_clips(3)),
            settings=ApiSettings(),
            metrics=Metrics.create(registry),
            registry=registry,
            areas=[clip_routes(writer)],
        )
        with TestClient(app) as client:
            yield client


@pytest.fixture
def taken() -> Taken:
    return Taken()


@pytest.fixture
def client(tmp_path: Path, taken: Taken) -> Iterator[TestClient]:
    with serving(tmp_path, taken) as client:
        yield client


def problem(response: httpx.Response, status: int) -> str:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    return str(response.json()["detail"])


# --- what is taken


def test_a_clip_message_is_taken_as_in_the_topic(client: TestClient, taken: Taken) -> None:
    response = client.post("/v1/clips", json={**CLIP, "cam": 7, "meta": {"x": 1}})
    assert (response.status_code, response.json()) == (202, {"video_id": "a", "status": "accepted"})
    body = {"video_id": "a", "captions": ["a cat"], "uri": "file:///clips/a.mp4", "meta": {"cam": 7, "x": 1}}
    assert taken.puts == [(body, None, None)]


def test_the_video_comes_apart_from_its_message(client: TestClient, taken: Taken) -> None:
    body = {"video_id": "a", "captions": ["c"], "media_b64": base64.b64encode(b"video").decode()}
    assert client.post("/v1/clips", json=body).status_code == 202
    raw = [("content-type", "video/mp4"), ("caption", "one"), ("caption", "zwei ü".encode())]
    assert client.post("/v1/clips", params={"video_id": "b"}, content=b"raw", headers=raw).status_code == 202
    assert taken.puts == [
        ({"video_id": "a", "captions": ["c"]}, b"video", None),
        ({"video_id": "b", "captions": ["one", "zwei ü"]}, b"raw", None),
    ]


def test_cloud_events_are_unwrapped_in_both_modes(client: TestClient, taken: Taken) -> None:
    time = "2026-01-01T00:00:00Z"
    event = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t", "time": time, "data": CLIP}
    headers = {"content-type": "application/cloudevents+json"}
    assert client.post("/v1/clips", content=json.dumps(event), headers=headers).status_code == 202
    headers = {"ce-specversion": "1.0", "ce-id": "1", "ce-time": time}
    assert client.post("/v1/clips", json=CLIP, headers=headers).status_code == 202
    assert [message["time"] for message, _, _ in taken.puts] == [time, time]


def test_what_is_known_stays_in_its_partition(client: TestClient, taken: Taken) -> None:
    client.post("/v1/clips", json={**CLIP, "video_id": "known"})
    assert client.delete("/v1/clips/known").json() == {"video_id": "known", "status": "accepted"}
    assert client.delete("/v1/clips/cam%2F7%2Fthumbnail").status_code == 202
    assert taken.puts[0][2] == Partition("cams", "3")
    assert taken.deletes == [("known", Partition("cams", "3")), ("cam/7/thumbnail", None)]


# --- what is not


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"{", 400, "invalid_json"),
        (b"", 422, "empty_value"),
        (b"[]", 400, "invalid_json"),
        (json.dumps({**CLIP, "caption": ""}).encode(), 422, "captions"),
        (json.dumps({**CLIP, "video_id": ".."}).encode(), 422, "no link"),
        (json.dumps({"caption": "c", "uri": "file:///a"}).encode(), 422, "video_id"),
        (b" " * 10_001, 413, "message_too_large"),
    ],
)
def test_what_the_topic_would_refuse_is_refused_in_the_same_words(
    client: TestClient, taken: Taken, body: bytes, status: int, words: str
) -> None:
    assert words in problem(client.post("/v1/clips", content=body), status)
    assert taken.puts == []


def test_a_source_that_is_away_or_will_not_is_said(client: TestClient, taken: Taken) -> None:
    taken.failure = SourceError("Kafka is away")
    response = client.post("/v1/clips", json=CLIP)
    assert "Kafka is away" in problem(response, 503)
    assert response.headers["retry-after"]
    taken.failure = SourceRefusedError("the folder is read-only")
    assert problem(client.delete("/v1/clips/a"), 409) == "the folder is read-only"


def test_a_source_without_a_way_in_says_so(tmp_path: Path) -> None:
    with serving(tmp_path, None) as client:
        assert problem(client.post("/v1/clips", json=CLIP), 409).startswith("a:Source takes no clips over HTTP")
        problem(client.delete("/v1/clips/a"), 409)
        problem(client.post("/v1/clips", content=b"{"), 400)


def test_openapi_has_the_schema_of_a_clip(client: TestClient) -> None:
    post = client.get("/openapi.json").json()["paths"]["/v1/clips"]["post"]
    schema = post["requestBody"]["content"]["application/json"]["schema"]
    jsonschema.validate(CLIP, schema)
    assert {"202", "400", "409", "413", "422", "503"} <= set(post["responses"])


# --- a folder


def test_a_folder_takes_clips_into_its_manifest(tmp_path: Path) -> None:
    inbox = FolderInbox(tmp_path)
    assert isinstance(inbox, Publisher)
    (tmp_path / "manifest.jsonl").write_text('{"video_id": "first", "caption": "c", "path": "x"}')  # no end of line
    for _ in range(2):
        inbox.put({"video_id": "a", "captions": ["c"]}, b"video", None)
    inbox.delete("first", None)
    source = FolderSource(tmp_path, watch=False, poll_interval_s=0.01)
    source.start({})
    first, posted, _, gone = source.poll(0)
    assert json.loads(first.value or b"")["video_id"] == "first"
    uri = json.loads(posted.value or b"")["uri"]
    assert Path(uri.removeprefix("file://")).read_bytes() == b"video"
    assert len(list((tmp_path / "posted").iterdir())) == 1
    assert (gone.key, gone.value) == (b"first", None)


def test_a_row_that_somebody_is_writing_is_not_broken(tmp_path: Path) -> None:
    (tmp_path / "manifest.jsonl").write_text('{"video_id": "fi')
    with pytest.raises(SourceError, match="try again"):
        FolderInbox(tmp_path).put({"video_id": "a"}, None, None)
    assert (tmp_path / "manifest.jsonl").read_text() == '{"video_id": "fi'


def test_a_folder_that_cannot_take_clips_says_why(tmp_path: Path) -> None:
    with pytest.raises(SourceRefusedError, match=r"folder\.watch is off"):
        FolderInbox(tmp_path, watched=False).delete("a", None)
    (tmp_path / "manifest.jsonl").mkdir()  # cannot be written, whoever runs the test
    with pytest.raises(SourceRefusedError, match="cannot be written"):
        FolderInbox(tmp_path).delete("a", None)
    (tmp_path / "manifest.jsonl").rmdir()
    (tmp_path / "a.mp4").write_bytes(b"video")
    with pytest.raises(SourceRefusedError, match="need a manifest"):
        FolderInbox(tmp_path).delete("a", None)


@pytest.mark.slow
def test_a_daemon_on_a_folder_learns_what_is_posted_and_forgets_what_is_deleted(tmp_path: Path) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    folder = FolderSource(clips, watch=True, poll_interval_s=3600)  # it is told that there is something
    bodies = [json.loads(record.value or b"") for record in Stream().clips("studio", 9)]
    changes = {"media__allowed_roots": [str(clips)], "evaluate__heldout_ratio": 0}
    with daemon(tmp_path, folder, **changes) as one, httpx.Client(base_url=one.url) as http:  # type: ignore[arg-type]
        for body in bodies:
            assert http.post("/v1/clips", json=body).status_code == 202
        until(lambda: http.get("/v1/status").json()["searchable"] == 9, "all are searchable")
        assert http.delete(f"/v1/clips/{bodies[0]['video_id']}").status_code == 202
        until(lambda: http.get(f"/v1/clips/{bodies[0]['video_id']}").status_code == 404, "it is gone")
        until(lambda: http.get("/v1/status").json()["clips"]["deleted"], "and its turn has come")
    with daemon(tmp_path, ListSource()) as one, httpx.Client(base_url=one.url) as http:
        settled(one)
        assert http.get("/v1/status").json()["searchable"] == 8
        assert http.post("/v1/clips", json=bodies[0]).status_code == 409


# --- Kafka


@pytest.mark.slow
def test_a_topic_takes_clips_and_tombstones_beside_their_clips(
    own_kafka: KafkaBroker, new_topic: Callable[..., str]
) -> None:
    topic = new_topic(4, configs={"max.message.bytes": "2000"})
    settings = KafkaSettings(bootstrap_servers=[own_kafka.bootstrap], topics=[topic], request_timeout_ms=2_000)
    with closing(KafkaPublisher(settings)) as publisher:
        assert isinstance(publisher, Publisher)
        for number in ("3", "1"):
            publisher.put({"video_id": "a", "captions": ["c"]}, b"video", Partition(topic, number))
        publisher.delete("a", Partition(f"{topic}@17", "2"))
        publisher.put({"video_id": "b", "captions": ["c"]}, None, Partition(topic, "99"))
        publisher.put({"video_id": "b", "captions": ["c"]}, None, Partition("elsewhere", "manifest.jsonl"))
        with pytest.raises(SourceRefusedError, match=r"max\.message\.bytes"):
            publisher.put({"video_id": "large", "captions": ["c"]}, bytes(5_000), None)
        own_kafka.kill()
        with pytest.raises(SourceError):
            publisher.put({"video_id": "lost", "captions": ["c"]}, None, None)
        own_kafka.start()
        publisher.delete("b", None)
    records = list(read(settings, resolve(settings, whole_topics(settings))))
    of = [(r.key, int(r.position.partition), r.value is None) for r in records if r.key == b"a"]
    assert sorted(of, key=lambda row: row[1]) == [(b"a", 1, False), (b"a", 2, True), (b"a", 3, False)]
    sent = next(r for r in records if r.key == b"a" and r.value is not None)
    assert json.loads(sent.value or b"") == {"video_id": "a", "captions": ["c"], "media_b64": "dmlkZW8="}
    b = [r for r in records if r.key == b"b"]
    assert [r.value is None for r in b] == [False, False, True]
    assert {r.key for r in records} == {b"a", b"b"}
