"""kill -9 at every fsync, fdatasync and rename of a daemon's start and of its first two checkpoints, one by one.

    python benchmarks/crash_steps.py [--clips 240]       # needs strace

Life n of a state directory is killed at the n-th such call (strace does it, before the call is made), until a life
reaches the end of the stream. After the last kill the stream is read to its end, and must be as if there had been
none: every clip is found once, every bad row is a dead letter, the weights are equal bit by bit.
`tests/test_crash.py` does this at eight chosen calls.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # the daemon process of the tests

from streamlearn.connectors.synthetic import write_stream
from streamlearn.deadletters import read_dead_letters
from tests.daemon import DaemonProcess
from tests.test_crash import SETTINGS, run_until_killed, weights

CALLS = ("fsync", "fdatasync", "rename,renameat,renameat2")
BAD_EVERY = 50


def settings_for(folder: Path) -> dict[str, Any]:
    return {
        **SETTINGS, "learner.batch_size": 4, "checkpoint.interval_clips": 4, "evaluate.interval_clips": 1000,
        "folder.path": str(folder), "folder.watch": "false",
    }  # fmt: skip


def finish(work: Path, folder: Path, clips: int) -> dict[str, np.ndarray]:
    """Read to the end, check the ledger; the weights."""
    bad = -(-clips // BAD_EVERY)
    with DaemonProcess(work, settings_for(folder)) as running:
        status = running.wait_finished()
        found: list[str] = []
        token = None
        while True:
            page = running.get("/v1/search", {"query": {"text": "anything"}, "limit": 100, "page_token": token})
            found += [hit["video_id"] for hit in page["results"]]
            token = page["next_page_token"]
            if token is None:
                break
        assert sorted(found) == sorted(path.stem for path in (folder / "clips").iterdir()), "missing, or there twice"
        assert status["clips"]["learned"] + status["clips"]["held_out"] == clips, status["clips"]
        assert running.stop() == 0
    letters = {letter.record.value for letter in read_dead_letters(running.state_dir / "dead_letters.jsonl")}
    assert len(letters) == bad, f"{len(letters)} of {bad} dead letters"
    return weights(work / "state")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=240)
    parser.add_argument("--most", type=int, default=60, help="kills at each call")
    parser.add_argument("--calls", choices=CALLS, nargs="+", default=CALLS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        folder = work / "stream"
        write_stream(folder, domains=("studio",), clips_per_domain=arguments.clips, seed=1, size_px=32)
        rows = (folder / "manifest.jsonl").read_text().splitlines()
        for n, at in enumerate(range(0, arguments.clips, BAD_EVERY)):
            rows.insert(at + n, json.dumps({"video_id": f"bad-{n}", "captions": ["no media"]}))
        (folder / "manifest.jsonl").write_text("".join(row + "\n" for row in rows))
        (work / "straight").mkdir()
        uninterrupted = finish(work / "straight", folder, arguments.clips)
        for call in arguments.calls:
            start, kills, state = time.monotonic(), 0, work / call
            state.mkdir()
            while kills < arguments.most and run_until_killed(
                state, settings_for(folder), call, kills + 1, deadline_s=3600
            ):
                kills += 1
            after = finish(state, folder, arguments.clips)
            equal = after.keys() == uninterrupted.keys() and all(
                np.array_equal(after[name], uninterrupted[name]) for name in after
            )
            assert equal, f"after kills at {call} the weights are others"
            print(json.dumps({"call": call, "kills": kills, "took_s": round(time.monotonic() - start)}), flush=True)


if __name__ == "__main__":
    main()
