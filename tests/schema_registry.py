"""A schema registry for tests: the one of STREAMLEARN_TEST_REGISTRY, or a small server of the same REST API.

The small one speaks what the client uses of https://docs.confluent.io/platform/current/schema-registry/develop/api.html:
schemas by id, versions of a subject, and registering them; over HTTP or TLS, with a login or without.
"""

from __future__ import annotations

import base64
import json
import ssl
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx

_TYPE = "application/vnd.schemaregistry.v1+json"

Reference = dict[str, Any]


def framed(number: int, body: bytes) -> bytes:
    """Confluent's wire format."""
    return b"\0" + number.to_bytes(4, "big") + body


def register(url: str, subject: str, schema: Any, kind: str = "AVRO", references: Sequence[Reference] = ()) -> int:
    """Register a schema and return its id, at a real registry too."""
    body = {"schema": json.dumps(schema), "schemaType": kind, "references": list(references)}
    answer = httpx.post(
        f"{url}/subjects/{subject}/versions", content=json.dumps(body), headers={"Content-Type": _TYPE}, timeout=60
    )
    assert answer.status_code == 200, answer.text
    return int(answer.json()["id"])


class SmallRegistry:
    """The schemas of a registry, whether or not it is served.

    Attributes:
        asked: the paths of all GET requests so far.
        trouble: the status of every answer, where it is set.
    """

    def __init__(self, login: str | None = None) -> None:
        self.login = login
        self.schemas: list[dict[str, Any]] = []
        self.subjects: dict[str, list[int]] = {}
        self.asked: list[str] = []
        self.trouble: int | None = None
        self.port = 0

    @contextmanager
    def serve(self, tls: ssl.SSLContext | None = None) -> Iterator[str]:
        """Answer until the end of the block, at the same port as before; yields the URL."""
        server = ThreadingHTTPServer(("127.0.0.1", self.port), type("Handler", (_Handler,), {"registry": self}))
        self.port = server.server_port
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http{'s' if tls else ''}://localhost:{self.port}"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        """Status and body."""
        match method, path.strip("/").split("/"):
            case "GET", ["schemas", "ids", number]:
                known = 0 < int(number) <= len(self.schemas)
                return (200, self.schemas[int(number) - 1]) if known else (404, _error(40403, "Schema not found"))
            case "GET", ["subjects", subject, "versions", version]:
                number = self.subjects[subject][int(version) - 1]
                about = {"subject": subject, "version": int(version), "id": number}
                return 200, {**about, **self.schemas[number - 1]}
            case "POST", ["subjects", subject, "versions"]:
                self.schemas.append({k: v for k, v in body.items() if v and (k, v) != ("schemaType", "AVRO")})
                self.subjects.setdefault(subject, []).append(len(self.schemas))
                return 200, {"id": len(self.schemas)}
        return 404, _error(404, "HTTP 404 Not Found")


class _Handler(BaseHTTPRequestHandler):
    registry: SmallRegistry

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.registry.asked.append(path)
        self._answer("GET", path, None)

    def do_POST(self) -> None:
        self._answer("POST", self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _answer(self, method: str, path: str, body: Any) -> None:
        login, registry = self.registry.login, self.registry
        expected = None if login is None else f"Basic {base64.b64encode(login.encode()).decode()}"
        if registry.trouble is not None:
            status, answer = registry.trouble, _error(registry.trouble * 100, "trouble")
        elif expected is not None and self.headers.get("Authorization") != expected:
            status, answer = 401, _error(401, "Unauthorized")
        else:
            status, answer = registry.answer(method, path, body)
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", _TYPE)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def _error(code: int, message: str) -> dict[str, Any]:
    return {"error_code": code, "message": message}
