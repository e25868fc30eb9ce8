from __future__ import annotations

from pathlib import Path

import pytest

from streamlearn.judge import Judge
from streamlearn.settings import ModelSettings
from streamlearn.tasks import Boundary
from streamlearn.warmup import build_towers
from tests.parts import Parts


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    return Parts(tmp_path, towers=build_towers(ModelSettings(), 0))


def judge_of(parts: Parts, **settings: bool) -> Judge:
    frozen = build_towers(ModelSettings(), 0).frozen_copy()
    return Judge(
        frozen, parts.catalog, parts.frames, parts.eras, batch_size=16,
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
