"""Boundaries in the middle of a domain, through the whole daemon: are the two eras made one, and what is found then?

    python -m benchmarks.superfluous [--clips-per-domain 800] [--seeds 0 1 2]

Five rendered domains, one after the other. Messages name a task each half of a domain, so that every second boundary is
superfluous; and then none, so that the detector draws those that are not. Recall is that of all tasks' held-out clips
at the end, text to video, served among all clips.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.rounds import rendered, run
from streamlearn.connectors.synthetic import DOMAINS


def halve(manifest: Path, clips: int) -> None:
    """Name a task each half of a domain."""
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    named = [row | {"task": f"{DOMAINS[i // clips]}-{2 * (i % clips) // clips}"} for i, row in enumerate(rows)]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in named), encoding="utf-8")


def line(tasks: list[dict[str, Any]], eras: list[dict[str, Any]]) -> str:
    """What came of it."""
    served = [found for task in tasks if (found := task["recall"]["served"])]  # of few clips nothing is asked
    found = " / ".join(f"{100 * fmean(recall[k] for recall in served):.1f}" for k in ("1", "5"))
    merges = [f"{one['absorb']} into {one['keep']} ({one['loss']:+.3f})" for era in eras for one in era["absorbed"]]
    return f"{len(tasks)} tasks, {len(eras)} eras, R@1 / R@5 {found}; merged: {', '.join(merges) or 'none'}"


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips-per-domain", type=int, default=800)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    given = parser.parse_args()
    for seed in given.seeds:
        with rendered(DOMAINS, given.clips_per_domain, seed) as folder:
            for named in ("the detector's", "twice as many"):
                if named == "twice as many":
                    halve(folder / "manifest.jsonl", given.clips_per_domain)
                for loss in (0.0, 0.05):
                    state = folder.with_name(f"state-{named[:3]}-{loss}")
                    found = line(*run(folder, state, seed, merge_loss=loss))
                    print(f"seed {seed}, {named}, merge_loss {loss}: {found}", flush=True)


if __name__ == "__main__":
    main()
