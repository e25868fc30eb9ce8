"""The HTTP API: routes, and which thread answers them. It knows the service by its protocol alone.

A search runs in a worker thread of its own limiter: what the learner or a slow disk does cannot stop the event loop,
and a flood of searches cannot starve `/v1/status`. One search more than allowed is refused at once, never queued.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Awaitable, Callable, Sequence
from importlib import resources
from typing import Annotated, Any, Protocol, TypeVar

import anyio
import pydantic_core
from anyio import to_thread
from fastapi import APIRouter, Depends, FastAPI, Path, Query, Request, Response
from fastapi.security import HTTPBearer
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.routing import Route

from streamlearn import __version__, problems, schemas
from streamlearn.guard import Access, Guard
from streamlearn.metrics import Metrics
from streamlearn.routes_evaluation import Evaluations, add_evaluation
from streamlearn.schemas import SearchAnswer, SearchRequest
from streamlearn.settings import ApiSettings

T = TypeVar("T")

_HEALTH = ("/livez", "/readyz", "/healthz")
_PAGE = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/api.js": ("api.js", "text/javascript; charset=utf-8"),
    "/live.js": ("live.js", "text/javascript; charset=utf-8"),
    "/recall.js": ("recall.js", "text/javascript; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
# Nothing from elsewhere, nothing inline; blob: are the thumbnails, which a browser fetches with the token.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_READ_THREADS = 8
_THUMBNAIL_MAX_AGE_S = 60


class Service(Evaluations, Protocol):
    """What the API serves. Every method may be called from several threads at once; values are plain JSON types."""

    def search(self, request: SearchRequest) -> SearchAnswer:
        """Answer from one published snapshot.

        Raises:
            SearchError: its `status` becomes the response's.
        """

    def clip(self, video_id: str) -> dict[str, Any] | None:
        """All that is known about a clip; None: it is not here."""

    def thumbnail(self, video_id: str) -> bytes | None:
        """An animated WebP; None: the clip is not here, or its frames are no longer kept.

        Raises:
            SearchError: it may be had later.
        """

    def tasks(self) -> list[dict[str, Any]]:
        """The task log, oldest first."""

    def status(self) -> dict[str, Any]:
        """What the daemon is doing."""

    def ready(self) -> tuple[bool, str]:
        """Whether searches are answered, and a sentence on it. Called on the event loop: it must not block."""


class Api(FastAPI):
    """FastAPI whose schema tells problems from answers."""

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI schema, made once."""
        return problems.document(super().openapi())


def create_app(
    service: Service,
    *,
    settings: ApiSettings,
    metrics: Metrics,
    registry: CollectorRegistry,
    areas: Sequence[APIRouter] = (),
) -> FastAPI:
    """Make the application.

    Args:
        service: what it serves.
        areas: more routes, below /v1; modules `routes_*` make them.
        settings: limits and the tokens, which are read here, once.
        metrics: `search_seconds` is observed: "queue", and "total" of every search that was answered.
        registry: what `/metrics` shows.

    Raises:
        SettingsError: a token cannot be read.
    """
    access = Access.from_settings(settings)
    token = access.read or access.admin
    app = Api(
        title="streamlearn",
        version=__version__,
        description="Text-to-video search over a stream that is being learned.",
        docs_url=None,  # both load their scripts from other hosts
        redoc_url=None,
        redirect_slashes=False,
        responses=problems.responses(500) | (problems.responses(401) if token else {}),
    )
    open_paths = frozenset({*_HEALTH, "/metrics", *_PAGE})  # the page holds no data; it asks for the token
    app.add_middleware(Guard, max_body_bytes=settings.max_body_bytes, access=access, open_paths=open_paths)
    problems.install(app)
    reads = Reads()
    v1 = APIRouter(prefix="/v1", dependencies=[Depends(HTTPBearer(auto_error=False))] if token else [])
    _add_search(v1, service, metrics, settings.max_concurrent_searches)
    _add_reads(v1, service, reads)
    for area in areas:
        v1.include_router(area)
    add_evaluation(v1, service, reads.run)
    app.include_router(v1)
    _add_health(app, service)
    _add_metrics(app, registry, reads)
    _add_page(app)
    return app


class Reads:
    """Runs everything but searches in threads of its own."""

    def __init__(self) -> None:
        self._limiter = anyio.CapacityLimiter(_READ_THREADS)

    async def run(self, function: Callable[..., T], *args: object) -> T:
        """Call `function` in a worker thread."""
        return await to_thread.run_sync(function, *args, limiter=self._limiter)


def _add_search(v1: APIRouter, service: Service, metrics: Metrics, max_concurrent: int) -> None:
    free = anyio.Semaphore(max_concurrent)
    threads = anyio.CapacityLimiter(max_concurrent)
    documented = problems.responses(400, 404, 413, 415, 422, 429, 503)

    def answer(request: SearchRequest, arrived_s: float) -> bytes:
        metrics.search_seconds.labels("queue").observe(time.perf_counter() - arrived_s)
        # As JSON already here: a page of vectors takes milliseconds that the event loop has not.
        body = service.search(request).model_dump_json().encode()
        metrics.search_seconds.labels("total").observe(time.perf_counter() - arrived_s)
        return body

    @v1.post("/search", response_model=SearchAnswer, responses=documented)
    async def search(request: SearchRequest) -> Response:
        """Find clips by text, by a clip that is known here, by a video's URI, or by a vector."""
        arrived_s = time.perf_counter()
        try:
            free.acquire_nowait()
        except anyio.WouldBlock:
            detail = f"{max_concurrent} searches are running (setting api.max_concurrent_searches); try again shortly."
            raise HTTPException(429, detail, {"Retry-After": "1"}) from None
        try:
            body = await to_thread.run_sync(answer, request, arrived_s, limiter=threads)
        finally:
            free.release()
        return Response(body, media_type="application/json", headers={"Cache-Control": "no-store"})

    @v1.get("/search", response_model=SearchAnswer, responses=documented)
    async def search_by_text(q: Annotated[schemas.QueryText, Query()], limit: schemas.Limit = 10) -> Response:
        """Find clips by text: the same search, for a command line or a link."""
        return await search(SearchRequest(query=schemas.Query(text=q), limit=limit))


def _add_reads(v1: APIRouter, service: Service, reads: Reads) -> None:
    missing = problems.responses(404, 422)

    async def clip_response(video_id: str) -> Response:
        found = await reads.run(service.clip, video_id)
        if found is None:
            raise HTTPException(404, "There is no clip of this id.")
        return _json(found)

    # Slashes of an id come as %2F; the path is matched with them decoded, so that both routes take any path.
    @v1.get(
        "/clips/{video_id:path}/thumbnail",
        response_class=Response,
        responses=missing
        | problems.responses(503)
        | {200: {"content": {"image/webp": {}}}, 304: {"description": "Not modified"}},
    )
    async def thumbnail(video_id: Annotated[schemas.VideoId, Path()], request: Request) -> Response:
        """The clip as an animated WebP."""
        if not request.scope["raw_path"].endswith(b"/thumbnail"):  # an id that ends so, with its slash escaped
            return await clip_response(f"{video_id}/thumbnail")
        image = await reads.run(service.thumbnail, video_id)
        if image is None:
            raise HTTPException(404, "There is no clip of this id, or its frames are no longer kept.")
        etag = f'"{hashlib.blake2b(image, digest_size=16).hexdigest()}"'
        headers = {"ETag": etag, "Cache-Control": f"private, max-age={_THUMBNAIL_MAX_AGE_S}"}
        if etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(image, media_type="image/webp", headers=headers)

    @v1.get("/clips/{video_id:path}", response_model=dict[str, Any], responses=missing)
    async def clip(video_id: Annotated[schemas.VideoId, Path()]) -> Response:
        """All that is known about a clip. Escape the slashes of its id as %2F."""
        return await clip_response(video_id)

    @v1.get("/tasks", response_model=list[dict[str, Any]])
    async def tasks() -> Response:
        """The task log, oldest first, with what is still known of each, and what was decided about its era."""
        return _json(await reads.run(service.tasks))

    @v1.get("/status", response_model=dict[str, Any])
    async def status() -> Response:
        """What the daemon is doing."""
        return _json(await reads.run(service.status))


def _add_health(app: FastAPI, service: Service) -> None:
    @app.get("/livez")
    async def livez() -> dict[str, str]:
        """200 while the process answers at all."""
        return {"status": "alive"}

    @app.get("/healthz", responses=problems.responses(503))
    @app.get("/readyz", responses=problems.responses(503))
    async def readyz() -> dict[str, str]:
        """200 once a snapshot is served; it stays so while the source is away."""
        ready, detail = service.ready()
        if not ready:
            raise HTTPException(503, detail, {"Retry-After": "1"})
        return {"status": "ready", "detail": detail}

    for path in _HEALTH:  # `wget --spider` and some load balancers ask with HEAD
        app.add_api_route(path, livez if path == "/livez" else readyz, methods=["HEAD"], include_in_schema=False)


def _add_metrics(app: FastAPI, registry: CollectorRegistry, reads: Reads) -> None:
    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Every series, in the Prometheus text format."""
        return Response(await reads.run(generate_latest, registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


def _add_page(app: FastAPI) -> None:
    def asset(body: bytes, media_type: str) -> Callable[[Request], Awaitable[Response]]:
        async def respond(request: Request) -> Response:
            headers = {
                "Content-Security-Policy": _POLICY,
                "Cache-Control": "no-cache",
                "Referrer-Policy": "no-referrer",
            }
            return Response(body, media_type=media_type, headers=headers)

        return respond

    for path, (name, media_type) in _PAGE.items():
        body = resources.files("streamlearn.page").joinpath(name).read_bytes()
        app.router.routes.append(Route(path, asset(body, media_type)))


def _json(value: object) -> Response:
    body = pydantic_core.to_json(value, inf_nan_mode="null")  # a score that does not exist yet is NaN
    return Response(body, media_type="application/json", headers={"Cache-Control": "no-store"})
