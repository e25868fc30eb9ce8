"""Messages that are wrong, in every way that a dead letter has a code for, and the code that each must get."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from hypothesis import strategies as st

from tests.media import sound, video
from tests.schema_registry import SmallRegistry, framed, register
from tests.test_wire import CLIP, JSON_CLIP

#: What the reader must be set to.
MAX_BYTES, MAX_PIXELS, MAX_CAPTION_CHARS = 200_000, 100 * 100, 1000


class Place(NamedTuple):
    """Where a message's media may be: a folder, a host, and a registry with two schemas."""

    root: Path
    host: str
    registry: str
    avro: int
    json: int

    @property
    def settings(self) -> dict[str, Any]:
        """Those of a daemon that is to give the right codes."""
        return {
            "media.allowed_roots": [str(self.root)],
            "media.allowed_schemes": ["file", "http"],
            "media.allowed_hosts": [self.host],
            "media.max_bytes": MAX_BYTES,
            "media.max_pixels": MAX_PIXELS,
            "media.max_caption_chars": MAX_CAPTION_CHARS,
            "media.timeout_s": 3,
            "kafka.schema_registry_url": self.registry,
        }


class Kind(NamedTuple):
    """One way to be wrong.

    Attributes:
        values: makes messages: bytes, or what becomes JSON.
        costly: it takes a decoder's life; some of these go far.
    """

    code: str
    values: Callable[[Place], st.SearchStrategy[Any]]
    headers: tuple[tuple[str, bytes], ...] = ()
    costly: bool = False


@contextmanager
def place(root: Path) -> Iterator[Place]:
    """Files, a host that misbehaves and a registry, for a `with` block."""
    (root / "empty.mp4").touch()
    (root / "large.mp4").write_bytes(bytes(MAX_BYTES + 1))
    (root / "noise.mp4").write_bytes(bytes(range(256)) * 9)
    registry = SmallRegistry()
    with _serve() as host, registry.serve() as url:
        avro, as_json = register(url, "avro", CLIP), register(url, "json", JSON_CLIP, "JSON")
        yield Place(root, host, url, avro, as_json)


def encoded(value: Any) -> bytes:
    return value if isinstance(value, bytes) else json.dumps(value).encode()


GOOD = {"captions": ["a red circle"], "media_b64": base64.b64encode(b"film").decode()}


def _with(strategy: st.SearchStrategy[Any]) -> Callable[[Place], st.SearchStrategy[Any]]:
    return lambda _: strategy


def _field(name: str, strategy: st.SearchStrategy[Any]) -> Callable[[Place], st.SearchStrategy[Any]]:
    return _with(strategy.map(lambda value: GOOD | {name: value}))


def _without(name: str) -> Callable[[Place], st.SearchStrategy[Any]]:
    return _with(st.just({k: v for k, v in GOOD.items() if k != name}))


def _inline(media: Callable[[], bytes], **more: Any) -> Callable[[Place], st.SearchStrategy[Any]]:
    """Media in the message, made only where it is asked for."""
    return lambda _: st.just(GOOD | {"media_b64": base64.b64encode(media()).decode()} | more)


def _file(name: str, **more: Any) -> Callable[[Place], st.SearchStrategy[Any]]:
    return lambda p: st.just({"captions": ["a film"], "uri": f"{p.root.as_uri()}/{name}", **more})


def _uri(uri: str) -> Callable[[Place], st.SearchStrategy[Any]]:
    return _with(st.just({"captions": ["a film"], "uri": uri}))


def _http(path: str) -> Callable[[Place], st.SearchStrategy[Any]]:
    return lambda p: st.just({"captions": ["a film"], "uri": f"http://{p.host}/{path}"})


def _small(**changes: Any) -> bytes:
    return video(**{"width": 32, "height": 32, "frames": 6, **changes})


def _ivf(frames: bytes = b"") -> bytes:
    return b"DKIF" + struct.pack("<HH4sHHIIII", 0, 32, b"VP80", 32, 32, 10, 1, 0, 0) + frames


_EVENT = {"specversion": "1.0", "type": "clip", "source": "tests", "id": "1"}
_RAW = ("content-type", b"video/mp4")

KINDS: dict[str, Kind] = {
    "nothing": Kind("empty_value", _with(st.just(b""))),
    "no JSON": Kind(
        "invalid_json", _with(st.text(min_size=1, max_size=50).map(lambda t: b"{" + t.encode("utf-8", "replace")))
    ),
    "no number": Kind("invalid_json", _with(st.sampled_from([b'{"start_s": NaN}', b'{"start_s": -Infinity}']))),
    "nested without end": Kind("invalid_json", _with(st.integers(30_000, 40_000).map(lambda n: b"[" * n))),
    "not an object": Kind(
        "invalid_json", _with(st.one_of(st.integers(), st.lists(st.integers(), max_size=3), st.booleans()))
    ),
    "no UTF-8": Kind("invalid_utf8", _with(st.binary(max_size=20).map(lambda b: b"\xff\xfe" + b))),
    "a caption that is no UTF-8": Kind("invalid_utf8", _with(st.binary(min_size=1)), (_RAW, ("caption", b"\xff"))),
    "no captions": Kind("missing_field", _without("captions")),
    "no media": Kind("missing_field", _without("media_b64")),
    "raw video without a caption": Kind("missing_field", _with(st.binary(min_size=1)), (_RAW,)),
    "an event without data": Kind("missing_field", _with(st.just(_EVENT))),
    "an event of text": Kind("invalid_field", _with(st.text().map(lambda text: _EVENT | {"data": text}))),
    "captions of a wrong type": Kind("invalid_field", _field("captions", st.integers())),
    "a caption of spaces": Kind("invalid_field", _field("captions", st.integers(1, 9).map(lambda n: [" " * n]))),
    "an endless caption": Kind("invalid_field", _field("captions", st.just(["a" * (MAX_CAPTION_CHARS + 1)]))),
    "half a surrogate": Kind("invalid_field", _field("captions", st.just(["\ud800"]))),
    "a split there is not": Kind("invalid_field", _field("split", st.just("perhaps"))),
    "a time there is not": Kind("invalid_field", _field("time", st.sampled_from(["now", "2026-13-01T00:00:00Z"]))),
    "meta in depth": Kind("invalid_field", _field("meta", st.just({"a": {"b": 1}}))),
    "an id of control characters": Kind("invalid_field", _field("video_id", st.just("a\nb"))),
    "a segment that ends first": Kind("invalid_field", _with(st.just(GOOD | {"start_s": 2.0, "end_s": 1.0}))),
    "a URL within a URL": Kind("invalid_field", _field("uri", st.just("zip://a::file:///b"))),
    "no checksum": Kind("invalid_field", _field("sha256", st.text(max_size=10))),
    "no base64": Kind("invalid_base64", _field("media_b64", st.integers(0, 99).map(lambda n: f"$$${n}"))),
    "a message too large": Kind("message_too_large", _field("media_b64", st.just("A" * MAX_BYTES))),
    "an event of another version": Kind("unsupported_envelope", _with(st.just(_EVENT | {"specversion": "0.3"}))),
    "events in XML": Kind(
        "unsupported_envelope", _with(st.just({})), (("content-type", b"application/cloudevents+xml"),)
    ),
    "a schema that nobody knows": Kind(
        "unknown_schema", _with(st.integers(900, 999).map(lambda number: framed(number, b"{}")))
    ),
    "Avro that is none": Kind("schema_mismatch", lambda p: st.just(framed(p.avro, b"\x02"))),
    "JSON of another schema": Kind("schema_mismatch", lambda p: st.just(framed(p.json, b'{"take": 10}'))),
    "a file there is not": Kind("media_not_found", _file("none.mp4")),
    "404": Kind("media_not_found", _http("404")),
    "410": Kind("media_not_found", _http("410")),
    "a file outside": Kind("media_forbidden", _file("../../etc/hostname")),
    "a folder": Kind("media_forbidden", _file("")),
    "a scheme that is not allowed": Kind("media_forbidden", _uri("s3://bucket/clip.mp4")),
    "a host that is not allowed": Kind("media_forbidden", _uri("http://localhost:1/clip.mp4")),
    "a redirect to one": Kind("media_forbidden", _http("302")),
    "401": Kind("media_forbidden", _http("401")),
    "403": Kind("media_forbidden", _http("403")),
    "a file too large": Kind("media_too_large", _file("large.mp4")),
    "an answer too large": Kind("media_too_large", _http("large")),
    "an answer that is larger than it says": Kind("media_too_large", _http("endless")),
    "an empty file": Kind("media_empty", _file("empty.mp4")),
    "an empty answer": Kind("media_empty", _http("empty")),
    "another file": Kind("checksum_mismatch", _file("noise.mp4", sha256=hashlib.sha256(b"").hexdigest())),
    "500": Kind("fetch_failed", _http("500")),
    "an answer cut short": Kind("fetch_failed", _http("short")),
    "no answer": Kind("fetch_failed", _http("nothing")),
    "noise": Kind(
        "not_a_video", _with(st.binary(min_size=1).map(lambda b: b"no video" + b)), (_RAW, ("caption", b"c"))
    ),
    "a file of noise": Kind("not_a_video", _file("noise.mp4")),
    "a script for the decoder": Kind("not_a_video", _inline(lambda: b"ffconcat version 1.0\nfile '/etc/hostname'\n")),
    "half a video": Kind("not_a_video", _inline(lambda: _small()[:500])),
    "sound": Kind("no_video_stream", _inline(sound)),
    "a video of no frames": Kind("no_frames", _inline(_ivf)),
    "a video of broken frames": Kind("no_frames", _inline(lambda: _ivf(struct.pack("<IQ", 20, 0) + b"\xff" * 20))),
    "a frame too large": Kind("frame_too_large", _inline(lambda: _small(width=128, height=128))),
    "a segment beyond the end": Kind("segment_out_of_range", _inline(_small, start_s=100.0)),
    "a codec that nobody knows": Kind("decode_failed", _inline(lambda: _small().replace(b"avc1", b"zzzz"))),
    "a host that drips": Kind("decode_timeout", _http("drip"), costly=True),
    "media that kills its decoder": Kind("decoder_crashed", _http("kill"), costly=True),
}


class _Handler(BaseHTTPRequestHandler):
    """Does what its path says."""

    end: threading.Event

    def do_GET(self) -> None:
        match self.path.strip("/"):
            case "nothing":
                self.close_connection = True
            case "large":
                self._answer(200, length=10**9)
            case "endless":
                self._answer(200, bytes(MAX_BYTES + 1), length=None)
            case "short":
                self._answer(200, b"video", length=500)
            case "empty":
                self._answer(200)
            case "drip":  # each byte in time, all of them never
                self._answer(200, length=MAX_BYTES)
                while not self.end.wait(0.2):
                    self.wfile.write(b"v")
            case "kill":
                self._process().kill()
            case status:
                self._answer(int(status))

    def _answer(self, status: int, body: bytes = b"", length: int | None = 0) -> None:
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "http://elsewhere.invalid/clip.mp4")
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body)

    def _process(self) -> psutil.Process:
        """Who asks: a decoder, and never us."""
        ours = self.connection.getsockname()[1]
        pids = {
            found.pid
            for found in psutil.net_connections("tcp")
            if found.raddr and found.laddr.port == self.client_address[1] and found.raddr.port == ours and found.pid
        }
        (asking,) = map(psutil.Process, pids)
        assert asking.pid != psutil.Process().pid
        return asking

    def log_message(self, *_: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Whoever asked was killed, as it was meant to be."""


@contextmanager
def _serve() -> Iterator[str]:
    handler = type("Handler", (_Handler,), {"end": threading.Event()})
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        handler.end.set()  # type: ignore[attr-defined]
        server.shutdown()
        server.server_close()
        thread.join()
