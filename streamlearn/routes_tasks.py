"""The routes that change tasks: an operator's boundary, another name, two tasks made one."""

from __future__ import annotations

from typing import Any, Protocol

import anyio
from anyio import to_thread
from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from streamlearn import problems
from streamlearn.errors import StreamlearnError, TaskError

_THREADS = 4


class MarkRequest(BaseModel):
    """A task begins with the next clip."""

    model_config = ConfigDict(extra="forbid")

    name: str | None = Field(None, description="Of the task, 1 to 64 printable characters; else the next free one.")


class RelabelRequest(BaseModel):
    """A task, and the name that it gets."""

    model_config = ConfigDict(extra="forbid")

    task: str
    to: str = Field(description="A new name; to merge, that of another task.")


class Service(Protocol):
    """What the routes serve. Every method may be called from several threads at once, and raises a StreamlearnError."""

    def mark(self, name: str | None) -> dict[str, Any]:
        """A task begins with the next clip; its entry of the log."""

    def rename(self, old: str, new: str) -> None:
        """A task gets another name."""

    def merge(self, old: str, into: str) -> None:
        """A task becomes part of another."""


def task_routes(service: Service) -> APIRouter:
    """The routes below `/tasks` that change something."""
    router = APIRouter(prefix="/tasks")
    threads = anyio.CapacityLimiter(_THREADS)
    documented = problems.responses(400, 413, 415, 422, 503)

    @router.post("", status_code=201, response_model=dict[str, Any], responses=documented)
    async def mark(request: MarkRequest) -> dict[str, Any]:
        """Begin a task with the next clip, as a message's `task` does; answers once that is done."""
        try:
            return await to_thread.run_sync(service.mark, request.name, limiter=threads)
        except StreamlearnError as error:
            raise _problem(error) from error

    @router.post("/rename", status_code=204, responses=documented)
    async def rename(request: RelabelRequest) -> None:
        """Give a task a name that no task has. Scores measured before keep the old name."""
        try:
            await to_thread.run_sync(service.rename, request.task, request.to, limiter=threads)
        except StreamlearnError as error:
            raise _problem(error) from error

    @router.post("/merge", status_code=204, responses=documented)
    async def merge(request: RelabelRequest) -> None:
        """Make a task part of another: its clips, its held-out ones too, and its eras carry that name from now on."""
        try:
            await to_thread.run_sync(service.merge, request.task, request.to, limiter=threads)
        except StreamlearnError as error:
            raise _problem(error) from error

    return router


def _problem(error: StreamlearnError) -> HTTPException:
    return HTTPException(422 if isinstance(error, TaskError) else 503, str(error))
