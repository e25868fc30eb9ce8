"""The catalog's nouns, and how they lie in its tables."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import astuple, dataclass, fields
from typing import Any

import numpy as np

from streamlearn.filters import time_us
from streamlearn.heldout import lot
from streamlearn.records import Vectors


@dataclass(frozen=True, slots=True)
class ClipRow:
    """What is known of a clip, without its vector.

    Attributes:
        row: its number in catalog, index and frame store; 0 before `Catalog.put`. Never used for another clip.
        start_s, end_s: the segment of the media in seconds, if only a part was meant.
        time: event time, RFC 3339, as given.
        captions: as they came; of a held-out clip with several, those that are not its question.
        split: "train"; "heldout", a question of its task; or "extra", neither learned from nor asked: it was learned
            from before, or shows what a held-out clip shows.
        step: the learner's step at arrival.
        question: the caption that a held-out clip is asked with; None for others.
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
    question: str | None = None

    @property
    def asked(self) -> str:
        """The question; of a clip that has none, its first caption."""
        return self.captions[0] if self.question is None else self.question

    @property
    def searchable_captions(self) -> tuple[str, ...]:
        """The captions by which the clip may be found as text.

        Never its question, or recall would measure how well text is looked up. None of an "extra" clip, which may show
        what a held-out clip shows and be described in the words of its question.
        """
        if self.split == "extra":
            return ()
        return tuple(caption for caption in self.captions if caption != self.question)


@dataclass(frozen=True, slots=True)
class Score:
    """One cell of the matrix of tasks and time; `value` is None where there were too few pairs.

    `low` and `high` bound it with 95 % confidence (docs/evaluation.md). `forgetting` is the share of the best value so
    far that is lost at this time. `median_rank`, with its bounds, is of the same questions, whatever k; the view "pool"
    has none. None in cells written before they were kept.
    """

    clips_seen: int
    step: int
    time: str
    task: str
    direction: str
    k: int
    view: str
    value: float | None
    pairs: int
    low: float | None = None
    high: float | None = None
    forgetting: float | None = None
    median_rank: float | None = None
    median_low: float | None = None
    median_high: float | None = None


@dataclass(frozen=True, slots=True)
class TaskRanks:
    """The last evaluation's ranks of a task, question by question: what its medians and its worst clips are read from.

    Attributes:
        rows: of the clips, which may have been taken away since.
        ranks: of each; 1 is the best.
    """

    task: str
    direction: str
    view: str
    clips_seen: int
    rows: tuple[int, ...]
    ranks: tuple[int, ...]


#: The columns that make a noun, in its order, for a SELECT or an INSERT.
CLIP_FIELDS = tuple(field.name for field in fields(ClipRow))
CLIP_COLUMNS = ", ".join(CLIP_FIELDS)
SCORE_COLUMNS = ", ".join(field.name for field in fields(Score))


INSERT_CLIP = (
    f"INSERT INTO clips ({CLIP_COLUMNS}, lot, time_us, born) VALUES ({', '.join('?' * (len(CLIP_FIELDS) + 3))})"
)
INSERT_SCORE = f"INSERT INTO scores ({SCORE_COLUMNS}, born) VALUES ({', '.join('?' * (len(fields(Score)) + 1))})"


def clip_values(row: int, clip: ClipRow, generation: int) -> tuple[Any, ...]:
    """The parameters of `INSERT_CLIP`."""
    told = {"row": row, "captions": json.dumps(clip.captions), "meta": json.dumps(dict(clip.meta))}
    if clip.question is not None:
        told["question"] = json.dumps(clip.question)  # half a surrogate pair is text in JSON, and not in SQLite
    stored = [told[name] if name in told else getattr(clip, name) for name in CLIP_FIELDS]
    return (*stored, lot(clip.video_id), time_us(clip.time) if clip.time is not None else None, generation)


def score_values(score: Score, generation: int) -> tuple[Any, ...]:
    """The parameters of `INSERT_SCORE`."""
    return (*astuple(score), generation)


def clip_of(values: tuple[Any, ...]) -> ClipRow:
    """The clip of one answer that selects `CLIP_COLUMNS`."""
    row, video_id, uri, start_s, end_s, captions, meta, *rest = values
    if rest[-1] is not None:
        rest[-1] = json.loads(rest[-1])  # the question
    return ClipRow(row, video_id, uri, start_s, end_s, tuple(json.loads(captions)), json.loads(meta), *rest)


def as_stored(vectors: Vectors) -> Vectors:
    """What comes back of vectors that are stored: what is served then equals what is restored."""
    return vectors.astype("<f2").astype(np.float32)
