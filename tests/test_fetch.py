"""Only what is allowed is read, and only as much of it as is allowed."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest

from streamlearn.envelope import parse
from streamlearn.errors import FetchError
from streamlearn.fetch import fetch
from streamlearn.message import ClipMessage
from tests.media import raw_record, record


def fetched(source: str | bytes, sha256: str | None = None, **changes: Any) -> bytes:
    if isinstance(source, bytes):
        message = parse(raw_record(source), max_bytes=10**6, max_caption_chars=100)
    else:
        fields = {"uri": source, "caption": "c"} | ({"sha256": sha256} if sha256 else {})
        message = parse(record(fields), max_bytes=10**6, max_caption_chars=100)
    assert isinstance(message, ClipMessage)
    limits: dict[str, Any] = {
        "allowed_roots": (),
        "allowed_schemes": ("file", "http", "memory"),
        "allowed_hosts": (),
        "max_bytes": 1000,
        "timeout_s": 30.0,
    }
    return fetch(message, **limits | changes)


def rejection(source: str | bytes, sha256: str | None = None, **changes: Any) -> FetchError:
    with pytest.raises(FetchError) as caught:
        fetched(source, sha256, **changes)
    return caught.value


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "clips").mkdir()
    (tmp_path / "secret.mp4").write_bytes(b"secret")
    (tmp_path / "clips" / "a b#1.mp4").write_bytes(b"video")
    return tmp_path / "clips"


def test_file_below_an_allowed_root_is_read(root: Path) -> None:
    assert fetched((root / "a b#1.mp4").as_uri(), allowed_roots=[root]) == b"video"


def test_a_file_whose_name_is_not_utf8_is_read(root: Path) -> None:
    path = root / os.fsdecode(b"caf\xe9.mp4")
    path.write_bytes(b"coffee")
    assert fetched(path.as_uri(), allowed_roots=[root]) == b"coffee"


def test_root_may_itself_be_a_link(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    uri = (tmp_path / "link" / "a b#1.mp4").as_uri()
    assert fetched(uri, allowed_roots=[tmp_path / "link"]) == b"video"


def test_nothing_is_read_without_an_allowed_root(root: Path) -> None:
    assert rejection((root / "a b#1.mp4").as_uri()).code == "media_forbidden"


def test_file_outside_the_roots_is_forbidden_whether_it_exists_or_not(root: Path) -> None:
    base = root.as_uri()
    sentences = set()
    for tail in ("/../secret.mp4", "/../nothing.mp4", "/%2e%2e/secret.mp4", "/x/../../secret.mp4", "x/secret.mp4"):
        error = rejection(base + tail, allowed_roots=[root])
        assert error.code == "media_forbidden", tail
        sentences.add(str(error))
    assert len(sentences) == 1
    assert "media.allowed_roots" in sentences.pop()


def test_link_out_of_the_root_is_forbidden(root: Path) -> None:
    (root / "file").symlink_to(root.parent / "secret.mp4")
    (root / "folder").symlink_to(root.parent)
    (root / "loop").symlink_to(root / "loop")
    (root / "endless").symlink_to("/dev/zero")
    for name in ("file", "folder/secret.mp4", "loop", "endless"):
        assert rejection((root / name).as_uri(), allowed_roots=[root]).code == "media_forbidden", name


def test_folders_and_pipes_are_forbidden(root: Path) -> None:
    os.mkfifo(root / "pipe")
    for name in ("pipe", "."):
        assert rejection(f"{root.as_uri()}/{name}", allowed_roots=[root]).code == "media_forbidden"


def test_missing_file_is_not_found(root: Path) -> None:
    assert rejection((root / "none.mp4").as_uri(), allowed_roots=[root]).code == "media_not_found"


def test_file_uri_with_a_host_is_forbidden(root: Path) -> None:
    uri = (root / "a b#1.mp4").as_uri().replace("file://", "file://server")
    assert rejection(uri, allowed_roots=[root]).code == "media_forbidden"


@pytest.mark.parametrize("uri", ["ftp://h/a", "s3://b/a", "local:///etc/passwd", "data:,x", "FILE://host/a"])
def test_other_schemes_are_forbidden(uri: str) -> None:
    assert rejection(uri).code == "media_forbidden"


def test_empty_and_too_large_files_are_refused(root: Path) -> None:
    (root / "empty.mp4").touch()
    (root / "large.mp4").write_bytes(bytes(1001))
    assert rejection((root / "empty.mp4").as_uri(), allowed_roots=[root]).code == "media_empty"
    assert rejection((root / "large.mp4").as_uri(), allowed_roots=[root]).code == "media_too_large"


def test_media_in_the_message_has_the_same_limit() -> None:
    assert fetched(bytes(1000)) == bytes(1000)
    assert rejection(bytes(1001)).code == "media_too_large"


def test_checksum_is_checked(root: Path) -> None:
    uri = (root / "a b#1.mp4").as_uri()
    right = hashlib.sha256(b"video").hexdigest().upper()
    assert fetched(uri, right, allowed_roots=[root]) == b"video"
    assert rejection(uri, "0" * 64, allowed_roots=[root]).code == "checksum_mismatch"


def test_store_is_read_through_fsspec() -> None:
    files = fsspec.filesystem("memory")
    files.pipe("/fetch/a.mp4", b"video")
    files.pipe("/fetch/large.mp4", bytes(1001))
    try:
        assert fetched("memory://fetch/a.mp4") == b"video"
        assert rejection("memory://fetch/large.mp4").code == "media_too_large"
        assert rejection("memory://fetch/none.mp4").code == "media_not_found"
    finally:
        files.rm("/fetch", recursive=True)


def test_store_without_its_package_says_what_to_install() -> None:
    error = rejection("nosuchstore://bucket/a", allowed_schemes=("nosuchstore",))
    assert error.code in ("fetch_failed", "media_forbidden")
    assert "nosuchstore" in str(error)


Respond = Callable[[BaseHTTPRequestHandler], None]


@pytest.fixture
def host() -> Iterator[tuple[str, dict[str, Respond]]]:
    """`http://127.0.0.1:port` and the table of what it answers to which path."""
    pages: dict[str, Respond] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            try:
                pages[self.path](self)
            except OSError:
                pass  # the client had enough

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", pages
        server.shutdown()


def page(status: int, body: bytes = b"", **headers: str) -> Respond:
    def respond(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return respond


def test_allowed_host_is_read(host: Any) -> None:
    base, pages = host
    pages["/a.mp4?token=1"] = page(200, b"video", Content_Length="5")
    for allowed in (["127.0.0.1"], [base.removeprefix("http://")]):
        assert fetched(f"{base}/a.mp4?token=1", allowed_hosts=allowed) == b"video"


def test_other_hosts_are_forbidden(host: Any) -> None:
    base, _ = host
    for allowed in ((), ("localhost",), ("127.0.0.1:1",), ("127.0.0.1.evil",)):
        assert rejection(f"{base}/a", allowed_hosts=allowed).code == "media_forbidden"


def test_redirect_is_followed_only_to_an_allowed_host(host: Any) -> None:
    base, pages = host
    port = base.rpartition(":")[2]
    pages["/a"] = page(302, Location="/b")
    pages["/b"] = page(200, b"video")
    pages["/away"] = page(302, Location=f"http://localhost:{port}/b")
    pages["/file"] = page(302, Location="file:///etc/hostname")
    pages["/round"] = page(302, Location="/round")
    assert fetched(f"{base}/a", allowed_hosts=["127.0.0.1"]) == b"video"
    assert rejection(f"{base}/away", allowed_hosts=["127.0.0.1"]).code == "media_forbidden"
    assert rejection(f"{base}/file", allowed_hosts=["127.0.0.1"]).code == "fetch_failed"
    assert rejection(f"{base}/round", allowed_hosts=["127.0.0.1"]).code == "fetch_failed"


def test_answers_of_the_host_have_codes(host: Any) -> None:
    base, pages = host
    for status, code in ((404, "media_not_found"), (403, "media_forbidden"), (503, "fetch_failed")):
        pages["/x?signature=secret"] = page(status)
        error = rejection(f"{base}/x?signature=secret", allowed_hosts=["127.0.0.1"])
        assert (error.code, str(status) in str(error)) == (code, True)
        assert "secret" not in str(error)


def test_endless_answer_ends_at_the_limit(host: Any) -> None:
    base, pages = host

    def endless(handler: BaseHTTPRequestHandler) -> None:
        page(200)(handler)
        while True:
            handler.wfile.write(bytes(65536))

    pages["/endless"] = endless
    assert rejection(f"{base}/endless", allowed_hosts=["127.0.0.1"], max_bytes=10**6).code == "media_too_large"


def test_announced_size_is_checked_before_reading(host: Any) -> None:
    base, pages = host
    pages["/large"] = page(200, Content_Length=str(10**12))
    assert rejection(f"{base}/large", allowed_hosts=["127.0.0.1"]).code == "media_too_large"


def test_cut_answer_is_refused(host: Any) -> None:
    base, pages = host
    pages["/cut"] = page(200, b"vid", Content_Length="5")
    assert rejection(f"{base}/cut", allowed_hosts=["127.0.0.1"]).code == "fetch_failed"


def test_silent_host_is_given_up(host: Any) -> None:
    base, pages = host
    done = threading.Event()

    def silent(handler: BaseHTTPRequestHandler) -> None:
        done.wait(30)

    pages["/silent"] = silent
    error = rejection(f"{base}/silent", allowed_hosts=["127.0.0.1"], timeout_s=0.2)
    done.set()
    assert error.code == "fetch_failed"


def test_credentials_in_a_url_are_refused_and_not_repeated() -> None:
    error = rejection("http://user:secret@127.0.0.1/a", allowed_hosts=["127.0.0.1"])
    assert error.code == "media_forbidden"
    assert "secret" not in str(error)
