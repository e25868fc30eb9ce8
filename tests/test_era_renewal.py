"""Eras that are renewed: what else goes on while their clips wait to be encoded anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamlearn.encoders import Towers
from streamlearn.era_judges import Judges
from streamlearn.era_maps import Sealed
from streamlearn.era_merge import Merge, Merger
from streamlearn.era_view import QueryEncoder
from streamlearn.eras import Eras
from tests.parts import STEP, Parts, indexed
from tests.test_era_merge import visited_again
from tests.test_eras import HALF, tensors_of


def renewing(folder: Path, **search: Any) -> Parts:
    """The first era is about to be renewed in the third, whose own clips are encoded."""
    parts = visited_again(folder, worse=True, **search)
    first = parts.eras.eras[0]
    rows = list(indexed(parts, 1))
    first.encoder = QueryEncoder(Towers(dim=parts.eras.current.partition.view().dim, seed=9))
    first.partition.upsert(np.asarray(rows), first.encoder.clips(parts.stored(rows)))
    parts.boundary("t3")
    assert first.renewing
    while parts.eras.eras[2].pending:
        parts.eras.reencode()
    assert first.pending
    return parts


@pytest.mark.parametrize("lost", [12, 6])
def test_an_era_whose_frames_go_while_it_waits_stays_as_it_was(tmp_path: Path, lost: int) -> None:
    parts = renewing(tmp_path)
    before = indexed(parts, 1)
    parts.frames.delete(list(before)[:lost])
    parts.finish_reencoding()
    assert [era.number for era in parts.eras.eras] == [1, 2, 3, 4]
    after, first = indexed(parts, 1), parts.eras.eras[0]
    assert (first.into, first.merge, first.reencoded) == (None, None, {})
    (refused,) = [one for one in first.refused if one["why"] == "renewed"]
    assert (refused["other"], refused["gone"]) == (3, lost)
    np.testing.assert_array_equal([after[row] for row in before], list(before.values()))
    assert parts.eras.reencode() == 0
    again = Eras(parts.learner, parts.catalog, parts.frames, parts.settings)
    again.restore(parts.eras.state(), tensors_of(parts))
    assert [era.into for era in again.eras] == [None] * 4


def test_an_era_is_renewed_where_few_frames_go_while_it_waits(tmp_path: Path) -> None:
    parts = renewing(tmp_path)
    rows = list(indexed(parts, 1))
    parts.frames.delete(rows[:1])
    parts.finish_reencoding()
    assert [era.number for era in parts.eras.eras] == [2, 3, 4]
    third = parts.eras.eras[1]
    assert third.encoder is not None
    merged = indexed(parts, 3)
    np.testing.assert_allclose(
        [merged[row] for row in rows[1:]], third.encoder.clips(parts.stored(rows[1:])), atol=HALF
    )


def test_an_era_that_has_just_ended_is_encoded_before_another_is_renewed(tmp_path: Path) -> None:
    parts = renewing(tmp_path)
    first, waiting = parts.eras.eras[0], len(parts.eras.eras[0].pending)
    parts.learn(12, "night", split="heldout")
    parts.boundary("t4")
    fourth = parts.eras.eras[-2]
    while fourth.pending:
        assert len(first.pending) == waiting
        parts.eras.reencode()
    parts.finish_reencoding()
    assert [era.number for era in parts.eras.eras] == [2, 3, 4, 5]


def test_the_current_era_is_refreshed_while_another_is_renewed_within_one_budget(tmp_path: Path) -> None:
    parts = renewing(tmp_path, refresh_share=3 / STEP)
    old = parts.learn(3)
    for _ in range(9):
        parts.learn(1)
    waiting, step = len(parts.eras.eras[0].pending), parts.learner.steps
    assert parts.eras.stale == 0  # what waits to be renewed is read as well as before
    assert parts.eras.reencode() == 4
    steps = parts.catalog.vector_steps(old)
    assert [steps[row] == step for row in old] == [True, True, True]
    assert len(parts.eras.eras[0].pending) == waiting - 1


def test_a_renewal_goes_on_where_the_refresh_leaves_nothing(tmp_path: Path) -> None:
    parts = renewing(tmp_path, refresh_share=1)
    for _ in range(10):
        parts.learn(4)
    first, waiting = parts.eras.eras[0], len(parts.eras.eras[0].pending)
    for done in (1, 2, 3):
        parts.learn(4)
        assert parts.eras.reencode() > 4  # some are brought up to date each time
        assert len(first.pending) == waiting - done


@pytest.mark.parametrize("vectors", ["keep", "encode"])
def test_there_are_no_more_eras_than_may_be_while_one_waits_to_be_renewed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vectors: str
) -> None:
    parts = renewing(tmp_path, max_eras=4, max_encoders=4, merge_vectors=vectors)
    first, third = parts.eras.eras[0], parts.eras.eras[2]
    considered: list[set[int]] = []
    cheapest = Merger.cheapest

    def noted(merger: Merger, eras: Sequence[Sealed], judges: Mapping[int, Judges]) -> Merge | None:
        considered.append({era.number for era in eras})
        return cheapest(merger, eras, judges)

    monkeypatch.setattr(Merger, "cheapest", noted)
    for task in ("t4", "t5", "t6"):
        parts.learn(12, "night", split="heldout")
        parts.boundary(task)
        for _ in range(8):
            parts.eras.reencode()
            first.pending.extend([*first.pending][:4])  # it takes long
        assert not any(era.pending or era.into is not None for era in parts.eras.eras if not era.renewing)
        assert first.into is third
        assert len([era for era in parts.eras.eras if era is not first]) <= 4
    assert considered
    assert not set.union(*considered) & {1, 3}
    again = Eras(parts.learner, parts.catalog, parts.frames, parts.settings)
    again.restore(parts.eras.state(), tensors_of(parts))
    for eras in (parts.eras, again):
        while eras.reencode():
            pass
        assert len(eras.eras) <= 4
        assert sorted(row for era in eras.views() for row in era.partition.rows.tolist()) == parts.rows
