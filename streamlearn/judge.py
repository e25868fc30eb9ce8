"""Looks twice at a suspected boundary: with the encoders of the stream's start, which never move.

The detector watches the keys of the learner's step, which cost nothing but come from an encoder that learns. Where it
suspects a boundary, some clips from before and after are seen by a frozen pair: has the stream changed, or the encoder;
when did it begin; and is what comes a task that we know? Soon after a boundary, where the encoder moves most and the
detector knows no level, a hint is enough for a look. Knows vectors of clips, not where they are kept
(`streamlearn.frozen_clips`). Only the pipeline thread calls it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from streamlearn.judge_sample import Clips, Rows, Sample, spread
from streamlearn.onset import likely_onset, onset_of
from streamlearn.recognition import MISSED, Floats, Statistics, TaskMemory, likeness
from streamlearn.records import Vectors
from streamlearn.tasks import Boundary

log = logging.getLogger(__name__)

#: Clips before and after that are compared: first few; more only where these do not settle it.
_LOOKS = ((128, 48), (256, 96))
_CLEAR = 1.5  # times the limit, or its half: the first look settles it
_FEWEST = 24  # clips on either side; with fewer the detector's word stands
#: Clips that say whether a task is known. With fewer, foreign ones are near, too, and it must be nearer.
_SURE, _MISSED_OF_FEW = 96, 0.1
_PROFILE_BATCHES = 64  # by which a slow change is dated
_SLOW_BATCHES = 4  # an onset further back than this is dated anew
_ALONG = 0.5  # cosine of two changes' directions above which they are one
_MOST_SETTLING = 64  # batches, after which a slow change is over, whatever its onset
_ENOUGH = 64  # clips that say what a task looks like
_ALIKE_BATCHES = 8  # that say whether clips come in bunches
_UNSURE_BATCHES = 2  # after an onset, which may be dated too early: some of their clips are of the task before
#: Batches after a boundary in which the judge looks at hints: scores above this where the detector knows no level.
_YOUNG_BATCHES, _HINT = 24, 2.0
_GLANCES = 10  # a task: each may be wrong
_MOST_HURRIED = 8  # tasks in a row that end so: then they are no tasks, and hints are left alone until one lasts
_PAUSE_BATCHES, _LOUDER = 2, 1.5  # after a glance at nothing, before the next; unless the score is so many times its


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
        young_until: the step up to which hints are looked at.
        glanced: the step of the last look at a hint, and its score.
        hurried: tasks in a row, the last one before this, that ended young by such a look.
        settled_step: by which the change that began it should be over: that of its boundary where it seems to have come
            at once. 0 where it is an operator's.
        looks: steps at which it is asked once more whether the task is a known one.
        previous: the task that it followed, and therefore is not.
        direction: of the change that began it, (2 d,); empty where nobody looked at it.
    """

    young_until: int = 0
    glanced: tuple[int, float] = (0, 0.0)
    hurried: int = 0
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
        self._sample, self._batch_size, self._revisits = Sample(clips), batch_size, revisits
        self._p = min(0.1, batch_size / clips_per_false_boundary)
        self.memory = TaskMemory(frame)
        self._opening = Opening()
        self._direction: Floats = np.zeros(0)  # where what was judged last went

    def judge(self, suspected: Boundary, task: str, step: int) -> Verdict:
        """Decide on what a detector found.

        Args:
            suspected: the detector's boundary.
            task: the current one.
            step: of the learner.
        """
        rows = self._sample.rows()
        cut = self._sample.cut(rows, step - suspected.onset_steps_ago)
        compared = self._compare(rows, cut, step - suspected.onset_steps_ago, self._p)
        if compared is None:
            return Verdict(suspected)
        shift, limit = compared
        if shift <= limit or self._still_coming(step) or self._is_itself(rows[cut:], task):
            log.info("no boundary: score %.2f, shift %.2f, limit %.2f", suspected.score, shift, limit)
            return Verdict(None, shift, limit)
        onset = suspected.onset_steps_ago
        if onset > _SLOW_BATCHES:
            onset = self._onset(rows, step) or onset
        return self._found(suspected, rows, cut, onset, shift, limit, task)

    def wants_glance(self, score: float, threshold: float, step: int) -> bool:
        """Whether what a detector reported no boundary for is a hint that `glance` would look at.

        Args:
            score: of the detector.
            threshold: that it compared the score with; 0 where it knows none.
            step: of the learner.
        """
        glanced, refused = self._opening.glanced
        paused = step < glanced + _PAUSE_BATCHES and score < _LOUDER * refused
        calm = self._opening.hurried < _MOST_HURRIED
        return calm and step <= self._opening.young_until and score > (threshold or _HINT) and not paused

    def glance(self, score: float, task: str, step: int) -> Verdict:
        """Look for a change among the clips of a task that has just begun, and date it.

        What comes slowly is left to the detector, and so is what goes where the last change went.

        Args:
            score: of the detector.
            task: the current one.
            step: of the learner.
        """
        self._opening.glanced = (step, score)
        rows = self._sample.rows()
        onset, is_ramp = self._split(rows, step)
        if not onset or (is_ramp and onset > _SLOW_BATCHES):
            return Verdict(None)
        cut = self._sample.cut(rows, step - onset)
        compared = self._compare(rows, cut, step - onset, self._p / _GLANCES)
        if compared is None or compared[0] <= compared[1] or self._goes_on() or self._is_itself(rows[cut:], task):
            return Verdict(None, *(compared or ()))
        self._opening.hurried += 1
        return self._found(Boundary("drift", score), rows, cut, onset, *compared, task)

    def close(self, task: str, since_step: int) -> None:
        """A task ends with the clips of `since_step`: remember what it looked like. Call before its era is sealed."""
        if self._revisits:
            rows = self._sample.rows()
            self.memory.learn(task, self._before(rows, self._sample.cut(rows, since_step), _LOOKS[0][0]))
        was_young = since_step < self._opening.young_until
        self._opening = Opening(previous=task, hurried=self._opening.hurried if was_young else 0)

    def begin(self, boundary: Boundary, step: int) -> None:
        """A task has begun, noticed after `step`: what is to be seen to later."""
        onset, opening = boundary.onset_steps_ago, self._opening
        opening.young_until = step + _YOUNG_BATCHES
        if boundary.cause != "drift":
            return
        is_slow = onset > _SLOW_BATCHES
        opening.direction = self._direction
        opening.settled_step = step + (min(onset, _MOST_SETTLING) if is_slow else 0)
        if self._revisits and boundary.name is None and is_slow:
            opening.looks = [opening.settled_step, 2 * opening.settled_step - step]
        elif self._revisits and boundary.name is None:
            opening.looks = [step - onset + _UNSURE_BATCHES + -(-_LOOKS[-1][1] // self._batch_size)]

    def is_due(self, step: int) -> bool:
        """Whether `recognise_late` would look."""
        return bool(self._opening.looks) and step >= self._opening.looks[0]

    def recognise_late(self, task: str, step: int) -> str | None:
        """The known task that the current one turns out to be, asked when enough of it has come; mostly None."""
        if not self.is_due(step):
            return None
        self._opening.looks.pop(0)
        rows, most = self._sample.rows(), _LOOKS[-1][1]
        newest = max(0, len(rows) - most)
        # Of all that is settled: the newest alone may be of what comes next, where that comes slowly too.
        first = min(self._settled(rows, len(rows)) or newest, newest)
        settled = self._sample.see(rows[spread(first, len(rows), most)])
        name = self._name(settled, task, self._opening.previous)
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
        self._sample.forget()
        self._opening = Opening()
        self._direction = np.zeros(0)
        if not self.memory.load_state_dict(facts, means):
            return False
        if "opening" in facts:
            opening = Opening(**facts["opening"], direction=np.asarray(direction, np.float64))
            step, score = opening.glanced
            self._opening = replace(opening, glanced=(step, score))
        return True

    def _name(self, x: Vectors, *besides: str) -> str | None:
        """The known task that clips belong to."""
        if not self._revisits:
            return None
        return self.memory.recognise(x, besides=besides, missed=MISSED if len(x) >= _SURE else _MISSED_OF_FEW)[0]

    def _compare(self, rows: Rows, cut: int, since_step: int, p: float) -> tuple[float, float] | None:
        """How far what comes after the cut is from what came before, and the limit; None where too few are kept."""
        for most_before, most_after in _LOOKS:
            before, after = self._before(rows, cut, most_before), self._sample.see(rows[cut:][-most_after:])
            if min(len(before), len(after)) < _FEWEST:
                self._direction = np.zeros(0)
                return None
            known, mean = Statistics.of(before), after.mean(axis=0, dtype=np.float64)
            shift, limit = known.shift(mean, len(after)), known.limit(p)
            if not limit / 2 < shift <= _CLEAR * limit:
                break
        self._direction = mean - known.mean
        if shift > limit:
            shift /= self._crowding(rows, cut, since_step, known, rows[cut:][-most_after:])
        return shift, limit

    def _crowding(self, rows: Rows, cut: int, since_step: int, known: Statistics, after: Rows) -> float:
        """By how much a mean of `after` strays further than that of clips that come independently of each other."""
        first, most = max(0, cut - _ALIKE_BATCHES * self._batch_size), (_ALIKE_BATCHES + 1) * self._batch_size
        profile = self._sample.profile(rows[: first + most], first)
        parts = [[x for of, x in profile.items() if (of > since_step) == late] for late in (False, True)]
        alike = likeness(parts[0], parts[1], known=known)
        return 1 + alike * (self._sample.crowd(after) - 1)

    def _found(
        self, suspected: Boundary, rows: Rows, cut: int, onset: int, shift: float, limit: float, task: str
    ) -> Verdict:
        name = self._name(self._sample.see(rows[cut:][-_LOOKS[-1][1] :]), task)
        return Verdict(replace(suspected, onset_steps_ago=onset, name=name, shift=shift), shift, limit)

    def _is_itself(self, after: Rows, task: str) -> bool:
        """Whether what comes after the cut looks as the task did on an earlier visit, which is the better witness."""
        x = self._sample.see(after[-_LOOKS[-1][1] :])
        return self._revisits and len(x) >= _SURE and self.memory.fits(task, x, missed=_MISSED_OF_FEW)

    def _still_coming(self, step: int) -> bool:
        """Whether what was judged belongs to a change that may not be over yet, and may have seemed to come at once."""
        settled = self._opening.settled_step
        return settled > 0 and step <= settled + _MOST_SETTLING and self._goes_on()

    def _goes_on(self) -> bool:
        """Whether what was judged goes where the change went that began the task."""
        before = self._opening.direction
        if not len(before):
            return False
        norms = float(np.linalg.norm(before) * np.linalg.norm(self._direction))
        return float(before @ self._direction) > _ALONG * norms

    def _settled(self, rows: Rows, cut: int) -> int:
        """Where the rows begin that the change at the task's start is no longer in, if they are enough."""
        first = self._sample.cut(rows, self._opening.settled_step) if self._opening.settled_step else 0
        return first if cut - first >= _ENOUGH else 0

    def _before(self, rows: Rows, cut: int, most: int) -> Vectors:
        """A sample of the task so far that changes little as the task grows. Shape: (n, d)."""
        return self._sample.see(rows[spread(self._settled(rows, cut), cut, most)])

    def _split(self, rows: Rows, step: int) -> tuple[int, bool]:
        """The steps since the likeliest change among these clips, and whether it is a ramp; 0: it cannot be said."""
        profile = self._sample.profile(rows, self._settled(rows, len(rows)))
        if len(profile) < 3:
            return 0, False
        sums = np.stack([np.sum(some, axis=0, dtype=np.float64) for some in profile.values()])
        onset, is_ramp = onset_of(sums, np.array([len(some) for some in profile.values()], np.float64), moving=False)
        return step - list(profile)[-onset] + 1, is_ramp

    def _onset(self, rows: Rows, step: int) -> int:
        """Date a slow change by how far the newest batches have gone in its direction; 0: it cannot be said."""
        first = self._sample.cut(rows, step - _PROFILE_BATCHES)
        profile = self._sample.profile(rows, max(first, self._settled(rows, len(rows))))
        if len(profile) < 2:
            return 0
        onset = likely_onset([np.array([float(x @ self._direction) for x in some]) for some in profile.values()])
        return step - list(profile)[-onset] + 1
