"""A linear readout between an era's towers: when it is used, and what readers, boundaries and checkpoints see of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from streamlearn.era_maps import Captions, MappedEncoder, fitted, through
from streamlearn.era_readout import Readout, judged, read_open, recent_readout, through_readout
from streamlearn.eras import Eras
from streamlearn.records import Vectors
from streamlearn.settings import ModelSettings
from streamlearn.warmup import build_towers
from tests.parts import Parts
from tests.test_era_maps import One, Turned, meaning, rotation
from tests.test_eras import HALF, tensors_of
from tests.test_evaluator import Judge

_HELPS, _HARMS = Readout(0.1, 20), Readout(-0.1, 20)


def clips_of(era: One, texts: Sequence[str]) -> Vectors:
    """Whose text tower lies at another place and angle than its video tower."""
    moved: Vectors = era.encoder.texts(texts) @ rotation(99) + np.float32(0.5)
    return moved / np.linalg.norm(moved, axis=1, keepdims=True)


def decided(eras: Sequence[One], *, misled: bool = False) -> Readout | None:
    """With `misled`, the towers agree about held-out clips, and learned ones were each shown with another's words."""
    said, plain, read_out = {}, {}, {}
    for era in eras:
        one = era.said()
        asked, learned = clips_of(era, one.questions), clips_of(era, one.texts)
        if misled:
            asked, learned = era.encoder.texts(one.questions), learned[::-1]
        said[era.number] = Captions(one.texts, one.vectors, one.questions, asked, learned)
        plain[era.number] = era.encoder
        read_out[era.number] = through_readout(era.encoder, one.vectors, learned)
    return judged(eras, said, plain, read_out, 0.5)


def test_held_out_clips_are_found_where_the_towers_differ_by_a_map() -> None:
    readout = decided([One(1, Turned(1)), One(2, Turned(2))])
    assert readout is not None
    assert readout.judges == 40
    assert readout.gain > 0.3
    assert readout.helps


def test_a_readout_that_misleads_is_not_used() -> None:
    readout = decided([One(1, Turned(1)), One(2, Turned(2))], misled=True)
    assert readout is not None
    assert readout.gain < -0.3
    assert not readout.helps


def test_without_held_out_clips_it_cannot_be_judged() -> None:
    era = One(1, Turned(1))
    one = era.said()
    few = Captions(one.texts, one.vectors, one.questions[:9], one.clips[:9], one.learned)
    both = {1: era.encoder}
    assert judged([era], {1: few}, both, both, 0.5) is None


def test_a_map_has_a_place_as_well_as_an_angle() -> None:
    era = One(1, Turned(1))
    texts = [str(i) for i in range(200)]
    found = through(era.encoder.texts(texts[150:]), fitted(era.encoder.texts(texts[:150]), clips_of(era, texts[:150])))
    assert (found * clips_of(era, texts[150:])).sum(1).min() > 0.95


def test_an_open_era_is_read_by_its_latest_pairs_where_the_newest_of_them_agree() -> None:
    era = One(1, Turned(1))
    texts = [str(i) for i in range(200)]
    asked, clips = era.encoder.texts(texts), clips_of(era, texts)
    found = recent_readout(asked, clips, None)
    assert found is not None
    np.testing.assert_array_equal(found, fitted(asked, clips))
    assert recent_readout(asked[:63], clips[:63], None) is None  # too few
    assert recent_readout(asked, asked, None) is None  # it is as good without


def test_an_open_era_is_read_as_the_sealed_ones_are() -> None:
    texts = meaning([str(i) for i in range(100)])
    clips = texts @ rotation(3)
    assert recent_readout(texts, clips, False) is None
    assert recent_readout(texts, texts, True) is not None
    assert recent_readout(texts[:1], clips[:1], True) is not None  # or its few clips would be pushed out of all results
    assert recent_readout(texts[:0], clips[:0], True) is None
    encoder, captions = read_open(Turned(1).towers, texts, clips, True)
    assert isinstance(encoder, MappedEncoder)
    assert not encoder.borrowed
    np.testing.assert_allclose(captions, clips, atol=0.2)
    encoder, captions = read_open(Turned(1).towers, texts, clips, False)
    assert encoder.reader is encoder
    np.testing.assert_array_equal(captions, texts)


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    """Three sealed eras and an open one, which a warm learner has seen 96 clips of each."""
    parts = Parts(tmp_path, towers=build_towers(ModelSettings(), 0))
    for number, domain in enumerate(("studio", "night", "thermal", "studio"), 1):
        if number > 1:
            parts.boundary(f"t{number}")
            parts.finish_reencoding()
        for _ in range(12):
            parts.learn(8, domain)
        parts.learn(24, domain, split="heldout")
    return parts


def readers(eras: Eras) -> list[bool]:
    """Whether each era is read through a readout of its own."""
    return [isinstance(view.encoder, MappedEncoder) and not view.encoder.borrowed for view in eras.views()]


def use_readouts(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on, whatever held-out clips say."""
    monkeypatch.setattr("streamlearn.era_bounds.judged", lambda *_: _HELPS)
    parts.eras._bounds.read_out(parts.eras.eras)


def test_all_eras_are_read_alike_and_the_decision_is_noted(parts: Parts) -> None:
    (readout,) = {era.readout for era in parts.eras.eras[:-1]}
    assert readout is not None
    assert readout.judges == 72
    assert readers(parts.eras) == [readout.helps] * 4
    assert [facts["readout"] for facts in parts.eras.state()] == [{"gain": readout.gain, "judges": 72}] * 3 + [None]
    for view in parts.eras.views()[:-1]:
        rows = next(era.caption_rows for era in parts.eras.eras if era.number == view.number).tolist()
        texts = [parts.catalog.clips([row])[row].captions[0] for row in rows]
        np.testing.assert_allclose(view.captions, view.encoder.texts(texts), atol=1e-6)


def test_what_is_decided_is_what_finds_held_out_clips(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    for readout in (_HARMS, _HELPS):
        monkeypatch.setattr("streamlearn.era_bounds.judged", lambda *_, found=readout: found)
        parts.eras._bounds.read_out(parts.eras.eras)
        assert readers(parts.eras) == [readout.helps] * 4


def test_a_restart_reads_the_same_through_the_same_readouts(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    use_readouts(parts, monkeypatch)
    again = Eras(parts.learner, parts.catalog, parts.frames, parts.settings)
    again.restore(parts.eras.state(), tensors_of(parts))
    assert again.state() == parts.eras.state()
    assert readers(again) == [True] * 4
    for old, new in zip(parts.eras.views(), again.views(), strict=True):
        texts = ["a red ball", "a blue fish"]
        np.testing.assert_allclose(old.encoder.texts(texts), new.encoder.texts(texts), atol=HALF)
        np.testing.assert_array_equal(old.captions, new.captions)


def test_until_an_era_is_encoded_anew_it_is_read_as_it_was_when_it_was_open(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_readouts(parts, monkeypatch)
    was = parts.eras.views()[-1].encoder
    parts.boundary("t5")
    ended = parts.eras.views()[3]
    assert isinstance(was, MappedEncoder)
    assert isinstance(ended.encoder, MappedEncoder)
    np.testing.assert_allclose(ended.encoder.of_texts, was.of_texts, atol=1e-6)
    parts.finish_reencoding()
    assert readers(parts.eras)[:4] == [True] * 4


def test_deleted_clips_leave_captions_and_their_clips_side_by_side(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamlearn.era_bounds.judged", lambda *_: _HELPS)
    first = parts.eras.eras[0]
    for name in ("t5", "t6"):
        gone = [row for row in first.caption_rows.tolist() if row in parts.catalog.clips(first.caption_rows)][:20]
        for clip in parts.catalog.clips(gone).values():
            parts.catalog.delete(clip.video_id)
        parts.eras.remove(gone)
        parts.boundary(name)
        parts.finish_reencoding()
        parts.learn(16)
        said = parts.eras._clips.said(first)
        assert first.encoder is not None
        np.testing.assert_allclose(said.vectors, first.encoder.texts(said.texts), atol=1e-5)
        assert len(first.caption_rows) == len(first.captions) == 96
    assert len(said.texts) == 56
    again = Eras(parts.learner, parts.catalog, parts.frames, parts.settings)
    again.restore(parts.eras.state(), tensors_of(parts))
    for old, new in zip(parts.eras.views(), again.views(), strict=True):
        np.testing.assert_array_equal(old.captions, new.captions)


def test_an_era_whose_learned_clips_are_all_deleted_is_read_by_its_pair_alone(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_readouts(parts, monkeypatch)
    first = parts.eras.eras[0]
    rows = first.caption_rows.tolist()
    for clip in parts.catalog.clips(rows).values():
        parts.catalog.delete(clip.video_id)
    parts.eras.remove(rows)
    parts.eras._bounds.read_out(parts.eras.eras)
    assert readers(parts.eras) == [False, True, True, True]


def test_one_pair_for_all_eras_has_no_readout(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    use_readouts(parts, monkeypatch)
    monkeypatch.setattr(parts.settings, "mode", "single")
    assert not readers(parts.eras)[-1]


def test_where_sealed_eras_cannot_be_judged_the_open_one_has_no_readout_either(tmp_path: Path) -> None:
    parts = Parts(tmp_path, towers=build_towers(ModelSettings(), 0))
    for name in ("t2", "t3"):
        for _ in range(9):
            parts.learn(8)
        parts.learn(4, split="heldout")
        parts.boundary(name)
        parts.finish_reencoding()
    for _ in range(9):
        parts.learn(8)
    assert readers(parts.eras) == [False] * 3


def test_an_era_whose_clips_have_all_moved_on_shares_nothing_with_the_next(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    parts.learn(8)
    parts.boundary("t2", since_step=0)
    first, second = parts.eras.eras
    assert (len(first.captions), len(second.captions)) == (0, 8)
    assert not np.shares_memory(first.captions, second.captions)


def test_a_map_of_the_first_kind_is_still_read(parts: Parts) -> None:
    parts.eras._bounds._settings = parts.settings.model_copy(update={"max_encoders": 1})
    parts.eras._bounds.keep(parts.eras.eras)
    tensors = tensors_of(parts)
    for kind in ("text_maps", "clip_maps"):  # format 2: a matrix alone
        borrowed = {number: tensors[kind][number][:128] for number in tensors["clip_maps"]}
        tensors[kind] = {**tensors[kind], **borrowed}
    again = Eras(parts.learner, parts.catalog, parts.frames, parts.settings)
    again.restore(parts.eras.state(), tensors)
    assert [view.encoder.borrowed for view in again.views()] == [True, True, False, False]
    for view in again.views():
        assert view.encoder.texts(["a red ball"]).shape == (1, 128)


def test_a_state_from_before_there_were_readouts_goes_on(parts: Parts) -> None:
    old = {kind: part for kind, part in tensors_of(parts).items() if kind not in ("caption_clips", "text_maps")}
    state = [{key: value for key, value in facts.items() if key != "readout"} for facts in parts.eras.state()]
    again = Eras(parts.learner, parts.catalog, parts.frames, parts.settings)
    again.restore(state, old)
    assert readers(again) == [False] * 4
    assert len(again.views()[-1].captions) == 0  # with whose clips is not known
    parts.eras = again
    parts.learn(8)
    assert readers(again) == [False] * 4
    parts.boundary("t5")
    parts.finish_reencoding()
    (readout,) = {era.readout for era in again.eras[:-1]}
    assert readout is not None


def test_a_state_that_calls_the_captions_clips_by_their_first_name_is_read_whole(parts: Parts) -> None:
    old = tensors_of(parts)
    old = {"shown" if kind == "caption_clips" else kind: part for kind, part in old.items()}
    again = Eras(parts.learner, parts.catalog, parts.frames, parts.settings)
    again.restore(parts.eras.state(), old)
    np.testing.assert_array_equal(again.current.caption_clips, parts.eras.current.caption_clips)
    np.testing.assert_array_equal(again.current.captions, parts.eras.current.captions)
    assert len(again.current.captions)


def test_recall_of_the_learner_and_in_mode_single_is_that_of_its_encoders_alone(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = Judge(parts)
    before = judge.measure(parts.publish(), "t4", 100)
    monkeypatch.setattr("streamlearn.era_readout.recent_readout", lambda *_: np.full((129, 128), 0.1, np.float32))
    none = np.zeros((0, 128), np.float32)
    parts.eras.note_pairs(none, none, [])  # or the open era would be read as it was published last
    after = judge.measure(parts.publish(), "t4", 100)
    assert readers(parts.eras)[-1]
    assert before is not None
    assert after is not None
    for view in ("learner", "single"):
        np.testing.assert_array_equal(before.ranks["t2v", view], after.ranks["t2v", view])
    assert (before.ranks["t2v", "served"] != after.ranks["t2v", "served"]).any()
