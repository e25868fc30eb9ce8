"""What a search asks and answers, as JSON: the contract between the HTTP API, the search behind it and its clients.

It knows shapes and limits, not models or indexes. A value that passes here needs no second look at its type.
"""

from __future__ import annotations

import math
from datetime import datetime
from typing import Annotated, Any, Literal, Self
from urllib.parse import quote

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

Scalar = str | int | float | bool

#: A page of answers is never longer than this, and `search.max_limit` no more.
MAX_LIMIT = 10_000
_MAX_FILTER_FIELDS = 32
_MAX_FILTER_VALUES = 256
_MAX_FILTER_CHARS = 1024
_RANGE = {"gte", "gt", "lte", "lt"}
# An embedding has about unit length; anything else is a mistake, and would overflow float32 when normalised.
_VECTOR_NORMS = (1e-6, 1e6)


def _printable(text: str) -> str:
    if "\0" in text:
        raise ValueError("must not contain the NUL character; remove it")
    if not text.strip():
        raise ValueError("must not be blank; write a few words")
    return text


def _embedding(vector: list[float]) -> list[float]:
    low, high = _VECTOR_NORMS
    if not low <= math.hypot(*vector) <= high:
        raise ValueError('must be an embedding of about unit length, as `include: ["vector"]` returns them')
    return vector


def _is_scalar(value: Any) -> bool:
    match value:
        case bool():
            return True
        case int():
            return abs(value) < 2**63  # what a database can compare
        case float():
            return math.isfinite(value)
        case str():
            # A lone surrogate is legal in JSON, but not in UTF-8.
            return len(value) <= _MAX_FILTER_CHARS and not any(c == "\0" or "\ud800" <= c <= "\udfff" for c in value)
    return False


def _is_moment(value: Any) -> bool:
    try:
        return datetime.fromisoformat(value.upper()).tzinfo is not None
    except (AttributeError, ValueError):
        return False


def _is_range(value: Any) -> bool:
    return (
        isinstance(value, dict) and 1 <= len(value) and value.keys() <= _RANGE and all(map(_is_scalar, value.values()))
    )


def _checked(name: str, wanted: Any) -> list[Any] | dict[str, Any]:
    """The values that one field may have, or the range that it lies in."""
    if _is_range(wanted) and name != "task":
        if name == "time" and not all(map(_is_moment, wanted.values())):
            raise ValueError('of time must hold RFC 3339 times with an offset, such as "2026-01-31T08:00:00Z"')
        return dict(wanted)
    if name == "time":
        raise ValueError("of time must be a range: an object with some of gte, gt, lte, lt, each an RFC 3339 time")
    values = wanted if isinstance(wanted, list) else [wanted]
    if not 1 <= len(values) <= _MAX_FILTER_VALUES or not all(map(_is_scalar, values)):
        raise ValueError(
            f"of {name} must be a string (at most {_MAX_FILTER_CHARS} characters), number or boolean,"
            f" a list of 1 to {_MAX_FILTER_VALUES} of them"
            + (", or a range: an object with some of gte, gt, lte, lt" if name != "task" else "")
        )
    return list(values)


def _as_filter(value: Any) -> Any:
    """`{"task": "t3"}` means `{"task": ["t3"]}`. Said here: the errors of a union would name its branches."""
    if not isinstance(value, dict):
        return value
    if len(value) > _MAX_FILTER_FIELDS:
        raise ValueError(f"must have at most {_MAX_FILTER_FIELDS} fields")
    checked = {}
    for name, wanted in value.items():
        meta = name.startswith("meta.") and len(name) > len("meta.") and _is_scalar(name)
        if not meta and name not in ("task", "time"):
            raise ValueError(
                'may name "task", "time" and fields of the clips\' meta, such as "meta.camera"; nothing else'
            )
        checked[name] = _checked(name, wanted)
    return checked


QueryText = Annotated[
    str,
    StringConstraints(min_length=1, max_length=2000),
    AfterValidator(_printable),
    Field(description="What the video shows, in words.", examples=["a red ball rolls to the left"]),
]
VideoId = Annotated[str, StringConstraints(min_length=1, max_length=1024), AfterValidator(_printable)]
_Uri = Annotated[str, StringConstraints(min_length=1, max_length=4096), AfterValidator(_printable)]
_Vector = Annotated[
    list[Annotated[float, Field(allow_inf_nan=False)]],
    Field(min_length=1, max_length=8192),
    AfterValidator(_embedding),
]
Range = Annotated[
    dict[Literal["gte", "gt", "lte", "lt"], Scalar],
    Field(min_length=1, description="All must hold. Numbers compare with numbers, texts with texts, times by moment."),
]
Filter = Annotated[
    dict[str, list[Scalar] | Range],
    BeforeValidator(_as_filter, json_schema_input_type=dict[str, Scalar | list[Scalar] | Range]),
]
Limit = Annotated[int, Field(ge=1, le=MAX_LIMIT, description="Results a page; the server may allow fewer.")]


class Query(BaseModel):
    """What is looked for: exactly one of these."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, json_schema_extra={"minProperties": 1, "maxProperties": 2}
    )

    text: QueryText | None = None
    video_id: VideoId | None = Field(None, description="Clips like this one, which is known here.")
    uri: _Uri | None = Field(None, description="Clips like this video; the `media` settings say what may be fetched.")
    vector: _Vector | None = Field(None, description="An embedding of the served model.")
    model_version: str | None = Field(
        None, max_length=256, description="Of the answer that a vector came from; another model's is refused."
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if sum(value is not None for value in (self.text, self.video_id, self.uri, self.vector)) != 1:
            raise ValueError("must have exactly one of text, video_id, uri and vector")
        if self.model_version is not None and self.vector is None:
            raise ValueError("model_version says which model made a vector; leave it out without one")
        return self


class SearchRequest(BaseModel):
    """One question."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    query: Query
    limit: Limit = 10
    filter: Filter = Field(
        {},
        description='Fields that must all match: "task", "time" (of the event), or "meta." and a name.'
        " A value, a list of which any will do, or a range with some of gte, gt, lte and lt;"
        " of time always a range, of RFC 3339 times with an offset.",
        examples=[
            {"task": ["t3"], "meta.camera": "7"},
            {"time": {"gte": "2026-01-31T00:00:00Z", "lt": "2026-02-01T00:00:00Z"}, "meta.speed": {"gt": 3.5}},
        ],
    )
    include: list[Literal["thumbnail", "vector"]] = Field(
        [], max_length=2, description="What each result carries besides: `thumbnail_b64` (WebP), `vector`."
    )
    page_token: str | None = Field(
        None, max_length=4096, description="`next_page_token` of the answer before, unchanged."
    )


class SearchResult(BaseModel):
    """One clip found."""

    rank: int = Field(description="1 is the best, also across pages.")
    score: float = Field(description="Cosine, weighed for the era and the clip; comparable within one answer.")
    video_id: str
    uri: str | None = None
    start_s: float | None = None
    end_s: float | None = None
    captions: list[str]
    meta: dict[str, Any] = {}
    task: str | None = None
    thumbnail_url: str | None = Field(None, description="Animated WebP; null: its frames are no longer kept.")
    embedded_at_step: int = Field(description="Learner step whose model made the clip's vector.")
    thumbnail_b64: str | None = Field(None, exclude_if=lambda value: value is None)
    vector: list[float] | None = Field(None, exclude_if=lambda value: value is None)


class AsOf(BaseModel):
    """Up to where in the stream the answer knows the clips."""

    offsets: dict[str, dict[str, int]] = Field({}, description="Next offset to be read, by topic and partition.")
    time: str | None = Field(None, description="When the served snapshot was published, RFC 3339.")


class Staleness(BaseModel):
    """How far the stored vectors are behind the encoders that would make them today."""

    clips: int = Field(0, description="Clips of closed eras that await re-encoding.")
    ratio: float | None = Field(None, description="1 - mean cosine of stored and fresh probe vectors.")


class SearchAnswer(BaseModel):
    """The results of one page, best first, and what they rest on."""

    results: list[SearchResult]
    model_version: str
    generation: int
    as_of: AsOf = AsOf()
    staleness: Staleness = Staleness()
    took_ms: float
    next_page_token: str | None = Field(
        None, description="Of the page that follows; null at the end, and beyond the first 100,000 results."
    )


def thumbnail_url(video_id: str) -> str:
    """Path of a clip's thumbnail; the slashes of an id are escaped, so that no id can look like another route."""
    return f"/v1/clips/{quote(video_id, safe='')}/thumbnail"
