"""The routes of evaluations: the matrix of tasks and time, and the report on it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal, Protocol

import pydantic_core
from fastapi import APIRouter, Query, Response

from streamlearn import problems

_MOST_POINTS, _MOST_COLUMNS = 10_000, 100


class Evaluations(Protocol):
    """What is served; both methods may be called from several threads at once, values are plain JSON types."""

    def scores(
        self, task: str | None, direction: str | None, k: int | None, view: str | None, most: int, columns: int
    ) -> dict[str, Any]:
        """Recall of the tasks over time: at most so many points of a series, and a matrix of so many columns."""

    def evaluation(self) -> dict[str, Any]:
        """The newest values, what they say together, and what is answered worst."""


def add_evaluation(v1: APIRouter, service: Evaluations, run: Callable[..., Awaitable[dict[str, Any]]]) -> None:
    """Add the routes; `run` calls a function in a worker thread."""

    @v1.get("/scores", response_model=dict[str, Any], responses=problems.responses(422))
    async def scores(
        task: Annotated[str | None, Query(max_length=64)] = None,
        direction: Literal["t2v", "v2t"] | None = None,
        k: Annotated[int | None, Query(ge=1)] = None,
        view: Literal["served", "single", "learner", "pool"] | None = None,
        most: Annotated[int, Query(ge=2, le=_MOST_POINTS, description="Points of a series, thinned evenly.")] = 200,
        columns: Annotated[int, Query(ge=2, le=_MOST_COLUMNS, description="Times of the matrix.")] = 10,
    ) -> Response:
        """The matrix of tasks and times, and every point that it is made of.

        Recall, forgetting and median rank, each with the pairs behind it; recall and median rank with their 95 %
        intervals (docs/evaluation.md).
        """
        return _json(await run(service.scores, task, direction, k, view, most, columns))

    @v1.get("/evaluation", response_model=dict[str, Any])
    async def evaluation() -> Response:
        """The newest values, forgetting and transfer, boundaries, the hardest queries and the worst clips."""
        return _json(await run(service.evaluation))


def _json(value: dict[str, Any]) -> Response:
    body = pydantic_core.to_json(value, inf_nan_mode="null")
    return Response(body, media_type="application/json", headers={"Cache-Control": "no-store"})
