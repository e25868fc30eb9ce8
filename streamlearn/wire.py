"""Keys and values in the wire format of schema registries (a zero, the schema's id, the bytes) to plain values.

It reads Avro and checks JSON by the schemas that came with the record. It knows no registry: whoever reads the stream
has asked it (`connectors/kafka_schemas.py`), and so it needs the extra `registry` only where there is one.
"""

from __future__ import annotations

import base64
import io
import json
import logging
import re
from collections.abc import Iterable, Mapping
from datetime import date, datetime, time
from decimal import Decimal
from functools import lru_cache
from typing import Any
from uuid import UUID

from streamlearn.errors import MessageError
from streamlearn.records import FRAME_BYTES, WriterSchema

log = logging.getLogger(__name__)

_PARSED = 128  # schemas kept ready to use; a topic has a handful


def schema_of(data: bytes, schemas: Iterable[WriterSchema], what: str) -> WriterSchema | None:
    """The schema that `data` was written with; None where it is not in this format at all.

    Raises:
        MessageError: it is, and the schema is not to be had, or of a kind that is not read.
    """
    number = WriterSchema.id_in(data)
    if number is None:
        return None
    schema = next((schema for schema in schemas if schema.id == number), None)
    if schema is None:
        raise MessageError(
            "unknown_schema",
            f"{what} looks as if written with schema {number} of a registry, and none is set: see"
            " kafka.schema_registry_url; for raw video set content-type: video/mp4",
        )
    if schema.problem is not None:
        raise MessageError("unknown_schema", f"{what}: {schema.problem}")
    if schema.kind not in ("AVRO", "JSON"):
        raise MessageError(
            "unsupported_envelope", f"{what}: {schema.kind[:20]} is not read; send Avro, JSON with a schema, or JSON"
        )
    return schema


def read_avro(data: bytes, schema: WriterSchema, what: str) -> Any:
    """The value of an Avro frame as JSON would have it.

    Bytes become base64, a field `media` of bytes so `media_b64`; times become text (RFC 3339); null is absence.

    Raises:
        MessageError: the bytes do not fit the schema, or that cannot be used.
    """
    # In Python, where depth is an error; the one in C has no bound, and what it needs of the stack kills the process.
    from fastavro._read_py import schemaless_reader

    parsed, body = _avro(schema), io.BytesIO(data)
    body.seek(FRAME_BYTES)
    try:
        value = _plain(schemaless_reader(body, parsed, None))
        left = len(body.read(1))
    except Exception as error:  # fastavro lets out whatever the bytes lead to: EOFError, IndexError, RecursionError ...
        raise _mismatch(schema, what, f"it ends too soon or is of another schema ({type(error).__name__})") from error
    if left:
        raise _mismatch(schema, what, "there are bytes behind it")
    return value


def check_json(value: Any, schema: WriterSchema, what: str) -> None:
    """Whether a JSON value is what its schema says.

    Raises:
        MessageError: it is not, or the schema cannot be used.
    """
    from jsonschema.exceptions import best_match
    from referencing.exceptions import Unresolvable

    validator = _validator(schema)
    try:
        error = best_match(validator.iter_errors(value))
    except RecursionError as deep:
        raise _mismatch(schema, what, "it is nested too deeply, or the schema refers to itself for ever") from deep
    except Unresolvable as unresolvable:  # nothing is ever fetched from where a schema points to
        raise _unusable(schema, f"it refers to {unresolvable.ref[:80]!r}, which is not among its references") from None
    if error is not None:  # its message would repeat the value
        raise _mismatch(schema, what, f"{ascii(error.json_path)[1:-1][:80]}: against {str(error.validator)!r}")


@lru_cache(_PARSED)
def _avro(schema: WriterSchema) -> Any:
    from fastavro import parse_schema

    named: dict[str, Any] = {}
    try:
        for _, text in schema.references:
            parse_schema(json.loads(text), named)
        parsed = parse_schema(json.loads(schema.text), named)
        endless = any(_endless(each, named) for each in (parsed, *named.values()))
    except Exception as error:  # of the JSON, or of the schema
        raise _unusable(schema, f"{type(error).__name__}: {str(error)[:120]}") from error
    if endless:  # ten bytes could say that there are more of them than memory holds
        raise _unusable(schema, "it has an array of items that take no bytes")
    return parsed


def _endless(node: Any, named: Mapping[str, Any]) -> bool:
    """Whether there is an array of items that take no bytes in a parsed schema, names not followed."""
    match node:
        case dict():
            return (node.get("type") == "array" and _takes_no_bytes(node["items"], named)) or any(
                _endless(node[part], named) for part in ("type", "items", "values", "fields") if part in node
            )
        case list():
            return any(_endless(each, named) for each in node)
        case _:
            return False


def _takes_no_bytes(node: Any, named: Mapping[str, Any]) -> bool:
    match node:
        case {"type": "record" | "error", "fields": fields}:
            return all(_takes_no_bytes(field["type"], named) for field in fields)
        case {"type": "fixed", "size": size}:
            return bool(size == 0)
        case {"type": inner}:
            return _takes_no_bytes(inner, named)
        case str():
            return node == "null" or (node in named and _takes_no_bytes(named[node], named))
        case _:
            return False  # a union has the number of its branch


@lru_cache(_PARSED)
def _validator(schema: WriterSchema) -> Any:
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import validator_for
    from jsonschema_specifications import REGISTRY
    from referencing import Resource
    from referencing.jsonschema import DRAFT7

    try:
        contents = json.loads(schema.text)
        cls = validator_for(contents, default=None)
        if cls is None:  # the draft that registries take for granted
            contents = {"$schema": "http://json-schema.org/draft-07/schema#", **contents}
            cls = validator_for(contents)
        contents = _readable(contents, schema)
        cls.check_schema(contents)
        others = [
            (name, Resource.from_contents(_readable(json.loads(text), schema), DRAFT7))
            for name, text in schema.references
        ]
    except SchemaError as error:
        raise _unusable(schema, f"{ascii(error.json_path)[1:-1][:80]}: against {str(error.validator)!r}") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise _unusable(schema, type(error).__name__) from error
    return cls(contents, registry=REGISTRY.with_resources(others))


def _readable(node: Any, schema: WriterSchema) -> Any:
    r"""A JSON schema without the patterns that Python cannot read: JavaScript's and Java's have more, such as \p{L}.

    What a producer may write was checked when it wrote; to reject a whole topic for want of a dialect helps nobody.
    """
    if isinstance(node, list):
        return [_readable(each, schema) for each in node]
    if not isinstance(node, dict):
        return node
    kept = dict(node)
    if isinstance(pattern := node.get("pattern"), str) and not _compiles(pattern, schema):
        del kept["pattern"]
    if isinstance(named := node.get("patternProperties"), dict):
        kept["patternProperties"] = {name: inner for name, inner in named.items() if _compiles(name, schema)}
        if len(kept["patternProperties"]) < len(named):  # or these would reject what the others are for
            kept.pop("additionalProperties", None)
            kept.pop("unevaluatedProperties", None)
    return {name: _readable(inner, schema) for name, inner in kept.items()}


def _compiles(pattern: str, schema: WriterSchema) -> bool:
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError):
        log.warning(
            "schema %d of the registry: the pattern %r is not checked, Python has none such", schema.id, pattern
        )
        return False
    return True


def _plain(value: Any) -> Any:
    match value:
        case dict():
            named = ((_json_name(name, inner), inner) for name, inner in value.items())
            return {name: _plain(inner) for name, inner in named if inner is not None}
        case list():
            return [_plain(inner) for inner in value]
        case bytes():
            return base64.b64encode(value).decode()
        case datetime() | date() | time():
            return value.isoformat()
        case Decimal():
            return float(value)
        case UUID():
            return str(value)
        case _:
            return value


def _json_name(name: str, value: Any) -> str:
    return "media_b64" if name == "media" and isinstance(value, bytes) else name


def _mismatch(schema: WriterSchema, what: str, why: str) -> MessageError:
    return MessageError(
        "schema_mismatch", f"{what} does not fit its schema {schema.id}: {why}; write it with the schema that it names"
    )


def _unusable(schema: WriterSchema, why: str) -> MessageError:
    return MessageError("unknown_schema", f"schema {schema.id} of the registry cannot be used: {why}; register it anew")
