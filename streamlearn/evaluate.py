"""The arithmetic of one evaluation: ranks, recall and its interval. Arrays in, numbers out.

It knows nothing of encoders, indexes, clocks or metrics, and keeps nothing: what a recall was before is in
`streamlearn.score_book`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Ranks = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_RESAMPLES = 1000


def ranks(scores: npt.NDArray[np.floating[Any]], targets: npt.NDArray[np.integer[Any]]) -> Ranks:
    """Rank of the right answer of each query, 1 the best.

    The rank is 1 + the candidates that score higher + half of those that score the same, rounded up. So a model
    that scores everything alike ranks in the middle of the gallery, as chance does, and never first by the order of
    the rows. A score that is not a number counts against the query: such a target is last.

    Shape:
        scores: (q, n), higher is better.
        targets: (q,), columns of `scores`.
        returns: (q,).

    Raises:
        ValueError: the shapes do not fit, or a target is not a column.

    >>> ranks(np.array([[0.9, 0.1, 0.3], [0.5, 0.5, 0.5]]), np.array([2, 0]))
    array([2, 2])
    """
    if scores.ndim != 2 or targets.shape != scores.shape[:1]:
        raise ValueError(f"scores of shape {scores.shape} do not fit targets of shape {targets.shape}")
    if targets.size and not (targets.min() >= 0 and targets.max() < scores.shape[1]):
        raise ValueError(f"targets must be columns, 0..{scores.shape[1] - 1}")
    rows = np.arange(len(targets))
    own = scores[rows, targets][:, None]  # (q, 1)
    ahead = ~(scores <= own)  # (q, n): higher, or not comparable
    tied = scores == own  # (q, n)
    ahead[rows, targets] = tied[rows, targets] = False
    rank: Ranks = 1 + ahead.sum(axis=1, dtype=np.int64) + (tied.sum(axis=1, dtype=np.int64) + 1) // 2
    return rank


def recall_at(ranks: Ranks, k: int) -> float:
    """Share of the queries whose right answer is among the first k.

    Raises:
        ValueError: there are no ranks.

    >>> recall_at(np.array([1, 3, 7, 20]), 5)
    0.5
    """
    if not len(ranks):
        raise ValueError("recall of no queries is not defined")
    return float(np.mean(ranks <= k))


def median_rank(ranks: Ranks) -> float:
    """Median of the ranks; of an even number of them, the mean of the middle two.

    Raises:
        ValueError: there are no ranks.
    """
    if not len(ranks):
        raise ValueError("median rank of no queries is not defined")
    return float(np.median(ranks))


def hits_in_pool(ranks: Ranks, k: int, *, candidates: int, pool: int) -> Floats:
    """The chance of each query that its answer is among the first k, were only `pool` of the candidates there.

    The answer and pool - 1 others, drawn at random: of the rank - 1 that are ahead, a hypergeometric number is drawn.
    So recall over years can be compared though more and more clips compete for the same k places.

    Shape:
        ranks: (q,), among `candidates`; greater ones are not found in any pool.
        returns: (q,).

    Raises:
        ValueError: the pool is larger than what it is drawn from.

    >>> hits_in_pool(np.array([1, 2, 101]), 1, candidates=101, pool=51).round(2)
    array([1. , 0.5, 0. ])
    """
    if not 1 <= pool <= candidates:
        raise ValueError(f"a pool of {pool} cannot be drawn from {candidates} candidates")
    ahead, drawn = np.minimum(ranks, candidates)[:, None] - 1, np.arange(min(k, pool))  # (q, 1), (k,)
    behind = candidates - 1 - ahead
    logs = _log_choose(ahead, drawn) + _log_choose(behind, pool - 1 - drawn) - _log_choose(candidates - 1, pool - 1)
    hits: Floats = np.where(ranks <= candidates, np.exp(logs).sum(axis=1), 0.0)
    return np.minimum(hits, 1.0)


def _log_choose(n: npt.ArrayLike, k: npt.ArrayLike) -> Floats:
    n, k = np.broadcast_arrays(np.asarray(n, np.float64), np.asarray(k, np.float64))
    possible = (k >= 0) & (k <= n)
    gamma = np.vectorize(math.lgamma, otypes=[np.float64])
    inside = np.where(possible, k, 0.0)
    return np.where(possible, gamma(n + 1) - gamma(inside + 1) - gamma(n - inside + 1), -np.inf)


def bootstrap_intervals(values: npt.NDArray[np.floating[Any]]) -> tuple[Floats, Floats]:
    """The 95 % percentile intervals of means, by resampling the queries 1,000 times with a fixed seed.

    Efron 1979 ("Bootstrap methods: another look at the jackknife"). The same queries are drawn for every column. Where
    all values are equal the interval has no width: with few queries that is no certainty.

    Shape:
        values: (q, m), q at least 1.
        returns: lower and upper bounds, (m,) each.
    """
    queries = len(values)
    drawn = _resamples(queries)
    drawn += queries * np.arange(_RESAMPLES)[:, None]
    times = np.bincount(drawn.ravel(), minlength=_RESAMPLES * queries).reshape(_RESAMPLES, queries)
    low, high = np.percentile(times @ values / queries, [2.5, 97.5], axis=0)
    return low, high


def median_rank_interval(ranks: Ranks) -> tuple[float, float]:
    """The 95 % percentile interval of the median rank, of the same resamples as `bootstrap_intervals`.

    Shape:
        ranks: (q,), q at least 1.
        returns: lower and upper bound.
    """
    low, high = np.percentile(np.median(ranks[_resamples(len(ranks))], axis=1), [2.5, 97.5])
    return float(low), float(high)


def _resamples(queries: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng(0).integers(0, queries, (_RESAMPLES, queries))
