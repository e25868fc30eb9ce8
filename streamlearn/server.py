"""Serves an ASGI application from a background thread. It owns a socket and a thread; signals are the daemon's."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType
from typing import Self

import uvicorn
from starlette.types import ASGIApp

from streamlearn.errors import SettingsError


class Server:
    """An HTTP server; also a context manager.

    Attributes:
        port: the port it listens on, known before `start`, also where 0 was asked for.
    """

    def __init__(self, app: ASGIApp, *, host: str, port: int, drain_timeout_s: float = 5.0) -> None:
        """Bind.

        Args:
            app: what answers.
            host: address or name to listen on.
            port: 0 means any free one.
            drain_timeout_s: how long `stop` waits for answers that are on their way.

        Raises:
            SettingsError: the address cannot be bound.
        """
        # Bound here and not by uvicorn, whose way to report a failure is to exit the process.
        self._socket = _bind(host, port)
        self.port: int = self._socket.getsockname()[1]
        config = uvicorn.Config(
            app,
            http="httptools",
            loop="uvloop",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=max(1, round(drain_timeout_s)),
        )
        self._server = _QuietServer(config)
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)

    def start(self) -> None:
        """Return once requests are answered."""
        self._thread.start()
        self._server.settled.wait()
        if not self._server.started:
            raise RuntimeError("the HTTP server ended before it began; the log says why")

    def stop(self) -> None:
        """Accept no more, finish what was begun, and return. Harmless when repeated."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join()
        self._socket.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self) -> None:
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self._server.settled.set()


class _QuietServer(uvicorn.Server):
    """Says when it has started, and leaves the signals alone whichever thread it runs in."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.settled = threading.Event()

    def capture_signals(self) -> contextlib.AbstractContextManager[None]:  # type: ignore[override]
        return contextlib.nullcontext()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.settled.set()


def _bind(host: str, port: int) -> socket.socket:
    try:
        # The first address of a name, as `localhost` may have several.
        family, _, _, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(address[:2], family=family, backlog=2048)
    except socket.gaierror as error:
        raise SettingsError(f"api.host = {host!r}: is no address of this machine ({error.strerror})") from error
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SettingsError(
            f"api.port = {port}: cannot listen on {host}:{port} ({reason});"
            " stop what uses it, or choose another port (0: any free one)"
        ) from error
