"""When which task is evaluated: a slice at a time, beside the learner, within a share of the learner's time.

The time of evaluations is bought with the learner's: each second that it works earns `evaluate.budget_ratio` seconds,
and a task is asked when there is what the last one cost, and as much again put by for the end of the current task,
since forgetting is measured from there. Where tasks end more often than the budget can pay, some ends are not
asked, so that past tasks have their turns. Those go to the current task and to the past one that has waited longest,
one each: the more tasks, the less often an old one is asked, at the same cost. While the source is silent nobody waits
for the time, and every task is asked.

Tasks are asked in a thread of this class, on a published snapshot. All methods belong to the pipeline's thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Protocol

from streamlearn.evaluator import Measured
from streamlearn.metrics import Metrics
from streamlearn.scoreboard import Scoreboard
from streamlearn.search import Snapshot

_MOST_ENDS = 3  # asked one after the other, where the budget cannot pay for another turn as well


class Asks(Protocol):
    """What an `Evaluator` does."""

    def measure(
        self, snapshot: Snapshot, task: str, clips_seen: int, *, forward_pairs: int | None = None
    ) -> Measured | None:
        """Ask one task; None where it has too few pairs."""
        ...


@dataclass(frozen=True)
class _Turn:
    task: str
    measured: Measured | None
    seconds: float
    charged: bool
    at_end: bool


class Examiner:
    """Chooses, asks in the background, and has the scoreboard write it down.

    Args:
        evaluator: asks one task.
        scoreboard: written to by `collect`.
        budget_ratio: seconds of evaluation a second of learning.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        evaluator: Asks,
        scoreboard: Scoreboard,
        metrics: Metrics,
        *,
        budget_ratio: float,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._evaluator, self.scoreboard, self._metrics = evaluator, scoreboard, metrics
        self._ratio, self._clock = budget_ratio, clock
        self._credit_s = 0.0
        self._task_s = 0.0  # what a task costs, as far as is known
        self._ends = 0  # that were asked since another turn
        self._hurry = threading.Event()  # set: end after the task that is being asked, unless the budget has more
        self._asked_at: dict[str, int] = {}  # clips seen at a task's last turn
        self._current_had_turn = False
        self._thread = ThreadPoolExecutor(1, "evaluate")
        self._running: Future[list[_Turn]] | None = None
        self._last_s = clock()
        metrics.eval_age_seconds.set_function(lambda: clock() - self._last_s)

    def earn(self, learner_s: float) -> None:
        """The learner has worked for so long."""
        self._credit_s += self._ratio * learner_s

    @property
    def affordable(self) -> bool:
        """Whether the budget has time for another task, beside the end of the current one."""
        return self._spare_s > self._task_s

    @property
    def idle(self) -> bool:
        """Whether nothing is being measured, or waits for `collect`."""
        return self._running is None

    @property
    def _spare_s(self) -> float:
        return self._credit_s - (0.0 if self._ends else self._task_s)

    def begin(
        self,
        snapshot: Snapshot,
        tasks: Sequence[str],
        clips_seen: int,
        *,
        leisurely: bool = False,
    ) -> None:
        """Ask some tasks, if the budget has time for one. Returns at once.

        While earlier ones are still being asked this does nothing.

        Args:
            snapshot: what they are asked of.
            tasks: their names.
            clips_seen: the time of it.
            leisurely: ask all; nobody waits for the time.
        """
        if self._running is not None or not tasks or not (self.affordable or leisurely):
            return
        (self._hurry.clear if leisurely else self._hurry.set)()
        order = self._order(tasks, snapshot.eras[-1].task)
        pairs = {task: self.scoreboard.book.forward_pairs(task) for task in order}
        self._running = self._thread.submit(self._ask, snapshot, order, clips_seen, pairs, self._spare_s)

    def begin_end(self, snapshot: Snapshot, task: str, clips_seen: int) -> None:
        """Ask a task that ends, where the budget can pay for it. Returns at once; nothing may be being asked.

        Its forward transfer waits for another turn.
        """
        if self._credit_s >= (2 * self._task_s if self._ends >= _MOST_ENDS else 0.0):
            self._hurry.set()
            self._running = self._thread.submit(self._ask, snapshot, [task], clips_seen, {}, 0.0, at_end=True)

    def collect(self, wait_s: float | None = 0.0) -> tuple[bool, list[Measured]]:
        """Write down what was asked, once it is done.

        Args:
            wait_s: how long to wait for that; None: as long as it takes.

        Returns:
            Whether nothing is being asked now; and what was written down.
        """
        running = self._running
        if running is None:
            return True, []
        wait([running], wait_s)
        if not running.done():
            return False, []
        self._running = None
        turns = running.result()
        self._credit_s -= _charged_s(turns)
        self._task_s = max(turn.seconds for turn in turns)
        self._ends = self._ends + 1 if turns[-1].at_end else 0
        self._last_s = self._clock()
        found = [turn.measured for turn in turns if turn.measured is not None]
        for turn in turns:
            self._metrics.stage_seconds.labels("evaluate").observe(turn.seconds)
            if turn.measured is None:
                self.scoreboard.drop(turn.task)
        self.scoreboard.record(found)
        return True, found

    def hurry(self) -> None:
        """Leisure is over: what is being asked ends after the present task, unless the budget has more."""
        self._hurry.set()

    def close(self) -> None:
        """End after the present task; what was not collected is lost."""
        self._hurry.set()
        self._thread.shutdown()

    def _order(self, tasks: Sequence[str], current: str) -> list[str]:
        past = sorted((task for task in tasks if task != current), key=lambda task: self._asked_at.get(task, -1))
        if current not in tasks:
            return past
        return [*past[:1], current, *past[1:]] if self._current_had_turn else [current, *past]

    def _ask(
        self,
        snapshot: Snapshot,
        order: Sequence[str],
        clips_seen: int,
        pairs: Mapping[str, int],
        spare_s: float,
        *,
        at_end: bool = False,
    ) -> list[_Turn]:
        turns: list[_Turn] = []
        for task in order:
            start = self._clock()
            measured = self._evaluator.measure(snapshot, task, clips_seen, forward_pairs=pairs.get(task))
            turns.append(_Turn(task, measured, self._clock() - start, self._hurry.is_set(), at_end))
            # Only this thread writes these two while tasks are being asked.
            self._asked_at[task], self._current_had_turn = clips_seen, task == snapshot.eras[-1].task
            if self._hurry.is_set() and _charged_s(turns) + turns[-1].seconds >= spare_s:
                break
        return turns


def _charged_s(turns: Sequence[_Turn]) -> float:
    return sum(turn.seconds for turn in turns if turn.charged)
