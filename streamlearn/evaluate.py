"""The arithmetic of recall and forgetting: arrays in, numbers out.

It knows nothing of encoders, indexes, clocks or metrics. A "series" is one recall watched over time: task,
direction (text to video or back), k and view (design: `served` or `learner`). Times are evaluations, in order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from streamlearn.errors import StateError

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
    drawn = np.random.default_rng(0).integers(0, queries, (_RESAMPLES, queries))
    drawn += queries * np.arange(_RESAMPLES)[:, None]
    times = np.bincount(drawn.ravel(), minlength=_RESAMPLES * queries).reshape(_RESAMPLES, queries)
    low, high = np.percentile(times @ values / queries, [2.5, 97.5], axis=0)
    return low, high


class Series(NamedTuple):
    """Names one recall watched over time."""

    task: str
    direction: str
    k: int
    view: str


@dataclass(slots=True)
class _Course:
    """What the definitions need of a series' history.

    `learned` and `lowest` are None until the task is closed; `lowest` runs from `learned` on.
    """

    now: float
    best: float
    learned: float | None = None
    lowest: float | None = None


class ScoreBook:
    """Recalls of every task over time, and what they say about forgetting.

    It is the task x time matrix, of which it keeps for each series only what the definitions ask for: the value
    now, the best so far, the value when the task was learned and the lowest since. The whole matrix belongs to whoever
    stores scores; the book stays small however long the stream.

    A task is *current* until `close_task` and *past* from then on. The value when learned is its last value
    while current; where it was never evaluated while current, its first afterwards.

    >>> book = ScoreBook()
    >>> book.record("t1", "text_to_video", 1, "served", 0.8)
    >>> book.close_task("t1")
    >>> book.record("t1", "text_to_video", 1, "served", 0.6)
    >>> round(book.forgetting("t1", "text_to_video", 1, "served"), 3)
    0.25
    >>> round(book.backward_transfer("text_to_video", 1, "served"), 3)
    -0.2
    """

    def __init__(self) -> None:
        self._courses: dict[Series, _Course] = {}
        self._past: set[str] = set()
        self._forward: dict[Series, tuple[float, int]] = {}

    def cells(self) -> tuple[Series, ...]:
        """Every series with a value, in the order of their first values."""
        return tuple(self._courses)

    def record(self, task: str, direction: str, k: int, view: str, value: float) -> None:
        """Take one evaluation's value of one series.

        Raises:
            ValueError: the value is not a ratio.
        """
        if not 0 <= value <= 1:
            raise ValueError(f"recall of {task!r} is {value}, not in 0..1")
        series = Series(task, direction, k, view)
        course = self._courses.setdefault(series, _Course(now=value, best=value))
        course.now, course.best = value, max(course.best, value)
        if task in self._past:
            _freeze(course)

    def close_task(self, task: str) -> None:
        """The task is past: its values as they stand are the learned ones. Closing a past task changes nothing."""
        if task in self._past:
            return
        self._past.add(task)
        for course in self._of(task):
            _freeze(course)

    def open_task(self, task: str) -> None:
        """The task is current again, as when its domain returns: it will be learned anew. Its best value stays."""
        self._past.discard(task)
        for course in self._of(task):
            course.learned = course.lowest = None

    def rename(self, old: str, new: str) -> None:
        """A task has another name; where that has values of its own, they stay, and the old one's are dropped."""
        for series in [series for series in self._courses if series.task == old]:
            course = self._courses.pop(series)
            self._courses.setdefault(series._replace(task=new), course)
        if old in self._past:
            self._past.discard(old)
            self._past.add(new)

    def now(self, task: str, direction: str, k: int, view: str) -> float | None:
        """The last recorded value; None where there is none."""
        course = self._courses.get(Series(task, direction, k, view))
        return None if course is None else course.now

    def forgetting(self, task: str, direction: str, k: int, view: str) -> float | None:
        """Share of the best recall so far that is lost now: (best so far - now) / best so far, in 0..1.

        After Chaudhry et al. 2018 ("Riemannian walk for incremental learning"), with two changes. Ours is
        relative to the best, so that hard and easy tasks can share one alert; theirs is the difference. Our "so
        far" includes now, so that it is never negative; theirs ends before. It is 0 where the best is 0, and None
        where nothing was recorded.
        """
        course = self._courses.get(Series(task, direction, k, view))
        if course is None:
            return None
        return (course.best - course.now) / course.best if course.best else 0.0

    def backward_transfer(self, direction: str, k: int, view: str) -> float | None:
        """Mean over past tasks of the value now - the value when learned; None without a past task.

        Negative where learning later tasks hurt earlier ones. Lopez-Paz & Ranzato 2017 ("Gradient episodic memory
        for continual learning"), whose R[T, i] is now and R[i, i] the value when learned.
        """
        return _mean([c.now - c.learned for c in self._where(direction, k, view) if c.learned is not None])

    def record_forward(self, task: str, direction: str, k: int, view: str, value: float, pairs: int) -> None:
        """What the model knew of a task before it began: its recall then - that of chance. The last word counts."""
        self._forward[Series(task, direction, k, view)] = value, pairs

    def forward_pairs(self, task: str) -> int:
        """Held-out pairs behind the task's forward transfer; 0 where none was recorded."""
        return max((pairs for series, (_, pairs) in self._forward.items() if series.task == task), default=0)

    def forward_transfer(self, direction: str, k: int, view: str) -> float | None:
        """Mean over tasks but the first of the recall before the task began - that of chance; None without one.

        Lopez-Paz & Ranzato 2017, whose R[i - 1, i] is the recall and b[i], of an untrained model, the chance.
        """
        return _mean([value for series, (value, _) in self._forward.items() if series[1:] == (direction, k, view)])

    def anytime_minimum(self, direction: str, k: int, view: str) -> float | None:
        """Mean over past tasks of the lowest value since learned, that one included; None without a past task.

        The worst that a user met. After min-ACC of De Lange et al. 2023 ("Continual evaluation for lifelong
        learning: identifying the stability gap"), which leaves out the value when learned.
        """
        return _mean([c.lowest for c in self._where(direction, k, view) if c.lowest is not None])

    def harmonic_mean(self, direction: str, k: int, view: str) -> float | None:
        """Harmonic mean over the tasks of the value now; None without a task, 0 where any of them is at 0.

        Unlike the mean, it is not bought by one task that is served very well.
        """
        values = [c.now for c in self._where(direction, k, view)]
        if not values:
            return None
        return len(values) / sum(1 / v for v in values) if all(values) else 0.0

    def state_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "past": sorted(self._past),
            "series": [[*series, asdict(course)] for series, course in self._courses.items()],
            "forward": [[*series, *value] for series, value in self._forward.items()],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the book that `state_dict` was taken of; unchanged where that fails.

        Raises:
            StateError: it is not such a state.
        """
        try:
            past = set(state["past"])
            courses = {
                Series(task, direction, k, view): _Course(**course)
                for task, direction, k, view, course in state["series"]
            }
            forward = {Series(*of): (float(value), int(n)) for *of, value, n in state.get("forward", [])}
        except (KeyError, TypeError, ValueError) as error:
            raise StateError(f"the score book cannot be read: {error!r}") from error
        self._past, self._courses, self._forward = past, courses, forward

    def _of(self, task: str) -> Iterator[_Course]:
        return (course for series, course in self._courses.items() if series.task == task)

    def _where(self, direction: str, k: int, view: str) -> Iterator[_Course]:
        return (course for series, course in self._courses.items() if series[1:] == (direction, k, view))


def _freeze(course: _Course) -> None:
    if course.learned is None:
        course.learned = course.lowest = course.now
    elif course.lowest is not None:
        course.lowest = min(course.lowest, course.now)


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
