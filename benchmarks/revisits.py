"""Streams of real clips that return, through the whole daemon: which boundaries it draws, and which task it says.

    python benchmarks/revisits.py FOLDER NAME ...      # FOLDER/NAME/manifest.jsonl each

A random half of each stream one after the other, then the other halves in the same order. Nobody tells the daemon where
a stream begins. Prints every boundary with what was true, and how many returns were recognised.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np

from streamlearn.app import Daemon
from streamlearn.settings import load


def write(work: Path, folder: Path, names: list[str], seed: int) -> list[tuple[str, int]]:
    """Copy the clips, which a folder takes no links to; returns which visits begin at how many clips."""
    rng, halves = np.random.default_rng(seed), {}
    for name in names:
        rows = [
            json.loads(line) for line in (folder / name / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        halves[name] = np.array_split(np.asarray(rows, object)[rng.permutation(len(rows))], 2)
    visits, at = [], 0
    with (work / "manifest.jsonl").open("w", encoding="utf-8") as manifest:
        for half in (0, 1):
            for name in names:
                visits.append((name, at))
                for row in halves[name][half]:
                    clip = f"{at:05d}.mp4"
                    shutil.copyfile(folder / name / row["path"], work / clip)
                    said = {"video_id": clip, "path": clip, "caption": row["caption"], "meta": {"stream": name}}
                    manifest.write(json.dumps(said) + "\n")
                    at += 1
    return [*visits, ("", at)]


def run(folder: Path, names: list[str], seed: int) -> tuple[int, int]:
    """Returns how many visits after the first round were given their task's name, of how many."""
    with tempfile.TemporaryDirectory() as made:
        clips = Path(made) / "clips"
        clips.mkdir()
        visits = write(clips, folder, names, seed)
        settings = {"state_dir": Path(made) / "state", "folder.path": clips, "folder.watch": False, "api.port": 0}
        with Daemon(load(None, settings)) as daemon:
            while daemon.service.status()["state"] not in ("finished", "stopped"):
                time.sleep(0.2)
            tasks = daemon.service.tasks()
    for task in tasks:
        print(f"seed {seed}: {task['name']} from clip {task['started_clips']} (noticed), first {task['first_clip']}")
    # The task that most of a visit's clips were learned under.
    ends = [task["started_clips"] for task in tasks[1:]] + [visits[-1][1]]
    spans = [(task["name"], task["started_clips"], end) for task, end in zip(tasks, ends, strict=True)]
    called: dict[str, str] = {}
    found = returns = 0
    for (name, start), (_, end) in pairwise(visits):
        inside = {t: 0 for t, _, _ in spans}
        for t, a, b in spans:
            inside[t] += max(0, min(b, end) - max(a, start))
        most = max(inside, key=lambda t: inside[t])
        if name in called:
            returns += 1
            # One task for several streams recognises none of them.
            found += most == called[name] and list(called.values()).count(most) == 1
        print(f"seed {seed}: {name} {start}-{end} is {most}" + (f", was {called[name]}" if name in called else ""))
        called.setdefault(name, most)
    print(
        f"seed {seed}: {len(set(called.values()))} tasks of {len(called)} streams, returns {found}/{returns}",
        flush=True,
    )
    return found, returns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments = parser.parse_args()
    done = [run(arguments.folder, arguments.names, seed) for seed in arguments.seeds]
    print(f"recognised: {sum(found for found, _ in done)}/{sum(returns for _, returns in done)}")


if __name__ == "__main__":
    main()
