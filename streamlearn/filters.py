"""A search's filter, as SQL over the catalog's clips. Pure text and parameters: it touches no database.

`{"meta.cam": "7", "task": ["t3", "t4"], "time": {"gte": "2026-01-01T00:00:00Z"}}`: all fields must hold; a value
means equality, a list any of its values, an object a range. Values and names of metadata are bound, other names are
looked up in a closed table, so nothing of the user's becomes SQL. A clip's metadata is filtered by its `tags`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from streamlearn.errors import SearchError

_COLUMNS = {"task": "task", "time": "time_us"}  # beside metadata: what `schemas` lets through
_RANGES = {"gte": ">=", "gt": ">", "lte": "<=", "lt": "<"}
_MAX_FIELDS = 32
_MAX_VALUES = 1_000
_MAX_TAGS = 64
_MAX_TAG_CHARS = 256
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def time_us(time: str) -> int | None:
    """Microseconds since 1970 of an RFC 3339 time; None where it is none, or names no offset."""
    try:
        moment = datetime.fromisoformat(time.upper())
    except ValueError:
        return None
    return None if moment.tzinfo is None else (moment - _EPOCH) // timedelta(microseconds=1)


def tags(meta: Mapping[str, Any]) -> list[tuple[str, str | int | float]]:
    """The part of a clip's metadata that can be filtered: its first 64 numbers, truth values and short texts."""
    found = ((name, _storable(value)) for name, value in meta.items() if _storable(name) is not None)
    return [(name, value) for name, value in found if value is not None][:_MAX_TAGS]


def where(filter: Mapping[str, Any]) -> tuple[str, list[Any]]:  # noqa: A002 -- the contract's word
    """Translate to a condition over the tables `clips` and `tags`, and its parameters.

    Raises:
        SearchError: an unknown field, or a value that cannot be compared.
    """
    if len(filter) > _MAX_FIELDS:
        raise SearchError(f"filter: at most {_MAX_FIELDS} fields, not {len(filter)}")
    parts: list[str] = []
    bound: list[Any] = []
    for field, wanted in filter.items():
        prefix, _, name = field.partition(".")
        if field in _COLUMNS:
            part, values = _compare(field, f'"{_COLUMNS[field]}"', wanted)
        elif prefix == "meta" and name:
            part, values = _compare(field, "value", wanted)
            part, values = f"row IN (SELECT row FROM tags WHERE name = ? AND {part})", [_value(field, name), *values]
        else:
            known = ", ".join(sorted(_COLUMNS))
            raise SearchError(f"filter: there is no field {field!r}; there are meta.<name>, {known}")
        parts.append(part)
        bound += values
    return " AND ".join(parts) or "1", bound


def _compare(field: str, column: str, wanted: Any) -> tuple[str, list[Any]]:
    if isinstance(wanted, Mapping):
        return _range(field, column, wanted)
    values = [_value(field, value) for value in (wanted if isinstance(wanted, list) else [wanted])]
    if len(values) > _MAX_VALUES:
        raise SearchError(f"filter: {field}: at most {_MAX_VALUES} values, not {len(values)}")
    return f"{column} IN ({', '.join('?' * len(values))})", values


def _range(field: str, column: str, wanted: Mapping[str, Any]) -> tuple[str, list[Any]]:
    if not wanted or not wanted.keys() <= _RANGES.keys():
        raise SearchError(f"filter: {field}: a range takes gte, gt, lte and lt, not {', '.join(wanted) or 'nothing'}")
    parts: list[str] = []
    bound: list[Any] = []
    for operator, limit in wanted.items():
        value = _value(field, limit)
        # SQLite orders every number before every text; here numbers compare with numbers only.
        kinds = "('text')" if isinstance(value, str) else "('integer', 'real')"
        parts.append(f"{column} {_RANGES[operator]} ? AND typeof({column}) IN {kinds}")
        bound.append(value)
    return " AND ".join(parts), bound


def _value(field: str, value: Any) -> str | int | float:
    if field == "time":
        moment = time_us(value) if isinstance(value, str) else None
        if moment is None:
            raise SearchError(f"filter: time: {value!r} is no RFC 3339 time with an offset")
        return moment
    stored = _storable(value)
    if stored is None:
        raise SearchError(f"filter: {field}: {value!r:.80} is neither a short text nor a number nor true or false")
    return stored


def _storable(value: Any) -> str | int | float | None:
    """As SQLite can hold and compare it; None where it cannot."""
    if isinstance(value, str):
        half_characters = any("\ud800" <= character <= "\udfff" for character in value[:_MAX_TAG_CHARS])
        return None if half_characters or len(value) > _MAX_TAG_CHARS else value
    if isinstance(value, int):
        return int(value) if -(2**63) <= value < 2**63 else None
    return value if isinstance(value, float) and math.isfinite(value) else None
