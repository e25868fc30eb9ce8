from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamlearn.index import Partition, PartitionView, configure_faiss

DIM = 8
Vector = npt.NDArray[np.float32]


def unit_rows(seed: int, count: int, dim: int = DIM) -> Vector:
    vectors = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    unit: Vector = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def assert_equals_brute_force(
    view: PartitionView, content: dict[int, Vector], queries: Vector, k: int, allowed: list[int] | None = None
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
    np.testing.assert_allclose(scores[:, :found], -np.sort(-exact, axis=1)[:, :found], atol=1e-5)
    for query, answer in enumerate(rows[:, :found]):
        # Ties may come in any order, so each answer is checked by its own score.
        assert len(set(answer.tolist())) == found
        exact_of_answer = exact[query, np.searchsorted(chosen, answer)]
        np.testing.assert_allclose(scores[query, :found], exact_of_answer, atol=1e-5)


def assert_holds(view: PartitionView, content: dict[int, Vector]) -> None:
    assert len(view) == len(content)
    assert view.rows.tolist() == sorted(content)
    if content:
        backwards = sorted(content, reverse=True)
        np.testing.assert_array_equal(view.vectors(backwards), np.stack([content[row] for row in backwards]))


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
@settings(max_examples=100, deadline=None, derandomize=True)
@given(operations, st.integers(0, 70), row_lists, st.integers(0, 3))
def test_every_view_equals_brute_force_on_the_content_of_its_moment(
    steps: list[tuple[str, list[int]]], k: int, allowed: list[int], query_count: int
) -> None:
    partition = Partition(DIM)
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
        assert_holds(view, held)
        assert_equals_brute_force(view, held, queries, k)
        assert_equals_brute_force(view, held, queries, k, allowed)


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
