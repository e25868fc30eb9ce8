"""Where one task ends and the next begins, and the log of them.

It knows nothing of learners and indexes: it says that a boundary lies here, the pipeline acts on it. The names of
tasks are labels of metrics, so their number is bounded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from streamlearn.detector import UNMEASURED, Detector, Measured
from streamlearn.errors import StateError, TaskError
from streamlearn.records import Position, Vectors

Cause = Literal["start", "drift", "operator"]
#: What becomes of a task that gets another name: it has it alone; it is part of the task that has it, as an operator
#: says; or it was that task all along, and the daemon knows it now.
Relabelling = Literal["renamed", "merged", "recognised"]

_NUMBERED = re.compile(r"t([1-9][0-9]{0,17})")


@dataclass(frozen=True, slots=True)
class Boundary:
    """A task begins here.

    Attributes:
        cause: "start" of the stream, "drift", or an "operator" who said so.
        score: of the detector at that moment.
        onset_steps_ago: how many of the newest learner steps already belong to the new task; 0 where the boundary is
            known before its first batch is learned.
        name: of the task, or None for the next free one.
        threshold: that the detector compared the score with.
        shift: by which the frozen encoders (`streamlearn.judge`) saw the stream move; about 1 where it does not.
    """

    cause: Cause
    score: float | None = None
    onset_steps_ago: int = 0
    name: str | None = None
    threshold: float | None = None
    shift: float | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """One stretch of the stream that was learned as one task. A name that returns is a new entry, in a new era.

    Attributes:
        name: what the task is called; several entries share it where the task was returned to.
        era: of the index, that begins with it.
        cause, score, onset_steps_ago: of the boundary that began it (`Boundary`).
        started_step: learner steps made before it, by its onset.
        started_clips: clips processed before it was noticed.
        position: of its first clip, by its onset.
        ended_step, ended_clips: the next one's `started_step` and `started_clips`; None for the current task.
        threshold, shift: of the boundary that began it.
        first_clip: the video_id at `position`; None where it is not (yet) known.
    """

    name: str
    era: int
    cause: Cause
    score: float | None
    onset_steps_ago: int
    started_step: int
    started_clips: int
    position: Position | None
    ended_step: int | None = None
    ended_clips: int | None = None
    threshold: float | None = None
    shift: float | None = None
    first_clip: str | None = None


class TaskLog:
    """The tasks so far, oldest first. At most the last one is open: that is the current one.

    Tasks without a name of their own are called t1, t2, ...: the first number, from the count of names so far on,
    that nobody has used. Such a name never comes back, or what was measured of two tasks would be one series.
    Blanks around a name are not part of it.

    Args:
        max_tasks: different names at most. When they are used up, an operator's new name is refused and drift begins a
            new era of the current task, so that the stream goes on and the labels stay bounded.
    """

    def __init__(self, *, max_tasks: int = 1000) -> None:
        self._max_tasks = max_tasks
        self._tasks: list[Task] = []
        self._retired = 0  # the highest number of a name that is no longer in use

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Every entry, in the order of their eras."""
        return tuple(self._tasks)

    @property
    def current(self) -> Task | None:
        """The open entry, or None before the first and after `close`."""
        return self._tasks[-1] if self._tasks and self._tasks[-1].ended_step is None else None

    def names(self) -> tuple[str, ...]:
        """The different names, in the order of their first appearance."""
        return tuple(dict.fromkeys(task.name for task in self._tasks))

    def check(self, name: str) -> str:
        """The name, without blanks around it, if a task could now be started under it.

        Raises:
            TaskError: it is empty, too long, not printable or one too many.
        """
        name, names = _printable(name), self.names()
        if name not in names and len(names) >= self._max_tasks:
            raise TaskError(f"task name {name!r} would be one more than the {self._max_tasks} allowed; reuse one")
        return name

    def free_name(self) -> str:
        """The name that the next task without one of its own gets; the current one's where all are used up."""
        names = set(self.names())
        if len(names) >= self._max_tasks:
            return (self.current or self._tasks[-1]).name
        number = max(len(names), self._retired) + 1
        while f"t{number}" in names:
            number += 1
        return f"t{number}"

    def start(self, boundary: Boundary, *, step: int, clips: int, position: Position | None, era: int) -> Task:
        """Begin a task, and end the current one. Starting the current one again by its name changes nothing.

        Args:
            boundary: from `Boundaries`.
            step: learner steps made before the task, by its onset.
            clips: processed so far.
            position: of the clip that comes next.
            era: of the index, that begins here; it grows from entry to entry.

        Returns:
            The task that is now current.

        Raises:
            TaskError: the name cannot be used (`check`).
            ValueError: steps, clips or eras run backwards.
        """
        name = self.free_name() if boundary.name is None else self.check(boundary.name)
        current = self.current
        if current and boundary.name is not None and name == current.name:
            return current
        if self._tasks and era <= self._tasks[-1].era:
            raise ValueError(f"era {era} comes after era {self._tasks[-1].era}")
        self._refuse_going_back(step, clips)
        self.close(step=step, clips=clips)
        task = Task(
            name=name,
            era=era,
            cause=boundary.cause,
            score=boundary.score,
            onset_steps_ago=boundary.onset_steps_ago,
            started_step=step,
            started_clips=clips,
            position=position,
            threshold=boundary.threshold,
            shift=boundary.shift,
        )
        self._tasks.append(task)
        return task

    def locate(self, position: Position, video_id: str) -> Task:
        """Say with which clip the current task began, where that is known only after the boundary."""
        self._tasks[-1] = replace(self._tasks[-1], position=position, first_clip=video_id)
        return self._tasks[-1]

    def rename(self, old: str, new: str, *, merge: bool) -> str:
        """Give a task another name; with `merge` that of another task, of which it is a part from now on.

        Returns:
            The name that it has now.

        Raises:
            TaskError: there is no such task, or the new name cannot be used so.
        """
        names, new = self.names(), new if merge else _printable(new)
        for name in (old, new) if merge else (old,):
            if name not in names:
                raise TaskError(f"there is no task {name!r}")
        if old == new or (not merge and new in names):
            raise TaskError(
                f"task {new!r} exists already" + ("" if merge else "; merge the two, or choose another name")
            )
        self._tasks = [replace(task, name=new) if task.name == old else task for task in self._tasks]
        if (numbered := _NUMBERED.fullmatch(old)) is not None:
            self._retired = max(self._retired, int(numbered[1]))
        return new

    def close(self, *, step: int, clips: int) -> Task | None:
        """End the current task, if there is one, and return it.

        Raises:
            ValueError: steps or clips run backwards.
        """
        current = self.current
        if current is None:
            return None
        self._refuse_going_back(step, clips)
        self._tasks[-1] = replace(current, ended_step=step, ended_clips=clips)
        return self._tasks[-1]

    def state_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        rows = [{**asdict(t), "position": t.position and list(t.position)} for t in self._tasks]
        return {"tasks": rows, "retired": self._retired}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], *, max_tasks: int = 1000) -> TaskLog:
        """The log as `state_dict` gave it.

        Raises:
            StateError: it is not such a state.
        """
        log = cls(max_tasks=max_tasks)
        try:
            for row in state["tasks"]:
                position = None if row["position"] is None else Position(*row["position"])
                log._tasks.append(Task(**{**row, "position": position}))
            # Where it was not counted yet, no more names can have been given than there are entries.
            log._retired = int(state.get("retired", len(log._tasks)))
        except (KeyError, TypeError, ValueError) as error:
            raise StateError(f"the task log cannot be read: {error!r}") from error
        return log

    def _refuse_going_back(self, step: int, clips: int) -> None:
        if not self._tasks:
            return
        last = self._tasks[-1]
        least_step = last.started_step if last.ended_step is None else last.ended_step
        least_clips = last.started_clips if last.ended_clips is None else last.ended_clips
        if step < least_step or clips < least_clips:
            raise ValueError(f"step {step} and clips {clips} lie before step {least_step} and clips {least_clips}")


def _printable(name: str) -> str:
    name = name.strip()
    if not 1 <= len(name) <= 64 or not name.isprintable():
        raise TaskError(f"task name {name[:64]!r}: must be 1 to 64 printable characters")
    return name


class Boundaries:
    """Decides for each batch whether a task begins with it: the operator's word first, then the detector's.

    Its only state is the detector's. All of a batch's clips carry the same explicit task, or none.

        if boundary := boundaries.announced(batch.task, current=current_name):  # before the batch is learned
            ...
        if boundary := boundaries.update(keys, explicit_task=batch.task):       # after
            ...
    """

    def __init__(self, detector: Detector) -> None:
        self._detector = detector

    @property
    def score(self) -> float:
        """The detector's statistic."""
        return self._detector.score

    @property
    def threshold(self) -> float:
        """What it is compared with; 0 where there is too little to compare."""
        return self._detector.threshold

    def announced(self, explicit_task: str | None, *, current: str | None) -> Boundary | None:
        """The boundary that is known before the batch is learned: the first of all, or an operator's.

        Args:
            explicit_task: the operator's name of the task that the batch belongs to.
            current: the name of the current task, None where there is none yet.
        """
        if current is None:
            return Boundary("start", name=explicit_task)
        if explicit_task is None or explicit_task == current:
            return None
        boundary = Boundary("operator", self.score, name=explicit_task)
        self.restart()
        return boundary

    def update(
        self, embeddings: Vectors, measured: Measured = UNMEASURED, *, explicit_task: str | None = None
    ) -> Boundary | None:
        """The boundary that a learned batch shows. Give every batch, in order, once.

        Args:
            embeddings: (n, d), the batch's video and text keys side by side.
            measured: on the batch, by the step that learned it.
            explicit_task: as for `announced`. It rules out drift: whoever names tasks decides where they end.
        """
        self._detector.update(embeddings, measured)
        if not self._detector.drift_detected or explicit_task is not None:
            return None
        return Boundary(
            "drift", self.score, self._detector.onset_batches_ago, threshold=self._detector.threshold or None
        )

    def refuse(self) -> None:
        """The drift that was just reported is none: the detector goes on as if it had not."""
        self._detector.refuse()

    def restart(self) -> None:
        """Somebody has begun a task here: what came before is no reference for what comes."""
        self._detector.restart()
