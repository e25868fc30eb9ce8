"""What evaluation costs while clips arrive: its time beside the learner's, by budget.

    python benchmarks/evaluation.py [--clips-per-domain 600] [--rounds 1] [--budgets 0.05 1.0]

Five rendered domains, one after the other and all of it so many rounds, through the whole daemon. The time is read
when the last clip has been learned: what is evaluated afterwards, when the source is silent, costs nobody anything.
`single_share` is how much longer evaluations took for the view `single`.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from streamlearn.app import Daemon
from streamlearn.connectors.synthetic import DOMAINS, write_stream
from streamlearn.search import Searcher
from streamlearn.settings import load


def watch(searcher: Searcher) -> list[float]:
    """Seconds of each answer in a mode that is not set: of the view `single`."""
    ask, spent = searcher.ask, list[float]()

    def watched(*args: Any, mode: Any = None, **options: Any) -> Any:
        start = time.perf_counter()
        answer = ask(*args, mode=mode, **options)
        if mode is not None:
            spent.append(time.perf_counter() - start)
        return answer

    searcher.ask = watched  # type: ignore[method-assign]
    return spent


def run(folder: Path, state: Path, clips: int, budget: float) -> dict[str, float]:
    settings = load(
        None,
        {
            "state_dir": state,
            "folder.path": folder,
            "folder.watch": False,
            "api.port": 0,
            "evaluate.budget_ratio": budget,
            "evaluate.interval_clips": 200,
        },
    )
    with Daemon(settings) as daemon:
        single = watch(daemon.searcher)
        while daemon.state.clips < 64:  # decoders and towers are warm
            time.sleep(0.01)
        start, first = time.perf_counter(), daemon.state.clips
        while daemon.state.clips < clips:
            time.sleep(0.005)
        rate = (clips - first) / (time.perf_counter() - start)

        def spent(stage: str, what: str) -> float:
            name = f"streamlearn_stage_seconds_{what}"
            return daemon.registry.get_sample_value(name, {"stage": stage}) or 0.0

        learn_s, evaluate_s = spent("learn", "sum"), spent("evaluate", "sum")
        tasks = spent("evaluate", "count")
        single_s = sum(single)  # with what is being asked and not yet in evaluate_s: next to nothing
        while daemon.service.status()["state"] not in ("finished", "stopped"):
            time.sleep(0.1)
        last = daemon.service.tasks()
    return {
        "clips_per_s": rate,
        "learn_s": learn_s,
        "evaluate_s": evaluate_s,
        "share": evaluate_s / learn_s,
        "single_share": single_s / max(1e-9, evaluate_s - single_s),
        "tasks_asked": tasks,
        "s_a_task": evaluate_s / max(1, tasks),
        "pairs": float(sum({task["name"]: task["held_out"] for task in last}.values())),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips-per-domain", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.05, 1.0])
    arguments = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    print(f"commit {commit.stdout.strip()}")
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "clips"
        folder.mkdir()
        domains = DOMAINS * arguments.rounds
        write_stream(folder, domains=domains, clips_per_domain=arguments.clips_per_domain, seed=0, size_px=64)
        for budget in arguments.budgets:
            found = run(folder, Path(work) / f"{budget}", arguments.clips_per_domain * len(domains), budget)
            print(f"budget {budget}: " + ", ".join(f"{name} {value:.3g}" for name, value in found.items()), flush=True)


if __name__ == "__main__":
    main()
