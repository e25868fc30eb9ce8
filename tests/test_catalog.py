from __future__ import annotations

import math
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamlearn.catalog import Catalog, ClipRow, Score
from streamlearn.catalog_file import MIGRATIONS, reading_only
from streamlearn.catalog_rows import TaskRanks
from streamlearn.errors import NewerStateError, SearchError, StateError
from streamlearn.heldout import Footage, lot

DIM = 4
Vector = npt.NDArray[np.float32]


def clip(video_id: str, **changes: Any) -> ClipRow:
    plain = ClipRow(
        row=0,
        video_id=video_id,
        uri=None,
        start_s=None,
        end_s=None,
        captions=(f"caption of {video_id}",),
        meta={},
        time=None,
        split="train",
        task="t1",
        step=0,
        sha256=None,
        topic="clips",
        partition="0",
        offset=0,
    )
    return replace(plain, **changes)


def vectors(seed: int, count: int) -> Vector:
    # Numbers that half precision holds exactly, so that equality is equality.
    drawn: Vector = np.random.default_rng(seed).integers(-64, 65, (count, DIM)).astype(np.float32) / 64
    return drawn


def eras_of(catalog: Catalog) -> list[int]:
    """Those that have live vectors, of the few that these tests use."""
    return [era for era in range(10) if len(catalog.era_vectors(era)[0])]


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    made = Catalog(tmp_path / "catalog.db")
    yield made
    made.close()


# -- clips -------------------------------------------------------------------------------------------------------


def test_everything_known_of_a_clip_comes_back(catalog: Catalog) -> None:
    full = clip(
        "v/1 é\x00",
        uri="file:///a b.mp4",
        start_s=1.5,
        end_s=2.0,
        captions=("a", "zwei \ud800 \x00"),
        meta={"cam": "7", "n": 3, "deep": {"a": [1, None]}, "no": None, "half": "\ud800", "huge": 10**30},
        time="2026-01-02T03:04:05+02:00",
        split="heldout",
        step=12,
        sha256="ab",
        partition="3",
        offset=2**40,
    )
    (row,), replaced = catalog.put([full])
    assert replaced == []
    assert catalog.clip(full.video_id) == replace(full, row=row)
    assert catalog.clips([row, row + 1]) == {row: replace(full, row=row)}
    assert catalog.put([full]) == ([row + 1], [row])
    assert catalog.clip("v/1 é") is None


def test_the_same_id_replaces_and_the_last_of_a_batch_wins(catalog: Catalog) -> None:
    (old, other), _ = catalog.put([clip("a"), clip("b")])
    catalog.put_vectors([old, other], vectors(0, 2), era=1, step=1)
    rows, replaced = catalog.put([clip("a", task="x"), clip("c"), clip("a", task="y")])
    assert sorted(replaced) == [old, rows[0]]
    found = catalog.clip("a")
    assert found is not None
    assert (found.row, found.task) == (rows[2], "y")
    assert len({old, other, *rows}) == 5
    assert catalog.count() == 3
    assert sorted(catalog.clips([old, other, *rows])) == [other, rows[1], rows[2]]
    assert catalog.era_vectors(1)[0].tolist() == [other]
    # The keys of a batch are stored for all its rows; the one that was outdated at once is passed over.
    assert catalog.put_vectors(rows, vectors(1, 3), era=1, step=2) == rows[1:]


def test_delete_takes_clip_and_vector_and_an_unknown_id_is_none(catalog: Catalog) -> None:
    (row,), _ = catalog.put([clip("a")])
    catalog.put_vectors([row], vectors(0, 1), era=1, step=1)
    assert catalog.delete("a") == row
    assert catalog.delete("a") is None
    assert catalog.delete("never there") is None
    assert catalog.count() == 0
    assert eras_of(catalog) == []
    assert catalog.clip("a") is None


def test_rows_are_never_used_again_also_not_after_a_rewind(catalog: Catalog) -> None:
    seen: set[int] = set()
    for _ in range(3):
        rows, _ = catalog.put([clip("a"), clip("b"), clip("a")])
        assert not seen & set(rows)
        seen |= set(rows)
        catalog.rewind(0)


def test_heldout_is_the_lowest_lots_of_the_split_and_counts_are_by_task(catalog: Catalog) -> None:
    splits = ["heldout", "train", "extra", "heldout", "heldout"]
    catalog.put([clip(f"v{i}", split=split, task="t1") for i, split in enumerate(splits)])
    catalog.put([clip("w", split="heldout", task="t2")])
    drawn = sorted(("v0", "v3", "v4"), key=lot)
    assert [c.video_id for c in catalog.heldout("t1", 2)] == drawn[:2]
    assert [c.video_id for c in catalog.heldout("t1", 99)] == drawn
    assert catalog.heldout("t3", 9) == []
    assert catalog.counts_by_task() == {"t1": 5, "t2": 1}
    assert catalog.count() == 6


# -- vectors -----------------------------------------------------------------------------------------------------


def test_vectors_come_back_by_era_with_their_steps(catalog: Catalog) -> None:
    rows, _ = catalog.put([clip(f"v{i}") for i in range(5)])
    given_vectors = vectors(0, 5)
    catalog.put_vectors(rows[:3], given_vectors[:3], era=1, step=7)
    catalog.put_vectors(rows[3:], given_vectors[3:], era=2, step=8)
    assert eras_of(catalog) == [1, 2]
    found, stored, steps = catalog.era_vectors(1)
    assert (found.dtype, stored.dtype, steps.dtype) == (np.int64, np.float16, np.int64)
    assert found.tolist() == rows[:3]
    np.testing.assert_array_equal(stored, given_vectors[:3])
    assert steps.tolist() == [7, 7, 7]
    assert catalog.vector_steps([rows[0], rows[4], 999]) == {rows[0]: 7, rows[4]: 8}
    empty_rows, empty, _ = catalog.era_vectors(9)
    assert (len(empty_rows), len(empty)) == (0, 0)


def test_a_newer_vector_replaces_also_one_of_another_generation_and_era(catalog: Catalog) -> None:
    (row,), _ = catalog.put([clip("a")])
    for generation, era in ((1, 1), (1, 2), (2, 2), (2, 3)):
        catalog.begin(generation)
        fresh = vectors(10 * generation + era, 1)
        catalog.put_vectors([row], fresh, era=era, step=generation)
        assert eras_of(catalog) == [era]
        np.testing.assert_array_equal(catalog.era_vectors(era)[1], fresh)


def test_the_last_of_equal_rows_is_stored(catalog: Catalog) -> None:
    (row,), _ = catalog.put([clip("a")])
    two = vectors(0, 2)
    assert catalog.put_vectors([row, row], two, era=1, step=1) == [row]
    np.testing.assert_array_equal(catalog.era_vectors(1)[1], two[1:])


def test_vectors_of_another_dimension_are_refused(catalog: Catalog) -> None:
    rows, _ = catalog.put([clip("a"), clip("b")])
    catalog.put_vectors(rows[:1], vectors(0, 1), era=1, step=1)
    with pytest.raises(StateError, match=f"5 dimensions do not fit vectors of {DIM}"):
        catalog.put_vectors(rows[1:], np.zeros((1, 5), np.float32), era=2, step=1)
    assert eras_of(catalog) == [1]


def test_stale_rows_are_those_of_earlier_steps_oldest_first(catalog: Catalog) -> None:
    rows, _ = catalog.put([clip(f"v{i}") for i in range(6)])
    for row, step in zip(rows, (5, 3, 9, 3, 4, 10), strict=True):
        catalog.put_vectors([row], vectors(row, 1), era=1, step=step)
    assert catalog.stale_rows(1, 9, 10) == [rows[1], rows[3], rows[4], rows[0]]
    assert catalog.stale_rows(1, 9, 2) == [rows[1], rows[3]]
    assert catalog.stale_rows(2, 9, 2) == []


# -- time travel -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """What the live view knows of one clip."""

    task: str
    step: int
    captions: tuple[str, ...]
    era: int | None = None
    vector: tuple[float, ...] | None = None
    vector_step: int | None = None


def live_view(catalog: Catalog) -> dict[str, Seen]:
    clips = catalog.clips(catalog.kept_rows())
    found = {c.video_id: Seen(c.task, c.step, c.captions) for c in clips.values()}
    for era in eras_of(catalog):
        for row, vector, step in zip(*catalog.era_vectors(era), strict=True):
            video_id = clips[int(row)].video_id  # a vector without a clip would be a KeyError here
            found[video_id] = replace(found[video_id], era=era, vector=tuple(vector.tolist()), vector_step=int(step))
    return found


ids = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=4)
eras = st.integers(0, 2)
operation = st.one_of(
    st.tuples(st.just("put"), ids, eras),
    st.tuples(st.just("put"), ids, st.none()),
    st.tuples(st.just("delete"), st.sampled_from("abcdef")),
    st.tuples(st.just("vectors"), ids, eras),
    st.tuples(st.just("vectors"), ids, eras),
    st.tuples(st.just("move"), eras, eras, st.sampled_from([0, 0, 3, 9])),
    st.tuples(st.just("checkpoint")),
    st.tuples(st.just("checkpoint")),
    st.tuples(st.just("rewind"), st.integers(0, 10)),
    st.tuples(st.just("prune"), st.sets(st.integers(0, 10), min_size=1, max_size=4)),
    st.tuples(st.just("reopen")),
)


class Model:
    """The catalog, slowly: a dictionary, and a copy of it for each checkpoint."""

    def __init__(self) -> None:
        self.live: dict[str, Seen] = {}
        self.kept: dict[int, dict[str, Seen]] = {0: {}}

    def give_vector(self, video_id: str, era: int, vector: Vector, step: int) -> None:
        self.live[video_id] = replace(self.live[video_id], era=era, vector=tuple(vector.tolist()), vector_step=step)

    def move(self, from_era: int, since: int, to_era: int, task: str) -> set[str]:
        moved = {v for v, seen in self.live.items() if seen.era == from_era and seen.step >= since}
        for video_id in moved:
            self.live[video_id] = replace(self.live[video_id], era=to_era, task=task)
        return moved


@pytest.mark.slow
@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.lists(operation, max_size=40))
def test_rewinding_to_any_kept_generation_gives_the_catalog_of_that_moment(
    tmp_path_factory: pytest.TempPathFactory, operations: list[tuple[Any, ...]]
) -> None:
    path = tmp_path_factory.mktemp("travel") / "catalog.db"
    catalog, model = Catalog(path), Model()
    published = 0
    for number, (kind, *arguments) in enumerate(operations):
        if kind == "put":
            batch = [
                clip(v, task=f"t{number}", step=number, captions=(f"{number}.{i}",)) for i, v in enumerate(arguments[0])
            ]
            before = set(model.live)
            rows, replaced = catalog.put(batch)
            assert len(rows) == len(batch)
            assert len(replaced) == len(batch) - len({c.video_id for c in batch} - before)
            for c in batch:
                model.live[c.video_id] = Seen(c.task, c.step, c.captions)
            if (era := arguments[1]) is not None:
                fresh = vectors(number, len(batch))
                catalog.put_vectors(rows, fresh, era=era, step=number)
                for c, vector in zip(batch, fresh, strict=True):
                    model.give_vector(c.video_id, era, vector, number)
        elif kind == "delete":
            assert (catalog.delete(arguments[0]) is None) == (model.live.pop(arguments[0], None) is None)
        elif kind == "vectors":
            known = [(v, c.row) for v in dict.fromkeys(arguments[0]) if (c := catalog.clip(v))]
            fresh = vectors(number, len(known))
            catalog.put_vectors([row for _, row in known], fresh, era=arguments[1], step=number)
            for (v, _), vector in zip(known, fresh, strict=True):
                model.give_vector(v, arguments[1], vector, number)
        elif kind == "move":
            from_era, to_era, since = arguments
            task = f"moved{number}"
            rows = catalog.move(from_era=from_era, since_step=since, to_era=to_era, to_task=task)
            moved = model.move(from_era, since, to_era, task)
            assert {c.video_id for c in catalog.clips(rows).values()} == moved
        elif kind == "checkpoint":
            published = catalog.generation
            model.kept[published] = dict(model.live)
            catalog.begin(published + 1)
        elif kind == "rewind":
            published = sorted(model.kept)[arguments[0] % len(model.kept)]
            catalog.rewind(published)
            assert catalog.generation == published + 1
            model.live = dict(model.kept[published])
            model.kept = {g: view for g, view in model.kept.items() if g <= published}
        elif kind == "prune":
            published_ones = sorted(set(model.kept) - {0})
            if not published_ones:
                continue
            cuts = {published_ones[choice % len(published_ones)] for choice in arguments[0]}
            catalog.prune(cuts)
            model.kept = {g: view for g, view in model.kept.items() if g in cuts or g > max(cuts)} | {0: {}}
        else:
            working = catalog.generation
            catalog.close()
            catalog = Catalog(path)
            catalog.begin(working)
        assert live_view(catalog) == model.live
    for generation in sorted(model.kept, reverse=True):
        catalog.rewind(generation)
        assert live_view(catalog) == model.kept[generation]
    catalog.close()


def test_a_moved_and_a_reencoded_clip_get_their_task_era_and_vector_back(catalog: Catalog) -> None:
    catalog.begin(4)
    rows, _ = catalog.put([clip("a", step=1), clip("b", step=2)])
    old = vectors(0, 2)
    catalog.put_vectors(rows, old, era=1, step=2)
    catalog.begin(5)
    assert catalog.move(from_era=1, since_step=2, to_era=2, to_task="t2") == [rows[1]]
    catalog.put_vectors(rows[:1], vectors(1, 1), era=1, step=9)
    assert catalog.counts_by_task() == {"t1": 1, "t2": 1}
    assert eras_of(catalog) == [1, 2]

    catalog.rewind(4)
    assert catalog.counts_by_task() == {"t1": 2}
    found, stored, steps = catalog.era_vectors(1)
    order = np.argsort(found)
    assert found[order].tolist() == rows
    np.testing.assert_array_equal(stored[order], old)
    assert steps.tolist() == [2, 2]


def test_a_task_is_renamed_in_every_era_and_no_other_task_with_it(catalog: Catalog) -> None:
    catalog.begin(4)
    rows, _ = catalog.put([clip("a"), clip("b"), clip("c")])
    catalog.put_vectors(rows, vectors(0, 3), era=1, step=2)
    catalog.move(from_era=1, since_step=0, to_era=1, to_task="t1")
    catalog.put([clip("b")])  # replaced
    catalog.begin(5)
    assert catalog.counts_by_task() == {"t1": 3}
    (moved,) = catalog.put([replace(clip("d"), task="t2")])[0]
    catalog.put_vectors([moved], vectors(1, 1), era=1, step=3)  # of an era that took it in
    catalog.rename_task("t1", "night")
    assert catalog.counts_by_task() == {"night": 3, "t2": 1}
    catalog.rename_task("t2", "night")
    assert catalog.counts_by_task() == {"night": 4}
    catalog.rewind(4)
    assert catalog.counts_by_task() == {"t1": 3}


def test_a_clip_moved_in_two_generations_gets_the_task_of_either_back(tmp_path: Path) -> None:
    for pruned, generation, task in ((0, 3, "t3"), (0, 2, "t2"), (0, 1, "t1"), (2, 2, "t2"), (1, 1, "t1")):
        catalog = Catalog(tmp_path / f"{pruned}-{generation}.db")
        rows, _ = catalog.put([clip("a")])
        catalog.put_vectors(rows, vectors(0, 1), era=1, step=1)
        for era in (2, 3):
            catalog.begin(era)
            catalog.move(from_era=era - 1, since_step=0, to_era=era, to_task="in between")
            catalog.move(from_era=era, since_step=0, to_era=era, to_task=f"t{era}")
        catalog.begin(4)
        if pruned:
            catalog.prune(range(pruned, 4))
        catalog.rewind(generation)
        assert catalog.counts_by_task() == {task: 1}
        assert eras_of(catalog) == [generation]
        catalog.close()


def test_rewind_and_prune_tell_which_rows_are_gone_for_good(catalog: Catalog) -> None:
    (a, b), _ = catalog.put([clip("a"), clip("b")])
    catalog.begin(2)
    (c,), _ = catalog.put([clip("c")])
    catalog.delete("a")
    assert catalog.kept_rows().tolist() == [a, b, c]
    assert catalog.prune([1]) == []
    assert catalog.rewind(1) == [c]
    catalog.delete("b")
    catalog.begin(3)
    assert catalog.prune([2]) == [b]
    assert catalog.kept_rows().tolist() == [a]


def test_a_pruned_generation_is_refused_and_nothing_is_changed(catalog: Catalog) -> None:
    catalog.put([clip("a")])
    catalog.begin(2)
    catalog.delete("a")
    catalog.begin(3)
    catalog.prune([2])
    with pytest.raises(StateError, match="generation 1 was pruned; the oldest is 2"):
        catalog.rewind(1)
    assert catalog.generation == 3
    catalog.rewind(0)
    catalog.put([clip("b")])
    catalog.begin(2)
    catalog.rewind(1)
    assert catalog.clip("b") is not None


def test_between_a_kept_cut_and_a_much_later_one_nothing_is_kept_and_no_cut_can_be_gone_back_to(
    catalog: Catalog,
) -> None:
    """A pinned generation costs what died since, once; not every version of a vector in between."""
    rows, _ = catalog.put([clip("a")])
    for generation in range(1, 7):
        catalog.begin(generation)
        catalog.put_vectors(rows, vectors(generation, 1), era=1, step=generation)
        if generation > 1:
            catalog.prune([1, generation - 1])
    assert catalog._file.fetch("SELECT born, died FROM vectors ORDER BY born") == [(1, 2), (5, 6), (6, None)]
    with pytest.raises(StateError, match="generation 3 was pruned"):
        catalog.rewind(3)
    catalog.rewind(1)
    np.testing.assert_array_equal(catalog.era_vectors(1)[1], vectors(1, 1))


def test_after_going_back_writes_may_belong_to_a_later_generation_than_the_next(catalog: Catalog) -> None:
    """As after a rollback, whose numbers are not used again."""
    catalog.put([clip("a")])
    catalog.begin(2)
    catalog.put([clip("b")])
    catalog.begin(3)
    catalog.rewind(1, working=4)
    catalog.put([clip("c")])
    assert catalog.generation == 4
    catalog.rewind(1, working=4)  # as a restart does before anything newer is published
    assert [c.video_id for c in catalog.clips(catalog.kept_rows()).values()] == ["a"]
    catalog.put([clip("d")])
    catalog.begin(5)
    catalog.prune([1, 4])
    catalog.rewind(4)
    assert {c.video_id for c in catalog.clips(catalog.kept_rows()).values()} == {"a", "d"}


def test_what_was_deleted_is_known_apart_from_what_was_replaced_and_can_stay_deleted(catalog: Catalog) -> None:
    catalog.put([clip("deleted"), clip("replaced"), clip("back"), clip("stays")])
    catalog.begin(2)
    for video_id in ("deleted", "back"):
        catalog.delete(video_id)
    catalog.put([clip("replaced"), clip("back"), clip("new")])
    catalog.delete("new")
    assert catalog.deleted_since(1) == ["deleted"]
    assert catalog.changes(1, 2) == {"clips_added": 2, "clips_removed": 3, "vectors_written": 0}
    catalog.rewind(1, working=3, forget=["deleted"])
    assert {c.video_id for c in catalog.clips(catalog.kept_rows()).values()} == {"replaced", "back", "stays"}


def test_a_generation_that_is_over_cannot_be_written_to(catalog: Catalog) -> None:
    catalog.begin(3)
    with pytest.raises(ValueError, match="generation 2 is over"):
        catalog.begin(2)


def test_scores_are_kept_in_order_by_task_and_cut_by_a_rewind(catalog: Catalog) -> None:
    first = Score(100, 3, "2026-01-01T00:00:00Z", "t1", "text_to_video", 5, "served", 0.25, 40)
    missing = replace(first, task="t2", value=None, pairs=2)
    catalog.add_scores([first, missing])
    catalog.begin(2)
    later = replace(first, clips_seen=200, value=0.5)
    catalog.add_scores([later])
    assert catalog.scores() == [first, missing, later]
    assert catalog.scores("t1") == [first, later]
    catalog.rewind(1)
    assert catalog.scores() == [first, missing]


# -- filters -----------------------------------------------------------------------------------------------------


@pytest.fixture
def filled(catalog: Catalog) -> Catalog:
    hostile = {'cam" = 1 OR 1=1 --': "x", "a.b": "dotted", "é": "ü", "nan": math.nan, "half": "\ud800", "": "empty"}
    catalog.put(
        [
            clip("a", meta={"cam": "7", "n": 1, "ok": True}, task="t1", time="2026-01-01T00:00:00Z", step=1),
            clip("b", meta={"cam": 7, "n": 2.5}, task="t2", time="2026-01-01T02:30:00+02:00", split="heldout", step=2),
            clip("c", meta={"cam": "8", "n": "3"}, task="t3", time="2026-01-01T01:00:00.5Z", uri="s3://x", step=3),
            clip("d", meta=hostile, task="t3", time="yesterday", step=4),
            clip("e", meta={"deep": {"cam": "7"}, "list": ["7"], "none": None, "big": 10**30, "long": "x" * 5000}),
            clip("gone", meta={"cam": "7"}),
        ]
    )
    catalog.delete("gone")
    return catalog


def found_by(catalog: Catalog, wanted: dict[str, Any]) -> str:
    rows = catalog.rows_where(wanted)
    assert rows.dtype == np.int64
    assert rows.tolist() == sorted(rows.tolist())
    return "".join(sorted(c.video_id for c in catalog.clips(rows).values()))


@pytest.mark.parametrize(
    ("wanted", "ids"),
    [
        ({}, "abcde"),
        ({"meta.cam": "7"}, "a"),
        ({"meta.cam": 7}, "b"),
        ({"meta.cam": 7.0}, "b"),
        ({"meta.cam": ["7", "8"]}, "ac"),
        ({"meta.cam": []}, ""),
        ({"meta.n": {"gte": 1}}, "ab"),
        ({"meta.n": {"gt": 1, "lt": 2.5}}, ""),
        ({"meta.n": {"gt": 1, "lte": 2.5}}, "b"),
        ({"meta.n": {"gte": "0"}}, "c"),
        ({"meta.ok": True}, "a"),
        ({"meta.unknown": "7"}, ""),
        ({'meta.cam" = 1 OR 1=1 --': "x"}, "d"),
        ({"meta.a.b": "dotted"}, "d"),
        ({"meta.é": "ü"}, "d"),
        ({"task": "t3"}, "cd"),
        ({"task": ["t1", "t2", "nope"]}, "abe"),
        ({"task": "t1' OR '1'='1"}, ""),
        ({"task": "t3", "meta.cam": "8"}, "c"),
        ({"time": "2026-01-01T01:00:00+01:00"}, "a"),
        ({"time": {"gte": "2026-01-01T00:30:00Z"}}, "bc"),
        ({"time": {"gt": "2026-01-01T00:30:00Z", "lt": "2026-01-01T01:00:00.6Z"}}, "c"),
        ({"time": {"lt": "2026-01-01t00:30:00z"}}, "a"),
    ],
)
def test_a_filter_finds_exactly_these(filled: Catalog, wanted: dict[str, Any], ids: str) -> None:
    assert found_by(filled, wanted) == ids


@pytest.mark.parametrize(
    "wanted",
    [
        {"colour": "red"},
        {"meta": "x"},
        {"meta.": "x"},
        {"row": 1},
        {"uri": "s3://x"},
        {"died": None},
        {"task; DROP TABLE clips": "x"},
        {"meta.cam": None},
        {"meta.cam": [None]},
        {"meta.cam": [["7"]]},
        {"meta.cam": {}},
        {"meta.cam": {"like": "%"}},
        {"meta.cam": {"gte": 1, "or": 2}},
        {"meta.cam": {"gte": [1]}},
        {"meta.n": math.nan},
        {"meta.n": 10**30},
        {"meta.half": "\ud800"},
        {"meta.\ud800": "x"},
        {"meta.long": "x" * 5000},
        {"time": "yesterday"},
        {"time": 5},
        {"time": {"gte": "2026-01-01T00:00:00"}},
        {"task": ["t"] * 1001},
        {f"meta.{i}": "x" for i in range(33)},
    ],
    ids=lambda wanted: ascii(wanted)[:40],
)
def test_anything_else_in_a_filter_is_a_search_error(filled: Catalog, wanted: dict[str, Any]) -> None:
    with pytest.raises(SearchError, match="filter: "):
        filled.rows_where(wanted)
    assert filled.count() == 5


def test_filters_forget_what_was_rewound(catalog: Catalog) -> None:
    catalog.put([clip("a", meta={"cam": "7"})])
    catalog.begin(2)
    catalog.put([clip("a", meta={"cam": "8"}), clip("b", meta={"cam": "8"})])
    assert len(catalog.rows_where({"meta.cam": "8"})) == 2
    catalog.rewind(1)
    assert found_by(catalog, {"meta.cam": "7"}) == "a"
    assert found_by(catalog, {"meta.cam": "8"}) == ""


# -- transactions, threads, files --------------------------------------------------------------------------------


def test_a_batch_that_fails_leaves_nothing(catalog: Catalog) -> None:
    def fail_midway() -> None:
        with catalog.transaction():
            rows, _ = catalog.put([clip("a")])
            catalog.put_vectors(rows, vectors(0, 1), era=1, step=1)
            assert catalog.clip("a") is not None  # one sees one's own writes
            raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        fail_midway()
    assert catalog.clip("a") is None
    assert eras_of(catalog) == []
    with catalog.transaction(), catalog.transaction():
        catalog.put([clip("b")])
    assert catalog.count() == 1


def test_readers_in_other_threads_never_see_half_a_batch(catalog: Catalog) -> None:
    done = threading.Event()
    seen: list[int] = []
    failures: list[BaseException] = []

    def read() -> None:
        try:
            while not done.is_set() or not seen:
                count = catalog.count()
                seen.append(count)
                assert count % 3 == 0
        except BaseException as error:  # noqa: BLE001 -- told to the main thread
            failures.append(error)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for batch in range(60):
        with catalog.transaction():
            for i in range(3):
                catalog.put([clip(f"{batch}.{i}")])
    done.set()
    for reader in readers:
        reader.join()
    assert not failures, failures[0]
    assert catalog.count() == 180


def test_another_threads_open_transaction_is_not_visible_and_does_not_block_readers(catalog: Catalog) -> None:
    counted: list[int] = []
    with catalog.transaction():
        catalog.put([clip("a")])
        reader = threading.Thread(target=lambda: counted.append(catalog.count()))
        reader.start()
        reader.join()
    assert counted == [0]
    assert catalog.count() == 1


def test_readers_only_read(tmp_path: Path) -> None:
    path = tmp_path / "odd name%20#?.db"
    catalog = Catalog(path)
    catalog.put([clip("a")])
    assert catalog.count() == 1
    catalog.close()
    catalog.close()
    with pytest.raises(StateError, match="closed"):
        catalog.count()
    assert [p.name for p in tmp_path.iterdir()] == [path.name]  # the log was taken in


KILLED_MIDWAY = """
import os, signal, sys
from pathlib import Path
from streamlearn.catalog import Catalog, ClipRow
def clip(name):
    return ClipRow(0, name, None, None, None, ("x",), {}, None, "train", "t", 0, None, "clips", "0", 0)
catalog = Catalog(Path(sys.argv[1]))
catalog.put([clip("a"), clip("b")])
catalog.sync()
with catalog.transaction():
    catalog.put([clip("c")])
    catalog.delete("a")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_process_killed_inside_a_transaction_leaves_the_batch_before(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    ended = subprocess.run([sys.executable, "-c", KILLED_MIDWAY, str(path)], check=False, timeout=60)
    assert ended.returncode == -9
    catalog = Catalog(path)
    assert sorted(live_view(catalog)) == ["a", "b"]
    catalog.close()


def test_state_survives_closing_and_opening(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path / "catalog.db")
    catalog.begin(7)
    rows, _ = catalog.put([clip("a")])
    catalog.put_vectors(rows, vectors(0, 1), era=3, step=1)
    view = live_view(catalog)
    catalog.close()
    again = Catalog(tmp_path / "catalog.db")
    assert again.generation == 7
    assert live_view(again) == view
    again.close()


def test_a_catalog_of_the_first_schema_opens_and_keeps_its_questions_and_what_was_learned(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    db = sqlite3.connect(path)
    db.executescript(f"PRAGMA application_id = {0x736C6541}; {MIGRATIONS[0]}; PRAGMA user_version = 1;")
    columns = "video_id, captions, meta, split, task, step, sha256, topic, partition, offset, born, died"
    old = [
        ("a", '["one", "two"]', "train", "aa", 1, None),
        ("gone", '["one"]', "train", "bb", 1, 2),
        ("asked", '["one", "two"]', "heldout", "cc", 2, None),
        ("single", '["\\ud800"]', "heldout", "dd", 2, None),
        ("over", '["one"]', "extra", "ee", 2, None),
    ]
    db.executemany(f"INSERT INTO clips ({columns}) VALUES (?, ?, '{{}}', ?, 't1', 0, ?, 't', '0', 0, ?, ?)", old)
    db.commit()
    db.close()
    catalog = Catalog(path)
    asked, single = (catalog.clip(name) for name in ("asked", "single"))
    assert asked is not None
    assert single is not None
    assert (asked.question, asked.captions, asked.searchable_captions) == ("one", ("two",), ("two",))
    assert (single.question, single.captions, single.searchable_captions) == ("\ud800", ("\ud800",), ())
    assert [c.video_id for c in catalog.heldout("t1", 9)] == sorted(("asked", "single"), key=lot)
    known = {name: catalog.learned.was(name, Footage.of(None, None, None)) for name, *_ in old}
    assert known == {"a": True, "gone": True, "asked": False, "single": False, "over": True}
    assert catalog.learned.was("another", Footage.of("bb", None, None))
    catalog.close()


def test_a_newer_schema_is_refused_with_a_sentence_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    Catalog(path).close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 999")
    db.close()
    before = path.read_bytes()
    with pytest.raises(NewerStateError, match=r"version 999.*install the newer"):
        Catalog(path)
    assert path.read_bytes() == before


def test_another_applications_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE recipes (name TEXT)")
    db.commit()
    db.close()
    before = path.read_bytes()
    with pytest.raises(StateError, match="another application"):
        Catalog(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["catalog.db"]


def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    path.write_bytes(b"this is text, and long enough to be mistaken for nothing else" * 50)
    with pytest.raises(StateError, match="not a database"):
        Catalog(path)
    with pytest.raises(StateError, match="cannot be"):
        Catalog(tmp_path / "missing" / "catalog.db")


def test_what_was_measured_of_a_task_that_is_gone_is_forgotten(catalog: Catalog) -> None:
    catalog.add_scores([], [TaskRanks(task, "t2v", "served", 100, (1, 2), (1, 3)) for task in ("t1", "t2")])
    catalog.forget_ranks("t1")
    assert [of.task for of in catalog.matrix.ranks()] == ["t2"]


@pytest.mark.parametrize("running", [True, False], ids=["of a running daemon", "of one that was stopped"])
@pytest.mark.parametrize("writable", [True, False])
def test_a_copy_is_read_whole_and_left_as_it_is(tmp_path: Path, running: bool, writable: bool) -> None:
    path = tmp_path / "catalog.db"
    catalog = Catalog(path)
    catalog.put([clip("a"), clip("b")])
    if not running:
        catalog.close()
    copy = Path(shutil.copytree(tmp_path, tmp_path / "copy", ignore=shutil.ignore_patterns("copy", "*-shm")))
    assert (copy / "catalog.db-wal").exists() is running
    if not writable:
        (copy / "catalog.db-shm").mkdir()  # nothing can be made of this name, also not by root
    before = {file.name: file.is_file() and file.read_bytes() for file in copy.iterdir()}
    with reading_only(copy / "catalog.db") as db:
        assert db.execute("SELECT count(*) FROM clips").fetchone() == (2,)
        with pytest.raises(sqlite3.OperationalError):
            db.execute("DELETE FROM clips")
    assert running or len(before) == len(list(copy.iterdir()))
    # Where there is a log, SQLite may lay its index beside it.
    assert {name: (copy / name).is_file() and (copy / name).read_bytes() for name in before} == before
    catalog.close()


def test_reading_only_what_is_newer_missing_or_damaged_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    with pytest.raises(StateError, match="missing"), reading_only(path):
        pass
    assert not path.exists()
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(StateError, match="no catalog"), reading_only(path):
        pass
    path.unlink()
    Catalog(path).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    with pytest.raises(NewerStateError, match="install the newer one"), reading_only(path):
        pass


def test_a_commit_that_readers_wait_for_does_not_copy_the_log_into_the_file(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    catalog = Catalog(path)
    rows, _ = catalog.put([clip(f"v{i}") for i in range(4_000)])

    def write() -> None:  # 32 MiB: twice what is put up with in the log
        catalog.put_vectors(rows, np.ones((4_000, 4_096), np.float32), era=1, step=1)

    with catalog.quick_commits():
        write()
        assert path.stat().st_size < 2**22
    assert len(catalog.era_vectors(1)[0]) == 4_000
    catalog.delete("v0")  # the next one does
    assert path.stat().st_size > 2**25
    catalog.close()


def test_a_commit_that_readers_wait_for_has_little_left_to_write(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    catalog = Catalog(path)
    rows, _ = catalog.put([clip(f"v{i}") for i in range(4_000)])
    log = path.with_name("catalog.db-wal")
    with catalog.quick_commits():
        before = log.stat().st_size
        with catalog.transaction():
            catalog.put_vectors(rows, np.ones((4_000, 2_048), np.float32), era=1, step=1)  # 16 MiB, of pages of 4 KiB
            written = log.stat().st_size - before
            assert len(catalog.era_vectors(1)[0]) == 4_000
        left = log.stat().st_size - before - written
    assert left < 6 * 2**20 < written
    catalog.close()
