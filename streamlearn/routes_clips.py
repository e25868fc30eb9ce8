"""The routes that put clips into the stream and take them out: `POST /v1/clips`, `DELETE /v1/clips/{id}`."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Protocol

import anyio
from anyio import to_thread
from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from streamlearn import problems, schemas
from streamlearn.errors import RejectedClip, SourceError
from streamlearn.message import clip_schema
from streamlearn.records import Position, Record

_THREADS = 4
_NOWHERE = Position("http", "0", 0)


class Taken(BaseModel):
    """What the stream has durably, and will be learned or deleted when its turn comes."""

    video_id: str = Field(description="GET /v1/clips/{video_id} knows it once it is searchable, or no longer.")
    status: str = "accepted"


class Writer(Protocol):
    """What the routes need. Both methods may be called from several threads at once.

    Raises:
        RejectedClip: the clip is not valid.
        SourceRefusedError: this source does not take it.
        SourceError: the source is away.
    """

    def put(self, record: Record) -> str:
        """Put a clip into the stream; returns its id."""

    def delete(self, video_id: str) -> None:
        """Put a tombstone into the stream."""


def clip_routes(writer: Writer) -> APIRouter:
    """The routes below `/clips` that change something."""
    router = APIRouter(prefix="/clips")
    threads = anyio.CapacityLimiter(_THREADS)

    async def call(function: Callable[[], str]) -> Taken:
        try:
            return Taken(video_id=await to_thread.run_sync(function, limiter=threads))
        except RejectedClip as error:
            status = {"invalid_json": 400, "message_too_large": 413}.get(error.code, 422)
            raise HTTPException(status, f"{error.code}: {error}") from error
        except SourceError as error:
            if error.retriable:
                raise HTTPException(503, f"{error} (it may have been taken)", {"Retry-After": "5"}) from error
            raise HTTPException(409, str(error)) from error

    body = {"required": True, "content": {"application/json": {"schema": _inline(clip_schema())}, "video/*": {}}}

    @router.post(
        "",
        status_code=202,
        responses=problems.responses(400, 403, 409, 413, 422, 503),
        openapi_extra={"requestBody": body},
    )
    async def put(request: Request, video_id: Annotated[schemas.VideoId | None, Query()] = None) -> Taken:
        """Put a clip into the stream: a clip message as in the topic, a CloudEvent, or a video with `caption` headers.

        Answered once the topic, or the folder's manifest, has it durably. The same id again replaces.
        """
        headers = tuple((name.decode("latin-1").replace("ce-", "ce_", 1), value) for name, value in request.headers.raw)
        key = None if video_id is None else video_id.encode()
        record = Record(key, await request.body(), _NOWHERE, headers)
        return await call(lambda: writer.put(record))

    @router.delete("/{video_id:path}", status_code=202, responses=problems.responses(403, 409, 422, 503))
    async def delete(video_id: Annotated[schemas.VideoId, Path()]) -> Taken:
        """Delete a clip: from index, catalog, held-out sets and frame store, when its turn comes.

        Answered once the tombstone is durable, also where no such clip is known: it may be on its way.
        """

        def send() -> str:
            writer.delete(video_id)
            return video_id

        return await call(send)

    return router


def _inline(schema: dict[str, object]) -> dict[str, object]:
    """A schema fit for a place inside another document: JSON, without its own dialect."""
    inner: dict[str, object] = json.loads(json.dumps(schema))
    inner.pop("$schema", None)
    return inner
