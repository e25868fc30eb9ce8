"""What an operator does to tasks, done in the pipeline's thread between two batches. Safe from any thread."""

from __future__ import annotations

import dataclasses
from typing import Any

from streamlearn.errors import TaskError
from streamlearn.pipeline import Pipeline
from streamlearn.tasks import Boundary, Relabelling

_TIMEOUT_S = 60.0


class TasksService:
    """A `routes_tasks.Service` over the running daemon. What was done is in a checkpoint before it answers."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline, self._state = pipeline, pipeline.state

    def mark(self, name: str | None) -> dict[str, Any]:
        """A task begins with the next clip.

        Raises:
            TaskError: the name cannot be used, or is the current task's, or nothing has been learned yet.
            BusyError: the learner has not come to it in time, or has stopped.
        """
        return self._pipeline.mailbox.ask(lambda: self._mark(name), _TIMEOUT_S)

    def rename(self, old: str, new: str) -> None:
        """A task gets another name.

        Raises:
            TaskError: there is no such task, or the name cannot be used.
            BusyError: as for `mark`.
        """
        self._pipeline.mailbox.ask(lambda: self._relabel(old, new, "renamed"), _TIMEOUT_S)

    def merge(self, old: str, into: str) -> None:
        """A task becomes part of another.

        Raises:
            TaskError: there is no such task.
            BusyError: as for `mark`.
        """
        self._pipeline.mailbox.ask(lambda: self._relabel(old, into, "merged"), _TIMEOUT_S)

    def _mark(self, name: str | None) -> dict[str, Any]:
        tasks, boundaries = self._state.tasks, self._pipeline.boundaries
        current = tasks.current
        if current is None:
            raise TaskError("no clip has come yet")
        name = tasks.free_name() if name is None else tasks.check(name)
        if name == current.name:
            raise TaskError(f"{name!r} is the current task already")
        boundary = Boundary("operator", boundaries.score, name=name)
        boundaries.restart()
        self._pipeline.start_task(boundary, ())
        self._settle()
        return dataclasses.asdict(tasks.tasks[-1])

    def _relabel(self, old: str, new: str, how: Relabelling) -> None:
        self._pipeline.relabel(old, new, how)
        self._settle()

    def _settle(self) -> None:
        self._state.publish()
        self._pipeline.checkpoint()
