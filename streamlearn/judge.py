"""Looks twice at a suspected boundary: with the encoders of the stream's start, which never move.

The detector watches the keys of the learner's step, which cost nothing but come from an encoder that learns. Where it
suspects a boundary, some clips from before and after are seen by a frozen pair: has the stream changed, or the encoder;
when did it begin; and is what comes a task that we know? Knows vectors of clips, not where they are kept
(`streamlearn.frozen_clips`). Only the pipeline thread calls it.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from streamlearn.onset import likely_onset
from streamlearn.recognition import MISSED, Floats, Statistics, TaskMemory
from streamlearn.records import Vectors
from streamlearn.tasks import Boundary

log = logging.getLogger(__name__)

Rows = npt.NDArray[np.int64]

#: Clips before and after that are compared: first few; more only where these do not settle it.
_LOOKS = ((128, 48), (256, 96))
_CLEAR = 1.5  # times the limit, or its half: the first look settles it
_FEWEST = 24  # clips on either side; with fewer the detector's word stands
#: Clips that say whether a task is known. With fewer, foreign ones are near, too, and it must be nearer.
_SURE, _MISSED_OF_FEW = 64, 0.1
_PROFILE_BATCHES, _PROFILE_CLIPS = 64, 12  # a batch, that a slow change is dated by
_SLOW_BATCHES = 4  # an onset further back than this is dated anew
_ALONG = 0.5  # cosine of two changes' directions above which they are one
_MOST_SETTLING = 64  # batches, after which a slow change is over, whatever its onset


class Clips(Protocol):
    """The clips of the current task, as a frozen encoder sees them."""

    def rows(self) -> Rows:
        """Numbers of the clips, in the order of their steps: the same after a crash but for gaps."""
        ...

    def steps(self, rows: Sequence[int]) -> Mapping[int, int]:
        """The learner's step, by row."""
        ...

    def vectors(self, rows: Sequence[int]) -> Mapping[int, Vectors]:
        """Video and text side by side, (2 d,), by row, of those that can still be seen, in order."""
        ...


@dataclass(frozen=True)
class Verdict:
    """What the frozen pair says of a suspected boundary.

    Attributes:
        boundary: with its onset, its shift and, for a task that returns, its name; None: the stream has not changed.
        shift: of the clips after it from those before; None where too few are kept to tell.
        limit: that it was compared with.
    """

    boundary: Boundary | None
    shift: float | None = None
    limit: float | None = None


@dataclass
class Opening:
    """What is open about the current task since it began.

    Attributes:
        settled_step: by which a slow change that began it should be over.
        looks: steps at which it is asked once more whether the task is a known one.
        previous: the task that it followed, and therefore is not.
        direction: of that slow change, (2 d,); empty where it came at once.
    """

    settled_step: int = 0
    looks: list[int] = field(default_factory=list)
    previous: str = ""
    direction: Floats = field(default_factory=lambda: np.zeros(0))


class Judge:
    """See the module.

    Args:
        clips: of the current task.
        frame: names the frozen encoder.
        batch_size: clips a step.
        clips_per_false_boundary: how often it may be wrong.
        revisits: whether tasks that return are recognised.
    """

    def __init__(
        self, clips: Clips, *, frame: str, batch_size: int, clips_per_false_boundary: float, revisits: bool
    ) -> None:
        self._clips, self._batch_size, self._revisits = clips, batch_size, revisits
        self._p = min(0.1, batch_size / clips_per_false_boundary)
        self.memory = TaskMemory(frame)
        self._opening = Opening()
        self._kept: dict[int, Vectors] = {}  # of clips of the current task, encoded once
        self._after: dict[int, Vectors] = {}  # what was judged last: what came after the boundary
        self._direction: Floats = np.zeros(0)  # and where it went

    def judge(self, suspected: Boundary, task: str, step: int) -> Verdict:
        """Decide on what a detector found.

        Args:
            suspected: the detector's boundary.
            task: the current one.
            step: of the learner.
        """
        rows = self._clips.rows()
        cut = self._cut(rows, step - suspected.onset_steps_ago)
        seen = self._after = {}
        for most_before, most_after in _LOOKS:
            before, after = self._before(rows, cut, most_before), self._see(rows[cut:][-most_after:], seen)
            if min(len(before), len(after)) < _FEWEST:
                self._direction = np.zeros(0)
                return Verdict(suspected)
            known, mean = Statistics.of(before), after.mean(axis=0, dtype=np.float64)
            shift, limit = known.shift(mean, len(after)), known.limit(self._p)
            if not limit / 2 < shift <= _CLEAR * limit:
                break
        self._direction = mean - known.mean
        if shift <= limit or self._still_coming(step):
            log.info("no boundary: score %.2f, shift %.2f, limit %.2f", suspected.score, shift, limit)
            return Verdict(None, shift, limit)
        onset = suspected.onset_steps_ago
        if onset > _SLOW_BATCHES:
            onset = self._onset(rows, step) or onset
        name = self._name(self._see(rows[cut:][-_LOOKS[-1][1] :], seen), task)
        return Verdict(replace(suspected, onset_steps_ago=onset, name=name, shift=shift), shift, limit)

    def close(self, task: str, since_step: int) -> None:
        """A task ends with the clips of `since_step`: remember what it looked like. Call before its era is sealed."""
        if self._revisits:
            rows = self._clips.rows()
            self.memory.learn(task, self._before(rows, self._cut(rows, since_step), _LOOKS[0][0]))
        self._kept, self._opening = {}, Opening(previous=task)

    def begin(self, boundary: Boundary, step: int) -> None:
        """A task has begun, noticed after `step`: what is to be seen to later."""
        onset, opening = boundary.onset_steps_ago, self._opening
        self._kept, self._after = self._after, {}
        unknown = self._revisits and boundary.cause == "drift" and boundary.name is None
        if onset > _SLOW_BATCHES and boundary.cause == "drift":
            opening.settled_step = step + min(onset, _MOST_SETTLING)
            opening.direction = self._direction
            if unknown:
                opening.looks = [opening.settled_step, 2 * opening.settled_step - step]
        elif unknown:
            opening.looks = [step - onset + -(-_LOOKS[-1][1] // self._batch_size)]

    def is_due(self, step: int) -> bool:
        """Whether `recognise_late` would look."""
        return bool(self._opening.looks) and step >= self._opening.looks[0]

    def recognise_late(self, task: str, step: int) -> str | None:
        """The known task that the current one turns out to be, asked when enough of it has come; mostly None."""
        if not self.is_due(step):
            return None
        self._opening.looks.pop(0)
        newest = self._see(self._clips.rows()[-_LOOKS[-1][1] :], self._kept)
        name = self._name(newest, task, self._opening.previous)
        if name is not None:
            self._opening.looks = []
        return name

    def rename(self, old: str, new: str) -> None:
        """A task has another name, or is part of another; what an operator named is not renamed later."""
        self.memory.rename(old, new)
        self._opening.looks = []
        if self._opening.previous == old:
            self._opening.previous = new

    def state_dict(self) -> dict[str, Any]:
        """Plain values for JSON, and "means", "direction" as arrays."""
        memory, opening = self.memory.state_dict(), asdict(self._opening)
        direction = opening.pop("direction")
        return {"facts": memory["facts"] | {"opening": opening}, "means": memory["means"], "direction": direction}

    def load_state_dict(self, facts: Mapping[str, Any], means: npt.NDArray[Any], direction: npt.NDArray[Any]) -> bool:
        """Inverse of `state_dict`; a state from before there was an "opening" has none.

        Returns:
            False where they are of another frozen encoder; then nothing is known.
        """
        self._kept, self._after, self._opening = {}, {}, Opening()
        self._direction = np.zeros(0)
        if not self.memory.load_state_dict(facts, means):
            return False
        if "opening" in facts:
            self._opening = Opening(**facts["opening"], direction=np.asarray(direction, np.float64))
        return True

    def _name(self, x: Vectors, *besides: str) -> str | None:
        """The known task that clips belong to."""
        if not self._revisits:
            return None
        return self.memory.recognise(x, besides=besides, missed=MISSED if len(x) >= _SURE else _MISSED_OF_FEW)[0]

    def _still_coming(self, step: int) -> bool:
        """Whether what was judged goes where a slow change went that may not be over yet."""
        before = self._opening.direction
        if not len(before) or step > self._opening.settled_step + _MOST_SETTLING:
            return False
        norms = float(np.linalg.norm(before) * np.linalg.norm(self._direction))
        return float(before @ self._direction) > _ALONG * norms

    def _cut(self, rows: Rows, since_step: int) -> int:
        """How many of the rows were written up to a step."""
        return bisect_right(rows, since_step, key=lambda row: self._clips.steps([int(row)]).get(int(row), 0))

    def _settled(self, rows: Rows, cut: int) -> int:
        """Where the rows begin that a slow change at the task's start is no longer in, if they are enough."""
        first = self._cut(rows, self._opening.settled_step) if self._opening.settled_step else 0
        return first if cut - first >= _SURE else 0

    def _before(self, rows: Rows, cut: int, most: int) -> Vectors:
        """A sample of the task so far that changes little as the task grows. Shape: (n, d)."""
        chosen = rows[_spread(self._settled(rows, cut), cut, most)].tolist()
        self._kept |= self._clips.vectors([row for row in chosen if row not in self._kept])
        self._kept = {row: vector for row in chosen if (vector := self._kept.get(row)) is not None}
        return _stack(list(self._kept.values()))

    def _see(self, rows: Rows, seen: dict[int, Vectors]) -> Vectors:
        seen |= self._clips.vectors([row for row in rows.tolist() if row not in seen])
        return _stack([seen[row] for row in rows.tolist() if row in seen])

    def _onset(self, rows: Rows, step: int) -> int:
        """Date a slow change by how far the newest batches have gone in its direction; 0: it cannot be said."""
        first = self._cut(rows, step - _PROFILE_BATCHES)
        places: dict[int, list[int]] = {}
        by_row = self._clips.steps(rows[max(first, self._settled(rows, len(rows))) :].tolist())
        for row, of in by_row.items():
            places.setdefault(of, []).append(row)
        chosen = {of: [some[i] for i in _spread(0, len(some), _PROFILE_CLIPS)] for of, some in sorted(places.items())}
        vectors = self._clips.vectors([row for some in chosen.values() for row in some])
        along: dict[int, list[float]] = {}
        for of, some in chosen.items():
            if values := [float(vectors[row] @ self._direction) for row in some if row in vectors]:
                along[of] = values
        if len(along) < 2:
            return 0
        onset = likely_onset([np.array(values) for values in along.values()])
        return step - list(along)[-onset] + 1


def _spread(first: int, end: int, most: int) -> Rows:
    """At most so many of the places from `first` to `end`, by a hash of each: of more, mostly the same ones."""
    places = np.arange(first, end)
    if len(places) <= most:
        return places
    hashed = (places.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(20)
    return np.sort(places[np.argpartition(hashed, most)[:most]])


def _stack(vectors: Sequence[Vectors]) -> Vectors:
    return np.stack(vectors) if vectors else np.zeros((0, 0), np.float32)
