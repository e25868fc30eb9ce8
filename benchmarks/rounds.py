"""Domains that return, through the whole daemon: what searches find, and what became of the eras.

    python benchmarks/rounds.py [--rounds 3] [--clips-per-domain 600] [--seeds 0 1 2]

Five rendered domains, one after the other, and all of it so many rounds; the detector draws the boundaries. Recall is
that of each task's held-out clips when all has been learned: as searches find them among all clips, and as today's pair
of the learner knows them among each other.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

from streamlearn.app import Daemon
from streamlearn.connectors.synthetic import DOMAINS, write_stream
from streamlearn.settings import load


@contextmanager
def rendered(domains: Sequence[str], clips_per_domain: int, seed: int) -> Iterator[Path]:
    """A folder of clips with their manifest; what is put beside it goes with it."""
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "clips"
        write_stream(folder, domains=domains, clips_per_domain=clips_per_domain, seed=seed, size_px=64)
        yield folder


def run(folder: Path, state: Path, seed: int, **search: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What the daemon says of its tasks and of its eras at the end; `search` are settings of it."""
    settings = {f"search.{name}": value for name, value in search.items()}
    settings |= {"state_dir": state, "folder.path": folder, "folder.watch": False, "api.port": 0, "learner.seed": seed}
    with Daemon(load(None, settings)) as daemon:
        while daemon.service.status()["state"] not in ("finished", "stopped"):
            time.sleep(0.2)
        return daemon.service.tasks(), daemon.state.eras.state()


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clips-per-domain", type=int, default=600)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    given = parser.parse_args()
    for seed in given.seeds:
        with rendered(DOMAINS * given.rounds, given.clips_per_domain, seed) as folder:
            tasks, eras = run(folder, folder.with_name("state"), seed)
        last = {task["name"]: task["recall"] for task in tasks}
        found = {
            f"{view} R@{k}": [100 * recall[view][k] for recall in last.values()]
            for view in ("served", "learner")
            for k in ("1", "5")
        }
        print(f"seed {seed}: {len(tasks)} visits, {len(last)} tasks, {len(eras)} eras")
        for what, values in found.items():
            print(f"  {what}: {fmean(values):.1f} (" + ", ".join(f"{value:.1f}" for value in values) + ")")
        for merge in (merge for era in eras for merge in era["absorbed"]):
            print(
                f"  era {merge['absorb']} into {merge['keep']}: {merge['why']}, loss {merge['loss']:+.3f}", flush=True
            )


if __name__ == "__main__":
    main()
