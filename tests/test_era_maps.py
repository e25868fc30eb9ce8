"""Few pairs of encoders that read many eras: which go, what is lost by it, and what readers and checkpoints see."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamlearn.encoders import Towers
from streamlearn.era import Era
from streamlearn.era_maps import Captions, Mapped, MappedEncoder, choose, fitted, through
from streamlearn.era_merge import Merge, Merger
from streamlearn.era_view import QueryEncoder
from streamlearn.era_words import Words
from streamlearn.eras import Eras
from streamlearn.records import Frames, Vectors
from streamlearn.schemas import Query
from streamlearn.settings import ModelSettings, SearchSettings
from streamlearn.warmup import build_towers
from tests.parts import BATCH, Parts, indexed
from tests.test_era_merge import three_eras
from tests.test_eras import HALF, tensors_of

DIM = 8
_UNUSED = Towers(dim=DIM)


def rotation(seed: int) -> Vectors:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(DIM, DIM)))[0].astype(np.float32)


def meaning(texts: Sequence[str]) -> Vectors:
    """What every encoder knows of a text, before it turns it."""
    rows = [np.random.default_rng(int(text)).normal(size=DIM) for text in texts]
    out: Vectors = np.array(rows, np.float32).reshape(len(texts), DIM)
    out /= np.linalg.norm(out, axis=1, keepdims=True)
    return out


class Turned(QueryEncoder):
    """A text encoder whose space is turned; one that is `fickle` sees each text by itself."""

    def __init__(self, seed: int, *, fickle: bool = False) -> None:
        super().__init__(_UNUSED)
        self._by, self._fickle = rotation(seed), fickle

    def texts(self, texts: Sequence[str]) -> Vectors:
        return meaning([text + "7" for text in texts]) if self._fickle else meaning(texts) @ self._by

    def clips(self, frames: Frames) -> Vectors:
        return meaning([str(n) for n in frames[:, 0, 0, 0, 0].tolist()]) @ self._by


class One:
    def __init__(self, number: int, encoder: Turned, mapped: Mapped | None = None) -> None:
        self.number = number
        self.encoder: QueryEncoder = encoder
        self.mapped = mapped
        self.words = Words()

    def said(self) -> Captions:
        learned = [str(1000 * self.number + i) for i in range(64)]
        asked = [str(1000 * self.number + 500 + i) for i in range(20)]
        vectors = self.encoder.texts(learned)
        return Captions(learned, vectors, asked, self.encoder.texts(asked), vectors)


def chosen(eras: Sequence[One], most: int, free: Sequence[int] | None = None) -> Any:
    numbers = [era.number for era in eras]
    return choose(eras, {e.number: e.said() for e in eras}, numbers if free is None else free, most, 1.0)


def test_the_pair_that_a_map_can_stand_for_goes() -> None:
    eras = [One(1, Turned(1, fickle=True)), One(2, Turned(2)), One(3, Turned(3))]
    choice = chosen(eras, 2)
    assert (choice.era, choice.mapped.reader, choice.mapped.judges) == (2, 3, 60)
    assert choice.mapped.loss == pytest.approx(0, abs=0.02)
    assert list(choice.maps) == [2]
    asked = ["17", "23"]
    encoder = MappedEncoder(eras[2].encoder, choice.maps[2], np.eye(DIM + 1, DIM, dtype=np.float32))
    assert (encoder.texts(asked) * eras[1].encoder.texts(asked)).sum(1).min() > 0.97
    films = np.full((2, 1, 2, 2, 3), 17, np.uint8)
    np.testing.assert_allclose(encoder.clips(films), eras[2].encoder.clips(films), atol=1e-6)
    assert encoder.nbytes == 2 * (DIM + 1) * DIM * 4


def test_what_dropping_a_pair_costs_is_the_recall_that_is_lost_in_the_pool_of_all() -> None:
    fickle = [One(1, Turned(1, fickle=True)), One(2, Turned(2))]
    choice = chosen(fickle, 1)
    assert choice.era == 1
    assert choice.mapped.loss > 0.2


def test_those_that_a_dropped_pair_read_for_are_read_by_the_newest_from_their_own_captions() -> None:
    first, second, third = One(1, Turned(1)), One(2, Turned(2)), One(3, Turned(3))
    own = first.said()
    first.mapped = Mapped(2, 0.0, 40)
    through_second = fitted(second.encoder.texts(own.texts), own.vectors)
    first.encoder = MappedEncoder(second.encoder, through_second, through_second)
    said = {1: own, 2: second.said(), 3: third.said()}
    choice = choose([first, second, third], said, [1, 2, 3], 1, 1.0)
    assert choice is not None
    assert (choice.era, sorted(choice.maps)) == (2, [1, 2])
    exact = fitted(third.encoder.texts(own.texts), own.vectors)
    np.testing.assert_allclose(choice.maps[1], exact, atol=1e-6)


def test_no_pair_goes_below_the_cap_nor_one_that_is_still_needed_nor_the_newest() -> None:
    eras = [One(1, Turned(1)), One(2, Turned(2))]
    assert chosen(eras, 2) is None
    assert chosen(eras, 1, free=[2]) is None
    assert chosen(eras[:1], 1) is None
    none = np.zeros((0, DIM), np.float32)
    empty = Captions([], none, [], none, none)
    choice = choose(eras, {1: empty, 2: empty}, [1], 1, 1.0)
    assert choice is not None
    assert (choice.mapped.loss, choice.mapped.judges) == (0.0, 0)
    np.testing.assert_array_equal(choice.maps[1], np.eye(DIM + 1, DIM))


def test_a_pair_goes_when_its_era_is_encoded_and_search_goes_on_through_the_map(tmp_path: Path) -> None:
    parts = three_eras(tmp_path, max_encoders=2)
    before = {view.number: view for view in parts.eras.views()}
    vectors = {number: indexed(parts, number) for number in before}
    parts.boundary("t4")
    own = [era.number for era in parts.eras.eras[:-1] if era.mapped is None]
    assert len(own) == 2
    assert own[-1] == 3  # the newest
    (gone,) = {1, 2} - set(own)
    assert set(parts.eras.sealed()) >= {f"eras/{number:04d}" for number in own}
    assert f"eras/{gone:04d}" not in parts.eras.sealed()
    parts.finish_reencoding()
    after = {view.number: view for view in parts.eras.views()}
    np.testing.assert_array_equal(list(indexed(parts, gone).values()), list(vectors[gone].values()))
    texts = [clip.asked for clip in parts.catalog.heldout(before[gone].task, 100)]
    near = (after[gone].encoder.texts(texts) * before[gone].encoder.texts(texts)).sum(1)
    straight = (after[3].encoder.texts(texts) * before[gone].encoder.texts(texts)).sum(1)
    assert near.mean() > max(0.9, straight.mean())
    films = parts.stored(list(vectors[gone]))
    near = (after[gone].encoder.clips(films) * np.array(list(vectors[gone].values()))).sum(1)
    straight = (after[3].encoder.clips(films) * np.array(list(vectors[gone].values()))).sum(1)
    assert near.mean() > max(0.9, straight.mean())
    parts.publish()
    answer = parts.ask(texts[0], limit=50)
    assert {result.video_id for result in answer.results} == {f"v{i}" for i in range(len(parts.rows))}
    assert parts.registry.get_sample_value("streamlearn_era_bytes", {"era": str(gone)}) is not None


def test_an_era_that_is_yet_to_be_encoded_keeps_its_pair_until_it_is(tmp_path: Path) -> None:
    parts = Parts(tmp_path, towers=build_towers(ModelSettings(), 0), reencode_per_clip=4 / BATCH, max_encoders=1)
    for task in ("t2", "t3"):
        parts.learn(8)
        parts.boundary(task)
    assert [era.mapped is None for era in parts.eras.eras] == [True, True, True]
    parts.finish_reencoding()
    assert [era.mapped is None for era in parts.eras.eras] == [False, True, True]


def test_a_restart_reads_the_same_through_the_same_maps(tmp_path: Path) -> None:
    parts = three_eras(tmp_path, max_encoders=1)
    parts.boundary("t4")
    parts.finish_reencoding()
    again = Eras(parts.learner, parts.catalog, parts.frames, parts.settings)
    again.restore(parts.eras.state(), tensors_of(parts))
    assert again.state() == parts.eras.state()
    assert [facts["mapped"] is None for facts in again.state()] == [False, False, True, True]
    texts = ["a red ball", "a blue fish"]
    for old, new in zip(parts.eras.views(), again.views(), strict=True):
        np.testing.assert_allclose(old.encoder.texts(texts), new.encoder.texts(texts), atol=HALF)
        np.testing.assert_array_equal(old.captions, new.captions)
        film = parts.stored(parts.rows[:1])
        np.testing.assert_allclose(old.encoder.clips(film), new.encoder.clips(film), atol=HALF)


def test_a_pair_that_reads_for_an_era_on_its_way_into_another_stays_until_that_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def into_the_newest(_: Any, eras: Sequence[Era], judges: Any) -> Merge | None:
        readers = {era.mapped.reader: era for era in eras if era.mapped is not None}
        return Merge(eras[-1].number, readers[min(readers)].number, "cap", 0.0, 0)  # the oldest reader's

    monkeypatch.setattr(Merger, "cheapest", into_the_newest)
    parts = Parts(tmp_path, reencode_per_clip=4 / BATCH, max_encoders=2, max_eras=5)
    for number in range(2, 8):
        parts.learn(8)
        parts.learn(6, split="heldout")
        parts.boundary(f"t{number}")
        if number < 6:
            parts.finish_reencoding()
        again = Eras(parts.learner, parts.catalog, parts.frames, parts.settings)
        again.restore(parts.eras.state(), tensors_of(parts))
        assert again.state() == parts.eras.state()
    by_number = {era.number: era for era in parts.eras.eras}
    (going,) = [era for era in parts.eras.eras if era.into is not None]
    assert going.mapped is not None
    assert by_number[going.mapped.reader].mapped is None
    parts.finish_reencoding()
    own = [era for era in parts.eras.eras[:-1] if era.mapped is None]
    assert len(own) == 2


def test_a_lower_cap_is_met_at_the_next_start(tmp_path: Path) -> None:
    parts = three_eras(tmp_path, max_encoders=4)
    parts.boundary("t4")
    parts.finish_reencoding()
    assert all(era.mapped is None for era in parts.eras.eras)
    again = Eras(parts.learner, parts.catalog, parts.frames, parts.settings.model_copy(update={"max_encoders": 1}))
    again.restore(parts.eras.state(), tensors_of(parts))
    assert [era.mapped is None for era in again.eras] == [False, False, True, True]


def test_an_era_of_held_out_clips_alone_or_of_none_loses_its_pair_too(tmp_path: Path) -> None:
    parts = Parts(tmp_path, towers=build_towers(ModelSettings(), 0), max_encoders=1)
    held = parts.learn(8, split="heldout")
    parts.boundary("t2")
    parts.finish_reencoding()
    before = parts.eras.views()[0].encoder
    parts.learn(16, "night")
    parts.boundary("t3")
    parts.boundary("t4")  # nothing came of t3
    parts.finish_reencoding()
    parts.learn(16)
    parts.boundary("t5")
    parts.finish_reencoding()
    assert [era.mapped is None for era in parts.eras.eras] == [False, False, False, True, True]
    texts = [clip.asked for clip in parts.catalog.clips(held).values()]
    after, straight = parts.eras.views()[0].encoder, parts.eras.views()[-2].encoder.reader
    near = [(encoder.texts(texts) * before.texts(texts)).sum(1).mean() for encoder in (after, straight)]
    assert near[0] > max(0.9, near[1])  # captions of other eras stand in for its own


def test_where_an_eras_frames_are_gone_others_say_how_another_pair_sees_its_clips(tmp_path: Path) -> None:
    parts = three_eras(tmp_path, max_encoders=2)
    before = {view.number: view.encoder for view in parts.eras.views()}
    films = {number: parts.stored(list(indexed(parts, number))) for number in (1, 2)}
    parts.frames.delete([*indexed(parts, 1), *indexed(parts, 2)])
    parts.boundary("t4")
    parts.finish_reencoding()
    (gone,) = [era.number for era in parts.eras.eras if era.mapped is not None]
    after = {view.number: view.encoder for view in parts.eras.views()}
    own = before[gone].clips(films[gone])
    near, straight = ((encoder.clips(films[gone]) * own).sum(1) for encoder in (after[gone], after[3].reader))
    assert near.mean() > straight.mean()


def test_a_query_by_video_is_encoded_once_by_each_pair(tmp_path: Path) -> None:
    parts = three_eras(tmp_path, max_encoders=1)
    parts.boundary("t4")
    parts.finish_reencoding()
    parts.learn(8)
    parts.publish()
    views = parts.eras.views()
    readers = {id(view.encoder.reader.towers): view.encoder.reader for view in views}
    assert (len(views), len(readers)) == (4, 2)
    asked: list[int] = []
    for reader in readers.values():
        reader.towers.video.register_forward_hook(lambda _, frames, __: asked.append(len(frames[0])))
    answer = parts.ask(Query(video_id="v0"), limit=50)
    assert len(answer.results) == len(parts.rows)
    assert answer.results[0].video_id == "v0"
    assert asked == [1, 1]


def test_clips_that_are_gone_do_not_count_where_a_map_is_found(tmp_path: Path) -> None:
    parts = three_eras(tmp_path, max_encoders=2)
    rows = [row for row, clip in parts.catalog.clips(indexed(parts, 1)).items() if clip.split == "train"]
    parts.catalog.delete(parts.catalog.clips(rows[:1])[rows[0]].video_id)
    parts.eras.remove(rows[:1])
    parts.boundary("t4")
    parts.finish_reencoding()
    assert sum(era.mapped is not None for era in parts.eras.eras) == 1


def test_encoding_merged_eras_anew_needs_all_pairs() -> None:
    with pytest.raises(ValueError, match=r"max_encoders \(4\) keeps fewer than the 16 of max_eras"):
        SearchSettings(merge_vectors="encode")
    SearchSettings(merge_vectors="encode", max_eras=4)


def test_a_map_through_which_nothing_is_known_stays_as_it_is() -> None:
    np.testing.assert_array_equal(fitted(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32)), np.eye(4, 3))
    np.testing.assert_allclose(through(np.array([[3.0, 4.0]]), np.eye(3, 2)), [[0.6, 0.8]])
