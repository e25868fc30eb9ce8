"""The routes of generations: what is kept, pins, and going back."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Protocol

import anyio
from anyio import to_thread
from fastapi import APIRouter, Path, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from streamlearn import problems
from streamlearn.errors import StateError, StreamlearnError

_THREADS = 4

Number = Annotated[int, Path(ge=1, description="Of a generation.")]


class RollbackRequest(BaseModel):
    """How to go on after a rollback."""

    model_config = ConfigDict(extra="forbid")

    resume_from: Literal["generation", "latest"] = Field(
        "generation",
        description="generation: read again all that came after it; latest: go on with what comes next, skipping that.",
    )


class RollbackAnswer(BaseModel):
    """What a rollback did."""

    went_back_to: int = Field(description="The generation asked for.")
    generation: int = Field(description="The new one, which equals it and is served now.")
    dropped: list[int] = Field(description="Generations that are gone.")
    resume_from: Literal["generation", "latest"]
    undone_clips: int = Field(description="Processed after it: read again, or skipped.")
    kept_deleted: int = Field(description="Clips in it that were deleted since: they stay deleted.")


class Service(Protocol):
    """What the routes serve. Every method may be called from several threads at once."""

    def all(self) -> list[dict[str, Any]]:
        """What is kept, newest first."""

    def one(self, number: int) -> dict[str, Any] | None:
        """What a generation says of itself; None where there is none of this number.

        Raises:
            StateError: its manifest is damaged.
        """

    def diff(self, older: int, newer: int) -> dict[str, Any]:
        """What two generations do not have in common.

        Raises:
            StateError: a manifest is damaged, or gone.
        """

    def pin(self, number: int, pinned: bool) -> None:
        """Keep a generation, or no longer.

        Raises:
            StateError: there is none of this number.
        """

    def roll_back(self, number: int, resume_from: Literal["generation", "latest"]) -> dict[str, Any]:
        """Go back, and return what was done.

        Raises:
            StateError: it cannot be done, as the sentence says.
            StreamlearnError: it cannot be done now.
        """


def generation_routes(service: Service) -> APIRouter:
    """The routes below `/generations`."""
    router = APIRouter(prefix="/generations")
    threads = anyio.CapacityLimiter(_THREADS)
    missing, damaged = problems.responses(404, 422), problems.responses(409)

    async def known(number: int) -> dict[str, Any]:
        try:
            found = await to_thread.run_sync(service.one, number, limiter=threads)
        except StateError as error:
            raise HTTPException(409, str(error)) from error
        if found is None:
            raise HTTPException(404, f"There is no generation {number}; GET /v1/generations lists those kept.")
        return found

    @router.get("", response_model=list[dict[str, Any]])
    async def generations() -> Response:
        """The checkpoints that are kept, newest first."""
        return _json(await to_thread.run_sync(service.all, limiter=threads))

    @router.get("/{number}", response_model=dict[str, Any], responses=missing | damaged)
    async def generation(number: Number) -> Response:
        """What a generation says of itself: tasks, eras, offsets, counts, the sums of its files."""
        return _json(await known(number))

    @router.get("/{older}/diff/{newer}", response_model=dict[str, Any], responses=missing | damaged)
    async def diff(older: Number, newer: Number) -> Response:
        """What two generations do not have in common, older to newer: clips, vectors, tasks, eras, offsets, recall."""
        for number in (older, newer):
            await known(number)
        try:
            return _json(await to_thread.run_sync(service.diff, older, newer, limiter=threads))
        except StateError as error:
            raise HTTPException(409, str(error)) from error

    async def keep(number: int, pinned: bool) -> None:
        """One whose manifest is damaged, too."""
        try:
            await to_thread.run_sync(service.pin, number, pinned, limiter=threads)
        except StateError as error:
            raise HTTPException(404, f"{error}; GET /v1/generations lists those kept.") from error

    @router.put("/{number}/pin", status_code=204, responses=missing)
    async def pin(number: Number) -> None:
        """Keep it, whatever the settings of checkpoints say."""
        await keep(number, True)

    @router.delete("/{number}/pin", status_code=204, responses=missing)
    async def unpin(number: Number) -> None:
        """Keep it no longer than the settings of checkpoints say."""
        await keep(number, False)

    @router.post(
        "/{number}/rollback", response_model=RollbackAnswer, responses=missing | problems.responses(400, 409, 413, 503)
    )
    async def roll_back(number: Number, request: RollbackRequest | None = None) -> RollbackAnswer:
        """Go back to it: weights, queues, eras, index, tasks, scores and offsets. Answers once that is served."""
        await known(number)
        resume_from = (request or RollbackRequest(resume_from="generation")).resume_from
        try:
            done = await to_thread.run_sync(service.roll_back, number, resume_from, limiter=threads)
        except StreamlearnError as error:
            raise HTTPException(409 if isinstance(error, StateError) else 503, str(error)) from error
        return RollbackAnswer(**done)

    return router


def _json(value: object) -> Response:
    return Response(json.dumps(value), media_type="application/json", headers={"Cache-Control": "no-store"})
