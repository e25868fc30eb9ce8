"""A daemon that serves a million vectors: how soon it is ready, and what queries over HTTP take beside upserts.

    python -m benchmarks.served [--vectors 1000000] [--eras 4] [--seconds 60] [--json results.jsonl]

The state is that of `benchmarks/rollback.py`. `streamlearn run` is started on it as a process of its own, with files
that the system has cached and once more after they were dropped from there, until `/readyz` says so and until the first
answer. Then other processes ask texts (each once) and vectors, before, during and after some time in which 200 upserts
a second go on, in batches of 32 as a stream's: half of new clips, half of ones that are replaced.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from benchmarks.index import anonymous_mb, draw
from benchmarks.rollback import among_askers, by_time, fixed, prepare, put, reporter, settings_in, settle, work
from streamlearn.app import Daemon
from streamlearn.settings import Settings
from streamlearn.state import State

BATCH, UPSERTS_PER_S = 32, 200


@contextmanager
def running(settings: Settings) -> Iterator[tuple[str, subprocess.Popen[bytes], float]]:
    """`streamlearn run` in a process of its own, its URL, and when it was started."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = {
        "state_dir": settings.state_dir, "folder.path": settings.folder.path, "api.port": port,
        "model.dim": settings.model.dim, "model.threads": 1, "drift.detector": "none", "evaluate.heldout_ratio": 0,
    }  # fmt: skip
    options = [part for name, value in given.items() for part in ("--set", f"{name}={value}")]
    begin = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "streamlearn", "run", *options], stderr=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}", process, begin
    finally:
        process.terminate()
        process.wait()


def started(settings: Settings) -> dict[str, float]:
    """Seconds from the start of the process, and its memory then."""
    with running(settings) as (url, process, begin), httpx.Client(base_url=url, timeout=60) as client:
        while process.poll() is None:
            try:
                if client.get("/readyz").status_code == 200:
                    break
            except httpx.ConnectError:
                pass
            time.sleep(0.01)
        ready = time.perf_counter() - begin
        client.post("/v1/search", json={"query": {"text": "a red circle moves to the left"}}).raise_for_status()
        answered = time.perf_counter() - begin
        return {"ready_s": ready, "first_answer_s": answered, "resident_mb": anonymous_mb(process.pid)}


def drop_cache(folder: Path) -> None:
    """Of the files below it; what is not yet on disk cannot be dropped."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def upsert(daemon: Daemon, count: int, seconds: float) -> int:
    """At that rate, or as fast as it can; returns how many."""
    begin, done = time.monotonic(), 0
    while (now := time.monotonic() - begin) < seconds:
        if done > now * UPSERTS_PER_S:
            time.sleep(done / UPSERTS_PER_S - now)
        half = range(done // 2, done // 2 + BATCH // 2)
        names, vectors = [f"new{i}" for i in half] + [f"v{i % count}" for i in half], draw(10**8 + done, BATCH)

        def batch(state: State, names: list[str] = names, vectors: Any = vectors) -> None:
            put(state, names, vectors)
            state.publish()

        work(daemon, batch)
        done += BATCH
    return done


def main() -> None:
    """Start, ask, and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--eras", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    tell = reporter(arguments.json, {"vectors": arguments.vectors, "eras": arguments.eras})
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        settings = settings_in(folder)
        prepare(settings, folder / "clips", arguments.vectors, arguments.eras)
        with Daemon(settings) as daemon:
            fixed(daemon.url)
            work(daemon, settle)
            work(daemon, State.checkpoint)
        for _ in range(2):
            tell("start, cached", started(settings))
        drop_cache(folder)
        tell("start, not cached", started(settings))
        with Daemon(settings) as daemon:
            fixed(daemon.url)
            asked, begin, end, done = among_askers(daemon, lambda: upsert(daemon, arguments.vectors, arguments.seconds))
            before, during, after = by_time(asked, begin, end)
            tell("before", before)
            tell("upserts", {"s": end - begin, "upserts": done, **during, "resident_mb": anonymous_mb()})
            tell("after", after)


if __name__ == "__main__":
    main()
