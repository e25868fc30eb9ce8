"""What stands before every route: the size of the body, the bearer token, the headers that keep browsers careful.

It is plain ASGI and looks at nothing but headers and sizes, so that a stranger's request costs next to nothing: no
body is read before its token is known, and none beyond the limit.
"""

from __future__ import annotations

import hmac
from pathlib import Path

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from streamlearn.errors import SettingsError
from streamlearn.problems import problem_response


class Guard:
    """ASGI middleware; what it refuses never reaches the application."""

    def __init__(self, app: ASGIApp, *, max_body_bytes: int, token: bytes | None, open_paths: frozenset[str]) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._token = token
        self._open_paths = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or hand on with a body that cannot grow beyond the limit."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if self._token is not None and scope["path"] not in self._open_paths and not self._authorised(headers):
            challenge = {"WWW-Authenticate": 'Bearer realm="streamlearn"'}
            refusal = problem_response(401, "Send the header Authorization: Bearer TOKEN.", headers=challenge)
            await refusal(scope, receive, send)
            return

        length = headers.get("content-length", "")
        left = self._max_body_bytes
        if length.isdecimal() and int(length) > left:
            await self._too_large()(scope, receive, send)
            return

        async def limited_receive() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise HTTPException(413, self._too_large_detail(), {"Connection": "close"})
            return message

        async def careful_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Content-Type-Options"] = "nosniff"
            await send(message)

        await self._app(scope, limited_receive, careful_send)

    def _authorised(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        assert self._token is not None
        # Starlette decodes headers as Latin-1; that way back gives the bytes as they were sent.
        return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode("latin-1"), self._token)

    def _too_large_detail(self) -> str:
        return f"The body must not be larger than {self._max_body_bytes} bytes (setting api.max_body_bytes)."

    def _too_large(self) -> ASGIApp:
        # The rest of the body is not read, so the connection cannot be used again.
        return problem_response(413, self._too_large_detail(), headers={"Connection": "close"})


def read_token(path: Path | None) -> bytes | None:
    """Read the bearer token; whitespace around it does not count.

    Raises:
        SettingsError: there is a path but no token.
    """
    if path is None:
        return None
    try:
        token = path.read_bytes().strip()
    except OSError as error:
        raise SettingsError(f"api.token_file = {str(path)!r}: cannot be read ({error.strerror})") from error
    if not token:
        raise SettingsError(f"api.token_file = {str(path)!r}: is empty; write the token into it")
    return token
