"""What generations cost: versioned rows on the write path, beside copies of the catalog; a rollback; checkpoints.

    python benchmarks/generations.py [--clips 100000] [--dim 256] [--json results.jsonl]

Everything on a temporary folder of the working disk. Each figure is the median of its repetitions.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from streamlearn import durable
from streamlearn.catalog import Catalog, ClipRow
from streamlearn.checkpoint import Generation, Generations
from streamlearn.encoders import Towers
from streamlearn.learner import Learner
from streamlearn.retention import Retention
from streamlearn.settings import LearnerSettings
from streamlearn.snapshots import Weights, half

CHECKPOINT_CLIPS, REFRESHED = 1000, 500  # between two checkpoints, as by default


def clip(number: int) -> ClipRow:
    return ClipRow(
        row=0, video_id=f"clip-{number:08d}", uri=None, start_s=None, end_s=None, captions=("a large red ring",),
        meta={"cam": number % 7}, time=None, split="train", task="t1", step=number // 32, sha256=None, topic="clips",
        partition="0", offset=number,
    )  # fmt: skip


def timed(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def fill(catalog: Catalog, clips: range, dim: int, rng: np.random.Generator) -> None:
    for start in range(clips.start, clips.stop, 1000):
        rows, _ = catalog.put([clip(n) for n in range(start, min(start + 1000, clips.stop))])
        catalog.put_vectors(rows, rng.normal(size=(len(rows), dim)).astype(np.float32), era=1, step=start)


def interval(catalog: Catalog, first: int, dim: int, rng: np.random.Generator) -> None:
    """What the daemon writes between two checkpoints: 32 clips at a time, and as many refreshed by halves."""
    rows = catalog.kept_rows()
    for start in range(first, first + CHECKPOINT_CLIPS, 32):
        fresh = rng.normal(size=(48, dim)).astype(np.float32)
        with catalog.transaction():
            new, _ = catalog.put([clip(n) for n in range(start, start + 32)])
            catalog.put_vectors(new, fresh[:32], era=1, step=start)
            catalog.put_vectors(rng.choice(rows, 16, replace=False).tolist(), fresh[32:], era=1, step=start)


def write_path(folder: Path, clips: int, dim: int) -> dict[str, float]:
    rng, out = np.random.default_rng(0), {}
    with closing(Catalog(folder / "catalog.db")) as catalog:
        fill(catalog, range(clips), dim, rng)
        at, plain, versioned, pruned = clips, [], [], []
        for _ in range(5):  # nothing is kept: vectors are written over in place
            plain.append(timed(partial(interval, catalog, at, dim, rng)))
            at += CHECKPOINT_CLIPS
        size = (folder / "catalog.db").stat().st_size
        for _ in range(8):
            catalog.begin(catalog.generation + 1)
            versioned.append(timed(partial(interval, catalog, at, dim, rng)))
            at += CHECKPOINT_CLIPS
            newest = catalog.generation
            pruned.append(timed(partial(catalog.prune, [1, *range(max(2, newest - 2), newest + 1)])))  # 1 is pinned
        out["interval, written in place (s)"] = statistics.median(plain)
        out["interval, versions kept (s)"] = statistics.median(versioned[3:])
        out["pruning at a checkpoint, 3 kept and a pinned one (s)"] = statistics.median(pruned[3:])
        out["catalog (MB)"] = size / 1e6
        with closing(sqlite3.connect(folder / "catalog.db")) as db:
            out["instead: VACUUM INTO at a checkpoint (s)"] = timed(
                lambda: db.execute("VACUUM INTO ?", (str(folder / "copy.db"),))
            )
            with closing(sqlite3.connect(folder / "backup.db")) as other:
                out["instead: backup at a checkpoint (s)"] = timed(lambda: db.backup(other))
        newest = catalog.generation
        catalog.begin(newest + 1)
        out["rewind by two checkpoints (s)"] = timed(lambda: catalog.rewind(newest - 2))
        out["reading all vectors (s)"] = timed(lambda: catalog.era_vectors(1))
    return out


def checkpoints(folder: Path) -> dict[str, float]:
    towers = Towers()
    learner = Learner(towers, LearnerSettings())
    for state in learner.online.parameters():
        state.grad = state.detach() * 0
    learner.optimizer.step()  # or there would be no optimizer state to write
    out = {}
    weights = Weights(0, 0, half(towers), half(towers))
    for eras, snapshots in ((0, 0), (16, 0), (0, 4), (16, 4)):
        generations = Generations(folder / f"g{eras}-{snapshots}", Retention(3))
        times = []
        for number in range(1, 9):
            sealed = {f"eras/{era:04d}": partial(half, towers) for era in range(eras)}
            # Every checkpoint finds four new ones where its interval is four of theirs, as by default.
            sealed |= {f"snapshots/0001-{number:04d}{i:04d}": weights.tensors for i in range(snapshots)}
            generation = Generation(number, {}, {}, learner.state_dict(), sealed)
            times.append(timed(partial(generations.write, generation)) + timed(partial(generations.publish, number)))
        out[f"checkpoint, {eras} sealed eras, {snapshots} new snapshots (s)"] = statistics.median(times[2:])
    files = sorted((folder / "g16-0" / "current" / "eras").iterdir())
    out["of that, before: all 16 eras halved and hashed twice (s)"] = timed(
        lambda: [(half(towers), durable.sum_of(file), durable.sync_and_sum(file)) for file in files]
    )
    return out


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--clips", type=int, default=100_000)
    arguments.add_argument("--dim", type=int, default=256)
    arguments.add_argument("--json", type=Path)
    chosen = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = write_path(Path(folder), chosen.clips, chosen.dim) | checkpoints(Path(folder))
    for name, value in found.items():
        print(f"{name:70} {value:10.3f}")
    if chosen.json:
        with chosen.json.open("a") as file:
            file.write(json.dumps({"clips": chosen.clips, "dim": chosen.dim, **found}) + "\n")


if __name__ == "__main__":
    main()
