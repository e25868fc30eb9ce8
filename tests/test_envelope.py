"""Every shape a record may have, and every way in which it may be wrong."""

from __future__ import annotations

import base64
import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamlearn.envelope import ClipMessage, clip_schema, parse
from streamlearn.errors import MessageError
from streamlearn.records import Position, Record, Tombstone
from tests.media import raw_record, record

URI = "file:///clips/a.mp4"


def parsed(value: Any, **about: Any) -> ClipMessage:
    message = parse(record(value, **about), max_bytes=100_000, max_caption_chars=200)
    assert isinstance(message, ClipMessage)
    return message


def rejection(value: Any, **about: Any) -> MessageError:
    with pytest.raises(MessageError) as caught:
        parse(record(value, **about), max_bytes=100_000, max_caption_chars=200)
    return caught.value


def test_plain_message_keeps_every_field() -> None:
    message = parsed(
        {
            "video_id": "v7",
            "uri": URI,
            "captions": [" a cat ", "a cat sits"],
            "start_s": 1,
            "end_s": 2.5,
            "sha256": "AB" * 32,
            "meta": {"cam": 7, "night": True, "place": None, "lens": 1.5, "who": "x"},
            "time": "2026-11-21T10:00:00Z",
            "split": "heldout",
            "task": "kitchen",
        }
    )

    assert message.video_id == "v7"
    assert message.captions == ("a cat", "a cat sits")
    assert (message.start_s, message.end_s) == (1.0, 2.5)
    assert message.sha256 == "ab" * 32
    assert message.meta == {"cam": 7, "night": True, "place": None, "lens": 1.5, "who": "x"}
    assert message.meta["night"] is True
    assert (message.time, message.split, message.task) == ("2026-11-21T10:00:00Z", "heldout", "kitchen")
    assert message.media is None


def test_key_names_the_clip_unless_the_message_does() -> None:
    assert parsed({"uri": URI, "caption": "c"}, key=b"k").video_id == "k"
    assert parsed({"uri": URI, "caption": "c", "video_id": "v"}, key=b"k").video_id == "v"
    data = {"uri": URI, "caption": "c", "video_id": "v"}
    assert parsed({"specversion": "1.0", "id": "e", "data": data}, key=b"k").video_id == "v"
    assert rejection({"uri": URI, "caption": "c"}, key=None).code == "missing_field"


def test_media_arrives_as_base64() -> None:
    message = parsed({"media_b64": base64.b64encode(b"video").decode(), "caption": "c"})
    assert message.media == b"video"


def test_raw_video_takes_every_caption_header() -> None:
    headers = (("Content-Type", b"video/webm; codecs=vp9"), ("caption", b"one"), ("caption", "zwei ü".encode()))
    message = parsed(b"\x1aE\xdf\xa3", key=b"k", headers=headers)
    assert (message.video_id, message.captions, message.media) == ("k", ("one", "zwei ü"), b"\x1aE\xdf\xa3")


def test_raw_video_without_a_caption_is_refused() -> None:
    assert rejection(b"\x00", headers=(("content-type", b"video/mp4"),)).code == "missing_field"


def test_raw_video_with_a_latin1_caption_is_refused() -> None:
    headers = (("content-type", b"video/mp4"), ("caption", b"caf\xe9"))
    assert rejection(b"\x00", headers=headers).code == "invalid_utf8"


def test_structured_cloud_event_is_unwrapped() -> None:
    event = {
        "specversion": "1.0",
        "id": "1",
        "source": "/cams",
        "type": "clip",
        "time": "2026-01-01T00:00:00+01:00",
        "data": {"uri": URI, "caption": "c"},
    }
    for headers in ((), (("content-type", b"application/cloudevents+json; charset=utf-8"),)):
        message = parsed(event, headers=headers)
        assert (message.captions, message.time) == (("c",), "2026-01-01T00:00:00+01:00")
        assert message.meta == {}


def test_binary_cloud_event_is_its_value() -> None:
    headers = (("ce_specversion", b"1.0"), ("ce_id", b"1"), ("ce_time", b"2026-01-01T00:00:00Z"))
    assert parsed({"uri": URI, "caption": "c"}, headers=headers).time == "2026-01-01T00:00:00Z"


@pytest.mark.parametrize(
    ("event", "headers"),
    [
        ({"specversion": "0.3", "data": {}}, ()),
        ({"specversion": "1.0", "data_base64": "AAAA"}, ()),
        ({"specversion": 1, "data": {}}, ()),
        ({"uri": URI, "caption": "c"}, (("ce_specversion", b"2.0"),)),
        ({"a": 1}, (("content-type", b"application/cloudevents-batch+json"),)),
    ],
)
def test_other_envelopes_are_refused(event: Any, headers: Any) -> None:
    assert rejection(event, headers=headers).code == "unsupported_envelope"


def test_null_value_is_a_tombstone() -> None:
    assert parse(record(None, key=b"k"), max_bytes=1, max_caption_chars=1) == Tombstone("k", Position("clips", "0", 0))


def test_a_tombstone_reaches_even_ids_that_are_taken_no_more() -> None:
    tombstone = parse(record(None, key=b".."), max_bytes=1, max_caption_chars=1)
    assert isinstance(tombstone, Tombstone)
    assert tombstone.video_id == ".."


@pytest.mark.parametrize("video_id", ["...", "a/../b", "./a", ".hidden", "a/."])
def test_other_ids_with_dots_are_taken(video_id: str) -> None:
    assert parsed({"video_id": video_id, "uri": URI, "caption": "c"}).video_id == video_id


def test_a_plain_message_may_have_a_field_that_cloud_events_have_too() -> None:
    for captions in ({"caption": "c"}, {"captions": ["c"]}):
        assert parsed({"uri": URI, "specversion": "7", **captions}).meta == {"specversion": "7"}


def test_tombstone_needs_a_key() -> None:
    assert rejection(None, key=None).code == "empty_value"
    assert rejection(b"").code == "empty_value"


def test_unknown_fields_are_kept_in_meta() -> None:
    message = parsed({"uri": URI, "caption": "c", "fps": 30, "tags": ["a", "b"], "cam": "x", "meta": {"cam": "y"}})
    assert message.meta == {"fps": 30, "tags": '["a", "b"]', "cam": "y"}


GOOD: dict[str, Any] = {"uri": URI, "caption": "c"}


@pytest.mark.parametrize(
    ("change", "code", "names"),
    [
        ({"caption": 7}, "invalid_field", "caption"),
        ({"caption": None}, "invalid_field", "caption"),
        ({"caption": ""}, "invalid_field", "captions"),
        ({"caption": " \t\n"}, "invalid_field", "captions"),
        ({"caption": "x" * 201}, "invalid_field", "201"),
        ({"caption": "nul\0byte"}, "invalid_field", "NUL"),
        ({"caption": "\ud800"}, "invalid_field", "surrogate"),
        ({"video_id": "\ud800"}, "invalid_field", "surrogate"),
        ({"task": "a\udfff"}, "invalid_field", "surrogate"),
        ({"uri": "file:///\udc80"}, "invalid_field", "surrogate"),
        ({"meta": {"a": "\ud800"}}, "invalid_field", "surrogate"),
        ({"captions": ["a"]}, "invalid_field", "not both"),
        ({"uri": 3}, "invalid_field", "uri"),
        ({"uri": "/no/scheme.mp4"}, "invalid_field", "uri"),
        ({"uri": "zip://a::file:///b"}, "invalid_field", "chained"),
        ({"media_b64": "AAAA"}, "invalid_field", "not both"),
        ({"uri": None}, "missing_field", "media_b64"),
        ({"video_id": ""}, "invalid_field", "video_id"),
        ({"video_id": 12}, "invalid_field", "video_id"),
        ({"video_id": "x" * 513}, "invalid_field", "video_id"),
        ({"video_id": "a\nb"}, "invalid_field", "video_id"),
        ({"video_id": "."}, "invalid_field", "link"),
        ({"video_id": ".."}, "invalid_field", "link"),
        ({"start_s": -1}, "invalid_field", "start_s"),
        ({"start_s": "1"}, "invalid_field", "start_s"),
        ({"start_s": True}, "invalid_field", "start_s"),
        ({"start_s": 2, "end_s": 2}, "invalid_field", "end_s"),
        ({"sha256": "abc"}, "invalid_field", "sha256"),
        ({"meta": []}, "invalid_field", "meta"),
        ({"meta": {"a": {"b": 1}}}, "invalid_field", "meta.a"),
        ({"meta": {"a": 2**70}}, "invalid_field", "64 bits"),
        ({"meta": {"\udcff": 1}}, "invalid_field", "meta"),
        ({"meta": {"a": "\udcff"}}, "invalid_field", "meta"),
        ({"meta": {"a": "\0"}}, "invalid_field", "meta"),
        ({"time": "yesterday"}, "invalid_field", "time"),
        ({"time": "2026-02-30T00:00:00Z"}, "invalid_field", "time"),
        ({"time": "2026-01-01"}, "invalid_field", "time"),
        ({"split": "test"}, "invalid_field", "split"),
        ({"task": ""}, "invalid_field", "task"),
        ({"task": " "}, "invalid_field", "task"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, Any], code: str, names: str) -> None:
    error = rejection(GOOD | change)
    assert error.code == code
    assert names in str(error)
    assert "\n" not in str(error)


@pytest.mark.parametrize("captions", [[], "one string", [1], [None], ["a", ""], {"a": "b"}])
def test_captions_are_one_or_more_strings(captions: Any) -> None:
    error = rejection({"uri": URI, "captions": captions})
    assert (error.code, "captions" in str(error)) == ("invalid_field", True)


def test_missing_captions_are_named() -> None:
    error = rejection({"uri": URI})
    assert (error.code, "captions" in str(error)) == ("missing_field", True)


@pytest.mark.parametrize("text", ["!!!!", "AAA", "AA\nAA", "ÄÄÄÄ"])
def test_wrong_base64_is_refused(text: str) -> None:
    assert rejection({"media_b64": text, "caption": "c"}).code == "invalid_base64"


def test_one_megabyte_caption_is_refused_in_a_short_sentence() -> None:
    big = record({"uri": URI, "caption": "x" * 2**20})
    with pytest.raises(MessageError, match="1048576 characters") as caught:
        parse(big, max_bytes=2**21, max_caption_chars=10_000)
    assert caught.value.code == "invalid_field"
    assert len(str(caught.value)) < 300


def test_value_beyond_the_limit_is_refused() -> None:
    assert rejection({"uri": URI, "caption": "x" * 100_000}).code == "message_too_large"


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (b'{"caption": "\xff"}', "invalid_utf8"),
        (b"not json", "invalid_json"),
        (b"[1]", "invalid_json"),
        (b'{"caption": "c", "uri": "file:///a", "start_s": NaN}', "invalid_json"),
        (b'{"caption": "c", "uri": "file:///a", "start_s": 1e999}', "invalid_field"),
        (b'{"a": ' + b"[" * 40_000 + b"]" * 40_000 + b"}", "invalid_json"),
        (b'{"a": ' + b"9" * 5_000 + b"}", "invalid_json"),
        (b"\x00\x00\x00\x18ftypmp42", "invalid_json"),
    ],
)
def test_what_is_not_json_is_refused(value: bytes, code: str) -> None:
    assert parse_code(value) == code


def parse_code(value: bytes) -> str:
    return rejection(value).code


def test_key_that_is_not_utf8_is_refused() -> None:
    assert rejection(GOOD, key=b"\xff").code == "invalid_utf8"
    assert rejection(None, key=b"\xff").code == "invalid_utf8"
    assert rejection(None, key=b"").code == "invalid_field"


def test_sentences_never_repeat_the_value() -> None:
    error = rejection({"uri": "https://user:secret@host\n", "caption": "c"})
    assert "secret" not in str(error)


def test_schema_agrees_with_the_parser() -> None:
    schema = clip_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for good in (GOOD, {"captions": ["a"], "media_b64": "AAAA", "meta": {"a": 1}, "extra": [1]}):
        assert validator.is_valid(good)
        assert parsed(good).captions
    for bad in (
        {"uri": URI},
        {"caption": "c"},
        GOOD | {"meta": {"a": []}},
        GOOD | {"start_s": -1},
        GOOD | {"split": 1},
        GOOD | {"video_id": ".."},
    ):
        assert not validator.is_valid(bad)
        assert rejection(bad).code in ("invalid_field", "missing_field")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from([*ClipMessage.model_fields, "caption", "specversion", "data", "extra"])
PLAUSIBLE = st.just("a") | st.just(URI) | st.just(["a"]) | st.just("1.0") | JSON
HEADERS = st.lists(
    st.tuples(
        st.sampled_from(["content-type", "caption", "ce_specversion", "ce_time", "x"]),
        st.sampled_from([b"video/mp4", b"application/cloudevents+json", b"1.0", b"a", b"\xff"]) | st.binary(max_size=9),
    ),
    max_size=4,
).map(tuple)


@settings(derandomize=True, deadline=None, max_examples=200, database=None)
@given(
    key=st.none() | st.binary(max_size=8),
    value=st.none() | st.binary(max_size=40) | st.dictionaries(FIELDS, PLAUSIBLE, max_size=6).map(json.dumps),
    headers=HEADERS,
)
def test_any_record_is_a_message_a_tombstone_or_a_message_error(key: Any, value: Any, headers: Any) -> None:
    body = value.encode() if isinstance(value, str) else value
    try:
        message = parse(Record(key, body, Position("t", "0", 0), headers), max_bytes=1000, max_caption_chars=50)
    except MessageError:
        return
    if isinstance(message, ClipMessage):
        assert message.captions
        assert all(caption.strip() == caption != "" for caption in message.captions)
        assert (message.uri is None) != (message.media is None)
        json.dumps([message.video_id, message.captions, message.meta]).encode()


def test_raw_record_helper_is_a_valid_message() -> None:
    assert isinstance(parse(raw_record(b"x"), max_bytes=10, max_caption_chars=100), ClipMessage)
