from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from streamlearn.frozen_clips import FrozenClips, frame_of
from streamlearn.judge import Judge
from streamlearn.records import Vectors
from streamlearn.settings import ModelSettings
from streamlearn.tasks import Boundary
from streamlearn.warmup import build_towers
from tests.parts import Parts
from tests.test_drift import World


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    return Parts(tmp_path, towers=build_towers(ModelSettings(), 0))


def judge_of(parts: Parts, **settings: bool) -> Judge:
    frozen = build_towers(ModelSettings(), 0).frozen_copy()
    return Judge(
        FrozenClips(frozen, parts.catalog, parts.frames, parts.eras), frame=frame_of(frozen), batch_size=16,
        clips_per_false_boundary=30_000, **{"revisits": True, **settings},
    )  # fmt: skip


def visit(parts: Parts, domain: str, batches: int) -> None:
    for _ in range(batches):
        parts.learn(16, domain)


def test_a_boundary_without_a_change_is_refused_and_one_with_it_is_not(parts: Parts) -> None:
    judge = judge_of(parts)
    visit(parts, "studio", 8)
    refused = judge.judge(Boundary("drift", 9.0, 3), "t1", parts.learner.steps)
    assert refused.boundary is None
    assert refused.shift is not None
    assert refused.limit is not None
    assert refused.shift < refused.limit
    visit(parts, "reef", 3)
    verdict = judge.judge(Boundary("drift", 9.0, 3), "t1", parts.learner.steps)
    assert verdict.boundary is not None
    assert verdict.boundary.onset_steps_ago == 3
    assert verdict.boundary.name is None
    assert verdict.boundary.shift == verdict.shift


@pytest.mark.slow
@pytest.mark.parametrize(("shown", "said"), [("studio", "reef"), ("reef", "studio")])
def test_a_change_of_captions_alone_or_of_pictures_alone_is_one(parts: Parts, shown: str, said: str) -> None:
    judge = judge_of(parts)
    for domain, spoken, steps in (("studio", "studio", 8), (shown, said, 3)):
        for _ in range(steps):
            parts.learn(16, domain, said=spoken)
    verdict = judge.judge(Boundary("drift", 9.0, 3), "t1", parts.learner.steps)
    assert verdict.boundary is not None
    assert verdict.boundary.name is None


@pytest.mark.slow
def test_a_task_that_returns_gets_its_name_back_unless_switched_off(parts: Parts) -> None:
    judges = judge_of(parts), judge_of(parts, revisits=False)
    for task, domain in (("t1", "studio"), ("t2", "reef"), ("t3", "night")):
        visit(parts, domain, 6)
        for judge in judges:
            judge.close(task, parts.learner.steps)
        parts.boundary(f"{task}+")
    visit(parts, "paper", 6)
    visit(parts, "reef", 3)
    verdicts = [judge.judge(Boundary("drift", 9.0, 3), "t4", parts.learner.steps) for judge in judges]
    assert [v.boundary.name if v.boundary else "refused" for v in verdicts] == ["t2", None]


@pytest.mark.slow
def test_a_slow_change_is_dated_to_where_it_began_by_the_frozen_encoders(parts: Parts) -> None:
    judge = judge_of(parts)
    visit(parts, "studio", 30)
    for i in range(12):  # one domain gives way to the other
        parts.learn(16, "reef" if i % 3 or i > 6 else "studio")
    verdict = judge.judge(Boundary("drift", 9.0, 6), "t1", parts.learner.steps)
    assert verdict.boundary is not None
    assert 10 <= verdict.boundary.onset_steps_ago <= 13


def test_with_too_few_clips_the_detectors_word_stands(parts: Parts) -> None:
    suspected = Boundary("drift", 9.0, 2)
    judge = judge_of(parts)
    visit(parts, "studio", 3)
    assert judge.judge(suspected, "t1", parts.learner.steps).boundary == suspected
    parts.frames.delete(parts.rows)
    assert judge.judge(suspected, "t1", parts.learner.steps).boundary == suspected


class Domains:
    """Clips of normal vectors, by the mean of the domain that each is of; the rows since the current task began."""

    def __init__(self, seed: int = 0, batch: int = 32) -> None:
        self.world, self.start, self.batch = World(seed), 0, batch
        self.vectors_of: list[Vectors] = []

    def learn(self, *shares: tuple[Vectors, float], steps: int = 1) -> None:
        means, chances = zip(*shares, strict=True)
        for _ in range(32 * steps):
            mean = means[self.world._rng.choice(len(means), p=chances)]
            self.vectors_of.append(self.world.batch(mean, 1)[0])

    @property
    def step(self) -> int:
        return len(self.vectors_of) // self.batch

    def rows(self) -> np.ndarray:
        return np.arange(self.start, len(self.vectors_of))

    def steps(self, rows: Sequence[int]) -> dict[int, int]:
        return {row: row // self.batch + 1 for row in rows}

    def vectors(self, rows: Sequence[int]) -> dict[int, Vectors]:
        return {row: self.vectors_of[row] for row in rows}

    def judge(self) -> Judge:
        return Judge(self, frame="f", batch_size=32, clips_per_false_boundary=100_000, revisits=True)


def begin(judge: Judge, clips: Domains, task: str, onset: int) -> Boundary:
    """The detector suspects a boundary so many steps ago, and the judge agrees."""
    verdict = judge.judge(Boundary("drift", 9.0, onset), task, clips.step)
    assert verdict.boundary is not None
    judge.close(task, clips.step - verdict.boundary.onset_steps_ago)
    judge.begin(verdict.boundary, clips.step)
    clips.start = (clips.step - verdict.boundary.onset_steps_ago) * 32
    return verdict.boundary


def in_a_second_task() -> tuple[Domains, Judge, Vectors, Vectors]:
    """A task of domain a has ended, one of b has gone on for a while."""
    clips = Domains()
    a, b = clips.world.domain(), clips.world.domain()
    judge = clips.judge()
    clips.learn((a, 1.0), steps=20)
    clips.learn((b, 1.0), steps=2)
    begin(judge, clips, "t1", 2)
    clips.learn((b, 1.0), steps=20)
    return clips, judge, a, b


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("seed", [1, 2, 4])
def test_a_task_that_returns_at_once_is_known_later_where_its_onset_was_dated_too_early(
    seed: int, restart: bool
) -> None:
    clips = Domains(seed)
    a, b, c = (clips.world.domain() for _ in range(3))
    judge = clips.judge()
    clips.learn((a, 1.0), steps=20)
    for task, domain in (("t1", b), ("t2", c)):
        clips.learn((domain, 1.0), steps=2)
        begin(judge, clips, task, 2)
        clips.learn((domain, 1.0), steps=20)
    clips.learn((a, 1.0), steps=2)
    assert begin(judge, clips, "t3", 4).name is None  # two batches of c are among what came after
    if restart:
        state, judge = judge.state_dict(), clips.judge()
        assert judge.load_state_dict(json.loads(json.dumps(state["facts"])), state["means"], state["direction"])
    known = []
    for _ in range(10):
        clips.learn((a, 1.0))
        known.append(judge.recognise_late("t4", clips.step))
    assert [name for name in known if name] == ["t1"]


def mixed(clips: Domains, old: Vectors, new: Vectors, first: float, last: float, steps: int) -> None:
    for share in np.linspace(first, last, steps):
        clips.learn((old, 1 - share), (new, share))


@pytest.mark.parametrize("restart", [False, True])
def test_a_task_that_returns_slowly_is_known_once_the_change_is_over_also_after_a_restart(restart: bool) -> None:
    clips = Domains()
    a, b = clips.world.domain(), clips.world.domain()
    judge = clips.judge()
    clips.learn((a, 1.0), steps=20)
    clips.learn((b, 1.0), steps=2)
    assert begin(judge, clips, "t1", 2).name is None
    clips.learn((b, 1.0), steps=30)
    mixed(clips, b, a, 0.0, 0.5, 16)
    boundary = begin(judge, clips, "t2", 12)
    assert boundary.name is None
    assert 12 <= boundary.onset_steps_ago <= 18
    if restart:
        state, judge = judge.state_dict(), clips.judge()
        assert judge.load_state_dict(json.loads(json.dumps(state["facts"])), state["means"], state["direction"])
    known = []
    for share in [*np.linspace(0.5, 1, 16), *[1.0] * 30]:
        clips.learn((b, 1 - share), (a, share))
        if (name := judge.recognise_late("t3", clips.step)) is not None:
            known.append(name)
            judge.rename("t3", name)
    assert known == ["t1"]


def test_the_rest_of_a_slow_change_is_no_boundary_and_another_change_meanwhile_is() -> None:
    clips = Domains(1)
    a, b, c = (clips.world.domain() for _ in range(3))
    judge = clips.judge()
    clips.learn((a, 1.0), steps=30)
    mixed(clips, a, b, 0.0, 0.5, 16)
    begin(judge, clips, "t1", 12)
    mixed(clips, a, b, 0.5, 1.0, 16)
    rest = judge.judge(Boundary("drift", 9.0, 2), "t2", clips.step)
    assert rest.boundary is None
    assert rest.shift is not None
    assert rest.limit is not None
    assert rest.shift > rest.limit
    clips.learn((c, 1.0), steps=2)
    assert judge.judge(Boundary("drift", 9.0, 2), "t2", clips.step).boundary is not None


def glanced(judge: Judge, clips: Domains, task: str, score: float = 3.5) -> Boundary | None:
    """What the judge finds by itself where the detector has no level yet and says no more than this."""
    assert judge.wants_glance(score, 0.0, clips.step)
    return judge.glance(score, task, clips.step).boundary


def begun(seed: int) -> tuple[Domains, Judge, list[Vectors]]:
    """The first batch and a half of a second task, after a boundary that was dated half a batch early."""
    clips = Domains(seed)
    domains = [clips.world.domain() for _ in range(3)]
    judge = clips.judge()
    clips.learn((domains[0], 1.0), steps=20)
    mixed(clips, *domains[:2], 0.5, 1.0, 2)
    begin(judge, clips, "t1", 2)
    return clips, judge, domains


@pytest.mark.parametrize("seed", range(8))
def test_a_visit_of_five_batches_ends_with_a_boundary_though_the_detector_has_no_level(seed: int) -> None:
    clips, judge, (_, b, c) = begun(seed)
    clips.learn((b, 1.0), steps=3)
    assert glanced(judge, clips, "t2") is None
    assert not judge.wants_glance(4.0, 0.0, clips.step + 1), "it looks on though nothing has changed"
    assert judge.wants_glance(6.0, 0.0, clips.step + 1)
    clips.learn((c, 1.0), steps=2)
    boundary = glanced(judge, clips, "t2", 6.0)
    assert boundary is not None
    assert (boundary.cause, boundary.onset_steps_ago, boundary.name) == ("drift", 2, None)


def test_a_hint_is_looked_at_soon_after_a_boundary_alone_and_not_below_the_detectors_level() -> None:
    clips, judge, _ = begun(0)
    assert clips.judge().wants_glance(99.0, 0.0, 5) is False
    assert not judge.wants_glance(1.9, 0.0, clips.step + 6)
    assert not judge.wants_glance(4.0, 4.5, clips.step + 6)
    assert judge.wants_glance(5.0, 4.5, clips.step + 6)
    assert not judge.wants_glance(99.0, 4.5, clips.step + 25)


def bunched(clips: Domains, mean: Vectors, bunch: int, steps: int) -> None:
    """Clips of which so many in a row are alike, as those of one video: a third of their spread is between these."""
    world = clips.world
    for _ in range(32 * steps // bunch):
        video = mean + world.batch(np.zeros_like(mean), 1)[0] * np.float32(0.58)
        own = world.batch(np.zeros_like(mean), bunch) * np.float32(0.82)
        clips.vectors_of.extend((video + own) / np.linalg.norm(video + own, axis=1, keepdims=True))


@pytest.mark.parametrize("bunch", [8, 16, 32])
def test_clips_that_come_in_bunches_are_not_taken_for_one_task_after_another(bunch: int) -> None:
    wrong = suspicions = refused = 0
    for seed in range(4):
        clips = Domains(seed)
        b, c = clips.world.domain(), clips.world.domain()
        judge = clips.judge()
        judge.close("t1", 0)
        judge.begin(Boundary("operator"), 0)
        for _ in range(24):
            bunched(clips, b, bunch, 1)
            if judge.wants_glance(9.0, 0.0, clips.step):
                wrong += glanced(judge, clips, "t2", 9.0) is not None
        for _ in range(10):
            bunched(clips, b, bunch, 1)
            suspicions += 1
            refused += judge.judge(Boundary("drift", 9.0, 2), "t2", clips.step).boundary is None
        bunched(clips, c, bunch, 4)  # of 32, three videos say little of a task
        found = judge.judge(Boundary("drift", 9.0, 4), "t2", clips.step).boundary
        assert found is not None or bunch == 32, seed
    assert wrong <= 4  # of 48; three batches say little
    assert refused >= 0.9 * suspicions


@pytest.mark.parametrize("bunch", [4, 8])
def test_where_batches_are_small_a_change_between_bunches_is_measured_by_their_size(bunch: int) -> None:
    for seed in range(4):
        clips = Domains(seed, batch=bunch)  # each is of one video, and learned before the next one comes
        a, b = clips.world.domain(), clips.world.domain()
        judge = clips.judge()
        bunched(clips, a, bunch, 20)
        refused = judge.judge(Boundary("drift", 9.0, 64 // bunch), "t1", clips.step)
        assert refused.boundary is None
        bunched(clips, b, bunch, 2)
        assert judge.judge(Boundary("drift", 9.0, 64 // bunch), "t1", clips.step).boundary is not None


@pytest.mark.parametrize("restart", [False, True])
def test_where_one_task_after_another_ends_by_a_hint_the_judge_leaves_hints_alone_until_one_lasts(
    restart: bool,
) -> None:
    clips, judge, _ = begun(0)
    ended = 0
    for _ in range(40):  # bunches as long as a visit: nobody can tell them from tasks
        clips.learn((clips.world.domain(), 1.0), steps=4)
        if not judge.wants_glance(9.0, 0.0, clips.step):
            break
        boundary = judge.glance(9.0, f"t{clips.step}", clips.step).boundary
        if boundary is not None:
            ended += 1
            judge.close(f"t{clips.step}", clips.step - boundary.onset_steps_ago)
            judge.begin(boundary, clips.step)
            clips.start = (clips.step - boundary.onset_steps_ago) * 32
    assert ended == 8
    if restart:
        state, judge = judge.state_dict(), clips.judge()
        assert judge.load_state_dict(json.loads(json.dumps(state["facts"])), state["means"], state["direction"])
    assert not judge.wants_glance(99.0, 0.0, clips.step)
    clips.learn((clips.world.domain(), 1.0), steps=30)
    clips.learn((clips.world.domain(), 1.0), steps=2)
    begin(judge, clips, "long", 2)
    assert judge.wants_glance(9.0, 0.0, clips.step)


def test_a_glance_leaves_what_comes_slowly_and_the_rest_of_a_change_to_the_detector() -> None:
    clips, judge, (a, b, c) = begun(0)
    clips.learn((b, 1.0), steps=4)
    mixed(clips, b, c, 0.1, 0.8, 8)
    assert glanced(judge, clips, "t2") is None
    clips = Domains(1)
    a, b = clips.world.domain(), clips.world.domain()
    judge = clips.judge()
    clips.learn((a, 1.0), steps=20)
    clips.learn((a, 0.5), (b, 0.5), steps=2)  # half of the way at once,
    begin(judge, clips, "t1", 2)
    clips.learn((a, 0.5), (b, 0.5), steps=4)
    clips.learn((b, 1.0), steps=3)  # and the other half a little later
    assert glanced(judge, clips, "t2") is None


@pytest.mark.parametrize("restart", [False, True])
def test_how_young_a_task_is_and_what_was_looked_at_outlive_a_restart(restart: bool) -> None:
    clips, judge, (_, b, _) = begun(0)
    clips.learn((b, 1.0), steps=3)
    assert glanced(judge, clips, "t2") is None
    if restart:
        state, judge = judge.state_dict(), clips.judge()
        assert judge.load_state_dict(json.loads(json.dumps(state["facts"])), state["means"], state["direction"])
    assert [judge.wants_glance(4.0, 0.0, clips.step + n) for n in (1, 2, 20, 30)] == [False, True, True, False]


def test_a_returned_task_that_looks_as_it_did_before_has_not_ended() -> None:
    clips, judge, a, b = in_a_second_task()
    clips.learn((a, 1.0), steps=2)
    begin(judge, clips, "t2", 2)
    clips.learn((a, 0.5), (b, 0.5), steps=8)  # late ones of the task before, longer than it should be
    clips.learn((a, 1.0), steps=4)
    verdict = judge.judge(Boundary("drift", 9.0, 4), "t1", clips.step)
    assert verdict.boundary is None
    assert (verdict.shift or 0) > (verdict.limit or 0)


def test_few_clips_of_a_foreign_domain_are_not_taken_for_a_known_task() -> None:
    for seed in range(10):
        clips = Domains(seed)
        a, b, c = (clips.world.domain() for _ in range(3))
        judge = clips.judge()
        clips.learn((a, 1.0), steps=20)
        clips.learn((b, 1.0), steps=1)
        begin(judge, clips, "t1", 1)
        clips.learn((b, 1.0), steps=20)
        clips.learn((c, 1.0), steps=1)
        assert begin(judge, clips, "t2", 1).name is None, f"seed {seed}"


def test_a_return_whose_first_clips_come_mixed_is_known_a_little_later() -> None:
    clips, judge, a, b = in_a_second_task()
    clips.learn((b, 0.4), (a, 0.6), steps=2)
    assert begin(judge, clips, "t2", 2).name is None
    known = []
    for _ in range(4):
        clips.learn((a, 1.0))
        known.append(judge.recognise_late("t3", clips.step))
    assert [name for name in known if name] == ["t1"]


def test_an_operators_name_is_not_taken_back_by_a_late_recognition() -> None:
    clips, judge, a, _ = in_a_second_task()
    clips.learn((a, 1.0), steps=1)
    judge.judge(Boundary("drift", 9.0, 1), "t2", clips.step)
    judge.close("t2", clips.step - 1)
    judge.begin(Boundary("drift", 9.0, 1), clips.step)
    assert judge.is_due(clips.step + 5)
    judge.rename("t3", "night")
    assert not judge.is_due(clips.step + 5)
