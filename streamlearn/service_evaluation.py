"""What the HTTP API serves of evaluations. Reads only; safe from any thread."""

from __future__ import annotations

from typing import Any

from streamlearn.evaluation_report import over_time, report
from streamlearn.state import State


class EvaluationService:
    """A `routes_evaluation.Evaluations` over the running daemon."""

    def __init__(self, state: State) -> None:
        self._state = state

    def scores(
        self, task: str | None, direction: str | None, k: int | None, view: str | None, most: int, columns: int
    ) -> dict[str, Any]:
        """The matrix of tasks and time and its points, oldest first, as much of it as is asked for."""
        found = self._state.catalog.matrix.scores(task=task, direction=direction, k=k, view=view)
        return over_time(found, self._state.tasks.tasks, most, columns)

    def evaluation(self) -> dict[str, Any]:
        """The report."""
        return report(self._state.catalog, self._state.book, self._state.tasks.tasks)
