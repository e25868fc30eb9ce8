"""The small benchmark that CI runs, and what must be so whatever the seed: only what is far outside the noise.

It does not rank methods that are close; the report of the full run does. docs/log.md says how far outside it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from streamlearn.bench.report import numbers, value
from streamlearn.bench.runs import Line
from streamlearn.bench.trial import SERVED, Spec

#: Few enough for a minute, and none of them known to the warm start.
DOMAINS = ("night", "paper", "thermal")
#: Clips of each domain to learn from, and to ask for.
CLIPS, TEST = 1184, 100
LEARNING_RATE = 4e-4
#: Far beyond the momentum's time constant: the queue that poisons the contrast, and that the way back survives.
LONG_QUEUE = "queue_size=1024"
METHODS = (
    "inbatch",
    "moco",
    "bmu-local",
    "bmu",
    "bmu-local+replay500",
    f"moco:{LONG_QUEUE}",
    f"bmu-local:{LONG_QUEUE}",
)
LEAST_LEARNED = 60.0  # R@5, percent
_LONG = tuple(name for name in METHODS if LONG_QUEUE in name)


def quick_trials(corpus: Path, seed: int = 0) -> list[tuple[str, Spec]]:
    """One trial a method, with the detector's boundaries, asked at the end of each task."""
    return [
        ("reported", Spec(str(corpus), method, LEARNING_RATE, seed, asked_per_task=1, eras=method in ("moco", "bmu")))
        for method in METHODS
    ]


def check(lines: Sequence[Line]) -> list[str]:
    """What is not as it must be, a sentence each."""
    found = {line["spec"]["method"]: [line] for line in lines}
    learned, final = value("copies.online.learned.5"), value(f"copies.{SERVED}.final.5")
    wrong = []
    for method in METHODS:
        (recall,) = numbers(found[method], learned)
        if method not in _LONG and recall <= LEAST_LEARNED:
            wrong.append(f"{method} has R@5 {recall:.1f} when it has learned a task; at least {LEAST_LEARNED} is due")
    for better, worse in (("bmu-local+replay500", "bmu-local"), _LONG[::-1]):
        (high,), (low,) = numbers(found[better], final), numbers(found[worse], final)
        if high <= low:
            wrong.append(f"{better} ends with R@5 {high:.1f}, no better than {worse} with {low:.1f}")
    return wrong
