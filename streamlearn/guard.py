"""What stands before every route: who may do what, the size of the body, the headers that keep browsers careful.

It is plain ASGI and looks at nothing but headers and sizes, so that a stranger's request costs next to nothing: no
body is read before its token is known, and none beyond the limit.
"""

from __future__ import annotations

import contextlib
import hmac
import ipaddress
from dataclasses import dataclass
from pathlib import Path

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from streamlearn.errors import SettingsError, unreadable_secret
from streamlearn.problems import problem_response
from streamlearn.settings import ApiSettings

_READS = ("GET", "HEAD", "OPTIONS")
_READS_BY_POST = ("/v1/search",)
# Many clients read the answer only when all is sent: so much of a refused body is thrown away for their sake.
_DRAIN_BYTES = 64 * 2**20
_DRAIN_S = 5.0


@dataclass(frozen=True, slots=True)
class Access:
    """Who may read, and who may change something.

    Attributes:
        read: the token that reads need; None: none is needed, unless `admin` alone is set, which leaves reads open.
        admin: the token that changes need besides; None: the token of reads is enough.
        local: nobody but this machine can connect, so that changes need no token where there is none.
    """

    read: bytes | None = None
    admin: bytes | None = None
    local: bool = True

    @classmethod
    def from_settings(cls, settings: ApiSettings) -> Access:
        """Read the token files, once.

        Raises:
            SettingsError: a file cannot be read, is empty, or holds the other's token.
        """
        read = _read_token(settings.token_file, "api.token_file")
        admin = _read_token(settings.admin_token_file, "api.admin_token_file")
        if read is not None and read == admin:
            raise SettingsError("api.admin_token_file: holds the token of api.token_file; make another one")
        return cls(read, admin, _is_loopback(settings.host))

    def refusal(self, method: str, path: str, headers: Headers) -> ASGIApp | None:
        """What to answer instead; None: it is allowed.

        Anything but GET, HEAD and a search is taken for a change, so that a new route is closed until somebody
        says otherwise.
        """
        changes = method not in _READS and not (method == "POST" and path in _READS_BY_POST)
        if changes and headers.get("sec-fetch-site") == "cross-site":
            return problem_response(403, "A page of another site may not change anything here.")
        needed = (self.admin or self.read) if changes else self.read
        if needed is None:
            if changes and not self.local:
                return problem_response(
                    403, "Changes over the network need a token: set api.admin_token_file, and send what is in it."
                )
            return None
        given = _bearer(headers)
        if given is not None and any(_same(given, token) for token in (needed, self.admin)):
            return None
        if given is not None and _same(given, self.read):
            return problem_response(403, "This token may only read; send the one of api.admin_token_file.")
        challenge = {"WWW-Authenticate": 'Bearer realm="streamlearn"'}
        return problem_response(401, "Send the header Authorization: Bearer TOKEN.", headers=challenge)


class Guard:
    """ASGI middleware; what it refuses never reaches the application."""

    def __init__(self, app: ASGIApp, *, max_body_bytes: int, access: Access, open_paths: frozenset[str]) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._access = access
        self._open_paths = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or hand on with a body that cannot grow beyond the limit."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if scope["path"] not in self._open_paths or scope["method"] not in _READS:
            refusal = self._access.refusal(scope["method"], scope["path"], headers)
            if refusal is not None:
                await refusal(scope, receive, send)
                return

        length = headers.get("content-length", "")
        left = self._max_body_bytes
        # Whoever asks before sending, as curl does, gets the answer at once and sends nothing.
        patient = headers.get("expect", "").lower() != "100-continue"
        if length.isdecimal() and int(length) > left:
            await self._too_large()(scope, receive, _draining(receive, send) if patient else send)
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
            await (draining_send if left < 0 else send)(message)

        draining_send = _draining(receive, send)
        await self._app(scope, limited_receive, careful_send)

    def _too_large_detail(self) -> str:
        return f"The body must not be larger than {self._max_body_bytes} bytes (setting api.max_body_bytes)."

    def _too_large(self) -> ASGIApp:
        # What is not drained is not read, so the connection cannot be used again.
        return problem_response(413, self._too_large_detail(), headers={"Connection": "close"})


def _draining(receive: Receive, send: Send) -> Send:
    """Send the answer whole, then throw away what still comes before the connection is closed.

    A connection that is closed with data unread is reset, and takes the answer with it.
    """

    async def draining_send(message: Message) -> None:
        if message["type"] != "http.response.body" or message.get("more_body"):
            await send(message)
            return
        await send({**message, "more_body": True})
        left = _DRAIN_BYTES
        with contextlib.suppress(OSError), anyio.move_on_after(_DRAIN_S):
            while left > 0:
                part = await receive()
                left -= len(part.get("body", b""))
                if not part.get("more_body"):
                    break
        await send({"type": "http.response.body", "body": b""})

    return draining_send


def _bearer(headers: Headers) -> bytes | None:
    scheme, _, given = headers.get("authorization", "").partition(" ")
    # Starlette decodes headers as Latin-1; that way back gives the bytes as they were sent.
    return given.strip().encode("latin-1") if scheme.lower() == "bearer" else None


def _same(given: bytes, token: bytes | None) -> bool:
    return token is not None and hmac.compare_digest(given, token)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _read_token(path: Path | None, setting: str) -> bytes | None:
    """Read a bearer token; whitespace around it does not count."""
    if path is None:
        return None
    try:
        token = path.read_bytes().strip()
    except OSError as error:
        raise SettingsError(unreadable_secret(setting, path, error)) from None
    if not token:
        raise SettingsError(f"{setting} = {str(path)!r}: is empty; write the token into it")
    return token
