"""How large the detector's statistic gets by chance: the threshold that a wanted rate of false alarms asks for.

Knows the spread of the rows and the scores so far, nothing of windows' contents. Pure arithmetic.

Of rows with covariance S, |mean shift|^2 / its expectation is a weighted sum of chi-squares, weights S's eigenvalues.
Its mean is 1, its variance 2 tr(S^2) / tr(S)^2, its skewness sqrt(8) tr(S^3) / tr(S^2)^1.5; a shifted gamma with these
three moments (Pearson's type III) fits the tail within a few per cent down to 1e-4 (docs/log.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_ROWS = 64  # of a batch at most that say how rows spread
_HORIZON_BATCHES = 64  # over which spread and scores are averaged
_MOST_SKEW = 2.83  # of one chi-square: rows that vary along a line


class Spread:
    """Traces of the covariance's first three powers, from the rows of every batch.

    Rows are taken in pairs: half their difference squared has the covariance whatever the mean is and however it
    moves. tr(S^2) and tr(S^3) are U-statistics of the pairs, without the bias of squares.
    """

    def __init__(self) -> None:
        self._traces: Floats = np.zeros(3)
        self._weight = 0.0

    @staticmethod
    def traces(x: Floats) -> Floats:
        """Of one batch, (n, d): three numbers; NaN where fewer than six rows say nothing."""
        n = min(len(x), _ROWS) // 2
        if n < 3:
            return np.full(3, np.nan)
        pairs = (x[:n] - x[n : 2 * n]) / math.sqrt(2)
        gram = pairs @ pairs.T
        first = float(np.trace(gram)) / n
        np.fill_diagonal(gram, 0)
        second = float(np.square(gram).sum()) / (n * (n - 1))
        third = float(np.einsum("ij,jk,ki->", gram, gram, gram, optimize=True)) / (n * (n - 1) * (n - 2))
        return np.array([first, second, third])

    def update(self, traces: Floats) -> None:
        """Take the traces of a batch."""
        if np.isfinite(traces).all():
            self._weight = min(self._weight + 1, _HORIZON_BATCHES)
            self._traces += (traces - self._traces) / self._weight

    @property
    def variance(self) -> float:
        """Of the statistic where nothing drifts; 2, the largest there is, before anything is known."""
        first, second, _ = self._traces
        return float(np.clip(2 * second / first**2, 1e-3, 2)) if first > 0 and second > 0 else 2.0

    @property
    def skewness(self) -> float:
        """Likewise."""
        _, second, third = self._traces
        least = math.sqrt(2 * self.variance)  # of as many equal directions as the variance speaks of
        return float(np.clip(math.sqrt(8) * third / second**1.5, least, _MOST_SKEW)) if second > 0 else _MOST_SKEW

    def state(self) -> Floats:
        """Four numbers."""
        return np.array([*self._traces, self._weight])

    def load(self, state: npt.NDArray[Any]) -> None:
        """Inverse of `state`."""
        self._traces, self._weight = np.array(state[:3], np.float64), float(state[3])


@dataclass(frozen=True)
class Summary:
    """All that a detector of shifts takes of a batch.

    Attributes:
        sums: (d,), of the rows.
        square: of the rows' squared norms, the sum.
        rows: how many.
        traces: `Spread.traces` of them.
        first_square: `square` of the first half of the columns, which hold the video keys.
    """

    sums: Floats
    square: float
    rows: int
    traces: Floats
    first_square: float

    @classmethod
    def of(cls, x: npt.NDArray[np.float32]) -> Summary:
        """Of a batch, (n, d)."""
        wide = x.astype(np.float64)
        first = float(np.square(wide[:, : x.shape[1] // 2]).sum())
        return cls(wide.sum(axis=0), float(np.vdot(wide, wide)), len(x), Spread.traces(wide), first)

    def halves(self) -> tuple[Summary, Summary]:
        """Of the video keys and of the text keys alone; their traces are not known."""
        half, unknown = len(self.sums) // 2, np.full(3, np.nan)
        video = Summary(self.sums[:half], self.first_square, self.rows, unknown, self.first_square)
        text = Summary(self.sums[half:], self.square - self.first_square, self.rows, unknown, 0.0)
        return video, text


def quantile(p: float, mean: float, variance: float, skewness: float) -> float:
    """What a shifted gamma variable exceeds with probability p (Wilson and Hilferty's approximation).

    Beside the chi-squares of 8 and of 1 degree of freedom, 3.27 and 10.8:

    >>> round(quantile(1e-3, 1, 2 / 8, 1.0), 2), round(quantile(1e-3, 1, 2, 2.83), 1)
    (3.29, 11.2)
    """
    z = -NormalDist().inv_cdf(p)
    cubed = max(0.0, 1 + skewness * z / 6 - skewness**2 / 36) ** 3
    return mean + math.sqrt(variance) * (2 / skewness) * (cubed - 1)


class Quiet:
    """Mean and variance of a window's scores while nothing is found, which an encoder that moves raises above theory.

    A score counts only once it is `DELAY` batches old and no change was found meanwhile: what came before an alarm is
    no quiet. Theory (mean 1, its variance) counts like 64 batches, and is the floor of both.
    """

    DELAY = 32
    _PRIOR, _HORIZON = 64.0, 512.0

    def __init__(self) -> None:
        self._sums: Floats = np.zeros(3)  # weight, sum of scores, sum of their squares
        self._waiting: list[float] = []

    def update(self, score: float, ceiling: float) -> None:
        """Take a score; beyond `ceiling` it counts as that, so that one surprise does not deafen the detector."""
        self._waiting.append(min(score, ceiling))
        if len(self._waiting) > self.DELAY:
            old = self._waiting.pop(0)
            self._sums += (1, old, old * old)
            self._sums *= min(1.0, self._HORIZON / self._sums[0])

    def drop_waiting(self) -> None:
        """A change was found: the newest scores were not quiet."""
        self._waiting.clear()

    def threshold(self, p: float, variance: float, skewness: float) -> float:
        """What a quiet score exceeds with probability p."""
        weight, total, squares = self._sums
        mean = (self._PRIOR + total) / (self._PRIOR + weight)
        spread = (self._PRIOR * (1 + variance) + squares) / (self._PRIOR + weight) - mean**2
        return quantile(p, max(1.0, mean), max(variance, spread), skewness)

    def state(self) -> Floats:
        """The sums, and the scores that wait."""
        return np.array([*self._sums, *self._waiting])

    def load(self, state: npt.NDArray[Any]) -> None:
        """Inverse of `state`."""
        self._sums, self._waiting = np.array(state[:3], np.float64), [float(x) for x in state[3:]]
