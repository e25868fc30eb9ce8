"""Schemas from a registry: over HTTP and TLS, and by a daemon that reads a real topic.

STREAMLEARN_TEST_REGISTRY names a real registry (http://localhost:8080/apis/ccompat/v7 ...) for what needs no other.
"""

from __future__ import annotations

import base64
import json
import os
import ssl
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trustme

from streamlearn.app import Daemon
from streamlearn.connectors.kafka_range import Range
from streamlearn.connectors.kafka_replay import RangeSource
from streamlearn.connectors.kafka_schemas import SchemaRegistry
from streamlearn.envelope import parse
from streamlearn.errors import SettingsError, SourceError, SourceRefusedError
from streamlearn.records import Position, Record
from streamlearn.settings import KafkaSettings, load
from tests.daemon import until
from tests.kafka_broker import KafkaBroker
from tests.kafka_source import NewTopic, options, send
from tests.schema_registry import SmallRegistry, framed, register
from tests.test_daemon import Stream, settled
from tests.test_kafka_dead_letters import read
from tests.test_wire import CAT, CLIP, JSON_CLIP, avro

Open = Callable[..., SchemaRegistry]


@pytest.fixture
def small() -> SmallRegistry:
    return SmallRegistry()


@pytest.fixture
def url(small: SmallRegistry) -> Iterator[str]:
    """A registry to register at and to ask, a real one if there is."""
    if real := os.environ.get("STREAMLEARN_TEST_REGISTRY"):
        yield real
        return
    with small.serve() as served:
        yield served


@pytest.fixture
def connect() -> Iterator[Open]:
    opened: list[SchemaRegistry] = []

    def make(url: str, **others: Any) -> SchemaRegistry:
        given = {"schema_registry_url": url, "request_timeout_ms": 20_000, **others}
        found = SchemaRegistry.of(KafkaSettings.model_validate(given))
        assert found is not None
        opened.append(found)
        return found

    yield make
    for registry in opened:
        registry.close()


def record(value: bytes | None, key: bytes | None = b"k", **headers: bytes) -> Record:
    named = tuple((name.replace("_", "-"), content) for name, content in headers.items())
    return Record(key, value, Position("clips", "0", 0), named)


def resolved(registry: SchemaRegistry, record: Record) -> Record:
    assert not registry.knows(record)
    registry.learn(record)
    assert registry.knows(record)
    return registry.attach(record)


def message(record: Record) -> Any:
    return parse(record, max_bytes=100_000, max_caption_chars=200)


def test_schemas_are_looked_up_by_the_id_of_key_and_value(url: str, connect: Open) -> None:
    clip, name = register(url, "clips-value", CLIP), register(url, "clips-key", "string")
    found = resolved(connect(url), record(avro(CLIP, CAT, clip), avro("string", "a", name)))
    assert [(s.id, s.kind) for s in found.schemas] == [(clip, "AVRO"), (name, "AVRO")]
    assert message(found).video_id == "a"
    assert message(replace(found, value=None)).video_id == "a"


def test_json_schemas_and_references_are_looked_up(url: str, connect: Open) -> None:
    draft = {"$schema": "http://json-schema.org/draft-07/schema#"}  # Apicurio 2.6 takes no schema without it
    register(url, "take", {**draft, "type": "integer"}, "JSON")
    reference = {"name": "take.json", "subject": "take", "version": 1}
    contents = {**draft, "type": "object", "properties": {"take": {"$ref": "take.json"}}}
    number = register(url, "json-value", contents, "JSON", [reference])
    body = {"caption": "c", "uri": "file:///a", "take": 3}
    found = resolved(connect(url), record(framed(number, json.dumps(body).encode())))
    assert [name for name, _ in found.schemas[0].references] == ["take.json"]
    assert message(found).meta == {"take": 3}


def test_an_id_is_asked_for_once(small: SmallRegistry, connect: Open) -> None:
    with small.serve() as url:
        number, registry = register(url, "clips-value", CLIP), connect(url)
        for _ in range(3):
            registry.learn(record(avro(CLIP, CAT, number)))
            registry.learn(record(avro(CLIP, CAT, 999)))
        assert small.asked == [f"/schemas/ids/{number}", "/schemas/ids/999"]
    assert registry.knows(record(avro(CLIP, CAT, number)))  # also while the registry is away


def test_an_id_that_the_registry_does_not_know_is_the_records_trouble(url: str, connect: Open) -> None:
    found = resolved(connect(url), record(framed(987_654, b"?")))
    assert "has no schema 987654" in str(found.schemas[0].problem)


def test_an_id_that_is_too_large_for_any_is_the_records_trouble_and_is_not_asked_for(
    small: SmallRegistry, connect: Open
) -> None:
    with small.serve() as url:
        found = resolved(connect(url), record(framed(2**31, b"?")))
    assert "is no id of a schema" in str(found.schemas[0].problem)
    assert small.asked == []


def test_what_is_not_framed_needs_no_registry(connect: Open) -> None:
    registry = connect("http://127.0.0.1:1")
    film = b"\x00\x00\x01\xba\x44\x00\x04"
    for plain in (record(b'{"caption": "c"}'), record(None), record(b""), record(film, content_type=b"video/mpeg")):
        assert registry.knows(plain)
        registry.learn(plain)
        assert registry.attach(plain) is plain


def test_a_registry_that_is_away_is_a_sentence_until_it_is_back(small: SmallRegistry, connect: Open) -> None:
    with small.serve() as url:
        value = record(avro(CLIP, CAT, register(url, "clips-value", CLIP)))
    registry = connect(url)
    with pytest.raises(SourceError, match="cannot be reached") as said:
        registry.learn(value)
    assert (said.value.retriable, registry.reachable, registry.knows(value)) == (True, False, False)
    with small.serve():
        small.trouble = 503
        with pytest.raises(SourceError, match="HTTP 503") as said:
            registry.learn(value)
        assert said.value.retriable
        small.trouble = None
        registry.learn(value)
    assert (registry.reachable, registry.knows(value)) == (True, True)


def test_another_service_at_the_address_is_no_reason_for_dead_letters(url: str, connect: Open) -> None:
    with pytest.raises(SourceRefusedError, match="does not answer as a schema registry"):
        connect(f"{url}/elsewhere").learn(record(avro(CLIP, CAT, 1)))


def test_it_logs_in_by_a_file_and_trusts_by_a_file(connect: Open, tmp_path: Path) -> None:
    authority, small = trustme.CA(), SmallRegistry(login="key:a:secret")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    (tmp_path / "login").write_text("key:a:secret\n")
    (tmp_path / "wrong").write_text("key:wrong\n")
    small.schemas.append({"schema": json.dumps(CLIP)})
    value = record(avro(CLIP, CAT, 1))
    trusting = {"schema_registry_ca_file": tmp_path / "ca.pem"}
    with small.serve(context) as url:
        with pytest.raises(SourceError, match="CERTIFICATE_VERIFY_FAILED"):
            connect(url).learn(value)
        with pytest.raises(SourceRefusedError, match="credentials") as said:
            connect(url, **trusting, schema_registry_auth_file=tmp_path / "wrong").learn(value)
        assert "key" not in str(said.value).replace(url, "")
        assert message(resolved(connect(url, **trusting, schema_registry_auth_file=tmp_path / "login"), value))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"schema_registry_auth_file": "nowhere"}, "schema_registry_auth_file.*cannot be read"),
        ({"schema_registry_auth_file": "token"}, "user:password"),
        ({"schema_registry_ca_file": "nowhere"}, "schema_registry_ca_file.*cannot be used"),
        ({"schema_registry_ca_file": "token"}, "schema_registry_ca_file.*cannot be used"),
    ],
)
def test_files_that_cannot_be_used_are_refused_at_once(
    given: dict[str, str], sentence: str, connect: Open, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("token")
    with pytest.raises(SettingsError, match=sentence):
        connect("https://localhost:1", **{name: tmp_path / file for name, file in given.items()})


def test_settings_say_where_credentials_belong() -> None:
    with pytest.raises(SettingsError, match="schema_registry_url"):
        load(None, {"kafka.schema_registry_url": "https://me:secret@registry"})
    with pytest.raises(SettingsError, match="need schema_registry_url"):
        load(None, {"kafka.schema_registry_auth_file": "login"})


@pytest.mark.slow
def test_a_replay_waits_for_the_registry_with_what_it_has_read(
    kafka: KafkaBroker, new_topic: NewTopic, small: SmallRegistry
) -> None:
    topic = new_topic()
    with small.serve() as url:
        number = register(url, "clips-value", CLIP)
    send(kafka, topic, [avro(CLIP, {**CAT, "video_id": name}, number) for name in "abc"])
    settings = options(kafka, topic, schema_registry_url=url)
    with closing(RangeSource(settings, [Range(topic, 0, 0, 3)])) as source:
        source.start({})
        for _ in range(2):
            with pytest.raises(SourceError, match="cannot be reached"):
                until(lambda: source.poll(1.0), "the range is read")
        with small.serve():
            found = source.poll(1.0)
    assert [message(r).video_id for r in found] == ["a", "b", "c"]


@pytest.mark.slow
def test_a_daemon_waits_for_the_registry_learns_avro_and_json_and_rejects_what_it_cannot_resolve(
    kafka: KafkaBroker, new_topic: NewTopic, small: SmallRegistry, tmp_path: Path
) -> None:
    topic = new_topic()
    clips = [
        json.loads(r.value or b"") | {"media": base64.b64decode(json.loads(r.value or b"")["media_b64"])}
        for r in Stream().clips("studio", 4)
    ]
    with small.serve() as url:
        by_avro, by_json = register(url, "clips-value", CLIP), register(url, "json-value", JSON_CLIP, "JSON")
    in_json = {"video_id": "json", "caption": "a cat", "media_b64": clips[0]["media_b64"]}
    values = [
        *(avro(CLIP, clip, by_avro) for clip in clips),
        framed(by_json, json.dumps(in_json).encode()),
        framed(by_json, json.dumps(in_json | {"take": 10}).encode()),
        framed(999, b"?"),
        json.dumps(in_json | {"video_id": "plain"}).encode(),
    ]
    send(kafka, topic, values)
    settings = load(
        None,
        {
            "source": "streamlearn.connectors.kafka:KafkaSource",
            "state_dir": tmp_path / "state",
            "kafka.bootstrap_servers": [kafka.bootstrap],
            "kafka.topics": [topic],
            "kafka.group_id": f"{topic}-group",
            "kafka.dead_letter_topic": f"{topic}-dlq",
            "kafka.schema_registry_url": url,
            "api.port": 0,
            "model.threads": 1,
            "learner.max_wait_s": 0.3,
            "media.size_px": 32,
        },
    )
    with Daemon(settings) as running:
        until(lambda: "registry" in (running.service.status()["detail"] or ""), "the wait is said")
        assert running.registry.get_sample_value("streamlearn_source_connected") == 0
        with small.serve():
            until(lambda: running.state.offsets and settled(running, "idle"), "all is read")
            counts = running.service.status()["clips"]
    assert counts["learned"] + counts["held_out"] == 6
    assert counts["dead_lettered"] == 2
    letters = {dict(letter.headers)["streamlearn.error.code"]: letter for letter in read(kafka, f"{topic}-dlq")}
    assert {code: letter.value for code, letter in letters.items()} == {
        b"schema_mismatch": values[5],
        b"unknown_schema": values[6],
    }
