"""Where a clip's bytes come from: the message itself, a file below an allowed root, an allowed host, a store.

A message is untrusted, so is its URI: nothing is opened before the URI passed the allow lists, nothing is read
beyond the size limit, and no sentence repeats the credentials or query of a URL.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
import urllib.error
import urllib.request
from collections.abc import Collection
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote_to_bytes, urlsplit

import fsspec

from streamlearn.errors import FetchError
from streamlearn.message import ClipMessage

_CHUNK_BYTES = 1 << 20


def fetch(
    message: ClipMessage,
    *,
    allowed_roots: Collection[Path],
    allowed_schemes: Collection[str],
    allowed_hosts: Collection[str],
    max_bytes: int,
    timeout_s: float,
) -> bytes:
    """Read the media of one clip.

    Args:
        message: carries the bytes, or the URI of them.
        allowed_roots: `file:` URIs are read only below these, symbolic links resolved.
        allowed_schemes: schemes that may be fetched.
        allowed_hosts: hosts (or host:port) that http and https URIs, and their redirects, may name.
        max_bytes: largest media.
        timeout_s: longest time for reading over http and https.

    Raises:
        FetchError: it may not or cannot be read, is empty, too large, or not what `sha256` says.
    """
    if message.media is not None:
        media = message.media
        _check_size(len(media), max_bytes)
    else:
        assert message.uri is not None, "a message has media or a uri: see envelope.parse"
        media = _fetch_uri(message.uri, allowed_roots, allowed_schemes, allowed_hosts, max_bytes, timeout_s)
    if not media:
        raise FetchError("media_empty", "the media has no bytes; publish the clip when its file is complete")
    if message.sha256 is not None and hashlib.sha256(media).hexdigest() != message.sha256:
        raise FetchError("checksum_mismatch", "sha256: the media is not the one that was announced; publish it again")
    return media


def _fetch_uri(
    uri: str,
    allowed_roots: Collection[Path],
    allowed_schemes: Collection[str],
    allowed_hosts: Collection[str],
    max_bytes: int,
    timeout_s: float,
) -> bytes:
    try:
        scheme = urlsplit(uri).scheme.lower()
    except ValueError as error:
        raise FetchError("media_forbidden", "uri: is not a URL") from error
    if scheme not in allowed_schemes:
        raise FetchError(
            "media_forbidden", f"uri: scheme {scheme[:40]!r} is not allowed; add it to media.allowed_schemes"
        )
    if scheme in ("file", "local"):
        return _read_file(uri, allowed_roots, max_bytes)
    if scheme in ("http", "https"):
        return _read_http(uri, allowed_schemes, allowed_hosts, max_bytes, timeout_s)
    return _read_store(uri, scheme, max_bytes)


def path_of(path: str) -> Path:
    """What the path of a file URI names; the names of files are bytes, and need not be UTF-8."""
    return Path(os.fsdecode(unquote_to_bytes(path)))


def _read_file(uri: str, allowed_roots: Collection[Path], max_bytes: int) -> bytes:
    parts = urlsplit(uri)
    if parts.netloc not in ("", "localhost"):
        raise FetchError("media_forbidden", "uri: a file URI names no host; write file:///folder/clip.mp4")
    try:
        path = path_of(parts.path).resolve()
        roots = [root.resolve() for root in allowed_roots]
    except (OSError, RuntimeError, ValueError) as error:  # loops of links, NUL, names too long
        raise FetchError("media_forbidden", "uri: the path cannot be resolved") from error
    # Asked before whether it exists: what lies outside the roots is nobody's business.
    if not path.is_absolute() or not any(path.is_relative_to(root) for root in roots):
        raise FetchError(
            "media_forbidden", "uri: the file is below no allowed root; add its folder to media.allowed_roots"
        )
    try:
        # The path has no link left in it: NOFOLLOW refuses one put there since. NONBLOCK: a FIFO has no writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise FetchError("media_forbidden", "uri: is a folder, device or pipe; only regular files are read")
            _check_size(status.st_size, max_bytes)
            with open(descriptor, "rb", closefd=False) as file:
                return _read(file, max_bytes)
        finally:
            os.close(descriptor)
    except FileNotFoundError as error:
        raise FetchError("media_not_found", f"uri: there is no file {path.name[:100]!a}") from error
    except OSError as error:
        raise FetchError("fetch_failed", f"uri: the file cannot be read: {error.strerror}") from error


class _SameRules(urllib.request.HTTPRedirectHandler):
    """Follows a redirect only to where the URI itself could have pointed."""

    def __init__(self, allowed_schemes: Collection[str], allowed_hosts: Collection[str]) -> None:
        self._allowed_schemes = allowed_schemes
        self._allowed_hosts = allowed_hosts

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        parts = urlsplit(newurl)
        if parts.scheme not in self._allowed_schemes or not _host_allowed(newurl, self._allowed_hosts):
            fp.close()
            raise FetchError("media_forbidden", "uri: redirects to a host or scheme that is not allowed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _host_allowed(uri: str, allowed_hosts: Collection[str]) -> bool:
    try:
        parts = urlsplit(uri)
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError:
        return False
    return bool(host) and (host in allowed_hosts or f"{host}:{port}" in allowed_hosts)


def _read_http(
    uri: str, allowed_schemes: Collection[str], allowed_hosts: Collection[str], max_bytes: int, timeout_s: float
) -> bytes:
    # urllib rather than fsspec's aiohttp: the rule is asked anew at each redirect, before anything is sent there.
    if not _host_allowed(uri, allowed_hosts):
        raise FetchError("media_forbidden", "uri: the host is not allowed; add it to media.allowed_hosts")
    if urlsplit(uri).username is not None:
        raise FetchError("media_forbidden", "uri: credentials in a URL are not sent; use a signed URL")
    deadline = time.monotonic() + timeout_s
    opener = urllib.request.build_opener(_SameRules(allowed_schemes, allowed_hosts))
    try:
        with opener.open(uri, timeout=timeout_s) as response:
            announced = response.headers.get("Content-Length", "")
            if announced.isdecimal():
                _check_size(int(announced), max_bytes)
            media = _read(response, max_bytes, deadline)
            if announced.isdecimal() and len(media) < int(announced):
                raise FetchError("fetch_failed", "uri: the host closed the connection early")
            return media
    except urllib.error.HTTPError as error:
        code = {404: "media_not_found", 410: "media_not_found", 401: "media_forbidden", 403: "media_forbidden"}
        error.close()
        raise FetchError(code.get(error.code, "fetch_failed"), f"uri: the host answered {error.code}") from error
    except (OSError, HTTPException, ValueError) as error:  # URLError and timeouts are OSErrors
        raise FetchError("fetch_failed", f"uri: the host cannot be read ({type(error).__name__})") from error


def _read_store(uri: str, scheme: str, max_bytes: int) -> bytes:
    try:
        filesystem, path = fsspec.core.url_to_fs(uri)
        size = filesystem.info(path).get("size")
        if size is not None:
            _check_size(int(size), max_bytes)
        with filesystem.open(path, "rb") as file:
            return _read(file, max_bytes)
    except FetchError:
        raise
    except FileNotFoundError as error:
        raise FetchError("media_not_found", f"uri: the {scheme} store has no such object") from error
    except PermissionError as error:
        raise FetchError("media_forbidden", f"uri: the {scheme} store refuses access") from error
    except ImportError as error:
        raise FetchError("fetch_failed", f"uri: {scheme} needs its fsspec package; install fsspec[{scheme}]") from error
    except Exception as error:  # each store has errors of its own, and their texts hold URLs
        raise FetchError("fetch_failed", f"uri: the {scheme} store failed ({type(error).__name__})") from error


def _read(file: Any, max_bytes: int, deadline: float | None = None) -> bytes:
    """Read all, but never more than a chunk beyond the limit: announced sizes may lie."""
    chunks = bytearray()
    while chunk := file.read(_CHUNK_BYTES):
        chunks += chunk
        _check_size(len(chunks), max_bytes)
        if deadline is not None and time.monotonic() > deadline:
            raise FetchError("fetch_failed", "uri: the host is too slow; raise media.timeout_s")
    return bytes(chunks)


def _check_size(size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise FetchError(
            "media_too_large", f"the media has {size} bytes or more, {max_bytes} are allowed; raise media.max_bytes"
        )
