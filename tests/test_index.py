from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import streamlearn.index
import streamlearn.index_compact
import streamlearn.index_device
from streamlearn.index import Partition, PartitionView, Sizes, configure_faiss
from streamlearn.index_blocks import packed
from streamlearn.index_device import DeviceBlock
from streamlearn.index_lists import ListsBlock

DIM = 8
#: Every kind of main block, and how exact it is: in full precision, in lists or on a device in half precision.
PRECISION = {"flat": 1e-5, "lists": 2e-3, "cpu": 2e-3, "cuda": 2e-3}
without_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=without_cuda)]
each_backend = pytest.mark.parametrize("backend", ["flat", "lists", *DEVICES])
each_device = pytest.mark.parametrize("device", DEVICES)
Vector = npt.NDArray[np.float32]


def restless(backend: str) -> Partition:
    """One that changes its shape often."""
    sizes = Sizes(fresh_min=6, fresh_max=6) if backend == "flat" else Sizes(flat_max=4, fresh_min=6, fresh_max=6)
    return Partition(DIM, sizes=sizes, device=None if backend in ("flat", "lists") else backend)


def unit_rows(seed: int, count: int, dim: int = DIM) -> Vector:
    vectors = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    unit: Vector = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def assert_equals_brute_force(
    view: PartitionView,
    content: dict[int, Vector],
    queries: Vector,
    k: int,
    allowed: list[int] | None = None,
    atol: float = 1e-5,
) -> None:
    chosen = [row for row in sorted(content) if allowed is None or row in set(allowed)]
    scores, rows = view.search(queries, k, None if allowed is None else np.array(allowed, np.int64))
    assert scores.shape == rows.shape == (len(queries), k)
    found = min(k, len(chosen))
    assert (rows[:, found:] == -1).all()
    assert (scores[:, found:] == -np.inf).all()
    if not found:
        return
    exact = queries @ np.stack([content[row] for row in chosen]).T
    np.testing.assert_allclose(scores[:, :found], -np.sort(-exact, axis=1)[:, :found], atol=atol)
    for query, answer in enumerate(rows[:, :found]):
        # Ties may come in any order, so each answer is checked by its own score.
        assert len(set(answer.tolist())) == found
        exact_of_answer = exact[query, np.searchsorted(chosen, answer)]
        np.testing.assert_allclose(scores[query, :found], exact_of_answer, atol=atol)


def assert_holds(view: PartitionView, content: dict[int, Vector], atol: float = 0) -> None:
    assert len(view) == len(content)
    assert view.rows.tolist() == sorted(content)
    if content:
        backwards = sorted(content, reverse=True)
        np.testing.assert_allclose(view.vectors(backwards), np.stack([content[row] for row in backwards]), 0, atol)
    assert view.holds(range(-1, 62)).tolist() == [row in content for row in range(-1, 62)]


row_lists = st.lists(st.integers(0, 60), max_size=12)
operations = st.lists(
    st.one_of(
        st.tuples(st.just("upsert"), row_lists),
        st.tuples(st.just("remove"), row_lists),
        st.tuples(st.just("replace"), st.lists(st.integers(0, 60), max_size=40)),
        st.tuples(st.just("view"), st.just([])),
    ),
    max_size=25,
)


@pytest.mark.slow
@each_backend
@settings(max_examples=100, deadline=None, derandomize=True)
@given(operations, st.integers(0, 70), row_lists, st.integers(0, 3))
def test_every_view_equals_brute_force_on_the_content_of_its_moment(
    backend: str, steps: list[tuple[str, list[int]]], k: int, allowed: list[int], query_count: int
) -> None:
    partition = restless(backend)
    content: dict[int, Vector] = {}
    moments = [(partition.view(), dict(content))]
    for number, (kind, rows) in enumerate(steps):
        vectors = unit_rows(number, len(rows))
        if kind == "upsert":
            partition.upsert(rows, vectors)
            content.update(zip(rows, vectors, strict=True))
        elif kind == "remove":
            assert partition.remove(rows) == len(content.keys() & set(rows))
            content = {row: vector for row, vector in content.items() if row not in rows}
        elif kind == "replace":
            partition.replace_all(rows, vectors)
            content = dict(zip(rows, vectors, strict=True))
        else:
            moments.append((partition.view(), dict(content)))
    moments.append((partition.view(), dict(content)))
    queries = unit_rows(999, query_count)
    for view, held in moments:
        assert_holds(view, held, PRECISION[backend])
        assert_equals_brute_force(view, held, queries, k, None, PRECISION[backend])
        assert_equals_brute_force(view, held, queries, k, allowed, PRECISION[backend])


@pytest.mark.parametrize("total", [1023, 1024, 1025, 1281, 3000])
def test_content_is_right_on_both_sides_of_a_compaction(total: int) -> None:
    partition = Partition(DIM)
    content: dict[int, Vector] = {}
    vectors = unit_rows(1, total)
    for begin in range(0, total, 100):
        rows = list(range(begin, min(begin + 100, total)))
        partition.upsert(rows, vectors[rows])
        content.update({row: vectors[row] for row in rows})
    for begin in range(0, total, 300):
        gone = list(range(begin, min(begin + 200, total)))
        assert partition.remove(gone) == len(gone)
        assert partition.remove(gone) == 0
        for row in gone:
            del content[row]
    view = partition.view()
    assert_holds(view, content)
    assert_equals_brute_force(view, content, unit_rows(2, 20), 10)


def test_dead_neighbours_do_not_displace_live_ones() -> None:
    # The 500 best answers are dead, far more than a search asks for in addition.
    partition = Partition(DIM)
    vectors = unit_rows(3, 4000)
    query = vectors[:1]
    partition.replace_all(range(4000), vectors)
    order = np.argsort(-(vectors @ query[0]))
    assert partition.remove(order[:500]) == 500
    content = {int(row): vectors[row] for row in order[500:]}
    assert_equals_brute_force(partition.view(), content, np.concatenate([query, unit_rows(4, 3)]), 5)


def test_view_is_the_same_object_until_something_changes() -> None:
    partition = Partition(DIM)
    partition.upsert([1, 2], unit_rows(0, 2))
    first = partition.view()
    assert partition.view() is first
    partition.remove([2])
    assert partition.view() is not first


def test_vectors_of_a_row_that_is_not_live_are_a_key_error() -> None:
    partition = Partition(DIM)
    with pytest.raises(KeyError, match="7"):
        partition.view().vectors([7])
    partition.upsert([6, 8], unit_rows(0, 2))
    partition.remove([8])
    with pytest.raises(KeyError, match="8"):
        partition.view().vectors([6, 8])


def test_partition_keeps_its_own_copy_of_the_vectors() -> None:
    partition = Partition(DIM)
    vectors = unit_rows(0, 2)
    kept = vectors.copy()
    partition.replace_all([1, 2], vectors)
    partition.upsert([3, 4], vectors)
    vectors[:] = 0
    np.testing.assert_array_equal(partition.view().vectors([1, 2, 3, 4]), np.concatenate([kept, kept]))


def test_a_vector_of_nan_is_never_an_answer_and_hides_no_other() -> None:
    partition = Partition(DIM)
    vectors = unit_rows(0, 5)
    broken = vectors.copy()
    broken[2] = np.nan
    partition.replace_all(range(5), broken)
    scores, rows = partition.view().search(vectors[:1], 5)
    assert set(rows[0].tolist()) == {0, 1, 3, 4, -1}
    assert scores[0, 4] == -np.inf


def test_readers_get_exact_answers_from_old_and_new_views_while_the_writer_goes_on() -> None:
    configure_faiss()
    partition = Partition(DIM)
    content: dict[int, Vector] = {}
    moments: list[tuple[PartitionView, dict[int, Vector]]] = [(partition.view(), {})]
    done = threading.Event()
    failures: list[BaseException] = []
    answered = [0, 0]
    queries = unit_rows(5, 4)

    def read(reader: int) -> None:
        rng = np.random.default_rng(reader)
        try:
            while not done.is_set() or answered[reader] < 20:
                view, held = moments[-1] if rng.random() < 0.5 else moments[rng.integers(len(moments))]
                allowed = rng.integers(0, 5000, 50).tolist() if rng.random() < 0.5 else None
                assert_equals_brute_force(view, held, queries, 10, allowed)
                answered[reader] += 1
        except BaseException as error:  # noqa: BLE001 -- told to the main thread
            failures.append(error)

    readers = [threading.Thread(target=read, args=(reader,)) for reader in range(2)]
    for thread in readers:
        thread.start()
    rng = np.random.default_rng(0)
    for batch in range(60):
        rows = rng.integers(0, 5000, 100).tolist()
        vectors = unit_rows(100 + batch, 100)
        partition.upsert(rows, vectors)
        content.update(zip(rows, vectors, strict=True))
        gone = rng.integers(0, 5000, 60).tolist()
        partition.remove(gone)
        for row in gone:
            content.pop(row, None)
        moments.append((partition.view(), dict(content)))
    done.set()
    for thread in readers:
        thread.join()
    assert not failures, failures[0]


def test_a_search_leaves_the_threads_of_torch_as_they_were() -> None:
    partition = Partition(4)
    partition.upsert([1], np.ones((1, 4), np.float32))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        partition.view().search(np.ones((1, 4), np.float32), 1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


LISTS = Sizes(flat_max=1_000, fresh_min=200, fresh_max=400)


def clustered(seed: int, count: int, dim: int = 32) -> Vector:
    """Of 60 clusters, so that there is something for lists to find."""
    centres = np.random.default_rng(99).standard_normal((60, dim))
    rng = np.random.default_rng(seed)
    vectors = centres[rng.integers(0, 60, count)] + 0.5 * rng.standard_normal((count, dim))
    unit: Vector = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return unit


def settled(partition: Partition) -> PartitionView:
    partition.close()
    return partition.view()


def recall(view: PartitionView, content: dict[int, Vector], queries: Vector, k: int = 10) -> float:
    rows = np.array(sorted(content))
    exact = rows[np.argsort(-(queries @ np.stack([content[row] for row in rows]).T), axis=1)[:, :k]]
    _, found = view.search(queries, k)
    return float(np.mean([len(set(a) & set(b)) / k for a, b in zip(exact.tolist(), found.tolist(), strict=True)]))


@pytest.fixture(scope="module")
def gallery() -> Vector:
    return clustered(1, 6_000)


def test_lists_look_at_few_vectors_and_reach_the_recall_they_were_tuned_for(gallery: Vector) -> None:
    partition = Partition(32, sizes=LISTS)
    partition.replace_all(range(6_000), gallery)
    view = settled(partition)
    block = view._layers[0].block
    assert isinstance(block, ListsBlock)
    assert block.depth.probes < len(block.centroids) / 4
    content = dict(enumerate(gallery))
    assert recall(view, content, clustered(2, 200)) >= 0.95
    # Deeper than what is tuned for, and where a filter leaves little, answers are exact.
    assert recall(view, content, clustered(2, 20), k=200) >= 0.995
    few = np.arange(0, 6_000, 100)
    assert_equals_brute_force(view, content, clustered(2, 20), 10, few.tolist(), atol=2e-3)


@each_device
def test_on_a_device_all_vectors_are_looked_at_at_once(
    gallery: Vector, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streamlearn.index_device, "_AT_ONCE", 40_000)  # of 200 queries six at a time
    partition = Partition(32, sizes=LISTS, device=device)
    partition.replace_all(range(6_000), gallery)
    block = partition.view()._layers[0].block  # without waiting for anything
    assert isinstance(block, DeviceBlock)
    content = dict(enumerate(gallery))
    few = np.arange(0, 6_000, 100)
    for k in (1, 10, 200):
        assert_equals_brute_force(partition.view(), content, clustered(2, 200), k, atol=2e-3)
        assert_equals_brute_force(partition.view(), content, clustered(2, 20), k, few.tolist(), atol=2e-3)
    partition.upsert(range(5_900, 6_500), clustered(5, 600))
    content.update(zip(range(5_900, 6_500), clustered(5, 600), strict=True))
    partition.remove(range(100))
    for row in range(100):
        del content[row]
    view = settled(partition)
    assert isinstance(view._layers[0].block, DeviceBlock)
    assert view._layers[0].block is not block
    assert_equals_brute_force(view, content, clustered(2, 50), 10, atol=2e-3)
    assert view.nbytes >= 2 * 32 * len(content)


@each_device
def test_on_a_device_clips_that_are_nearly_alike_are_told_apart(device: str) -> None:
    """More of them than are looked at twice are equal to the half that their cosine is rounded to."""
    rng = np.random.default_rng(0)
    clips, queries = (rng.standard_normal((n, 32)).astype(np.float32) / 20 + 1 for n in (5_000, 20))
    clips /= np.linalg.norm(clips, axis=1, keepdims=True)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    exact = queries @ clips.astype(np.float16).astype(np.float32).T
    for most in (5_000, 2_500):
        mask = np.arange(5_000) < most
        scores, at = DeviceBlock(np.arange(5_000), clips, device).search(queries, 10, packed(mask), most)
        wanted = np.sort(exact[:, mask], axis=1)[:, :-11:-1]
        np.testing.assert_allclose(np.sort(scores, axis=1)[:, ::-1], wanted, atol=1e-6)
        np.testing.assert_allclose(np.take_along_axis(exact, at, axis=1), scores, atol=1e-6)


@each_device
def test_vectors_on_a_device_that_are_no_numbers_never_answer(device: str) -> None:
    vectors = unit_rows(1, 12)
    vectors[3], vectors[7] = np.nan, np.inf
    block = DeviceBlock(np.arange(12), vectors, device)
    for allowed in (range(12), (3, 7, 9), (3, 7)):
        mask = np.isin(np.arange(12), list(allowed))
        scores, at = block.search(unit_rows(2, 5), 12, packed(mask), int(mask.sum()))
        wanted = sorted(set(allowed) - {3, 7})
        for line, places in zip(scores, at, strict=True):
            assert sorted(places[places >= 0].tolist()) == wanted
            assert (line[places < 0] == -np.inf).all()


def test_vectors_that_do_not_fit_on_a_device_lie_in_lists(
    gallery: Vector, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(streamlearn.index_compact, "DeviceBlock", full)
    partition = Partition(32, sizes=LISTS, device="cuda")
    partition.replace_all(range(6_000), gallery)
    view = settled(partition)
    assert isinstance(view._layers[0].block, ListsBlock)
    assert recall(view, dict(enumerate(gallery)), clustered(2, 200)) >= 0.95
    assert "do not fit on cuda" in caplog.text


def test_a_filter_on_half_of_the_clips_keeps_the_recall(gallery: Vector) -> None:
    partition = Partition(32, sizes=LISTS)
    partition.replace_all(range(6_000), gallery)
    view, queries = settled(partition), clustered(3, 200)
    even = np.arange(0, 6_000, 2)
    _, found = view.search(queries, 10, even)
    assert (found % 2 == 0).all()
    exact = even[np.argsort(-(queries @ gallery[even].T), axis=1)[:, :10]]
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact.tolist(), found.tolist(), strict=True)]) >= 0.95


@pytest.mark.parametrize("left_out", [0.2, 0.5, 0.9])
def test_a_filter_that_leaves_out_what_is_nearest_to_the_query_keeps_the_recall(left_out: float) -> None:
    # As one by camera does: what it leaves out lies together, and the next lists hold the best of the others or not.
    rng = np.random.default_rng(4)
    centres, cluster = rng.standard_normal((200, 32)), rng.integers(0, 200, 16_000)
    vectors = (centres[cluster] + 0.3 * rng.standard_normal((16_000, 32))).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    partition = Partition(32, sizes=LISTS)
    partition.replace_all(range(16_000), vectors)
    view, queries = settled(partition), vectors[cluster < 200 * left_out][:100]
    others = np.flatnonzero(cluster >= 200 * left_out)
    _, found = view.search(queries, 10, others)
    exact = others[np.argsort(-(queries @ vectors[others].T), axis=1)[:, :10]]
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact.tolist(), found.tolist(), strict=True)]) >= 0.97


def test_what_happens_while_a_new_main_block_is_made_is_in_it_when_it_is_swapped_in(gallery: Vector) -> None:
    partition = Partition(32, sizes=LISTS)
    partition.replace_all(range(5_000), gallery[:5_000])
    content = dict(enumerate(gallery[:5_000]))
    before = partition.view()
    assert partition._job is not None  # the lists are being made
    fresh = clustered(5, 300)
    partition.upsert(range(4_900, 5_200), fresh)
    content.update(zip(range(4_900, 5_200), fresh, strict=True))
    for row in (*range(50), 4_950, 5_190):  # of the old block, and of what came meanwhile
        assert partition.remove([row]) == 1
        del content[row]
    during = partition.view()
    view = settled(partition)
    assert during is not view
    assert len(before) == 5_000
    for moment in (during, view):
        assert_holds(moment, content, 2e-3)
        assert recall(moment, content, clustered(6, 100)) >= 0.95
    assert partition.remove([4_950, 5_190, 0]) == 0


def test_lists_grow_by_compactions_and_are_made_anew_when_the_vectors_have_moved(gallery: Vector) -> None:
    partition = Partition(32, sizes=LISTS)
    partition.replace_all(range(2_000), gallery[:2_000])
    first = settled(partition)._layers[0].block
    for begin in range(2_000, 3_000, 100):
        partition.upsert(range(begin, begin + 100), gallery[begin : begin + 100])
        view = settled(partition)
    grown = view._layers[0].block
    assert isinstance(first, ListsBlock)
    assert isinstance(grown, ListsBlock)
    assert grown is not first
    assert np.array_equal(grown.centroids, first.centroids)
    turned = np.ascontiguousarray(gallery[:3_000] @ np.linalg.qr(np.random.default_rng(0).standard_normal((32, 32)))[0])
    turned = turned.astype(np.float32)
    for begin in range(0, 3_000, 300):
        partition.upsert(range(begin, begin + 300), turned[begin : begin + 300])
        view = settled(partition)
    moved = view._layers[0].block
    assert isinstance(moved, ListsBlock)
    assert not np.array_equal(moved.centroids[: len(first.centroids)], first.centroids)
    assert recall(view, dict(enumerate(turned)), turned[::30]) >= 0.95


def test_what_replaces_everything_waits_for_no_compaction_and_is_not_overtaken_by_it(
    gallery: Vector, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go, made = threading.Event(), threading.Event(), streamlearn.index.compacted

    def compacted(*arguments: Any, **named: Any) -> Any:
        begun.set()
        assert go.wait(60)
        return made(*arguments, **named)

    monkeypatch.setattr("streamlearn.index.compacted", compacted)
    partition = Partition(32, sizes=LISTS)
    partition.replace_all(range(5_000), gallery[:5_000])
    job = partition._job
    assert job is not None
    assert begun.wait(60)
    partition.replace_all(range(2_000), gallery[4_000:])  # as a rollback does
    assert job.is_alive()
    content = dict(enumerate(gallery[4_000:]))
    assert_equals_brute_force(partition.view(), content, clustered(2, 20), 10, atol=2e-3)
    go.set()
    job.join()
    assert_holds(settled(partition), content, 2e-3)


def test_memory_is_given_back_once_nobody_has_the_block_that_was_replaced(
    gallery: Vector, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_back: list[bool] = []
    monkeypatch.setattr("streamlearn.allocator.trim", lambda: given_back.append(True))
    partition = Partition(32, sizes=LISTS)
    partition.replace_all(range(5_000), gallery[:5_000])
    before = partition.view()
    after = settled(partition)
    assert after._layers[0].block is not before._layers[0].block
    partition.remove([1])
    assert not given_back  # a reader has it
    del before
    partition.remove([2])
    partition.remove([3])
    assert given_back == [True]


def answers(view: PartitionView, allowed: npt.NDArray[np.int64]) -> list[npt.NDArray[Any]]:
    """Few and many, of all rows and some, to queries that lie where no vectors are, whose neighbours are anywhere."""
    asked = unit_rows(10, 100, 32)
    return [part for k in (10, 200) for few in (None, allowed) for part in view.search(asked, k, few)]


def test_with_its_layout_another_one_answers_alike_until_something_comes(gallery: Vector) -> None:
    partition = Partition(32, sizes=LISTS)
    partition.replace_all(range(5_000), gallery[:5_000])
    block = settled(partition)._layers[0].block
    content = dict(enumerate(gallery[:5_000].astype(np.float16).astype(np.float32)))
    assert isinstance(block, ListsBlock)
    partition.remove(range(900))  # not yet so many that they are cleared away
    for rows, vectors in ((range(7_150, 7_199), clustered(8, 49)), (range(2_000, 2_100), clustered(9, 100))):
        vectors = vectors.astype(np.float16).astype(np.float32)  # as the catalog has them
        partition.upsert(rows, vectors)  # new ones and others in place of those that there were
        content |= dict(zip(rows, vectors, strict=True))
    content = {row: vector for row, vector in content.items() if row >= 900}
    layout, view = partition.layout, partition.view()
    assert layout is not None
    assert settled(partition)._layers[0].block is block
    rows = np.array(sorted(content))
    vectors = np.stack([content[row] for row in rows]).astype(np.float16)
    again = Partition(32, sizes=LISTS)
    again.replace_all(rows, vectors, layout)
    allowed = rows[::3]
    for found in (again.view(), settled(again)):
        assert_holds(found, content, 1e-6)
        for one, other in zip(answers(view, allowed), answers(found, allowed), strict=True):
            assert np.array_equal(one, other)
    restored = again.layout
    assert restored is not None
    assert restored.name == layout.name
    assert np.array_equal(restored.fresh, layout.fresh)
    assert recall(again.view(), content, unit_rows(10, 100, 32)) < 0.95  # else this would say little
    again.upsert(range(8_000, 8_400), clustered(11, 400))
    assert settled(again).search(clustered(10, 1), 10)[0].shape == (1, 10)
    assert again.layout is not None
    assert again.layout.name != layout.name


def test_what_was_due_where_a_layout_is_from_waits_for_something_to_come(
    gallery: Vector, monkeypatch: pytest.MonkeyPatch
) -> None:
    partition = Partition(32, sizes=LISTS)
    partition.replace_all(range(3_000), gallery[:3_000])
    settled(partition)
    with monkeypatch.context() as patch:
        patch.setattr("streamlearn.index._Job.start", lambda _: None)  # it does not get its turn
        patch.setattr("streamlearn.index._Job.is_alive", lambda _: True)
        partition.upsert(range(3_000, 4_000), gallery[3_000:4_000])
        layout = partition.layout
    assert layout is not None
    assert len(layout.fresh) == 1_000
    again = Partition(32, sizes=LISTS)
    again.replace_all(range(4_000), gallery[:4_000], layout)
    assert again._job is None
    again.remove([5])
    assert again._job is None
    again.upsert([4_000], gallery[4_000:4_001])
    assert again._job is not None
    assert_holds(settled(again), {row: gallery[row] for row in range(4_001) if row != 5}, 2e-3)


@pytest.mark.parametrize("device", DEVICES)
def test_a_layout_is_not_looked_at_where_vectors_lie_on_a_device(device: str, gallery: Vector) -> None:
    lists = Partition(32, sizes=LISTS)
    lists.replace_all(range(3_000), gallery[:3_000])
    settled(lists)
    partition = Partition(32, sizes=LISTS, device=device)
    partition.replace_all(range(3_000), gallery[:3_000], lists.layout)
    assert partition.layout is None
    assert_equals_brute_force(partition.view(), dict(enumerate(gallery[:3_000])), clustered(2, 20), 10, atol=2e-3)


@pytest.mark.parametrize("device", [None, *DEVICES])
def test_very_many_at_once_take_the_place_of_what_there_was(device: str | None, gallery: Vector) -> None:
    partition = Partition(32, sizes=replace(LISTS, at_once_max=1_000), device=device)
    partition.upsert(range(2_900), gallery[:2_900])
    settled(partition)
    partition.upsert(range(2_900, 3_000), gallery[2_900:3_000])
    before, old = partition.view(), dict(enumerate(gallery[:3_000]))
    others = clustered(20, 2_500).astype(np.float16)
    partition.upsert(np.arange(450, 2_950), others)
    content = old | dict(zip(range(450, 2_950), others.astype(np.float32), strict=True))
    for view in (partition.view(), settled(partition)):
        assert_holds(view, content, 2e-3)
        assert all(layer.block.nbytes < 4 * 32 * 2_500 for layer in view._layers)  # in half precision
    assert_holds(before, old, 2e-3)
    everything = clustered(21, 3_000)
    partition.upsert(range(3_000), everything)
    assert_holds(settled(partition), dict(enumerate(everything)), 2e-3)


def test_the_depth_is_measured_with_the_queries_that_are_asked(
    gallery: Vector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamlearn.index_lists.DEEP_K", 16)  # else there are too few vectors for a shallow search
    partition = Partition(32, sizes=LISTS)
    partition.replace_all(range(3_000), gallery[:3_000])
    settled(partition)
    # Queries that lie where no vectors are, as those of another modality do: their neighbours are in many lists.
    strange = np.random.default_rng(0).standard_normal((200, 32)).astype(np.float32)
    strange /= np.linalg.norm(strange, axis=1, keepdims=True)
    content = dict(enumerate(gallery[:3_000]))
    before = recall(settled(partition), content, strange[100:])
    for query in strange[:100]:
        partition.view().search(query[None], 10)
    partition.upsert(range(3_000, 3_450), gallery[3_000:3_450])
    content.update(zip(range(3_000, 3_450), gallery[3_000:3_450], strict=True))
    after = recall(settled(partition), content, strange[100:])
    assert before < 0.9 < after


def test_a_compaction_that_fails_leaves_everything_searchable_and_is_tried_again(
    gallery: Vector, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def out_of_memory(*_: object, **__: object) -> None:
        raise MemoryError

    partition = Partition(32, sizes=LISTS)
    with monkeypatch.context() as patch:
        patch.setattr("streamlearn.index.compacted", out_of_memory)
        partition.replace_all(range(2_000), gallery[:2_000])
        assert_holds(settled(partition), dict(enumerate(gallery[:2_000])), 2e-3)
    assert "could not be compacted" in caplog.text
    for begin in range(2_000, 2_600, 100):
        partition.upsert(range(begin, begin + 100), gallery[begin : begin + 100])
        view = settled(partition)
    block = view._layers[0].block
    assert isinstance(block, ListsBlock)
    assert len(block.centroids) > 1
    assert_holds(view, dict(enumerate(gallery[:2_600])), 2e-3)


def test_many_that_come_at_once_leave_the_lists_that_there_are() -> None:
    rng = np.random.default_rng(3)
    vectors = rng.standard_normal((6_000, 16)).astype(np.float32)
    partition = Partition(16, sizes=Sizes(flat_max=1_000, fresh_min=200, fresh_max=400))
    partition.replace_all(np.arange(4_000), vectors[:4_000])
    partition.close()
    partition.view()
    before = partition.layout
    assert before is not None
    centroids = before.lists()["centroids"]
    partition.upsert(np.arange(4_000, 6_000), vectors[4_000:])
    assert partition.layout is not None, "all of it would be looked at until there were new lists"
    partition.close()
    assert len(partition.view()) == 6_000
    after = partition.layout
    assert after is not None
    torch.testing.assert_close(after.lists()["centroids"], centroids, rtol=0, atol=0)
