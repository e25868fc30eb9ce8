"""A boundary after an era of a million vectors: how long it holds learning up, and what searches see of it.

    python -m benchmarks.sealing [--vectors 1000000] [--encoded] [--json results.jsonl]

The daemon and the vectors are those of `benchmarks/rollback.py`. An operator says that a task begins; the era is
sealed, its clips are encoded anew and swapped in, and a generation is written, while other processes ask. The vectors
were drawn and have no frames, so there is nothing to encode anew; with `--encoded` drawn vectors stand for what an
encoder would say of each clip. Told is how long the one thread that learns was busy with it at a stretch.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.index import anonymous_mb, draw
from benchmarks.rollback import among_askers, by_time, fixed, prepare, reporter, settings_in, settle, work
from streamlearn.app import Daemon
from streamlearn.state import State


def timed(owner: Any, name: str, times: dict[str, list[float]]) -> None:
    """Have the seconds of each call of a method noted."""
    method: Callable[..., Any] = getattr(owner, name)

    def noted(*arguments: Any, **named: Any) -> Any:
        begin = time.perf_counter()
        try:
            return method(*arguments, **named)
        finally:
            times[name].append(time.perf_counter() - begin)

    setattr(owner, name, noted)


def drawn(rows: Sequence[int], _: object) -> dict[int, np.ndarray]:
    """In place of what an encoder would say of frames."""
    return dict(zip(rows, draw(rows[0], len(rows)), strict=True)) if rows else {}


def main() -> None:
    """Seal, and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--encoded", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    tell = reporter(arguments.json, {"vectors": arguments.vectors, "encoded": arguments.encoded})
    with tempfile.TemporaryDirectory() as temporary:
        settings = settings_in(Path(temporary))
        prepare(settings, Path(temporary) / "clips", arguments.vectors, 1)
        with Daemon(settings) as daemon:
            state, times = daemon.state, defaultdict[str, list[float]](list)
            fixed(daemon.url)
            work(daemon, settle)
            if arguments.encoded:
                state.eras._clips.encode = drawn  # type: ignore[method-assign, assignment]
            for owner, name in (
                (state, "start_task"), (state.eras, "reencode"), (state, "publish"), (state, "checkpoint")
            ):  # fmt: skip
                timed(owner, name, times)
            memory = anonymous_mb()

            def seal() -> int:
                httpx.post(f"{daemon.url}/v1/tasks", json={"name": "next"}, timeout=600).raise_for_status()
                while state.eras.stale:
                    time.sleep(0.05)
                work(daemon, State.checkpoint)
                return anonymous_mb()

            asked, begin, end, after_mb = among_askers(daemon, seal)
            for step, facts in zip(("before", "during", "after"), by_time(asked, begin, end), strict=True):
                tell(step, facts | ({"s": end - begin} if step == "during" else {}))
            for name, each in times.items():
                tell(name, {"calls": len(each), "longest_s": max(each), "all_s": sum(each)})
            work(daemon, settle)  # the next publication gives the memory of what was replaced back
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            tell("memory", {"before_mb": memory, "after_mb": after_mb, "settled_mb": anonymous_mb(), "peak_mb": peak})


if __name__ == "__main__":
    main()
