"""Eras that become one: which, at what cost, and what readers see of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamlearn.encoders import Towers
from streamlearn.era_judges import Judges
from streamlearn.era_maps import Mapped
from streamlearn.era_merge import Merge, Merger, mapped
from streamlearn.era_view import QueryEncoder
from streamlearn.era_words import Words
from streamlearn.eras import Eras
from streamlearn.records import Frames, Vectors
from streamlearn.settings import ModelSettings
from streamlearn.warmup import build_towers
from tests.parts import BATCH, Parts, indexed, same_words
from tests.test_eras import HALF, tensors_of


class Knows(QueryEncoder):
    """Encodes "3" and a film of threes alike where it knows the number, and by one vector where it does not."""

    def __init__(self, *numbers: int) -> None:
        self._numbers = numbers

    def texts(self, texts: Sequence[str]) -> Vectors:
        return self._vectors([int(text) for text in texts])

    def clips(self, frames: Frames) -> Vectors:
        return self._vectors(frames[:, 0, 0, 0, 0].tolist())

    def _vectors(self, numbers: list[int]) -> Vectors:
        return np.eye(100, dtype=np.float32)[[n if n in self._numbers else 99 for n in numbers]]


class One:
    def __init__(self, number: int, *knows: int) -> None:
        self.number = number
        self.encoder = Knows(*knows)
        self.mapped: Mapped | None = None
        self.words = Words()


def judged(*eras: tuple[One, Sequence[int]]) -> dict[int, Judges]:
    """Each era's held-out clips, with vectors by its own pair."""
    out = {}
    for era, numbers in eras:
        films = np.stack([np.full((1, 2, 2, 3), n, np.uint8) for n in numbers]) if numbers else None
        texts = [str(n) for n in numbers]
        out[era.number] = Judges(texts, era.encoder.texts(texts), films, era.encoder.texts([]))
    return out


def test_the_cheapest_merge_keeps_the_pair_that_knows_both() -> None:
    eras = [One(1, 1, 2, 3), One(2, 4, 5, 6), One(3, 1, 4, 5, 6, 7, 8, 9)]
    asked = judged(*zip(eras, [(1, 2, 3), (4, 5, 6), (7, 8, 9)], strict=True))
    merge = Merger(0.0, "encode").cheapest(eras, asked)
    assert merge is not None
    assert (merge.keep, merge.absorb, merge.why, merge.judges) == (3, 2, "cap", 9)
    assert merge.loss == pytest.approx(0)
    assert Merger(0.0, "encode").cheapest(eras[:1], asked) is None


def test_what_a_merge_costs_is_reciprocal_rank_in_the_pool_of_all() -> None:
    eras = [One(1, 1, 2), One(2, 3, 4)]
    merge = Merger(0.0, "encode").cheapest(eras, judged((eras[0], (1, 2)), (eras[1], (3, 4))))
    assert merge is not None
    assert merge.loss > 0.2


def test_an_era_without_a_pair_takes_none_in_and_one_that_reads_for_another_stays() -> None:
    eras = [One(1, 1, 2, 3, 4, 5, 6), One(2, 3, 4), One(3, 5, 6)]
    asked = judged((eras[0], (1, 2)), (eras[1], (3, 4)), (eras[2], (5, 6)))
    eras[0].mapped = Mapped(3, 0.0, 6)
    merge = Merger(0.0, "keep").cheapest(eras, asked)
    assert merge is not None
    assert (merge.keep, merge.absorb) in {(2, 1), (3, 1), (3, 2)}
    eras[1].mapped = Mapped(3, 0.0, 6)
    assert Merger(0.0, "keep").cheapest(eras[1:], asked) is not None
    eras[2].mapped = Mapped(2, 0.0, 6)
    assert Merger(0.0, "keep").cheapest(eras, asked) is None


def test_without_any_judge_a_merge_costs_nothing() -> None:
    eras = [One(1), One(2)]
    merge = Merger(1.0, "encode").cheapest(eras, judged((eras[0], ()), (eras[1], ())))
    assert merge is not None
    assert (merge.loss, merge.judges) == (0.0, 0)


def test_a_map_between_spaces_is_found_from_clips_of_both() -> None:
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.normal(size=(8, 8)))[0].astype(np.float32)
    old = rng.normal(size=(500, 8)).astype(np.float32)
    old /= np.linalg.norm(old, axis=1, keepdims=True)
    np.testing.assert_allclose(mapped(old[:400], old[:400] @ rotation, old[400:]), old[400:] @ rotation, atol=0.05)
    np.testing.assert_array_equal(mapped(old[:0], old[:0], old), old)


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    return three_eras(tmp_path, max_eras=3, merge_vectors="encode")


def three_eras(folder: Path, **search: Any) -> Parts:
    parts = Parts(folder, towers=build_towers(ModelSettings(), 0), reencode_per_clip=4 / BATCH, **search)
    for task, domain in (("t1", "studio"), ("t2", "night"), ("t3", "studio")):
        if task != "t1":
            parts.boundary(task)
            parts.finish_reencoding()
        parts.learn(8, domain)
        parts.learn(6, domain, split="heldout")
    return parts


def test_what_a_merge_costs_where_vectors_stay_is_what_the_other_pairs_questions_find_of_them() -> None:
    # The first knows all of the second's words, and no film of it: it need not.
    eras = [One(1, 1, 2, 3, 4), One(2, 3, 4)]
    eras[0].encoder.clips = Knows(1, 2).clips  # type: ignore[method-assign]
    asked = judged((eras[0], (1, 2)), (eras[1], (3, 4)))
    kept, anew = (Merger(0.0, vectors).cheapest(eras, asked) for vectors in ("keep", "encode"))
    assert kept is not None
    assert anew is not None
    assert (kept.keep, kept.loss) == (1, pytest.approx(0))
    assert anew.loss > 0


@pytest.mark.parametrize("vectors", ["keep", "encode"])
def test_beyond_the_cap_two_eras_become_one_at_one_moment_with_the_pair_of_one(tmp_path: Path, vectors: str) -> None:
    parts = three_eras(tmp_path, max_eras=3, merge_vectors=vectors)
    assert [era.number for era in parts.eras.eras] == [1, 2, 3]
    parts.boundary("t4")
    assert len(parts.eras.eras) == 4
    (absorbed,) = [era for era in parts.eras.eras if era.into is not None]
    keep = absorbed.into
    assert keep is not None
    theirs = set(indexed(parts, absorbed.number))
    rows = [*theirs, *indexed(parts, keep.number)]
    while parts.eras.stale:
        assert sorted(row for era in parts.eras.views() for row in era.partition.rows.tolist()) == parts.rows
        assert len(indexed(parts, absorbed.number)) in (0, 14)  # never some of them
        parts.eras.reencode()
    assert [era.number for era in parts.eras.eras] == [n for n in (1, 2, 3, 4) if n != absorbed.number]
    merged = indexed(parts, keep.number)
    assert sorted(merged) == sorted(rows)
    assert keep.encoder is not None
    assert absorbed.encoder is not None
    own = {row: (absorbed if vectors == "keep" and row in theirs else keep).encoder for row in merged}
    expected = [own[row].clips(parts.stored([row]))[0] for row in merged]  # type: ignore[union-attr]
    np.testing.assert_allclose(list(merged.values()), expected, atol=HALF)
    (note,) = next(facts for facts in parts.eras.state() if facts["number"] == keep.number)["absorbed"]
    assert (note["absorb"], note["why"], note["judges"]) == (absorbed.number, "cap", 18)
    texts = [c.captions[0] for c in parts.catalog.clips(rows).values() if c.split == "train"]
    view = next(view for view in parts.eras.views() if view.number == keep.number)
    np.testing.assert_allclose(view.captions, keep.encoder.texts(texts), atol=1e-6)
    assert same_words(view.words, parts.words(rows))


def test_the_next_merge_is_judged_by_clips_that_an_era_took_in_and_by_their_vectors_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[int, Judges]] = []
    cheapest = Merger.cheapest
    monkeypatch.setattr(Merger, "cheapest", lambda self, eras, asked: seen.append(asked) or cheapest(self, eras, asked))
    parts = three_eras(tmp_path, max_eras=3, merge_vectors="keep")
    for task in ("t4", "t5"):
        parts.boundary(task)
        parts.finish_reencoding()
        parts.learn(8, "studio")
        parts.learn(6, "studio", split="heldout")
    parts.boundary("t6")
    merged = next(era for era in parts.eras.eras if era.absorbed)
    asked = seen[-1][merged.number]
    stored = indexed(parts, merged.number)
    clips = [c for c in parts.catalog.clips(stored).values() if c.split == "heldout"]
    assert sorted(asked.questions) == sorted(clip.asked for clip in clips)
    assert {clip.task for clip in clips} > {merged.task}
    vectors = dict(zip(asked.questions, asked.vectors, strict=True))
    for clip in clips:
        np.testing.assert_array_equal(vectors[clip.asked], stored[clip.row])


def visited_again(folder: Path, worse: bool = False, last: int = 12, **search: Any) -> Parts:
    """t1, t2, t1 again: nothing is learned, so that all pairs are alike, but for the first one where it is `worse`."""
    parts = Parts(folder, towers=build_towers(ModelSettings(), 0), reencode_per_clip=4 / BATCH, **search)
    for task, domain in (("t1", "studio"), ("t2", "night"), ("t1", "studio")):
        if parts.rows:
            parts.boundary(task)
            parts.finish_reencoding()
        parts.learn(12 if len(parts.rows) < 24 else last, domain, split="heldout")
    if worse:
        parts.eras.eras[0].encoder = QueryEncoder(Towers(seed=9))
    return parts


def finished(parts: Parts, going: int) -> tuple[Eras, Eras]:
    """The eras when one has gone into another: straight on, and after a restart in the middle."""
    rows = list(indexed(parts, going))
    parts.eras.reencode()
    assert list(indexed(parts, going)) == rows  # until all are done
    again = Eras(parts.learner, parts.catalog, parts.frames, parts.settings)
    again.restore(parts.eras.state(), tensors_of(parts))
    while again.reencode():
        pass
    parts.finish_reencoding()
    return parts.eras, again


def test_clips_of_a_task_that_returned_go_into_its_first_era_encoded_by_its_pair(tmp_path: Path) -> None:
    parts = visited_again(tmp_path)
    parts.boundary("t3")
    first, _, third, _ = parts.eras.eras
    assert third.into is first
    assert third.merge is not None
    assert (third.merge.why, third.merge.judges) == ("returns", 12)
    rows = list(indexed(parts, 3))
    for eras in finished(parts, going=3):
        assert [era.number for era in eras.eras] == [1, 2, 4]
        assert eras.eras[0].absorbed[0]["why"] == "returns"
    merged = indexed(parts, 1)
    assert first.encoder is not None
    expected = first.encoder.clips(parts.stored(rows))
    np.testing.assert_allclose([merged[row] for row in rows], expected, atol=HALF)


def test_clips_of_the_first_visit_are_encoded_anew_where_the_later_pair_knows_them_better(tmp_path: Path) -> None:
    parts = visited_again(tmp_path, worse=True)
    parts.boundary("t3")
    first, _, third, _ = parts.eras.eras
    assert first.into is third
    assert first.merge is not None
    assert (first.merge.why, first.merge.judges) == ("renewed", 12)
    assert first.merge.loss < 0
    rows, later = list(indexed(parts, 1)), list(indexed(parts, 3))
    for eras in finished(parts, going=1):
        assert [era.number for era in eras.eras] == [2, 3, 4]
        assert eras.eras[1].absorbed[0]["why"] == "renewed"
    merged = indexed(parts, 3)
    assert sorted(merged) == sorted([*rows, *later])
    assert third.encoder is not None
    np.testing.assert_allclose([merged[row] for row in rows], third.encoder.clips(parts.stored(rows)), atol=HALF)


def test_a_visit_too_short_to_tell_renews_nothing(tmp_path: Path) -> None:
    parts = visited_again(tmp_path, worse=True, last=9)
    parts.boundary("t3")
    parts.finish_reencoding()
    assert [era.number for era in parts.eras.eras] == [1, 2, 3, 4]


def test_an_era_is_not_renewed_where_frames_are_gone(tmp_path: Path) -> None:
    parts = visited_again(tmp_path, worse=True)
    parts.frames.delete(list(indexed(parts, 1))[:1])
    parts.boundary("t3")
    parts.finish_reencoding()
    assert [era.number for era in parts.eras.eras] == [1, 2, 3, 4]


def test_an_era_that_another_goes_into_stays_until_that_has_come(tmp_path: Path) -> None:
    parts = visited_again(tmp_path, worse=True)
    parts.boundary("t3")
    first, _, third, _ = parts.eras.eras
    while third.pending:
        parts.eras.reencode()
    assert first.into is third
    third.encoder = QueryEncoder(Towers(seed=9))
    parts.learn(12, "night", split="heldout")
    parts.boundary("t1")
    parts.learn(12, "studio", split="heldout")
    parts.boundary("t4")
    assert (first.into, third.into) == (third, None)
    parts.finish_reencoding()
    assert sorted(row for era in parts.eras.views() for row in era.partition.rows.tolist()) == parts.rows


def test_where_either_pair_knows_its_own_visit_best_both_have_eras(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = visited_again(tmp_path)
    # Of the third one's clips: momentum pair, encoders, the first pair, its own. Of the first one's by the third pair.
    merits = iter([1.0, 1.0, 0.2, 0.3, 0.0])
    monkeypatch.setattr("streamlearn.era_bounds.knows", lambda *_: next(merits))
    parts.boundary("t3")
    parts.finish_reencoding()
    assert [era.number for era in parts.eras.eras] == [1, 2, 3, 4]
    assert next(merits, None) is None


def test_a_first_pair_is_not_dropped_before_the_clips_that_returned_are_encoded_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamlearn.era_bounds.knows", lambda *_: 1.0)
    parts = Parts(tmp_path, towers=build_towers(ModelSettings(), 0), reencode_per_clip=4 / BATCH, max_encoders=2)
    for task, domain in (("t1", "studio"), ("t2", "night"), ("t1", "studio"), ("t3", "night")):
        if parts.rows:
            parts.boundary(task)
            if task != "t3":
                parts.finish_reencoding()
        parts.learn(8, domain)
        parts.learn(12, domain, split="heldout")
    parts.boundary("t4")
    assert [era.into is not None for era in parts.eras.eras] == [False, False, True, False, False]
    assert [era.mapped is not None for era in parts.eras.eras] == [False, True, False, False, False]
    parts.finish_reencoding()
    assert [era.number for era in parts.eras.eras] == [1, 2, 4, 5]
    parts.learn(8)
    parts.boundary("t2")
    parts.learn(8, "night")
    parts.learn(12, "night", split="heldout")
    parts.boundary("t5")
    # The pair of its first era is gone, so that it cannot go back there; the first one can come to it.
    assert [era.into and era.into.number for era in parts.eras.eras] == [None, 6, None, None, None, None]


def test_a_clip_without_frames_is_turned_into_the_other_space(parts: Parts) -> None:
    parts.boundary("t4")
    (absorbed,) = [era for era in parts.eras.eras if era.into is not None]
    keep = absorbed.into
    assert keep is not None
    lost = list(indexed(parts, absorbed.number))[3]
    before, films = indexed(parts, absorbed.number)[lost], parts.stored([lost])
    parts.frames.delete([lost])
    parts.finish_reencoding()
    after = indexed(parts, keep.number)[lost]
    assert keep.encoder is not None
    wanted = keep.encoder.clips(films)[0]
    assert after @ wanted > before @ wanted


def test_a_clip_deleted_meanwhile_is_in_neither_era(parts: Parts) -> None:
    parts.boundary("t4")
    (absorbed,) = [era for era in parts.eras.eras if era.into is not None]
    rows = list(indexed(parts, absorbed.number))
    parts.eras.reencode()
    for row in (rows[0], rows[-1]):
        parts.catalog.delete(parts.catalog.clips([row])[row].video_id)
        parts.eras.remove([row])
    parts.finish_reencoding()
    left = {row for era in parts.eras.views() for row in era.partition.rows.tolist()}
    assert left == set(parts.rows) - {rows[0], rows[-1]}


def test_a_merge_that_a_crash_cut_short_is_decided_again_and_ends_alike(parts: Parts) -> None:
    parts.boundary("t4")
    parts.eras.reencode()
    again = Eras(parts.learner, parts.catalog, parts.frames, parts.settings)
    again.restore(parts.eras.state(), tensors_of(parts))
    while again.reencode():
        pass
    parts.finish_reencoding()
    for old, new in zip(parts.eras.views(), again.views(), strict=True):
        assert old.number == new.number
        assert old.partition.rows.tolist() == new.partition.rows.tolist()
        rows = old.partition.rows
        np.testing.assert_allclose(old.partition.vectors(rows), new.partition.vectors(rows), atol=HALF)
    assert [e["absorbed"] for e in parts.eras.state()] == [e["absorbed"] for e in again.state()]


def test_below_the_cap_nothing_is_merged(tmp_path: Path) -> None:
    parts = three_eras(tmp_path, max_eras=4)
    parts.boundary("t4")
    parts.finish_reencoding()
    assert len(parts.eras.eras) == 4


def test_an_era_takes_another_in_once_it_is_finished_so_that_a_restart_between_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Merger, "cheapest", lambda _, eras, judges: Merge(eras[-1].number, eras[0].number, "cap", 0.0, 9)
    )
    parts = three_eras(tmp_path, max_eras=3, merge_vectors="keep")
    parts.boundary("t4")
    goes = next(era for era in parts.eras.eras if era.into is not None)
    keeps, mine = goes.into, dict(indexed(parts, goes.number))
    assert keeps is not None
    assert keeps.pending
    parts.eras.reencode()
    again = Eras(parts.learner, parts.catalog, parts.frames, parts.settings)
    again.restore(parts.eras.state(), tensors_of(parts))
    while again.reencode():
        pass
    restored = next(era for era in again.eras if era.number == keeps.number).partition.view()
    for row, vector in mine.items():
        assert np.array_equal(restored.vectors(np.asarray([row]))[0], vector)
