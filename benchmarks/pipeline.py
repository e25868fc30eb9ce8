"""How fast the daemon is beside its halves, in one run: the learner's bare step, decoding alone, the daemon, searches.

    python benchmarks/pipeline.py [--clips 1500] [--json results.jsonl]
    python benchmarks/pipeline.py --minutes 30      # memory of a daemon that goes on learning

Clips are rendered first (not timed). Every figure is the best of `--rounds`, the rounds taken in turn, so that a noisy
machine is noisy for all of them.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from streamlearn.app import Daemon, load_options
from streamlearn.connectors.folder import FolderSource
from streamlearn.connectors.synthetic import write_stream
from streamlearn.encoders import Towers
from streamlearn.learner import Learner
from streamlearn.loader import Loader
from streamlearn.records import Clip, Record
from streamlearn.settings import Settings, load
from streamlearn.source import EndOfStream
from streamlearn.warmup import build_towers

SEARCHES_PER_S = 20


def settings_for(folder: Path, state: Path, **changes: Any) -> Settings:
    return load(
        None,
        {"state_dir": state, "folder.path": folder, "folder.watch": False, "api.port": 0}
        | {name.replace("__", "."): value for name, value in changes.items()},
    )


def records(folder: Path) -> list[Record]:
    source = FolderSource(folder, watch=False, poll_interval_s=1)
    source.start({})
    out: list[Record] = []
    try:
        while True:
            out += source.poll(1)
    except EndOfStream:
        source.close()
        return out


def decode(folder: Path, state: Path) -> tuple[float, list[Clip]]:
    todo = records(folder)
    settings = settings_for(folder, state)
    loader = Loader(load_options(settings, Towers().size_px), workers=settings.media.workers)
    try:
        loader.submit(todo[0]).result()  # the children have started
        start = time.perf_counter()
        events = [future.result() for future in [loader.submit(record) for record in todo]]
        rate = len(todo) / (time.perf_counter() - start)
    finally:
        loader.close()
    return rate, [event for event in events if isinstance(event, Clip)]


def learn(clips: list[Clip]) -> float:
    settings = load()
    learner = Learner(build_towers(settings.model, 0), settings.learner)
    size = settings.learner.batch_size
    batches = [clips[i : i + size] for i in range(0, len(clips) - size + 1, size)]
    start = 0.0
    for i, batch in enumerate(batches):
        if i == 1:  # the first is the warm-up
            start = time.perf_counter()
        learner.step(np.stack([c.frames for c in batch]), [c.captions for c in batch], [c.video_id for c in batch])
    return (len(batches) - 1) * size / (time.perf_counter() - start)


def daemon(folder: Path, state: Path, clips: int, *, searching: bool) -> dict[str, float]:
    latencies: list[float] = []
    with Daemon(settings_for(folder, state)) as running:
        while running.state.clips < 64:  # decoders and towers are warm
            time.sleep(0.01)
        done = threading.Event()

        def ask() -> None:
            with httpx.Client(base_url=running.url) as client:
                n = 0
                while not done.wait(1 / SEARCHES_PER_S):
                    n += 1
                    start = time.perf_counter()
                    body = {"query": {"text": f"a large red circle moving left quickly {n}"}}
                    client.post("/v1/search", json=body).raise_for_status()
                    latencies.append(1000 * (time.perf_counter() - start))

        asker = threading.Thread(target=ask)
        if searching:
            asker.start()
        first, start = running.state.clips, time.perf_counter()
        while running.state.clips < clips:
            time.sleep(0.01)
        rate = (clips - first) / (time.perf_counter() - start)
        done.set()
        if searching:
            asker.join()
    out = {"clips_per_s": rate}
    if latencies:
        out |= {f"search_p{p}_ms": float(np.percentile(latencies, p)) for p in (50, 99)}
    return out


def compare(clips: int, rounds: int) -> dict[str, Any]:
    best: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "clips"
        folder.mkdir()
        write_stream(folder, domains=("studio", "night"), clips_per_domain=clips // 2, seed=0, size_px=96)
        for n in range(rounds):
            rate, decoded = decode(folder, Path(work) / "none")
            quiet = daemon(folder, Path(work) / f"quiet-{n}", clips, searching=False)
            asked = daemon(folder, Path(work) / f"asked-{n}", clips, searching=True)
            now = {
                "decode_clips_per_s": rate,
                "learner_clips_per_s": learn(decoded),
                "daemon_clips_per_s": quiet["clips_per_s"],
                "daemon_while_searched_clips_per_s": asked["clips_per_s"],
            }
            for name, value in now.items():
                best[name] = max(best.get(name, 0.0), value)
            for name in ("search_p50_ms", "search_p99_ms"):
                best[name] = min(best.get(name, 1e9), asked[name])
            print(f"round {n + 1}: " + ", ".join(f"{k} {v:.0f}" for k, v in now.items()), file=sys.stderr)
    slower = min(best["decode_clips_per_s"], best["learner_clips_per_s"])
    best["daemon_over_slower_half"] = best["daemon_clips_per_s"] / slower
    best["searched_over_quiet"] = best["daemon_while_searched_clips_per_s"] / best["daemon_clips_per_s"]
    return best


def soak(minutes: float) -> dict[str, Any]:
    """Resident memory of a daemon that learns all the time, from a stream rendered beside it."""
    sizes: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "clips"
        folder.mkdir()
        command = [
            sys.executable,
            "-m",
            "streamlearn.connectors.synthetic",
            str(folder),
            "--clips-per-domain",
            "50000",
        ]
        with (
            subprocess.Popen(command) as producer,
            Daemon(settings_for(folder, Path(work) / "s", folder__watch=True)) as d,
        ):
            start = time.monotonic()
            while (now := time.monotonic() - start) < 60 * minutes:
                time.sleep(5)
                if producer.poll() is not None:
                    raise RuntimeError("the clips ended, or could not be made")
                family = [psutil.Process(), *psutil.Process().children(recursive=True)]
                own = [p for p in family if p.pid != producer.pid]
                sizes.append((now, sum(p.memory_info().rss for p in own) / 2**20))
            clips = d.state.clips
            producer.kill()
    tenth = max(1, len(sizes) // 10)
    early, late = (float(np.median([mb for _, mb in part])) for part in (sizes[tenth : 3 * tenth], sizes[-2 * tenth :]))
    slope = float(np.polyfit([t / 60 for t, _ in sizes[tenth:]], [mb for _, mb in sizes[tenth:]], 1)[0])
    return {"minutes": minutes, "clips": clips, "early_mib": early, "late_mib": late, "mib_per_minute": slope}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, help="measure memory for so long instead")
    parser.add_argument("--json", type=Path, help="append the result to this file, too")
    arguments = parser.parse_args()
    # Before the run: commits may come while it goes on, and are not what it measures.
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    result = soak(arguments.minutes) if arguments.minutes else compare(arguments.clips, arguments.rounds)
    row = {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit.stdout.strip(),
        "machine": f"{platform.machine()}, {psutil.cpu_count()} cores, Python {platform.python_version()}",
        **{name: round(value, 3) if isinstance(value, float) else value for name, value in result.items()},
    }
    for name, value in row.items():
        print(f"{name:>36}  {value}")
    if arguments.json:
        with arguments.json.open("a") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
