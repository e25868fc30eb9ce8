"""One row to one message: validated as the daemon will validate it, with its local file inline where that is asked.

It reads files, and knows neither brokers nor what was sent before.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from streamlearn.envelope import is_event, parse
from streamlearn.errors import FetchError, RejectedClip
from streamlearn.fetch import path_of
from streamlearn.message import ClipMessage
from streamlearn.publish_rows import Problem, Row
from streamlearn.records import Record

_LEAVE = "leave --inline, so that the message names the file"


@dataclass(frozen=True, slots=True)
class Rules:
    """What makes a row a valid message.

    Attributes:
        max_bytes: largest message, and largest video.
        max_caption_chars: longest caption.
        inline: the bytes of local videos are sent too, so that no reader needs the files.
    """

    max_bytes: int
    max_caption_chars: int
    inline: bool = False


@dataclass(frozen=True, slots=True)
class Checked:
    """A row that is a clip message, or a deletion.

    Attributes:
        row: as it was read.
        video_id: of the clip.
        file: its video, where that is a local file.
    """

    row: Row
    video_id: str
    file: Path | None

    def digest(self) -> bytes:
        """Of the row and the date of its file, 16 bytes; the video is not read for it."""
        value = self.row.record.value
        content = hashlib.blake2b(b"%d\n" % (self.row.record.timestamp_ms or 0), digest_size=16)
        content.update(b"deleted" if value is None else value)
        return content.digest()


@dataclass(frozen=True, slots=True)
class Outgoing:
    """Key and value of a message; `smaller` says how it could be made smaller."""

    key: bytes
    value: bytes | None
    smaller: str


def check(row: Row | Problem, rules: Rules) -> Checked | Problem:
    """Validate a row, and look whether its local file is there; a problem stays one."""
    if isinstance(row, Problem):
        return row
    try:
        message = parse(row.record, max_bytes=rules.max_bytes, max_caption_chars=rules.max_caption_chars)
        file = _local_file(message, rules) if isinstance(message, ClipMessage) else None
    except RejectedClip as error:
        return Problem(row.where, error.code, str(error))
    return Checked(row, message.video_id, file)


def outgoing(checked: Checked, rules: Rules) -> Outgoing | Problem:
    """What is sent; reads the local file where it goes inline."""
    row, record = checked.row, checked.row.record
    key = checked.video_id.encode()
    if not rules.inline or checked.file is None or record.value is None:
        return Outgoing(key, record.value, row.smaller)
    try:
        media = checked.file.read_bytes()
    except OSError as error:
        return Problem(row.where, "media_forbidden", f"{checked.file} cannot be read: {error.strerror}")
    value = _inlined(record, media)
    if len(value) > rules.max_bytes:
        return Problem(
            row.where,
            "message_too_large",
            f"{checked.file} makes a message of {len(value)} bytes, {rules.max_bytes} are allowed; {_LEAVE}, or raise"
            " media.max_bytes",
        )
    return Outgoing(key, value, _LEAVE)


def _local_file(message: ClipMessage, rules: Rules) -> Path | None:
    if message.uri is None or urlsplit(message.uri).scheme != "file":
        return None
    path = path_of(urlsplit(message.uri).path)
    if not path.is_file():
        raise FetchError("media_not_found", f"{path}: there is no such file; correct the path")
    size = path.stat().st_size
    if not size:
        raise FetchError("media_empty", f"{path} has no bytes; publish the clip when its file is complete")
    if size > rules.max_bytes:
        raise FetchError(
            "media_too_large", f"{path} has {size} bytes, {rules.max_bytes} are allowed; raise media.max_bytes"
        )
    return path


def _inlined(record: Record, media: bytes) -> bytes:
    body: dict[str, Any] = json.loads(record.value or b"")
    clip = body["data"] if is_event(body) else body
    del clip["uri"]
    clip["media_b64"] = base64.b64encode(media).decode()
    return json.dumps(body).encode()
