"""Tasks by their statistics in a frame that does not move: is this another task, and do we know it?

Knows embeddings of a frozen encoder, not where they come from. Arrays in, verdicts out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from streamlearn.records import Vectors
from streamlearn.tail import Spread, quantile

Floats = npt.NDArray[np.float64]

_MOST_ROWS = 1024  # that a task's mean counts as: a task that goes on for long may still change a little
#: A known task is met again where its clips would stray further only once in so many times.
MISSED = 1e-4
_UNLIKE = 0.05  # of independent clips, so many comparisons say that they are alike


@dataclass(frozen=True)
class Statistics:
    """Mean and spread of a task's embeddings.

    Attributes:
        rows: how many they are of.
        mean: (d,).
        trace: of the covariance.
        variance, skewness: of the shift of a sample of the same task, whose mean is 1 (`streamlearn.tail`).
    """

    rows: int
    mean: Floats
    trace: float
    variance: float
    skewness: float

    @classmethod
    def of(cls, x: Vectors) -> Statistics:
        """Of embeddings, (n, d); n at least 2."""
        wide, spread = x.astype(np.float64), Spread()
        for start in range(0, len(wide), 64):
            spread.update(Spread.traces(wide[start : start + 64]))
        trace = float(wide.var(axis=0, ddof=1).sum())
        return cls(len(wide), wide.mean(axis=0), max(trace, 1e-12), spread.variance, spread.skewness)

    def shift(self, mean: Floats, rows: int) -> float:
        """How far the mean of a sample is from here; 1 on average where it is of the same task. Shape: (d,)."""
        away = mean - self.mean
        return float(away @ away / (self.trace * (1 / rows + 1 / self.rows)))

    def limit(self, p: float) -> float:
        """The shift that a sample of the same task exceeds with probability p."""
        return quantile(p, 1.0, self.variance, self.skewness)

    def joined(self, other: Statistics) -> Statistics:
        """Of both together."""
        share = other.rows / (self.rows + other.rows)
        away = other.mean - self.mean
        return Statistics(
            rows=min(self.rows + other.rows, _MOST_ROWS),
            mean=self.mean + share * away,
            trace=(1 - share) * self.trace + share * other.trace + share * (1 - share) * float(away @ away),
            variance=(1 - share) * self.variance + share * other.variance,
            skewness=(1 - share) * self.skewness + share * other.skewness,
        )


def likeness(*stretches: Sequence[Sequence[Vectors]], known: Statistics) -> float:
    """How alike the clips of a batch are beside those of the next, as where several are cut from one video.

    It is their intraclass correlation; 0 where independent clips might well look so. Neighbours are compared, after von
    Neumann 1941 ("Distribution of the ratio of the mean square successive difference to the variance"), so that what
    changes slowly is no part of it.

    Args:
        stretches: of batches that came one after the other, of each some clips, (d,).
        known: says how far such a comparison strays by chance.
    """
    some = [[np.asarray(batch, np.float64) for batch in stretch if len(batch) > 1] for stretch in stretches]
    pairs = [pair for stretch in some for pair in pairwise(stretch)]
    if not pairs:
        return 0.0
    within = max(float(np.mean([x.var(axis=0, ddof=1).sum() for pair in pairs for x in pair])), 1e-12)
    away = [np.square(x.mean(axis=0) - y.mean(axis=0)).sum() / (1 / len(x) + 1 / len(y)) for x, y in pairs]
    away = sorted(away)[: max(3, len(away) - 1)]  # one may lie across a change that is dated wrongly
    ratio, apart = float(np.mean(away)) / within, len(pairs) / 1.5  # neighbouring pairs share a batch
    if ratio <= quantile(_UNLIKE, 1.0, known.variance / apart, known.skewness / apart**0.5):
        return 0.0
    between = (ratio - 1) * float(np.mean([1 / len(x) for pair in pairs for x in pair]))  # a variance, as within is 1
    return between / (1 + between)


class TaskMemory:
    """The statistics of every task that has ended, by name.

    Args:
        frame: names the frozen encoder; statistics of another one are worth nothing.
    """

    def __init__(self, frame: str = "") -> None:
        self._frame = frame
        self._known: dict[str, Statistics] = {}

    def names(self) -> tuple[str, ...]:
        """Of the tasks that can be recognised."""
        return tuple(self._known)

    def learn(self, name: str, x: Vectors) -> None:
        """Some clips of a task that ends, (n, d); what was known of it is kept beside."""
        if len(x) < 2:
            return
        new = Statistics.of(x)
        self._known[name] = self._known[name].joined(new) if name in self._known else new

    def recognise(self, x: Vectors, *, besides: Collection[str], missed: float = MISSED) -> tuple[str | None, float]:
        """The known task that clips belong to, but for some names; None where they are of none.

        Args:
            x: (n, d).
            besides: names of tasks that it is not.
            missed: the share of clips of a known task that may be taken for a new one.

        Returns:
            The name, and how far the nearest task's mean is; infinite where nothing is known.
        """
        mean = x.mean(axis=0, dtype=np.float64)
        shifts = {name: known.shift(mean, len(x)) for name, known in self._known.items() if name not in besides}
        if not shifts:
            return None, float("inf")
        nearest = min(shifts, key=shifts.__getitem__)
        return (nearest if shifts[nearest] <= self._known[nearest].limit(missed) else None), shifts[nearest]

    def fits(self, name: str, x: Vectors, *, missed: float) -> bool:
        """Whether clips, (n, d), are as this task was; False where it is not known. `missed` is that of `recognise`."""
        known = self._known.get(name)
        return known is not None and known.shift(x.mean(axis=0, dtype=np.float64), len(x)) <= known.limit(missed)

    def rename(self, old: str, new: str) -> None:
        """What is known of a task goes to another name, beside what is known there."""
        if old in self._known and old != new:
            moved = self._known.pop(old)
            self._known[new] = self._known[new].joined(moved) if new in self._known else moved

    def state_dict(self) -> dict[str, Any]:
        """Plain values for JSON, and the means as an array (k, d)."""
        facts = [[name, s.rows, s.trace, s.variance, s.skewness] for name, s in self._known.items()]
        means = np.stack([s.mean for s in self._known.values()]) if self._known else np.zeros((0, 0))
        return {"facts": {"frame": self._frame, "tasks": facts}, "means": means}

    def load_state_dict(self, facts: Mapping[str, Any], means: npt.NDArray[Any]) -> bool:
        """Inverse of `state_dict`.

        Returns:
            False where they are of another frozen encoder; then nothing is known.
        """
        self._known = {}
        if facts["frame"] != self._frame:
            return False
        for (name, rows, trace, variance, skewness), mean in zip(facts["tasks"], means, strict=True):
            self._known[name] = Statistics(rows, np.asarray(mean, np.float64), trace, variance, skewness)
        return True
