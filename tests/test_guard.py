"""Who may do what, and what happens to a body that is too large."""

from __future__ import annotations

import contextlib
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI, Request, Response
from starlette.testclient import TestClient

from streamlearn import problems
from streamlearn.errors import SettingsError
from streamlearn.guard import Access, Guard
from streamlearn.server import Server
from streamlearn.settings import ApiSettings

READ, ADMIN = "reader-ü", "admin"
CHANGES = [
    ("POST", "/v1/clips"),
    ("DELETE", "/v1/clips/a"),
    ("POST", "/v1/tasks"),
    ("POST", "/v1/generations/3/rollback"),
    ("PUT", "/v1/search"),
    ("POST", "/v1/search/"),
    ("POST", "/livez"),
]
READS = [("GET", "/v1/status"), ("HEAD", "/v1/status"), ("POST", "/v1/search"), ("GET", "/v1/search")]
each_change = pytest.mark.parametrize(("method", "path"), CHANGES)
each_read = pytest.mark.parametrize(("method", "path"), READS)


def guarded(**settings: object) -> FastAPI:
    """Answers any request that gets through with the length of its body."""
    options = ApiSettings.model_validate(settings)
    app = FastAPI()

    @app.api_route("/{path:path}", methods=["GET", "HEAD", "POST", "PUT", "DELETE"])
    async def everything(request: Request) -> Response:
        return Response(str(len(await request.body())))

    problems.install(app)
    app.add_middleware(
        Guard,
        max_body_bytes=options.max_body_bytes,
        access=Access.from_settings(options),
        open_paths=frozenset({"/livez"}),
    )
    return app


@pytest.fixture
def tokens(tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "read").write_text(f" {READ}\n", encoding="utf-8")
    (tmp_path / "admin").write_text(ADMIN, encoding="utf-8")
    return {"token_file": tmp_path / "read", "admin_token_file": tmp_path / "admin"}


def status(app: FastAPI, method: str, path: str, token: str | None = None, **headers: str) -> int:
    given = headers if token is None else {"Authorization": f"Bearer {token}".encode(), **headers}
    with TestClient(app) as client:
        response = client.request(method, path, headers=given)
    if response.status_code >= 400 and method != "HEAD":
        assert response.json()["status"] == response.status_code
        assert response.headers["content-type"] == "application/problem+json"
    return response.status_code


# --- scopes


@each_change
def test_a_change_needs_the_admin_token_and_the_readers_is_forbidden(
    tokens: dict[str, Path], method: str, path: str
) -> None:
    app = guarded(**tokens)
    assert status(app, method, path, ADMIN) == 200
    assert status(app, method, path, READ) == 403
    assert status(app, method, path, "wrong") == 401
    assert status(app, method, path) == 401


@each_read
def test_a_read_takes_either_token(tokens: dict[str, Path], method: str, path: str) -> None:
    app = guarded(**tokens)
    assert status(app, method, path, READ) == 200
    assert status(app, method, path, ADMIN) == 200
    assert status(app, method, path, "wrong") == 401
    assert status(app, method, path) == 401


def test_open_paths_need_no_token_to_be_read(tokens: dict[str, Path]) -> None:
    assert status(guarded(**tokens), "GET", "/livez") == 200


def test_one_token_alone_is_good_for_everything(tokens: dict[str, Path]) -> None:
    app = guarded(token_file=tokens["token_file"])
    assert status(app, "POST", "/v1/clips", READ) == 200
    assert status(app, "POST", "/v1/clips", "wrong") == 401
    assert status(app, "GET", "/v1/status", READ) == 200


def test_an_admin_token_alone_leaves_reads_open(tokens: dict[str, Path]) -> None:
    app = guarded(admin_token_file=tokens["admin_token_file"])
    assert status(app, "GET", "/v1/status") == 200
    assert status(app, "POST", "/v1/search") == 200
    assert status(app, "DELETE", "/v1/clips/a") == 401
    assert status(app, "DELETE", "/v1/clips/a", ADMIN) == 200


@pytest.mark.parametrize(("host", "code"), [("127.0.0.1", 200), ("localhost", 200), ("::1", 200), ("0.0.0.0", 403)])
def test_without_any_token_only_this_machine_may_change_something(host: str, code: int) -> None:
    app = guarded(host=host)
    assert status(app, "POST", "/v1/clips") == code
    assert status(app, "POST", "/v1/search") == 200


def test_a_page_of_another_site_may_change_nothing_through_its_readers_browser() -> None:
    site = {"Sec-Fetch-Site": "cross-site"}
    assert status(guarded(), "POST", "/v1/generations/3/rollback", **site) == 403
    assert status(guarded(), "GET", "/v1/status", **site) == 200
    assert status(guarded(), "POST", "/v1/clips", **{"Sec-Fetch-Site": "same-origin"}) == 200


@pytest.mark.parametrize("content", [None, b"", b" \n"])
def test_an_admin_token_file_without_a_token_stops_the_start(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match=r"api\.admin_token_file = "):
        Access.from_settings(ApiSettings(admin_token_file=path))


def test_two_scopes_with_one_token_stop_the_start(tokens: dict[str, Path]) -> None:
    tokens["admin_token_file"].write_text(READ, encoding="utf-8")
    with pytest.raises(SettingsError, match="make another"):
        Access.from_settings(ApiSettings.model_validate(tokens))


# --- bodies that are too large


@contextlib.contextmanager
def listening(app: FastAPI) -> Iterator[int]:
    with Server(app, host="127.0.0.1", port=0) as server:
        yield server.port


def answer_of(connection: socket.socket) -> bytes:
    """Everything until the connection is closed."""
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize("framing", ["declared", "chunked"])
def test_a_client_that_sends_all_before_it_reads_gets_the_refusal(framing: str) -> None:
    body, request = bytes(3_000_000), urllib.request.Request
    data = body if framing == "declared" else iter([body])
    with listening(guarded(max_body_bytes=1000)) as port:
        url = f"http://127.0.0.1:{port}/v1/search"
        headers = {} if framing == "declared" else {"Transfer-Encoding": "chunked"}
        with pytest.raises(urllib.error.HTTPError) as caught:  # a reset connection would be a URLError
            urllib.request.urlopen(request(url, data, headers), timeout=20)
        with caught.value as refusal:
            assert refusal.code == 413
            assert b"api.max_body_bytes" in refusal.read()


def test_a_client_that_asks_before_it_sends_is_answered_without_its_body() -> None:
    head = b"POST /v1/search HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\nExpect: 100-continue\r\n\r\n"
    with listening(guarded(max_body_bytes=1000)) as port:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            connection.sendall(head)
            assert answer_of(connection).startswith(b"HTTP/1.1 413 ")


def test_a_client_that_reads_while_it_sends_has_the_refusal_at_once() -> None:
    with listening(guarded(max_body_bytes=1000)) as port:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            connection.sendall(b"POST /v1/search HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\n\r\n")
            assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")  # nothing of the body was sent


def test_a_body_of_just_the_limit_gets_through() -> None:
    with TestClient(guarded(max_body_bytes=1000)) as client:
        assert client.post("/v1/search", content=bytes(1000)).text == "1000"
        assert client.post("/v1/search", content=bytes(1001)).status_code == 413
