"""Avro and JSON by a registry's schemas: what becomes of a framed key and value. No registry is asked here."""

from __future__ import annotations

import datetime
import io
import json
from decimal import Decimal
from typing import Any

import fastavro
import pytest

from streamlearn.envelope import ClipMessage, parse
from streamlearn.errors import MessageError
from streamlearn.records import Position, Record, Tombstone, WriterSchema
from tests.schema_registry import framed

CLIP: dict[str, Any] = {
    "type": "record",
    "name": "Clip",
    "fields": [
        {"name": "video_id", "type": "string"},
        {"name": "captions", "type": {"type": "array", "items": "string"}},
        {"name": "uri", "type": ["null", "string"], "default": None},
        {"name": "media", "type": ["null", "bytes"], "default": None},
        {"name": "time", "type": ["null", {"type": "long", "logicalType": "timestamp-millis"}], "default": None},
        {"name": "meta", "type": {"type": "map", "values": ["null", "string", "double"]}, "default": {}},
        {"name": "task", "type": ["null", "string"], "default": None},
    ],
}
JSON_CLIP = {
    "type": "object",
    "properties": {"caption": {"type": "string"}, "take": {"type": "integer", "maximum": 9}},
    "required": ["caption"],
}


def schema(contents: Any, kind: str = "AVRO", number: int = 7, **more: Any) -> WriterSchema:
    return WriterSchema(number, kind, json.dumps(contents), **more)


def avro(contents: Any, value: Any, number: int = 7, named: dict[str, Any] | None = None) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(contents, named or {}), value)
    return framed(number, out.getvalue())


def read(value: bytes | None, *schemas: WriterSchema, key: bytes | None = b"k", **headers: bytes) -> Any:
    named = tuple((name.replace("_", "-"), content) for name, content in headers.items())
    record = Record(key, value, Position("clips", "0", 0), named, None, schemas)
    return parse(record, max_bytes=100_000, max_caption_chars=200)


def refused(value: bytes | None, *schemas: WriterSchema, **more: Any) -> MessageError:
    with pytest.raises(MessageError) as caught:
        read(value, *schemas, **more)
    return caught.value


CAT = {"video_id": "a", "captions": ["a cat"], "uri": "file:///a.mp4"}


def test_an_avro_value_is_a_message_with_its_times_nulls_and_bytes_as_json_has_them() -> None:
    time = datetime.datetime(2026, 11, 21, 10, tzinfo=datetime.UTC)
    value = {"video_id": "a", "captions": ["a cat"], "media": b"\0film", "time": time, "meta": {"cam": "7", "x": None}}
    message = read(avro(CLIP, value), schema(CLIP))
    assert isinstance(message, ClipMessage)
    assert (message.video_id, message.captions, message.media) == ("a", ("a cat",), b"\0film")
    assert (message.time, message.uri, message.task, message.meta) == (
        "2026-11-21T10:00:00+00:00",
        None,
        None,
        {"cam": "7"},
    )


def test_logical_types_that_json_has_no_name_for_are_kept_in_meta() -> None:
    fields = [
        *CLIP["fields"],
        {"name": "price", "type": {"type": "bytes", "logicalType": "decimal", "precision": 6, "scale": 2}},
        {"name": "day", "type": {"type": "int", "logicalType": "date"}},
        {"name": "run", "type": {"type": "string", "logicalType": "uuid"}},
        {"name": "thumb", "type": "bytes"},
    ]
    contents = {**CLIP, "fields": fields}
    run = "3f1f6d0a-8a38-4d2e-9a62-1f6f7a1a5d11"
    value = {**CAT, "price": Decimal("12.50"), "day": datetime.date(2026, 11, 21), "run": run, "thumb": b"\xff"}
    message = read(avro(contents, value), schema(contents))
    assert message.meta == {"price": 12.5, "day": "2026-11-21", "run": run, "thumb": "/w=="}


def test_a_json_value_is_checked_by_its_schema_and_then_as_a_message() -> None:
    body = {"caption": "a cat", "uri": "file:///a.mp4", "take": 3}
    message = read(framed(7, json.dumps(body).encode()), schema(JSON_CLIP, "JSON"))
    assert (message.video_id, message.captions, message.meta) == ("k", ("a cat",), {"take": 3})
    error = refused(framed(7, json.dumps(body | {"take": 4711}).encode()), schema(JSON_CLIP, "JSON"))
    assert error.code == "schema_mismatch"
    assert "$.take" in str(error)
    assert "4711" not in str(error)
    assert refused(framed(7, b"{"), schema(JSON_CLIP, "JSON")).code == "invalid_json"
    assert refused(framed(7, b'{"caption": "c"}'), schema(JSON_CLIP, "JSON")).code == "missing_field"


def test_schemas_that_refer_to_others_are_read_with_them() -> None:
    cam = {"type": "record", "name": "Cam", "fields": [{"name": "place", "type": "string"}]}
    contents = {**CLIP, "fields": [*CLIP["fields"], {"name": "cam", "type": "Cam"}]}
    named: dict[str, Any] = {}
    fastavro.parse_schema(cam, named)
    value = avro(contents, {**CAT, "cam": {"place": "hall"}}, named=dict(named))
    message = read(value, schema(contents, references=(("cam", json.dumps(cam)),)))
    assert message.meta == {"cam": '{"place": "hall"}'}
    assert "cannot be used" in str(refused(value, schema(contents)))

    whole = {"type": "object", "properties": {"take": {"$ref": "take.json"}}}
    take = (("take.json", json.dumps({"type": "integer"})),)
    body = {"caption": "c", "uri": "file:///a", "take": "x"}
    assert (
        refused(framed(7, json.dumps(body).encode()), schema(whole, "JSON", references=take)).code == "schema_mismatch"
    )
    error = refused(framed(7, json.dumps(body).encode()), schema(whole, "JSON"))
    assert (error.code, "take.json" in str(error)) == ("unknown_schema", True)


def test_a_schema_that_points_into_the_network_fetches_nothing() -> None:
    contents = {"$ref": "http://127.0.0.1:1/schema.json"}
    error = refused(framed(7, b'{"caption": "c"}'), schema(contents, "JSON"))
    assert error.code == "unknown_schema"
    assert "not among its references" in str(error)


@pytest.mark.parametrize(
    "value",
    [framed(7, b"\x02"), framed(7, b"\x02a\xff\xff\xff\xff\xff\xff\xff\xff\x7f"), avro(CLIP, CAT) + b"\0"],
    ids=["too short", "a length that is not there", "too long"],
)
def test_bytes_that_are_not_of_the_schema_are_refused(value: bytes) -> None:
    assert refused(value, schema(CLIP)).code == "schema_mismatch"


def test_a_schema_that_is_not_known_is_said_with_the_remedy() -> None:
    error = refused(avro(CLIP, CAT))
    assert (error.code, "kafka.schema_registry_url" in str(error)) == ("unknown_schema", True)
    error = refused(avro(CLIP, CAT), WriterSchema(7, problem="the registry at x has no schema 7; register it"))
    assert (error.code, "register it" in str(error)) == ("unknown_schema", True)
    assert refused(avro(CLIP, CAT), WriterSchema(7, "PROTOBUF", "message A {}")).code == "unsupported_envelope"
    assert refused(avro(CLIP, CAT), WriterSchema(7, "AVRO", "{")).code == "unknown_schema"
    assert refused(framed(7, b"{}"), WriterSchema(7, "JSON", '{"type": 3}')).code == "unknown_schema"
    assert refused(framed(7, b"{}"), WriterSchema(7, "JSON", "[]")).code == "unknown_schema"


def test_what_is_no_record_is_refused() -> None:
    assert refused(avro("string", "a"), schema("string")).code == "invalid_json"


def test_a_cloudevent_may_carry_avro() -> None:
    headers = (("ce_specversion", b"1.0"), ("ce_id", b"1"), ("ce_time", b"2026-11-21T10:00:00Z"))
    record = Record(None, avro(CLIP, CAT), Position("clips", "0", 0), headers, None, (schema(CLIP),))
    message = parse(record, max_bytes=1000, max_caption_chars=50)
    assert isinstance(message, ClipMessage)
    assert (message.video_id, message.time) == ("a", "2026-11-21T10:00:00Z")


def test_a_key_is_read_where_it_names_the_clip_and_else_may_be_anything() -> None:
    key = avro("string", "clip-1", number=3)
    assert read(None, schema("string", number=3), key=key) == Tombstone("clip-1", Position("clips", "0", 0))
    anonymous = json.dumps({"caption": "c", "uri": "file:///a"}).encode()
    assert read(anonymous, schema("string", number=3), key=key).video_id == "clip-1"
    as_json = framed(3, b'"clip-2"')
    assert read(anonymous, schema({"type": "string"}, "JSON", 3), key=as_json).video_id == "clip-2"
    record = avro(CLIP, CAT, number=3)
    assert refused(anonymous, schema(CLIP, number=3), key=record).code == "invalid_field"
    unknown = WriterSchema(3, problem="the registry has no schema 3")
    assert refused(None, unknown, key=key).code == "unknown_schema"
    for other in (key, b"\xff\xfe", (4711).to_bytes(8, "big")):
        assert read(avro(CLIP, CAT), schema(CLIP), unknown, key=other).video_id == "a"


def test_a_video_is_not_taken_for_a_frame() -> None:
    film = b"\x00\x00\x00\x18ftypmp42"
    assert read(film, content_type=b"video/mp4", caption=b"a cat").media == film
    assert WriterSchema.id_in(film) is None
    assert "content-type" in str(refused(film))
    assert "content-type" in str(refused(b"\x00\x00\x01\xba\x44\x00\x04"))  # an MPEG program stream


@pytest.mark.parametrize(
    "items",
    [
        "null",
        {"type": "fixed", "name": "Nothing", "size": 0},
        {
            "type": "record",
            "name": "Void",
            "fields": [{"name": "a", "type": "null"}, {"name": "b", "type": {"type": "null"}}],
        },
    ],
)
def test_an_array_of_what_takes_no_bytes_is_refused_before_five_bytes_make_a_billion_of_it(items: Any) -> None:
    more = {"name": "x", "type": ["null", {"type": "map", "values": {"type": "array", "items": items}}]}
    contents = {**CLIP, "fields": [*CLIP["fields"], more]}
    error = refused(avro(contents, CAT), schema(contents))
    assert error.code == "unknown_schema"
    assert "take no bytes" in str(error)
    named = {**CLIP, "fields": [*CLIP["fields"], {**more, "type": {"type": "array", "items": "Thing"}}]}
    thing = {"type": "record", "name": "Thing", "fields": [{"name": "a", "type": items}]}
    assert "take no bytes" in str(refused(framed(7, b"\0"), schema(named, references=(("thing", json.dumps(thing)),))))


def test_arrays_of_small_things_and_records_that_hold_their_own_kind_are_read() -> None:
    tree = {"type": "record", "name": "Tree", "fields": [{"name": "twigs", "type": {"type": "array", "items": "Tree"}}]}
    more = [{"name": "tree", "type": tree}, {"name": "xs", "type": {"type": "array", "items": ["null", "boolean"]}}]
    contents = {**CLIP, "fields": [*CLIP["fields"], *more]}
    value = {**CAT, "tree": {"twigs": [{"twigs": []}]}, "xs": [None, True]}
    assert read(avro(contents, value), schema(contents)).meta["tree"] == '{"twigs": [{"twigs": []}]}'


def test_what_is_nested_too_deeply_has_a_code_of_its_schema() -> None:
    nested: dict[str, Any] = {
        "$defs": {"n": {"items": {"$ref": "#/$defs/n"}}},
        "properties": {"x": {"$ref": "#/$defs/n"}},
    }
    body = b'{"caption": "c", "uri": "file:///a", "x": ' + b"[" * 900 + b"]" * 900 + b"}"
    assert refused(framed(7, body), schema(nested, "JSON")).code == "schema_mismatch"
    assert refused(framed(7, b"{}"), schema({"$ref": "#"}, "JSON")).code == "schema_mismatch"
    deep = '{"items": ' * 300 + "{}" + "}" * 300
    assert refused(framed(7, b"{}"), WriterSchema(7, "JSON", deep)).code == "unknown_schema"
    twig = {"type": "record", "name": "Twig", "fields": [{"name": "next", "type": ["null", "Twig"]}]}
    contents = {"type": "record", "name": "Clip", "fields": [{"name": "x", "type": ["null", twig]}]}
    for levels in (900, 10_000):  # of which the latter is more than a stack of C holds
        assert refused(framed(7, b"\x02" * levels + b"\0"), schema(contents)).code == "schema_mismatch"


def test_a_pattern_that_only_others_can_read_is_said_and_not_checked(caplog: pytest.LogCaptureFixture) -> None:
    letters = r"^\p{L}+$"
    whole = {
        "properties": {
            "caption": {"pattern": letters, "maxLength": 9},
            "place": {"$ref": "place.json"},
            "pattern": {"type": "string"},
            "meta": {
                "patternProperties": {letters: {"type": "number"}, "^x": {"maxLength": 1}},
                "additionalProperties": False,
            },
        }
    }
    made = schema(whole, "JSON", references=(("place.json", json.dumps({"pattern": letters, "maxLength": 4})),))
    body = {"caption": "eine Katze"[:9], "uri": "file:///a", "place": "hall", "meta": {"a": 1, "x": "y"}}
    assert read(framed(7, json.dumps(body).encode()), made).captions == ("eine Katz",)
    assert "schema 7" in caplog.text
    assert "p{L}" in caplog.text
    for wrong in ({"caption": "too long a caption"}, {"place": "the hall"}, {"meta": {"x": "yy"}}, {"pattern": 4}):
        error = refused(framed(7, json.dumps(body | wrong).encode()), made)
        assert error.code == "schema_mismatch", wrong
