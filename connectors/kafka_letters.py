"""Dead letters as they lie in their topic: back to the records that they were, and marks of what was sent again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from streamlearn.connectors.kafka_producer import Message
from streamlearn.records import Position, Record, Rejected

#: Says how large the value was that the dead letter topic would not take.
VALUE_BYTES = "streamlearn.source.value_bytes"
_REPLAYED = "streamlearn.replayed"
_OURS = ("streamlearn.error.", "streamlearn.source.")


def letter_of(message: Record) -> Rejected:
    """The record as it was and why it was rejected; without our headers its topic is empty."""
    about = {name: value.decode("utf-8", "replace") for name, value in message.headers if name.startswith(_OURS)}
    timestamp = about.get("streamlearn.source.timestamp", "")
    offset = about.get("streamlearn.source.offset", "")
    record = Record(
        key=message.key,
        value=message.value,
        position=Position(
            about.get("streamlearn.source.topic", ""),
            about.get("streamlearn.source.partition", ""),
            int(offset) if offset.isdecimal() else -1,
        ),
        headers=tuple(header for header in message.headers if not header[0].startswith(_OURS)),
        timestamp_ms=int(timestamp) if timestamp.isdecimal() else None,
    )
    return Rejected(
        record,
        about.get("streamlearn.error.code", "unknown"),
        about.get("streamlearn.error.stage", "unknown"),
        about.get("streamlearn.error.message", ""),
    )


def lost_value_bytes(message: Record) -> int | None:
    """How large the value was, if the letter had to leave it out."""
    size = dict(message.headers).get(VALUE_BYTES, b"")
    return int(size) if size.isdigit() else None


def replay_mark(topic: str, mark: Mapping[str, Any]) -> Message:
    """The message that says which letters were sent again."""
    return Message(topic, _REPLAYED.encode(), json.dumps(dict(mark)).encode(), ((_REPLAYED, b"1"),))


def mark_of(message: Record) -> dict[str, Any] | None:
    """What a mark says; None: it is a letter."""
    if _REPLAYED not in dict(message.headers) or message.value is None:
        return None
    mark: dict[str, Any] = json.loads(message.value)
    return {"replayed": mark.pop("codes", []), **mark}  # as marks of before called it
