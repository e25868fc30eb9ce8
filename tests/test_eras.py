"""Eras of the index: who writes them, how they are sealed, re-encoded, swapped in and restored."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from streamlearn.encoders import Towers
from streamlearn.era_view import QueryEncoder
from streamlearn.eras import Eras
from streamlearn.settings import ModelSettings
from streamlearn.warmup import build_towers
from tests.models import save_model
from tests.parts import BATCH, STEP, Parts, indexed, same_words

HALF = 5e-4  # vectors are kept in half precision


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    return Parts(tmp_path, reencode_per_clip=3 / BATCH)


def by(towers: Towers, films: np.ndarray) -> np.ndarray:
    return QueryEncoder(towers).clips(films)


def local(parts: Parts) -> Towers:
    """The momentum pair as an era freezes it: in half precision."""
    copy = parts.learner.local.frozen_copy()
    copy.load_state_dict({name: tensor.half() for name, tensor in copy.state_dict().items()})
    return copy


def same(a: Mapping[int, np.ndarray], b: Mapping[int, np.ndarray], atol: float = HALF) -> bool:
    return a.keys() == b.keys() and all(np.allclose(a[row], b[row], atol=atol) for row in a)


def tensors_of(parts: Parts) -> dict[str, dict[str, torch.Tensor]]:
    """All that a checkpoint keeps of the eras, copied."""
    made = parts.eras.tensors() | {part: dict(make()) for part, make in parts.eras.sealed().items()}
    return {part: {name: tensor.clone() for name, tensor in named.items()} for part, named in made.items()}


def test_keys_of_a_step_are_entries_of_the_current_era(parts: Parts) -> None:
    rows = parts.learn(8)
    view = indexed(parts, 1)
    assert list(view) == rows
    assert all(np.linalg.norm(vector) == pytest.approx(1, abs=HALF) for vector in view.values())
    assert parts.catalog.vector_steps(rows) == dict.fromkeys(rows, 1)


def test_a_view_does_not_change_when_the_era_does(parts: Parts) -> None:
    rows = parts.learn(4)
    (view,) = parts.eras.views()
    before = view.partition.vectors(rows), view.encoder.texts(["a red star"]), view.captions.copy()
    parts.eras.remove(rows[:2])
    parts.learn(8)
    assert view.partition.rows.tolist() == rows
    assert np.array_equal(view.partition.vectors(rows), before[0])
    assert np.array_equal(QueryEncoder(view.encoder.towers).texts(["a red star"]), before[1])
    assert np.array_equal(view.captions, before[2])
    assert len(indexed(parts, 1)) == 10


def test_what_is_published_again_has_the_same_encoder_until_something_is_learned(parts: Parts) -> None:
    parts.learn(8)
    (before,) = parts.eras.views()
    (rest,) = parts.learn(1, split="heldout")
    (again,) = parts.eras.views()
    assert again.encoder is before.encoder
    assert rest in again.partition.rows.tolist()
    parts.learn(8)
    (after,) = parts.eras.views()
    assert after.encoder is not before.encoder
    assert np.array_equal(after.encoder.texts(["a red star"]), parts.learner.encode_text(["a red star"]))


def test_a_boundary_seals_the_era_and_the_next_clips_enter_the_following_one(parts: Parts) -> None:
    first = parts.learn(8)
    parts.boundary("t2")
    second = parts.learn(4)
    assert [(era.number, era.task, era.sealed_step) for era in parts.eras.eras] == [(1, "t1", 1), (2, "t2", None)]
    assert list(indexed(parts, 1)) == first
    assert list(indexed(parts, 2)) == second


def test_clips_learned_since_the_drift_began_move_with_their_vectors(parts: Parts) -> None:
    old, drifted = parts.learn(8), parts.learn(8) + parts.learn(4)
    before = indexed(parts, 1)
    parts.boundary("t2", since_step=1)
    assert list(indexed(parts, 1)) == old
    assert same(indexed(parts, 2), {row: before[row] for row in drifted})
    assert {parts.catalog.clips([row])[row].task for row in drifted} == {"t2"}
    assert {parts.catalog.clips([row])[row].task for row in old} == {"t1"}
    assert parts.catalog.era_vectors(2)[0].tolist() == drifted


def test_an_era_is_sealed_with_the_pair_from_before_the_drift(parts: Parts) -> None:
    rows = parts.learn(8)
    parts.learn(8)
    wanted = local(parts)
    parts.learn(8)  # already of the next task
    parts.boundary("t2", since_step=2)
    parts.finish_reencoding()
    assert parts.eras.eras[0].sealed_step == 2
    view = indexed(parts, 1)
    np.testing.assert_allclose([view[row] for row in rows], by(wanted, parts.stored(rows)), atol=HALF)


def test_an_operators_boundary_seals_with_the_pair_of_now(parts: Parts) -> None:
    rows = parts.learn(8) + parts.learn(8)
    wanted = local(parts)
    parts.boundary("t2")
    parts.learn(8)
    parts.finish_reencoding()
    assert parts.eras.eras[0].sealed_step == 2
    np.testing.assert_allclose(list(indexed(parts, 1).values()), by(wanted, parts.stored(rows)), atol=HALF)


def test_a_sealed_era_is_swapped_in_whole_and_its_clips_count_as_stale_until_then(parts: Parts) -> None:
    rows = parts.learn(8)
    parts.learn(8, split="heldout")
    parts.boundary("t2")
    before = indexed(parts, 1)
    left = []
    while parts.eras.stale:
        assert same(indexed(parts, 1), before)  # never some of the old and some of the new
        parts.eras.reencode()
        left.append(parts.eras.stale)
    assert left == [13, 10, 7, 4, 1, 0]
    after = indexed(parts, 1)
    assert after.keys() == before.keys()
    assert not any(np.allclose(after[row], before[row], atol=1e-4) for row in rows)
    encoder = parts.eras.eras[0].encoder
    assert encoder is not None
    np.testing.assert_allclose(list(after.values()), encoder.clips(parts.stored(list(after))), atol=HALF)


def test_eras_are_reencoded_one_after_the_other_before_the_current_one_is_refreshed(tmp_path: Path) -> None:
    parts = Parts(tmp_path, reencode_per_clip=5 / BATCH, refresh_share=2 / STEP)
    first = parts.learn(4)
    parts.boundary("t2")
    second = parts.learn(5)
    parts.boundary("t3")
    for _ in range(10):
        parts.learn(2)
    assert [parts.eras.reencode() for _ in range(3)] == [5, 4, 2]
    steps = parts.catalog.vector_steps(first + second)
    assert {steps[row] for row in first} == {1}
    assert {steps[row] for row in second} == {2}


def test_the_cap_on_eras_holds_where_eras_are_shorter_than_a_step(tmp_path: Path) -> None:
    parts = Parts(tmp_path, reencode_per_clip=8 / BATCH, max_eras=4, max_encoders=2)
    for n in range(2, 14):
        parts.learn(2)
        parts.boundary(f"t{n}")
        parts.eras.reencode()
        assert len(parts.eras.eras) <= 4 + 1  # the one that is being merged away


@pytest.mark.parametrize("what", ["all", "heads"])
def test_a_stream_that_does_not_pause_leaves_no_more_than_an_era_behind(tmp_path: Path, what: str) -> None:
    models = (str(save_model(tmp_path / kind, kind)) for kind in ("vit", "bert"))
    towers = Towers(*models, dim=16)
    towers.train_only(what)
    parts = Parts(tmp_path, towers=towers, max_eras=4, max_encoders=2, refresh_share=0.125)
    for n in range(2, 12):
        for _ in range(3):
            parts.learn(8)
            parts.eras.reencode()
        assert parts.eras.stale == 0
        parts.boundary(f"t{n}")
        assert len(parts.eras.eras) <= 4 + 1
        assert sum(era.encoder is not None and era.mapped is None for era in parts.eras.eras) <= 2 + 1


def test_a_clip_whose_frames_are_gone_keeps_its_vector(parts: Parts) -> None:
    rows = parts.learn(8)
    before = indexed(parts, 1)
    parts.frames.delete(rows[2:4])
    parts.boundary("t2")
    parts.finish_reencoding()
    after = indexed(parts, 1)
    kept = [row for row in rows if np.allclose(before[row], after[row])]
    assert kept == rows[2:4]


def test_a_clip_deleted_while_its_era_is_reencoded_does_not_come_back(parts: Parts) -> None:
    rows = parts.learn(8)
    parts.boundary("t2")
    parts.eras.reencode()
    for i in (0, 7):  # one that was re-encoded already, one that was not
        parts.catalog.delete(f"v{i}")
    parts.eras.remove([rows[0], rows[7]])
    parts.finish_reencoding()
    assert list(indexed(parts, 1)) == rows[1:7]
    assert parts.catalog.era_vectors(1)[0].tolist() == rows[1:7]


def test_a_sealed_era_without_clips_is_not_asked(parts: Parts) -> None:
    parts.boundary("t2")
    rows = parts.learn(4)
    assert [view.number for view in parts.eras.views()] == [2]
    assert list(indexed(parts, 2)) == rows
    assert parts.eras.reencode() == 0


def test_the_oldest_vectors_of_the_current_era_are_refreshed_and_young_ones_are_not(tmp_path: Path) -> None:
    parts = Parts(tmp_path, refresh_share=5 / STEP)
    old = parts.learn(8)
    for _ in range(9):
        parts.learn(2)
    assert parts.eras.oldest_age_steps() == 9
    before = indexed(parts, 1)
    assert parts.eras.reencode() == 5
    after = indexed(parts, 1)
    assert [row for row in after if not np.array_equal(before[row], after[row])] == old[:5]
    np.testing.assert_allclose(
        [after[row] for row in old[:5]], by(parts.learner.local, parts.stored(old[:5])), atol=HALF
    )
    assert parts.eras.reencode() == 3
    assert parts.eras.reencode() == 0
    assert parts.eras.oldest_age_steps() == 8


def test_what_was_restored_is_refreshed_only_once_more_was_learned(tmp_path: Path) -> None:
    parts = Parts(tmp_path, refresh_share=50 / STEP)
    old = parts.learn(8)
    for _ in range(9):
        parts.learn(2)
    before = indexed(parts, 1)
    parts.eras.restore(parts.eras.state(), tensors_of(parts))
    assert parts.eras.reencode() == 0
    assert same(indexed(parts, 1), before, atol=0)
    parts.learn(2)
    assert parts.eras.reencode() >= len(old)


def test_without_a_refresh_budget_vectors_stay_as_on_arrival(parts: Parts) -> None:
    parts.learn(8)
    for _ in range(12):
        parts.learn(1)
    before = indexed(parts, 1)
    assert parts.eras.reencode() == 0
    assert same(indexed(parts, 1), before)


def test_held_out_clips_decide_for_the_encoders_where_the_momentum_pair_ranks_worse(tmp_path: Path) -> None:
    parts = Parts(tmp_path, towers=build_towers(ModelSettings(), seed=0))
    parts.learn(4)
    parts.learn(16, split="heldout")
    with torch.no_grad():  # a momentum pair that knows nothing: every clip is the same to it
        for parameter in parts.learner.local.video.head[-1].parameters():  # type: ignore[union-attr, index]
            parameter.fill_(0.1)
    online = {name: tensor.half() for name, tensor in parts.learner.online.state_dict().items()}
    parts.boundary("t2")
    frozen = tensors_of(parts)["eras/0001"]
    assert all(torch.equal(frozen[name], online[name]) for name in online)
    told = parts.eras.state()[0]["sealing"]
    assert (told["pair"], told["judges"]) == ("encoders", 16)
    assert told["merits"]["encoders"] > told["merits"]["served"]


def test_restored_eras_are_what_they_were(parts: Parts, tmp_path: Path) -> None:
    parts.learn(8)
    parts.boundary("t2")
    parts.learn(8)
    parts.boundary("t3")
    parts.learn(4)
    parts.eras.reencode()  # half way through the first era
    state, tensors = parts.eras.state(), tensors_of(parts)
    again = Eras(parts.learner, parts.catalog, parts.frames, parts.settings)
    again.restore(state, tensors)
    for old, new in zip(parts.eras.views(), again.views(), strict=True):
        assert (old.number, old.task) == (new.number, new.task)
        assert old.partition.rows.tolist() == new.partition.rows.tolist()
        assert np.array_equal(old.partition.vectors(old.partition.rows), new.partition.vectors(old.partition.rows))
        assert np.array_equal(old.encoder.texts(["a red star"]), new.encoder.texts(["a red star"]))
        assert np.array_equal(old.captions, new.captions)
        assert same_words(old.words, new.words)
    assert again.state() == state
    assert again.stale == 16  # the half of an era is done again, for it was not swapped in
    while again.reencode():
        pass
    parts.finish_reencoding()
    for old, new in zip(parts.eras.views()[:2], again.views()[:2], strict=True):
        rows = old.partition.rows
        np.testing.assert_allclose(old.partition.vectors(rows), new.partition.vectors(rows), atol=HALF)


def test_an_era_was_told_the_captions_of_the_clips_that_were_learned_in_it(parts: Parts) -> None:
    first = parts.learn(8)
    first += parts.learn(4, split="heldout")
    second = parts.learn(8, "night")
    assert same_words(parts.eras.current.words, parts.words(first + second))
    parts.boundary("t2", since_step=1)
    second += parts.learn(8, "night")
    old, new = parts.eras.views()
    assert same_words(old.words, parts.words(first))
    assert same_words(new.words, parts.words(second))
    assert (old.words.clips, new.words.clips) == (8, 16)


def test_eras_from_before_words_were_counted_are_all_alike_to_them(parts: Parts) -> None:
    parts.learn(8)
    parts.boundary("t2")
    parts.learn(8)
    parts.finish_reencoding()
    state = [{name: value for name, value in facts.items() if name != "told"} for facts in parts.eras.state()]
    tensors = {name: part for name, part in tensors_of(parts).items() if name != "words"}
    parts.eras.restore(state, tensors)
    assert [era.words.clips for era in parts.eras.views()] == [0, 0]
    parts.publish()
    assert len(parts.ask("a red star").results) == 10


def test_an_era_is_sealed_alike_whether_or_not_the_run_was_resumed_before_the_boundary(
    parts: Parts, tmp_path: Path
) -> None:
    """The snapshots from before the drift are part of a checkpoint."""
    for _ in range(3):
        parts.learn(8)
    again = Eras(parts.learner, parts.catalog, parts.frames, parts.settings)
    again.restore(parts.eras.state(), tensors_of(parts))
    assert {part for part in tensors_of(parts) if part.startswith("snapshots/")} == {
        f"snapshots/0001-{step:08d}" for step in (1, 2, 3)
    }
    parts.learn(8)
    parts.boundary("t2", since_step=2)
    sealed = tensors_of(parts)["eras/0001"]
    parts.eras = again
    parts.boundary("t2", since_step=2)
    assert parts.eras.eras[0].sealed_step == 2
    resumed = tensors_of(parts)["eras/0001"]
    assert all(torch.equal(sealed[name], resumed[name]) for name in sealed)


def test_what_is_kept_of_an_era_never_changes(parts: Parts) -> None:
    parts.learn(8)
    parts.boundary("t2")
    sealed = {name: tensor.clone() for name, tensor in tensors_of(parts)["eras/0001"].items()}
    parts.learn(8)
    parts.finish_reencoding()
    parts.boundary("t3")
    after = tensors_of(parts)
    assert sorted(name for name in after if name.startswith("eras/")) == ["eras/0001", "eras/0002"]
    assert all(torch.equal(sealed[name], after["eras/0001"][name]) for name in sealed)
    assert {tensor.dtype for tensor in sealed.values()} == {torch.float16}


@pytest.mark.slow
def test_threads_may_ask_one_encoder_for_more_texts_than_it_remembers() -> None:
    encoder = QueryEncoder(Towers(dim=16).eval())
    known = [f"a {i}" for i in range(64)]
    expected = encoder.texts(known)
    stop = threading.Event()

    def flood(start: int) -> None:
        for i in range(start, start + 12_000, 1000):
            encoder.texts([f"b {n}" for n in range(i, i + 1000)])

    def ask() -> bool:
        right = True
        while not stop.is_set():
            right &= bool(np.allclose(encoder.texts(known), expected, atol=1e-5))
        return right

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask) for _ in range(2)]
        floods = [pool.submit(flood, start) for start in (0, 50_000)]
        for done in floods:
            done.result()
        stop.set()
        assert all(done.result() for done in asking)


def test_the_refresh_passes_over_clips_whose_frames_were_evicted(tmp_path: Path) -> None:
    parts = Parts(tmp_path, refresh_share=4 / STEP)
    for _ in range(12):
        parts.learn()
    parts.frames.delete(parts.rows[:16])
    assert parts.eras.reencode() == 4  # at the first call: it is how an idle daemon knows that something is left
