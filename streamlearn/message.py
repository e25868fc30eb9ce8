"""What a clip message says: the contract with producers (design 3.1), and its JSON Schema.

Field names, limits and remedies live here; how a message is carried (JSON, CloudEvents, raw video) is
`streamlearn.envelope`.
"""

from __future__ import annotations

import json
import math
import re
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SURROGATE = re.compile("[\ud800-\udfff]")
# fromisoformat takes more than RFC 3339 does: dates alone, week dates, no offset.
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")
NAME_CHARS = 512
_INT64 = 2**63  # the widest integer that the catalog and most readers of JSON keep


def _no_control(value: str) -> str:
    if CONTROL.search(value):
        raise PydanticCustomError("control", "must not hold control characters")
    return value


def _storable(value: str) -> str:
    """What every database and encoder downstream can hold."""
    if "\x00" in value:
        raise PydanticCustomError("nul", "must not hold NUL characters")
    if _SURROGATE.search(value):
        raise PydanticCustomError("string_unicode", "must be valid Unicode")
    return value


def _no_chain(value: str) -> str:
    # fsspec reads `a::b` as one file system inside another, which would walk around the allowed schemes.
    if "::" in value:
        raise PydanticCustomError("chained", "must be one URL; chained URLs (a::b) are not read")
    return value


def _addressable(value: str) -> str:
    # Clients fold these away in a path, even escaped: nobody could ask for such a clip by its link.
    if value in (".", ".."):
        raise PydanticCustomError("dots", "must not be . or .., which no link can name")
    return value


def _timestamp(value: str) -> str:
    try:
        if _RFC3339.fullmatch(value):
            datetime.fromisoformat(value.upper())
            return value
    except ValueError:
        pass
    raise PydanticCustomError("timestamp", "must be an RFC 3339 time such as 2026-11-21T10:00:00Z")


def _stripped(value: str) -> str:
    if not (stripped := value.strip()):
        raise PydanticCustomError("empty", "must not be empty; leave it out where the task has no name")
    return stripped


Name = Annotated[str, Field(min_length=1, max_length=NAME_CHARS), AfterValidator(_no_control)]
TaskName = Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_no_control), AfterValidator(_stripped)]
Uri = Annotated[
    str,
    Field(max_length=8192, pattern=r"^[A-Za-z][A-Za-z0-9+.\-]*:"),
    AfterValidator(_no_control),
    AfterValidator(_no_chain),
]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Scalar = StrictStr | StrictBool | StrictInt | StrictFloat | None


class ClipMessage(BaseModel):
    """A clip as a producer sends it, design contract 3.1. Fields that are not listed here are kept in `meta`."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", title="streamlearn clip")

    video_id: Annotated[Name, AfterValidator(_addressable)] = Field(
        description="Names the clip, whatever the record's key; the same id again replaces it. Defaults to the key.",
        json_schema_extra={"not": {"enum": [".", ".."]}},
    )
    captions: Annotated[tuple[str, ...], Field(min_length=1, max_length=256, strict=False)] = Field(
        description="What the clip shows; `caption` with one string is accepted."
    )
    uri: Uri | None = Field(None, description="Where the video is: an fsspec URL. This or media_b64.")
    media_b64: str | None = Field(
        None,
        description="The video's bytes in base64, for small clips.",
        json_schema_extra={"contentEncoding": "base64"},
        repr=False,
    )
    start_s: Seconds | None = Field(None, description="Start of the segment in the media, seconds.")
    end_s: Seconds | None = Field(None, description="End of the segment in the media, seconds.")
    sha256: Annotated[str, Field(pattern=r"^[0-9A-Fa-f]{64}$")] | None = Field(
        None, description="Of the media's bytes, hexadecimal; checked when given."
    )
    meta: dict[Name, Scalar] = Field(default_factory=dict, description="Flat object of scalars, filterable.")
    time: Annotated[str, AfterValidator(_timestamp)] | None = Field(
        None, description="Event time, RFC 3339.", json_schema_extra={"format": "date-time"}
    )
    split: Literal["auto", "train", "heldout"] = Field("auto", description="Whether the clip may be learned from.")
    task: TaskName | None = Field(
        None, description="Explicit task name: an operator's boundary. Blanks around it are not part of it."
    )

    _media: bytes | None = PrivateAttr(None)

    @property
    def media(self) -> bytes | None:
        """The video's bytes if the record carried them; None if they are at `uri`."""
        return self._media

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, values: Any) -> Any:
        """Take `caption` for `captions`, and what the contract does not know into `meta`."""
        if not isinstance(values, dict):
            return values
        values = dict(values)
        if "caption" in values:
            if "captions" in values:
                raise PydanticCustomError("both", "give caption or captions, not both")
            caption = values.pop("caption")
            if not isinstance(caption, str):
                raise PydanticCustomError("caption", "caption must be a string; several go into captions")
            values["captions"] = [caption]
        unknown = {name: values.pop(name) for name in list(values) if name not in cls.model_fields}
        meta = values.get("meta", {})
        if unknown and isinstance(meta, dict):
            # Only `meta` itself must be flat: a producer's nested extra is kept as text rather than refused.
            flat = {k: json.dumps(v) if isinstance(v, dict | list) else v for k, v in unknown.items()}
            values["meta"] = flat | meta
        return values

    @field_validator("captions", mode="after")
    @classmethod
    def _clean_captions(cls, captions: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        limit = (info.context or {}).get("max_caption_chars", math.inf)
        stripped = tuple(caption.strip() for caption in captions)
        for caption in map(_storable, stripped):
            if not caption:
                raise PydanticCustomError("empty", "must not be empty; send the clip when it has a caption")
            if len(caption) > limit:
                raise PydanticCustomError(
                    "too_long",
                    "holds {chars} characters, {limit} are allowed; shorten it or raise media.max_caption_chars",
                    {"chars": len(caption), "limit": limit},
                )
        return stripped

    @field_validator("meta", mode="after")
    @classmethod
    def _check_meta(cls, meta: dict[str, Scalar]) -> dict[str, Scalar]:
        for name, value in meta.items():
            if isinstance(value, str):
                _storable(value)
            if isinstance(value, int) and not -_INT64 <= value < _INT64:
                raise PydanticCustomError("int64", "{name} must fit in 64 bits; send it as a string", {"name": name})
            if isinstance(value, float) and not math.isfinite(value):
                raise PydanticCustomError("finite", "{name} must be a finite number", {"name": name})
        return meta

    @field_validator("sha256", mode="after")
    @classmethod
    def _lower(cls, value: str | None) -> str | None:
        return value and value.lower()

    @model_validator(mode="after")
    def _agree(self) -> ClipMessage:
        if self.uri is not None and self.media_b64 is not None:
            raise PydanticCustomError("both", "give uri or media_b64, not both")
        if self.start_s is not None and self.end_s is not None and self.start_s >= self.end_s:
            raise PydanticCustomError("segment", "start_s must be less than end_s")
        return self


def clip_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a clip message, as producers may write it."""
    schema = ClipMessage.model_json_schema(mode="validation")
    properties = schema["properties"]
    properties["caption"] = {"type": "string", "description": "One caption, instead of captions."}
    schema |= {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "description": "video_id may be left out where the record's key names the clip.",
        "required": [],
        "additionalProperties": True,
        "allOf": [
            {"oneOf": [{"required": ["captions"]}, {"required": ["caption"]}]},
            {"oneOf": [{"required": ["uri"]}, {"required": ["media_b64"]}]},
        ],
    }
    return schema
