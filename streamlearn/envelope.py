"""One record's bytes to a validated clip message: JSON, CloudEvents 1.0, Avro, raw video, or a tombstone.

Knows how messages are carried and nothing about media: it fetches and decodes nothing. What is wrong with a record
is said in one sentence that names the field and the remedy, and never repeats the value, which may hold
credentials or be megabytes long.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from streamlearn.errors import MessageError
from streamlearn.message import CONTROL, NAME_CHARS, ClipMessage, clip_schema
from streamlearn.records import FRAME_BYTES, Record, Tombstone
from streamlearn.wire import check_json, read_avro, schema_of

__all__ = ["ClipMessage", "clip_schema", "is_event", "parse"]


def parse(record: Record, *, max_bytes: int, max_caption_chars: int) -> ClipMessage | Tombstone:
    """Validate one record.

    The body's `video_id` names the clip. The key stands in where there is none, and is the id of a tombstone;
    otherwise it is the producer's own affair, as it decides the partition: a camera's name keeps a camera's order.

    Args:
        record: key, value and headers as the source gave them.
        max_bytes: largest value.
        max_caption_chars: longest caption.

    Raises:
        MessageError: the record is no clip message; the sentence names the field and the remedy.
    """
    if record.value is None:
        key = _key(record)
        if key is None:
            raise MessageError("empty_value", "the value is null and there is no key: a tombstone needs the id as key")
        if not 0 < len(key) <= NAME_CHARS or CONTROL.search(key):
            raise MessageError("invalid_field", f"the key: must be 1 to {NAME_CHARS} characters, none of them control")
        return Tombstone(key, record.position)
    if not record.value:
        raise MessageError("empty_value", "the value is empty; send a clip message, or null to delete the clip")
    if len(record.value) > max_bytes:
        raise MessageError(
            "message_too_large",
            f"the value has {len(record.value)} bytes, {max_bytes} are allowed; send a uri or raise media.max_bytes",
        )
    headers: dict[str, list[bytes]] = {}
    for name, content in record.headers:
        headers.setdefault(name.lower(), []).append(content)
    content_type = _text(headers.get("content-type", [b""])[0], "header content-type").partition(";")[0].strip().lower()
    if content_type.startswith("video/"):
        return _raw_video(record.value, _key(record), headers, max_caption_chars)
    values = _unwrap(_body(record), content_type, headers)
    if "video_id" not in values and (key := _key(record)) is not None:
        values["video_id"] = key
    message = _validate(values, max_caption_chars)
    if message.media_b64 is not None:
        message._media = _decode_base64(message.media_b64)
        message = message.model_copy(update={"media_b64": None})  # the text is a third larger than the bytes
    elif message.uri is None:
        raise MessageError("missing_field", "uri: is missing; give a uri, or the video's bytes as media_b64")
    return message


def is_event(body: Mapping[str, Any]) -> bool:
    """Whether an object that no header says it of is a CloudEvent, with the clip message as its `data`."""
    return "specversion" in body and not {"caption", "captions"} & body.keys()


def _key(record: Record) -> str | None:
    """The key as text; to be asked for only where it names the clip: otherwise it may be anything."""
    if record.key is None:
        return None
    schema = schema_of(record.key, record.schemas, "the key") if record.schemas else None
    if schema is None:
        return _text(record.key, "the key")
    value = read_avro(record.key, schema, "the key") if schema.kind == "AVRO" else _json(record.key[FRAME_BYTES:])
    if not isinstance(value, str):
        raise MessageError("invalid_field", "the key: must be a string, the id; or give video_id in the value")
    return value


def _body(record: Record) -> dict[str, Any]:
    """The value as an object, however it is written."""
    assert record.value is not None, "a tombstone has none"
    schema = schema_of(record.value, record.schemas, "the value")
    if schema is None:
        return _object(_json(record.value))
    if schema.kind == "AVRO":
        return _object(read_avro(record.value, schema, "the value"))
    body = _json(record.value[FRAME_BYTES:])
    check_json(body, schema, "the value")
    return _object(body)


def _raw_video(
    value: bytes, key: str | None, headers: Mapping[str, Sequence[bytes]], max_caption_chars: int
) -> ClipMessage:
    if not headers.get("caption"):
        raise MessageError("missing_field", "header caption: is missing; raw video needs one or more caption headers")
    values: dict[str, Any] = {"captions": [_text(c, "header caption") for c in headers["caption"]]}
    if key is not None:
        values["video_id"] = key
    if headers.get("ce_time"):
        values["time"] = _text(headers["ce_time"][0], "header ce_time")
    message = _validate(values, max_caption_chars)
    message._media = value
    return message


def _unwrap(body: dict[str, Any], content_type: str, headers: Mapping[str, Sequence[bytes]]) -> dict[str, Any]:
    """Take the clip message out of its CloudEvents envelope, if it has one."""
    attributes: Mapping[str, Any] = {}
    if "ce_specversion" in headers:
        attributes = {name[3:]: _text(v[0], f"header {name}") for name, v in headers.items() if name.startswith("ce_")}
        data: Any = body
    elif content_type.startswith("application/cloudevents") or is_event(body):
        if content_type.startswith("application/cloudevents") and content_type != "application/cloudevents+json":
            raise MessageError("unsupported_envelope", f"{content_type[:80]} is not read; send application/json")
        if "data_base64" in body:
            raise MessageError("unsupported_envelope", "data_base64 is not read; put the clip message into data")
        attributes, data = body, body.get("data")
    else:
        return body
    version = attributes.get("specversion")
    if not isinstance(version, str) or not version.startswith("1."):
        raise MessageError("unsupported_envelope", "specversion: only CloudEvents 1.0 is read; send specversion 1.0")
    if data is None:
        raise MessageError("missing_field", "data: is missing from the CloudEvent; put the clip message there")
    if not isinstance(data, dict):
        raise MessageError("invalid_field", "data: must be an object: the clip message")
    values = dict(data)
    if attributes.get("time") is not None:
        values.setdefault("time", attributes["time"])
    return values


def _text(value: bytes, what: str) -> str:
    try:
        return value.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MessageError("invalid_utf8", f"{what}: byte {error.start} is not UTF-8; encode it as UTF-8") from error


def _json(value: bytes) -> Any:
    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is not JSON")

    text = _text(value, "the value")
    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        reason = str(error) if len(str(error)) < 200 else type(error).__name__
        raise MessageError(
            "invalid_json", f"the value is not JSON: {reason}; for raw video set content-type: video/mp4"
        ) from error


def _object(body: Any) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise MessageError("invalid_json", f"the value is a JSON {type(body).__name__}, not an object; send an object")
    return body


def _decode_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise MessageError(
            "invalid_base64", f"media_b64: is not base64 (RFC 4648, padded, no line breaks): {error}"
        ) from error


def _validate(values: Mapping[str, Any], max_caption_chars: int) -> ClipMessage:
    try:
        return ClipMessage.model_validate(values, context={"max_caption_chars": max_caption_chars})
    except ValidationError as error:
        raise _message_error(error.errors(include_url=False, include_input=False)[0]) from error
    except RecursionError as error:
        raise MessageError("invalid_field", "the message is nested too deeply; send a flat object") from error


def _message_error(error: ErrorDetails) -> MessageError:
    # The union's own branches (str, bool, int) are pydantic's affair; a sender knows `meta.name` and `captions.2`.
    depth = 2 if error["loc"][:1] in (("meta",), ("captions",)) else 1
    field = ascii(".".join(str(part) for part in error["loc"][:depth]))[1:-1][:80] or "the message"
    if error["type"] == "missing":
        remedy = {
            "captions": "give one or more strings",
            "video_id": "give one, or set the record's key",
        }.get(field, "give it")
        return MessageError("missing_field", f"{field}: is missing; {remedy}")
    if error["type"] == "string_unicode":
        return MessageError("invalid_field", f"{field}: holds a lone surrogate; send valid Unicode")
    if error["loc"][:1] == ("meta",) and len(error["loc"]) > 2 and error["type"].endswith("_type"):
        return MessageError("invalid_field", f"{field}: must be a string, a number, a boolean or null")
    return MessageError("invalid_field", f"{field}: {error['msg'][0].lower()}{error['msg'][1:]}")
