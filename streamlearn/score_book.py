"""What recall over time says: forgetting, transfer, the worst that a user met. Numbers in, numbers out.

It knows nothing of encoders, indexes, clocks or metrics. A "series" is one recall watched over time: task,
direction (text to video or back), k and view (`served`, `learner` ...). Times are evaluations, in order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from streamlearn.errors import StateError


class Series(NamedTuple):
    """Names one recall watched over time."""

    task: str
    direction: str
    k: int
    view: str


@dataclass(slots=True)
class _Course:
    """What the definitions need of a series' history.

    `learned` and `lowest` are None until the task is closed; `lowest` runs from `learned` on. `anew`: the next value
    is the first of another course.
    """

    now: float
    best: float
    learned: float | None = None
    lowest: float | None = None
    anew: bool = False


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
        if course.anew:
            course = self._courses[series] = _Course(now=value, best=value)
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
        """A task has another name, that no task had."""

        def named(series: Series) -> Series:
            return series._replace(task=new) if series.task == old else series

        self._courses = {named(series): course for series, course in self._courses.items()}
        self._forward = {named(series): value for series, value in self._forward.items()}
        if old in self._past:
            self._past.discard(old)
            self._past.add(new)

    def merge(self, old: str, into: str) -> None:
        """A task is part of another, which is asked other questions from now on.

        No value from before may be compared with those to come: everything begins anew with the next one, which is
        the best so far and, of a past task, the value when learned. What was measured last stands until then. Forward
        transfer is to be measured anew, with the questions of both.
        """
        self.drop_task(old)
        for course in self._of(into):
            course.anew = True
        self._forward = {series: value for series, value in self._forward.items() if series.task != into}

    def drop_task(self, task: str) -> None:
        """There is no such task, and never was: its clips are those of another that goes on, its best with it."""
        self._courses = {series: course for series, course in self._courses.items() if series.task != task}
        self._forward = {series: value for series, value in self._forward.items() if series.task != task}
        self._past.discard(task)

    def now(self, task: str, direction: str, k: int, view: str) -> float | None:
        """The last recorded value; None where there is none."""
        course = self._courses.get(Series(task, direction, k, view))
        return None if course is None else course.now

    def best(self, task: str, direction: str, k: int, view: str) -> float | None:
        """The best recorded value so far; None where there is none."""
        course = self._courses.get(Series(task, direction, k, view))
        return None if course is None else course.best

    def is_past(self, task: str) -> bool:
        """Whether the task was closed and not opened again: transfer and the any-time minimum are of such."""
        return task in self._past

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

    def all_forward_pairs(self, direction: str, k: int, view: str) -> int:
        """Held-out pairs behind `forward_transfer`, of all its tasks."""
        return sum(pairs for series, (_, pairs) in self._forward.items() if series[1:] == (direction, k, view))

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
