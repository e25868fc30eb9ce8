from __future__ import annotations

import json
from dataclasses import FrozenInstanceError
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamlearn.detector import UNMEASURED, Measured, NoDetector
from streamlearn.drift import MeanShift
from streamlearn.errors import StateError, TaskError
from streamlearn.heldout import is_heldout, split_of
from streamlearn.records import Position
from streamlearn.tasks import Boundaries, Boundary, Cause, Task, TaskLog

repeatable = settings(derandomize=True, deadline=None, database=None)
HERE = Position("clips", "0", 7)
KEYS = np.eye(4, dtype=np.float32)


class ScriptedDetector(NoDetector):
    """Alarms at the given updates, counted from 1, with an onset of 3 batches."""

    def __init__(self, *alarms: int) -> None:
        self._alarms, self._updates, self.restarts = alarms, 0, 0

    def update(self, x: np.ndarray, measured: Measured = UNMEASURED) -> None:
        self._updates += 1
        self.drift_detected = self._updates in self._alarms
        self.onset_batches_ago = 3 * self.drift_detected
        self.score = 9.0 if self.drift_detected else 1.0

    def restart(self) -> None:
        self.restarts += 1


def begin(log: TaskLog, name: str | None = None, *, cause: Cause = "drift", at: int = 0) -> Task:
    era = log.tasks[-1].era + 1 if log.tasks else 0
    return log.start(Boundary(cause, name=name), step=at, clips=32 * at, position=HERE, era=era)


def test_which_clips_are_held_out_is_pinned_forever() -> None:
    """A change here moves clips between training and evaluation in every state directory there is."""
    assert [i for i in range(200) if is_heldout(f"clip-{i}", 0.05)] == [44, 48, 54, 65, 85, 95, 102, 142, 147, 176, 181]
    assert [is_heldout(x, 0.5) for x in ("", "é", "日本", "\ud800")] == [False, False, False, True]


@pytest.mark.parametrize("ratio", [0.01, 0.05, 0.3])
def test_the_share_held_out_is_the_ratio(ratio: float) -> None:
    share = np.mean([is_heldout(f"clip-{i}", ratio) for i in range(100_000)])
    assert abs(share - ratio) <= 4 * np.sqrt(ratio * (1 - ratio) / 100_000)


@repeatable
@given(st.text(), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_ratio_holds_out_what_a_smaller_one_does(video_id: str, a: float, b: float) -> None:
    assert is_heldout(video_id, min(a, b)) <= is_heldout(video_id, max(a, b))
    assert not is_heldout(video_id, 0)
    assert is_heldout(video_id, 1)


def test_the_message_decides_the_split_before_the_hash_does() -> None:
    assert [split_of(s, "clip-44", 0.05) for s in ("auto", "train", "heldout")] == ["heldout", "train", "heldout"]
    assert [split_of(s, "clip-45", 0.05) for s in ("auto", "train", "heldout")] == ["train", "train", "heldout"]
    with pytest.raises(ValueError, match="split = 'test'"):
        split_of("test", "clip-44", 0.05)


def test_a_log_keeps_every_fact_of_a_boundary_and_ends_the_task_before() -> None:
    log = TaskLog()
    assert log.current is None
    log.start(Boundary("start"), step=0, clips=0, position=None, era=1)
    second = log.start(Boundary("drift", 5.5, 2), step=40, clips=1400, position=HERE, era=2)
    assert log.tasks == (
        Task("t1", 1, "start", None, 0, 0, 0, None, ended_step=40, ended_clips=1400),
        Task("t2", 2, "drift", 5.5, 2, 40, 1400, HERE),
    )
    assert log.current == second
    with pytest.raises(FrozenInstanceError):
        second.name = "other"


def test_starting_the_current_task_by_its_name_changes_nothing() -> None:
    log = TaskLog()
    begin(log, "night")
    before = log.tasks
    assert log.start(Boundary("operator", name="night"), step=9, clips=9, position=HERE, era=5) == before[0]
    assert log.tasks == before


def test_returning_to_a_name_opens_it_again_in_a_new_era() -> None:
    log = TaskLog()
    for at, name in enumerate(["night", "day", "night"]):
        begin(log, name, cause="operator", at=at)
    assert [(t.name, t.era) for t in log.tasks] == [("night", 0), ("day", 1), ("night", 2)]
    assert log.names() == ("night", "day")
    assert log.current == log.tasks[2]


def test_free_names_avoid_those_an_operator_took() -> None:
    log = TaskLog()
    names = [begin(log, name, at=i).name for i, name in enumerate([None, "t2", None, "t5", None, None])]
    assert names == ["t1", "t2", "t3", "t5", "t6", "t7"]


@pytest.mark.parametrize("change", ["merge", "rename"])
def test_a_name_given_by_itself_never_comes_back(change: str) -> None:
    log = TaskLog()
    for at in range(5):
        begin(log, at=at)
    log.rename("t5", "t2" if change == "merge" else "night", merge=change == "merge")
    log = TaskLog.from_state(json.loads(json.dumps(log.state_dict())))
    assert log.free_name() == "t6"
    given = []
    for at in range(6, 9):  # as where each new task is soon known to be an old one
        given.append(begin(log, at=at).name)
        log.rename(given[-1], "t1", merge=True)
    assert given == ["t6", "t7", "t8"]


def test_a_log_from_before_names_were_counted_opens_and_gives_none_that_it_may_have_given() -> None:
    log = TaskLog()
    for at in range(5):
        begin(log, at=at)
    state = log.state_dict()
    del state["retired"]
    state["tasks"][4]["name"] = "t2"  # merged by the version of then
    assert TaskLog.from_state(state).free_name() == "t6"


def test_blanks_around_a_name_are_not_part_of_it() -> None:
    log = TaskLog()
    assert begin(log, " nacht ").name == "nacht"
    assert begin(log, "nacht\t", at=1) == log.tasks[0]  # the current one
    begin(log, "day", at=2)
    assert log.rename("day", " Tag ", merge=False) == "Tag"
    assert log.names() == ("nacht", "Tag")
    for name in (" ", "\u00a0"):
        with pytest.raises(TaskError, match="1 to 64 printable"):
            log.check(name)
    with pytest.raises(TaskError, match="exists already"):
        log.rename("nacht", "Tag ", merge=False)


@pytest.mark.parametrize("name", ["", "x" * 65, "a\nb", "nul\0", "\ud800", "\u200b"])
def test_names_that_would_not_print_as_a_label_are_refused(name: str) -> None:
    log = TaskLog()
    with pytest.raises(TaskError, match="1 to 64 printable"):
        begin(log, name)
    assert log.tasks == ()


@pytest.mark.parametrize("name", ["a", "x" * 64, "Kamera 7, Nacht", "日本"])
def test_printable_names_are_taken_as_they_are(name: str) -> None:
    assert begin(TaskLog(), name).name == name


def test_one_name_too_many_is_refused_for_operators_and_reused_for_drift() -> None:
    log = TaskLog(max_tasks=2)
    begin(log, at=0)
    begin(log, at=1)
    with pytest.raises(TaskError, match="one more than the 2 allowed"):
        begin(log, "third", cause="operator", at=2)
    begin(log, at=3)
    begin(log, "t1", cause="operator", at=4)
    assert [(t.name, t.era) for t in log.tasks] == [("t1", 0), ("t2", 1), ("t2", 2), ("t1", 3)]


def test_a_closed_log_has_no_current_task_and_goes_on() -> None:
    log = TaskLog()
    assert log.close(step=0, clips=0) is None
    begin(log, at=1)
    assert log.close(step=5, clips=160) == log.tasks[0]
    assert log.current is None
    assert begin(log, at=6).name == "t2"
    assert log.tasks[0].ended_step == 5


@pytest.mark.parametrize(("step", "clips", "era"), [(9, 400, 2), (10, 300, 2), (10, 400, 1)])
def test_steps_clips_and_eras_never_run_backwards(step: int, clips: int, era: int) -> None:
    log = TaskLog()
    begin(log, at=0)
    log.start(Boundary("drift"), step=10, clips=320, position=HERE, era=1)
    with pytest.raises(ValueError, match=r"before|after"):
        log.start(Boundary("drift"), step=step, clips=clips, position=HERE, era=era)
    assert len(log.tasks) == 2


names = st.one_of(st.none(), st.sampled_from(["t1", "t2", "night", "day", "", "x" * 99]))


@repeatable
@given(st.lists(st.tuples(names, st.sampled_from(["start", "close", "save"]), st.integers(0, 3))))
def test_whatever_happens_the_log_stays_whole(events: list[tuple[str | None, str, int]]) -> None:
    log, step = TaskLog(max_tasks=4), 0
    for name, event, wait in events:
        step += wait
        if event == "save":
            before = log.tasks
            log = TaskLog.from_state(json.loads(json.dumps(log.state_dict())), max_tasks=4)
            assert log.tasks == before
        elif event == "close":
            log.close(step=step, clips=32 * step)
        else:
            try:
                task = begin(log, name, at=step)
            except TaskError:
                continue
            assert task == log.current
            assert name in (None, task.name)
    tasks = log.tasks
    assert len(log.names()) <= 4
    assert [t.era for t in tasks] == list(range(len(tasks)))
    assert all(t.ended_step is not None for t in tasks[:-1])
    assert all(a.ended_step is not None and a.ended_step <= b.started_step for a, b in pairwise(tasks))
    assert all(t.ended_step is None or t.started_step <= t.ended_step for t in tasks)
    assert log.current in (None, tasks[-1] if tasks else None)


def test_a_damaged_log_is_refused() -> None:
    for damaged in ({}, {"tasks": [{"name": "t1"}]}, {"tasks": [{"position": None, "surprise": 1}]}, {"tasks": None}):
        with pytest.raises(StateError, match="task log"):
            TaskLog.from_state(damaged)


def test_the_first_batch_starts_a_task_under_the_name_it_carries() -> None:
    boundaries = Boundaries(ScriptedDetector())
    assert boundaries.announced(None, current=None) == Boundary("start")
    assert boundaries.announced("night", current=None) == Boundary("start", name="night")


def test_an_operators_boundary_is_announced_once_and_restarts_the_detector() -> None:
    detector = ScriptedDetector()
    boundaries = Boundaries(detector)
    assert boundaries.announced("day", current="night") == Boundary("operator", 1.0, name="day")
    assert detector.restarts == 1
    assert boundaries.announced("day", current="day") is None
    assert boundaries.announced(None, current="day") is None
    assert detector.restarts == 1


def test_drift_is_reported_with_its_score_and_onset() -> None:
    boundaries = Boundaries(ScriptedDetector(2))
    assert [boundaries.update(KEYS) for _ in range(3)] == [None, Boundary("drift", 9.0, 3), None]


def test_an_explicit_task_rules_out_drift() -> None:
    boundaries = Boundaries(ScriptedDetector(1, 2))
    assert boundaries.update(KEYS, explicit_task="night") is None
    assert boundaries.update(KEYS) == Boundary("drift", 9.0, 3)


def test_the_change_an_operator_announced_is_not_found_again_by_the_detector() -> None:
    rng = np.random.default_rng(0)
    log, boundaries = TaskLog(), Boundaries(MeanShift())
    for step in range(160):
        explicit = "second" if step == 40 else None
        current = log.current.name if log.current else None
        keys = rng.normal(size=(32, 64)).astype(np.float32) + (0 if step < 40 else 1 if step < 120 else 2)
        for boundary in (
            boundaries.announced(explicit, current=current),
            boundaries.update(keys, explicit_task=explicit),
        ):
            if boundary:
                began = step + (boundary.cause == "drift") - boundary.onset_steps_ago
                log.start(boundary, step=began, clips=32 * step, position=None, era=len(log.tasks))
    assert [(t.name, t.cause, t.started_step) for t in log.tasks] == [
        ("t1", "start", 0),
        ("second", "operator", 40),
        ("t3", "drift", 120),
    ]
