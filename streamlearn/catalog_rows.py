"""The catalog's nouns, and how they lie in its tables."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import astuple, dataclass, fields
from typing import Any

import numpy as np

from streamlearn.filters import time_us
from streamlearn.records import Vectors


@dataclass(frozen=True, slots=True)
class ClipRow:
    """What is known of a clip, without its vector.

    Attributes:
        row: its number in catalog, index and frame store; 0 before `Catalog.put`. Never used for another clip.
        start_s, end_s: the segment of the media in seconds, if only a part was meant.
        time: event time, RFC 3339, as given.
        split: "train", "heldout", or "extra": held out beyond the task's cap.
        step: the learner's step at arrival.
    """

    row: int
    video_id: str
    uri: str | None
    start_s: float | None
    end_s: float | None
    captions: tuple[str, ...]
    meta: Mapping[str, Any]
    time: str | None
    split: str
    task: str
    step: int
    sha256: str | None
    topic: str
    partition: str
    offset: int


@dataclass(frozen=True, slots=True)
class Score:
    """One cell of the matrix of tasks and time; `value` is None where there were too few pairs."""

    clips_seen: int
    step: int
    time: str
    task: str
    direction: str
    k: int
    view: str
    value: float | None
    pairs: int


#: The columns that make a noun, in its order, for a SELECT or an INSERT.
CLIP_FIELDS = tuple(field.name for field in fields(ClipRow))
CLIP_COLUMNS = ", ".join(CLIP_FIELDS)
SCORE_COLUMNS = ", ".join(field.name for field in fields(Score))


INSERT_CLIP = f"INSERT INTO clips ({CLIP_COLUMNS}, time_us, born) VALUES ({', '.join('?' * (len(CLIP_FIELDS) + 2))})"
INSERT_SCORE = f"INSERT INTO scores ({SCORE_COLUMNS}, born) VALUES ({', '.join('?' * (len(fields(Score)) + 1))})"


def clip_values(row: int, clip: ClipRow, generation: int) -> tuple[Any, ...]:
    """The parameters of `INSERT_CLIP`."""
    told = {"row": row, "captions": json.dumps(clip.captions), "meta": json.dumps(dict(clip.meta))}
    stored = [told[name] if name in told else getattr(clip, name) for name in CLIP_FIELDS]
    return (*stored, time_us(clip.time) if clip.time is not None else None, generation)


def score_values(score: Score, generation: int) -> tuple[Any, ...]:
    """The parameters of `INSERT_SCORE`."""
    return (*astuple(score), generation)


def clip_of(values: tuple[Any, ...]) -> ClipRow:
    """The clip of one answer that selects `CLIP_COLUMNS`."""
    row, video_id, uri, start_s, end_s, captions, meta, *rest = values
    return ClipRow(row, video_id, uri, start_s, end_s, tuple(json.loads(captions)), json.loads(meta), *rest)


def as_stored(vectors: Vectors) -> Vectors:
    """What comes back of vectors that are stored: what is served then equals what is restored."""
    return vectors.astype("<f2").astype(np.float32)
