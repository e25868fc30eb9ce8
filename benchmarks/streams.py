"""The main job on real clips: folders of video-caption pairs, one after the other, through the whole daemon.

    python benchmarks/streams.py FOLDER [FOLDER ...] [--split instance_split] [--set learner.batch_size=16]

Each folder has a manifest.jsonl whose rows name `path`, `caption` and a split: "test" and "val" are held out, the
rest is learned from once, in the manifest's order shuffled by a seed. Prints the task log with recall and forgetting,
and where the boundaries really were.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path

from streamlearn.app import Daemon
from streamlearn.settings import load

_HELD_OUT = ("test", "val", "heldout")


def write_manifest(folders: list[Path], split: str, out: Path) -> list[tuple[str, int]]:
    """One manifest of all folders, in order; returns where each begins, in clips."""
    starts, seen = [], 0
    with (out / "manifest.jsonl").open("w", encoding="utf-8") as file:
        for folder in folders:
            starts.append((folder.name, seen))
            rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
            random.Random(0).shuffle(rows)
            for row in rows:
                clip = {
                    "video_id": f"{folder.name}/{row['id']}",
                    "uri": (folder / row["path"]).resolve().as_uri(),
                    "caption": row["caption"],
                    "split": "heldout" if row[split] in _HELD_OUT else "train",
                    "meta": {"stream": folder.name},
                }
                file.write(json.dumps(clip) + "\n")
            seen += len(rows)
    return [*starts, ("end", seen)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--split", default="split", help="the manifest's field that says what is held out")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        starts = write_manifest(arguments.folders, arguments.split, Path(work))
        changes = dict(pair.split("=", 1) for pair in arguments.set)
        settings = load(
            None,
            {
                "state_dir": Path(work) / "state",
                "folder.path": work,
                "folder.watch": False,
                "media.allowed_roots": [folder.resolve() for folder in arguments.folders],
                "api.port": 0,
                **changes,
            },
        )
        begin = time.monotonic()
        with Daemon(settings) as daemon:
            while daemon.service.status()["state"] not in ("finished", "stopped"):
                time.sleep(0.5)
            status, tasks = daemon.service.status(), daemon.service.tasks()
    print(f"{status['clips']}, {time.monotonic() - begin:.0f} s")
    print("streams begin at clip: " + ", ".join(f"{name} {at}" for name, at in starts))
    print("| task | from clip | onset | score | clips | held out | served R@1/5/10 | learner R@1/5/10 | lost R@5 |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    for t in tasks:
        recall = {
            view: "/".join(f"{100 * t['recall'][view].get(k, 0):.0f}" for k in ("1", "5", "10")) for view in t["recall"]
        }
        lost = "/".join(
            "" if (v := t["forgetting"][view]) is None else f"{100 * v:.0f}" for view in ("served", "learner")
        )
        print(
            f"| {t['name']} | {t['started_clips']} | {t['onset_steps_ago']} | {t['score'] or 0:.1f} | {t['clips']} |"
            f" {t['held_out']} | {recall['served']} | {recall['learner']} | {lost} |"
        )


if __name__ == "__main__":
    main()
