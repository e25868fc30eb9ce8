"""When which task is evaluated: the budget is kept, no task is forgotten about, leisure costs nothing."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from streamlearn.evaluator import Measured
from streamlearn.examiner import Examiner
from streamlearn.score_book import ScoreBook
from streamlearn.scoreboard import Scoreboard
from streamlearn.search import Snapshot
from tests.parts import Parts

TASKS = ["t1", "t2", "t3", "t4", "now"]


class Asker:
    """Every task takes `cost_s` of a clock that only it moves; the gate holds the thread that asks."""

    def __init__(self, cost_s: float) -> None:
        self.cost_s, self.now_s = cost_s, 0.0
        self.asked: list[str] = []
        self.forward: list[int | None] = []
        self.entered, self.gate = threading.Semaphore(0), threading.Event()
        self.gate.set()
        self.too_few: set[str] = set()

    def measure(
        self, snapshot: Snapshot, task: str, clips_seen: int, *, forward_pairs: int | None = None
    ) -> Measured | None:
        self.entered.release()
        self.gate.wait()
        self.asked.append(task)
        self.forward.append(forward_pairs)
        self.now_s += self.cost_s
        if task in self.too_few:
            return None
        hits = {("t2v", "served", 1): np.array([1.0, 0.0])}
        return Measured(task, (), {("t2v", "served"): np.array([1, 2])}, hits, {}, None, 1, clips_seen)


class World:
    """An examiner over a fake asker; `snapshot`'s last era is the current task's."""

    def __init__(self, folder: Path, ratio: float, cost_s: float) -> None:
        parts = Parts(folder)
        parts.eras.current.task = "now"
        self.snapshot = parts.publish()
        self.asker = Asker(cost_s)
        self.book = ScoreBook()
        board = Scoreboard(self.book, parts.catalog, parts.metrics)
        self.examiner = Examiner(
            self.asker, board, parts.metrics, budget_ratio=ratio, clock=lambda: self.asker.now_s
        )  # fmt: skip
        self.registry = parts.registry

    def round(self, clips_seen: int, learner_s: float, tasks: list[str] = TASKS) -> None:
        """An evaluation point, waited for, after so much work of the learner."""
        self.examiner.earn(learner_s)
        self.examiner.begin(self.snapshot, tasks, clips_seen)
        assert self.examiner.collect(None)[0]

    def end(self, task: str, clips_seen: int) -> None:
        """The end of a task, waited for."""
        self.examiner.begin_end(self.snapshot, task, clips_seen)
        assert self.examiner.collect(None)[0]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Callable[..., World]]:
    made: list[World] = []

    def make(ratio: float = 0.05, cost_s: float = 1.0) -> World:
        made.append(World(tmp_path, ratio, cost_s))
        return made[-1]

    yield make
    for one in made:
        one.asker.gate.set()
        one.examiner.close()


@pytest.mark.parametrize("cost_s", [0.01, 0.3, 4.0])
def test_evaluations_take_their_share_of_the_learners_time(world: Callable[..., World], cost_s: float) -> None:
    w = world(0.05, cost_s)
    for n in range(1, 201):
        w.round(1000 * n, 3.0)
        assert w.asker.now_s <= max(0.05 * 3.0 * n, cost_s) + 1e-6  # what the first costs nobody knows before
    spent, allowed = w.asker.now_s, 0.05 * 3.0 * 200
    # It is used, too: all but what is put by for the end of a task, or every task at every point.
    assert spent >= min(allowed - 2 * cost_s, (200 - 2) * len(TASKS) * cost_s) - 1e-6


def test_a_task_that_ends_is_asked_from_what_was_put_by_for_it(world: Callable[..., World]) -> None:
    w = world(0.05, 1.0)
    for n in range(1, 101):
        w.round(1000 * n, 3.0)
    at_points = len(w.asker.asked)
    w.end("now", 100_500)
    assert w.asker.asked[at_points:] == ["now"]
    assert w.asker.now_s <= 0.05 * 3.0 * 100


@pytest.mark.parametrize("learner_s", [15.0, 5.0, 1.0], ids=["three fourths", "a quarter", "a twentieth"])
def test_where_tasks_end_too_often_the_share_is_kept_and_past_tasks_have_their_turns(
    world: Callable[..., World], learner_s: float
) -> None:
    w = world(0.05, 1.0)
    for n in range(1, 401):
        w.round(1000 * n, learner_s)
        w.end("now", 1000 * n + 500)
        assert w.asker.now_s <= 0.05 * learner_s * n + 2.0
    assert w.asker.now_s >= 0.05 * learner_s * 400 - 2.0
    turns = Counter(w.asker.asked)
    assert all(turns[task] for task in TASKS)


def test_the_forward_transfer_is_not_asked_for_at_the_end_of_a_task(world: Callable[..., World]) -> None:
    w = world(0.05, 1.0)
    w.end("now", 500)
    w.round(1000, 100.0, ["now"])
    assert w.asker.forward == [None, 0]


def test_the_current_task_has_every_other_turn_and_the_past_ones_share_the_rest(world: Callable[..., World]) -> None:
    w = world(0.0625, 0.125)
    for n in range(-1, 81):  # until two are put by there is no second turn
        w.round(1000 * n, 2.0)  # time for one task
    assert w.asker.asked[0] == "now"
    turns = Counter(w.asker.asked)
    assert turns["now"] == 40
    assert [turns[task] for task in TASKS[:4]] == [10] * 4


def test_a_tight_budget_has_long_pauses_and_starves_nobody(world: Callable[..., World]) -> None:
    w = world(0.05, 10.0)
    for n in range(1, 1001):
        w.round(1000 * n, 2.0)  # a hundred points pay for one task
    assert set(w.asker.asked) == set(TASKS)
    assert len(w.asker.asked) == 9  # and one is put by


def test_at_leisure_every_task_is_asked_and_nothing_is_charged(world: Callable[..., World]) -> None:
    w = world(0.05, 10.0)
    w.examiner.begin(w.snapshot, TASKS, 500, leisurely=True)
    assert w.examiner.collect(None)[0]
    assert sorted(w.asker.asked) == sorted(TASKS)
    assert all(w.book.now(task, "t2v", 1, "served") == 0.5 for task in TASKS)
    w.round(1000, 401.0)
    assert len(w.asker.asked) == len(TASKS) + 1  # what the learner earned is there to be spent


def test_leisure_ends_after_the_task_in_hand_when_clips_arrive(world: Callable[..., World]) -> None:
    w = world()
    w.asker.gate.clear()
    w.examiner.begin(w.snapshot, TASKS, 500, leisurely=True)
    w.asker.entered.acquire()
    w.examiner.hurry()
    w.asker.gate.set()
    assert w.examiner.collect(None)[0]
    assert w.asker.asked == ["now"]
    w.round(1000, 10.0)  # half a second of credit, and a second owed
    assert w.asker.asked == ["now"]


def test_the_loop_never_waits_for_an_evaluation_and_nothing_is_written_before_it_is_done(
    world: Callable[..., World],
) -> None:
    w = world()
    w.asker.gate.clear()
    w.examiner.earn(100)
    w.examiner.begin(w.snapshot, TASKS, 500)
    assert w.examiner.collect() == (False, [])
    w.examiner.begin(w.snapshot, TASKS, 600)  # the first is still at it
    assert w.book.now("now", "t2v", 1, "served") is None
    w.asker.gate.set()
    w.examiner.collect(None)
    assert w.book.now("now", "t2v", 1, "served") == 0.5
    assert len(w.asker.asked) == len(set(w.asker.asked))


def test_a_task_whose_held_out_clips_have_gone_says_so(world: Callable[..., World]) -> None:
    w = world(1.0)
    w.round(1000, 100.0)
    assert w.registry.get_sample_value("streamlearn_eval_pairs", {"task": "t2"}) == 2
    w.asker.too_few = {"t2"}
    w.round(2000, 100.0)
    assert w.registry.get_sample_value("streamlearn_eval_pairs", {"task": "t2"}) is None
    assert w.registry.get_sample_value("streamlearn_eval_pairs", {"task": "t3"}) == 2
    w.examiner.scoreboard.restart()  # what a restart shows, too
    assert w.registry.get_sample_value("streamlearn_eval_pairs", {"task": "t2"}) is None
    assert w.registry.get_sample_value("streamlearn_eval_pairs", {"task": "t3"}) == 2


@contextmanager
def failing(asker: Asker) -> Iterator[None]:
    def measure(*_: object, **__: object) -> None:
        raise OSError("the disk is gone")

    asker.measure = measure  # type: ignore[method-assign,assignment]
    yield


def test_an_evaluation_that_fails_is_not_silent(world: Callable[..., World]) -> None:
    w = world()
    with failing(w.asker), pytest.raises(OSError, match="the disk is gone"):
        w.round(1000, 1.0)
