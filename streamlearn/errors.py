"""The family of errors. Each class carries its policy, so that callers branch on attributes, not on lists of types.

StreamlearnError
├── SettingsError           a setting is wrong: the start is refused
├── StateError              the state directory cannot be used
│   └── NewerStateError     ... because a newer streamlearn wrote it
├── BusyError               the learner cannot do it now; nothing was done
├── SourceError             the source is away; `retriable` says whether waiting can help
│   ├── SourceRefusedError  ... it answers and refuses us: credentials, permissions
│   └── SourceLostError     ... it has lost what was to be read next, and is not to go on without it
├── TaskError               a task cannot be started under this name (the operator's fault)
├── SearchError             a query that cannot be answered (the user's fault)
└── RejectedClip            `dead_letter` is true: one record is bad, the stream goes on
    ├── MessageError        the record is not a valid clip message      stage "validate"
    ├── FetchError          its media cannot or may not be read         stage "fetch"
    └── DecodeError         its media holds no usable video             stage "decode"
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, ClassVar

#: Every code a dead letter can carry, by stage: the closed set behind the `code` label of the metrics.
CODES: dict[str, tuple[str, ...]] = {
    "validate": (
        "empty_value",
        "invalid_utf8",
        "invalid_json",
        "missing_field",
        "invalid_field",
        "invalid_base64",
        "message_too_large",
        "unsupported_envelope",
        "unknown_schema",
        "schema_mismatch",
    ),
    "fetch": (
        "media_not_found",
        "media_forbidden",
        "media_too_large",
        "media_empty",
        "checksum_mismatch",
        "fetch_failed",
    ),
    "decode": (
        "not_a_video",
        "no_video_stream",
        "no_frames",
        "frame_too_large",
        "segment_out_of_range",
        "decode_failed",
        "decode_timeout",
        "decoder_crashed",
    ),
}


_LOGIN = re.compile(r"(?<=://)[^\s,]+(?=@)|[^\s,:/@'\"]+:[^\s,]+(?=@)")


def without_logins(sentence: str) -> str:
    """A sentence that quotes URLs, without the user and password that stand before an @ in them."""
    return _LOGIN.sub("***", sentence)


def unreadable_secret(name: str, path: Path, error: Exception) -> str:
    """The sentence of a secret's file; what is no absolute path may be the secret itself, in the wrong place."""
    why = getattr(error, "strerror", None) or type(error).__name__
    if path.is_absolute():
        return f"{name} = {str(path)!r} cannot be read by user {os.geteuid()}: {why}"
    return f"{name} cannot be read: {why}; give the path of a file that holds the secret"


class StreamlearnError(Exception):
    """Root of the family."""

    retriable: ClassVar[bool] = False
    dead_letter: ClassVar[bool] = False


class SettingsError(StreamlearnError):
    """A setting is wrong; the message names the field, the value and the remedy."""


class StateError(StreamlearnError):
    """The state directory is damaged or belongs to another configuration."""


class NewerStateError(StateError):
    """The state was written by a newer version than this one."""


class BusyError(StreamlearnError):
    """What was asked of the learner was not begun: it has no time, or has stopped."""

    retriable: ClassVar[bool] = True


class SourceError(StreamlearnError):
    """The source cannot be reached or refuses us."""

    retriable: ClassVar[bool] = True


class SourceRefusedError(SourceError):
    """The source answers and refuses us: waiting does not help, new credentials or permissions do."""

    retriable: ClassVar[bool] = False


class SourceLostError(SourceError):
    """What was to be read next is gone, and the operator wants to decide: learning ends, reads go on."""

    retriable: ClassVar[bool] = False


class TaskError(StreamlearnError):
    """The task cannot be started: its name cannot be used, or there are too many."""


class SearchError(StreamlearnError):
    """The query cannot be answered; `status` is the HTTP status that says so, `retry_after_s` when it may be."""

    def __init__(self, message: str, *, status: int = 422, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status, self.retry_after_s = status, retry_after_s


class RejectedClip(StreamlearnError):
    """One record cannot become a clip.

    Attributes:
        code: one of `CODES[stage]`.
        stage: "validate", "fetch" or "decode".
    """

    dead_letter: ClassVar[bool] = True
    stage: ClassVar[str] = "validate"

    def __init__(self, code: str, message: str) -> None:
        assert code in CODES[self.stage], f"{code!r} is not a code of stage {self.stage!r}"
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[Any, ...]:
        # These errors travel from the decoder's child process; the default would lose the second argument.
        return type(self), (self.code, str(self))


class MessageError(RejectedClip):
    """The record is not a valid clip message."""

    stage: ClassVar[str] = "validate"


class FetchError(RejectedClip):
    """The clip's media cannot, or may not, be read."""

    stage: ClassVar[str] = "fetch"


class DecodeError(RejectedClip):
    """The clip's media holds no usable video."""

    stage: ClassVar[str] = "decode"
