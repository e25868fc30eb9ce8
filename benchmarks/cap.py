"""What `search.max_eras` costs on a long stream, through the whole daemon: recall, by the most eras that may be.

    python -m benchmarks.cap [--rounds 4] [--clips-per-visit 400] [--caps 32 16 8 5] [--seeds 0]

Five rendered domains, one after the other, so many rounds; messages name each visit as a task of its own, so that none
is known to have been there before, and no boundary is taken back. Recall is that of all visits' held-out clips at the
end, text to video, served among all clips.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.rounds import rendered, run
from streamlearn.connectors.synthetic import DOMAINS


def name_visits(manifest: Path, clips: int) -> None:
    """Each a task of its own."""
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    named = [row | {"task": f"visit-{i // clips:02d}"} for i, row in enumerate(rows)]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in named), encoding="utf-8")


def line(tasks: list[dict[str, Any]], eras: list[dict[str, Any]]) -> str:
    """What came of it."""
    found = [[task["recall"]["served"][k] for task in tasks if task["recall"]["served"]] for k in ("1", "5")]
    half = len(found[0]) // 2
    older, newer = (
        " / ".join(f"{100 * fmean(of[part]):.1f}" for of in found) for part in (slice(half), slice(half, None))
    )
    lost = [one["loss"] for era in eras for one in era["absorbed"]]
    whole = " / ".join(f"{100 * fmean(of):.1f}" for of in found)
    merges = f"{len(lost)} merges, loss {sum(lost):+.3f}"
    return f"{len(eras)} eras, R@1 / R@5 {whole}, older half {older}, newer {newer}; {merges}"


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--clips-per-visit", type=int, default=400)
    parser.add_argument("--caps", type=int, nargs="+", default=[32, 16, 8, 5])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    given = parser.parse_args()
    for seed in given.seeds:
        with rendered(DOMAINS * given.rounds, given.clips_per_visit, seed) as folder:
            name_visits(folder / "manifest.jsonl", given.clips_per_visit)
            for cap in given.caps:
                told = line(*run(folder, folder.with_name(f"state-{cap}"), seed, max_eras=cap, merge_loss=0.0))
                print(f"seed {seed}, at most {cap}: {told}", flush=True)


if __name__ == "__main__":
    main()
