from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamlearn.errors import StateError
from streamlearn.score_book import ScoreBook

repeatable = settings(derandomize=True, deadline=None, database=None)
SERIES = ("t2v", 1, "served")


def book_of(matrix: list[list[float]]) -> ScoreBook:
    """One evaluation a row, at the end of each task: row t is evaluated while task t is still current."""
    book = ScoreBook()
    for t, row in enumerate(matrix):
        if t:
            book.close_task(f"t{t}")
        for i, value in enumerate(row):
            book.record(f"t{i + 1}", *SERIES, value)
    return book


def test_forgetting_and_transfer_agree_with_avalanche_where_they_overlap() -> None:
    """avalanche-lib 0.6.0 on this matrix (row: after task t; column: task i) and an untrained model's values.

    Its own classes said so: `python benchmarks/avalanche.py`.

    Its `Forgetting` (first value - last) gives {0: 0.3, 1: 0.3}, its `BWT` {0: -0.3, 1: -0.3} with the mean -0.3, its
    `ForwardTransfer` (after the task before - untrained) {1: 0.05, 2: 0.12} with the mean 0.085. Ours of forgetting
    divides by the best: 0.3 / 0.8 and 0.3 / 0.9; theirs is the same times the best, as the last value of a task while
    current is its best here.
    """
    matrix, untrained = [[0.8, 0.1, 0.0], [0.6, 0.9, 0.2], [0.5, 0.6, 0.7]], [0.1, 0.05, 0.08]
    book = book_of(matrix)
    for i in (1, 2):
        book.record_forward(f"t{i + 1}", *SERIES, matrix[i - 1][i] - untrained[i], 50)
    assert book.backward_transfer(*SERIES) == pytest.approx(-0.3)
    assert book.forward_transfer(*SERIES) == pytest.approx(0.085)
    assert 0.8 * (book.forgetting("t1", *SERIES) or 0) == pytest.approx(0.3)
    assert 0.9 * (book.forgetting("t2", *SERIES) or 0) == pytest.approx(0.3)
    assert book.forgetting("t3", *SERIES) == 0


def test_forward_transfer_is_kept_per_series_and_its_last_word_counts() -> None:
    book = ScoreBook()
    assert book.forward_transfer(*SERIES) is None
    assert book.forward_pairs("t2") == 0
    book.record_forward("t2", *SERIES, 0.5, 10)
    book.record_forward("t2", *SERIES, -0.1, 20)
    assert book.forward_transfer(*SERIES) == pytest.approx(-0.1)
    assert book.forward_transfer("v2t", 1, "served") is None
    assert book.forward_pairs("t2") == 20
    resumed = ScoreBook()
    resumed.load_state_dict(json.loads(json.dumps(book.state_dict())))
    assert resumed.forward_transfer(*SERIES) == pytest.approx(-0.1)


def test_a_book_from_before_forward_transfer_opens() -> None:
    book = ScoreBook()
    book.load_state_dict({"past": [], "series": []})
    assert book.forward_transfer(*SERIES) is None


ratios = st.floats(0, 1)


def restored(book: ScoreBook) -> ScoreBook:
    """Through a checkpoint."""
    again = ScoreBook()
    again.load_state_dict(json.loads(json.dumps(book.state_dict())))
    return again


@repeatable
@given(st.integers(1, 4).flatmap(lambda n: st.lists(st.lists(ratios, min_size=n, max_size=n), min_size=n, max_size=n)))
def test_the_book_equals_the_definitions_on_the_whole_matrix(matrix: list[list[float]]) -> None:
    """R[t][i]: the value of task i after task t, its best, learned and lowest read off the matrix itself."""
    book, r, n = book_of(matrix), np.array(matrix), len(matrix)
    for i in range(n):
        best = r[:, i].max()
        assert book.forgetting(f"t{i + 1}", *SERIES) == pytest.approx((best - r[-1, i]) / best if best else 0)
        assert book.now(f"t{i + 1}", *SERIES) == r[-1, i]
    if n == 1:
        assert book.backward_transfer(*SERIES) is None
        assert book.anytime_minimum(*SERIES) is None
    else:
        assert book.backward_transfer(*SERIES) == pytest.approx(np.mean([r[-1, i] - r[i, i] for i in range(n - 1)]))
        assert book.anytime_minimum(*SERIES) == pytest.approx(np.mean([r[i:, i].min() for i in range(n - 1)]))
    with np.errstate(divide="ignore", over="ignore"):
        assert book.harmonic_mean(*SERIES) == pytest.approx(n / np.sum(1 / r[-1]))


def test_directions_ks_and_views_are_kept_apart() -> None:
    book = ScoreBook()
    book.record("t1", "t2v", 1, "served", 0.8)
    book.record("t1", "t2v", 1, "served", 0.4)
    for other in (("v2t", 1, "served"), ("t2v", 5, "served"), ("t2v", 1, "learner")):
        book.record("t1", *other, 0.5)
        assert book.forgetting("t1", *other) == 0
    assert book.forgetting("t1", "t2v", 1, "served") == 0.5
    assert [cell[1:] for cell in book.cells()] == [
        ("t2v", 1, "served"),
        ("v2t", 1, "served"),
        ("t2v", 5, "served"),
        ("t2v", 1, "learner"),
    ]


def test_a_task_first_evaluated_when_past_counts_from_there() -> None:
    book = ScoreBook()
    book.close_task("t1")
    book.record("t1", *SERIES, 0.6)
    assert book.backward_transfer(*SERIES) == 0
    book.record("t1", *SERIES, 0.2)
    book.record("t1", *SERIES, 0.5)
    assert book.backward_transfer(*SERIES) == pytest.approx(-0.1)
    assert book.anytime_minimum(*SERIES) == pytest.approx(0.2)


def test_closing_a_past_task_again_changes_nothing() -> None:
    book = book_of([[0.8, 0.0], [0.5, 0.7]])
    book.close_task("t1")
    assert book.backward_transfer(*SERIES) == pytest.approx(-0.3)


def test_a_task_that_returns_is_learned_anew_and_keeps_its_best() -> None:
    book = book_of([[0.8, 0.0], [0.5, 0.7]])
    book.open_task("t1")
    assert book.backward_transfer(*SERIES) is None
    book.record("t1", *SERIES, 0.6)
    book.close_task("t1")
    book.record("t1", *SERIES, 0.4)
    assert book.backward_transfer(*SERIES) == pytest.approx(-0.2)
    assert book.forgetting("t1", *SERIES) == pytest.approx(0.5)


def test_a_task_never_found_has_forgotten_nothing_and_spoils_the_harmonic_mean() -> None:
    book = book_of([[0.0, 0.9]])
    assert book.forgetting("t1", *SERIES) == 0
    assert book.harmonic_mean(*SERIES) == 0


def test_what_was_never_recorded_is_none() -> None:
    book = ScoreBook()
    assert book.now("t1", *SERIES) is book.forgetting("t1", *SERIES) is book.harmonic_mean(*SERIES) is None


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_a_value_that_is_no_ratio_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"is -?[0-9a-z.]+, not in 0"):
        ScoreBook().record("t1", *SERIES, value)


@repeatable
@given(st.lists(st.tuples(st.sampled_from(["t1", "t2", "t3"]), st.one_of(ratios, st.sampled_from(["open", "close"])))))
def test_a_book_that_was_put_away_as_json_goes_on_the_same(events: list[tuple[str, float | str]]) -> None:
    whole, resumed = ScoreBook(), ScoreBook()
    for task, event in events:
        for book in (whole, resumed):
            if event == "open":
                book.open_task(task)
            elif event == "close":
                book.close_task(task)
            else:
                assert isinstance(event, float)
                book.record(task, *SERIES, event)
        state = json.loads(json.dumps(resumed.state_dict()))
        resumed = ScoreBook()
        resumed.load_state_dict(state)
        assert resumed.state_dict() == whole.state_dict()
        assert resumed.cells() == whole.cells()


def test_a_damaged_book_is_refused_and_changes_nothing() -> None:
    book = book_of([[0.8]])
    for damaged in ({}, {"past": [], "series": [["t1", "t2v"]]}, {"past": [], "series": [["t1", *SERIES, {"x": 1}]]}):
        with pytest.raises(StateError, match="score book"):
            book.load_state_dict(damaged)
    assert book.now("t1", *SERIES) == 0.8


def test_a_renamed_task_counts_once_in_forward_transfer() -> None:
    book = ScoreBook()
    book.record("t5", *SERIES, 0.8)
    book.record_forward("t5", *SERIES, 0.5, 20)
    book.record_forward("t9", *SERIES, -0.1, 20)
    book.rename("t5", "night")
    assert book.forward_pairs("t5") == 0
    assert book.forward_pairs("night") == 20
    book.record_forward("night", *SERIES, 0.5, 80)  # asked anew under its new name
    assert book.forward_transfer(*SERIES) == pytest.approx(0.2)


def test_a_rename_keeps_all_that_was_known_and_the_order_of_the_series() -> None:
    book = book_of([[0.8, 0.0], [0.5, 0.7]])
    book.rename("t1", "night")
    assert [cell.task for cell in book.cells()] == ["night", "t2"]
    assert book.now("t1", *SERIES) is None
    assert book.forgetting("night", *SERIES) == pytest.approx(0.375)
    assert book.backward_transfer(*SERIES) == pytest.approx(-0.3)


def test_a_task_that_took_another_in_is_measured_against_nothing_from_before() -> None:
    """The easy t2 becomes part of t1: of the questions of both together nothing was ever forgotten."""
    book = book_of([[0.9, 0.0, 0.0], [0.8, 0.3, 0.0], [0.8, 0.3, 0.5]])
    book.record_forward("t1", *SERIES, 0.2, 20)
    book.record_forward("t2", *SERIES, 0.4, 20)
    book.merge("t2", "t1")
    assert [cell.task for cell in book.cells()] == ["t1", "t3"]
    assert book.now("t1", *SERIES) == 0.8  # what was measured last stands until the next time
    assert book.forward_transfer(*SERIES) is None  # to be asked anew, with the questions of both
    assert book.forward_pairs("t1") == 0
    book = restored(book)
    book.record("t1", *SERIES, 0.55)
    assert book.forgetting("t1", *SERIES) == 0
    assert book.backward_transfer(*SERIES) == 0
    assert book.anytime_minimum(*SERIES) == pytest.approx(0.55)
    book.record("t1", *SERIES, 0.44)
    assert book.forgetting("t1", *SERIES) == pytest.approx(0.2)
    assert book.backward_transfer(*SERIES) == pytest.approx(-0.11)


def test_a_task_that_took_another_in_and_ends_unmeasured_is_learned_with_its_first_value_afterwards() -> None:
    book = book_of([[0.9, 0.0], [0.8, 0.3]])
    book.merge("t1", "t2")
    book.close_task("t2")
    book.record("t2", *SERIES, 0.6)
    assert book.backward_transfer(*SERIES) == 0
    assert book.now("t1", *SERIES) is None
    assert len(book.cells()) == 1


def test_a_task_known_late_leaves_the_one_that_it_is_as_if_it_had_been_known_at_once() -> None:
    at_once, late = book_of([[0.8, 0.0], [0.5, 0.7]]), book_of([[0.8, 0.0], [0.5, 0.7]])
    at_once.record_forward("t2", *SERIES, 0.1, 20)
    late.record_forward("t2", *SERIES, 0.1, 20)
    for book in (at_once, late):
        book.close_task("t2")
    late.record("t3", *SERIES, 0.2)
    late.record_forward("t3", *SERIES, 0.9, 20)
    late.drop_task("t3")
    for book in (at_once, late):
        book.open_task("t1")
        book.record("t1", *SERIES, 0.6)
    assert late.state_dict() == at_once.state_dict()
    assert late.forgetting("t1", *SERIES) == pytest.approx(0.25)  # its best stays


def test_a_book_from_before_merges_began_anew_opens() -> None:
    book = ScoreBook()
    course = {"now": 0.5, "best": 0.8, "learned": None, "lowest": None}
    book.load_state_dict({"past": [], "series": [["t1", *SERIES, course]]})
    book.record("t1", *SERIES, 0.4)
    assert book.forgetting("t1", *SERIES) == pytest.approx(0.5)
