from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamlearn.evaluate import bootstrap_intervals, hits_in_pool, median_rank, median_rank_interval, ranks, recall_at

repeatable = settings(derandomize=True, deadline=None, database=None)


@repeatable
@given(st.lists(st.lists(st.integers(0, 3), min_size=5, max_size=5), min_size=1, max_size=6), st.data())
def test_ranks_equal_counting_by_hand(rows: list[list[int]], data: st.DataObject) -> None:
    targets = data.draw(st.lists(st.integers(0, 4), min_size=len(rows), max_size=len(rows)))
    by_hand = []
    for row, target in zip(rows, targets, strict=True):
        rest = [score for i, score in enumerate(row) if i != target]
        higher, same = sum(s > row[target] for s in rest), sum(s == row[target] for s in rest)
        by_hand.append(1 + higher + -(-same // 2))
    got = ranks(np.array(rows, np.float32), np.array(targets))
    assert got.dtype == np.int64
    assert got.tolist() == by_hand


def test_a_model_that_scores_everything_alike_ranks_in_the_middle() -> None:
    got = ranks(np.zeros((10, 101), np.float32), np.arange(10))
    assert set(got.tolist()) == {51}
    assert recall_at(got, 10) == 0


def test_scores_that_are_not_numbers_never_help() -> None:
    nan = np.nan
    assert ranks(np.array([[nan, 0.1, 0.2]]), np.array([0])).tolist() == [3]
    assert ranks(np.array([[0.3, nan, 0.2]]), np.array([0])).tolist() == [2]
    assert ranks(np.full((1, 4), nan), np.array([2])).tolist() == [4]


def test_rank_in_a_gallery_of_one_is_one() -> None:
    assert ranks(np.array([[0.5]]), np.array([0])).tolist() == [1]


def test_ranks_refuse_what_does_not_fit() -> None:
    scores = np.zeros((2, 3))
    for targets in ([0], [0, 3], [-1, 0]):
        with pytest.raises(ValueError, match="targets"):
            ranks(scores, np.array(targets))
    with pytest.raises(ValueError, match="shape"):
        ranks(np.zeros(3), np.array([0, 1, 2]))


def test_recall_and_median_rank_of_known_ranks() -> None:
    known = np.array([1, 2, 5, 6])
    assert [recall_at(known, k) for k in (1, 5, 10)] == [0.25, 0.75, 1.0]
    assert median_rank(known) == 3.5


@pytest.mark.parametrize("measure", [lambda r: recall_at(r, 1), median_rank])
def test_measures_of_no_queries_are_refused(measure) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="no queries"):
        measure(np.empty(0, np.int64))


@repeatable
@given(st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n), st.integers(1, n + 1))))
def test_hits_in_a_pool_equal_drawing_every_pool_there_is(sizes: tuple[int, int, int]) -> None:
    candidates, pool, rank = sizes
    others = range(2, candidates + 1) if rank == 1 else [r for r in range(1, candidates + 1) if r != rank]
    for k in (1, 3):
        drawn = [sum(other < rank for other in chosen) < k for chosen in combinations(others, pool - 1)]
        expected = np.mean(drawn) if rank <= candidates else 0
        got = hits_in_pool(np.array([rank]), k, candidates=candidates, pool=pool)
        assert got == pytest.approx([expected], abs=1e-9)


def test_recall_in_a_pool_does_not_fall_when_the_index_grows_with_clips_that_are_like_it() -> None:
    small, large = hits_in_pool(np.array([3]), 5, candidates=100, pool=100), []
    for times in (1, 10, 1000):  # the share of clips that are ahead stays
        large.append(hits_in_pool(np.array([1 + 2 * times]), 5, candidates=100 * times, pool=100)[0])
    assert small == large[0] == 1
    assert min(large) > 0.94


@pytest.mark.parametrize("pool", [0, 11])
def test_a_pool_larger_than_the_index_is_refused(pool: int) -> None:
    with pytest.raises(ValueError, match="pool"):
        hits_in_pool(np.array([1]), 1, candidates=10, pool=pool)


def test_intervals_are_those_of_the_binomial_that_resampling_hits_is() -> None:
    hits = np.zeros((100, 2))
    hits[:30, 0] = hits[:80, 1] = 1
    low, high = bootstrap_intervals(hits)
    # 2.5 and 97.5 % quantiles of binomial(100, .3) and (100, .8), over 100: 0.21 to 0.39, 0.72 to 0.87.
    assert low == pytest.approx([0.21, 0.72], abs=0.015)
    assert high == pytest.approx([0.39, 0.87], abs=0.015)
    again = bootstrap_intervals(hits)
    assert np.array_equal(again[0], low)
    assert np.array_equal(again[1], high)


def test_the_interval_of_a_median_rank_holds_it_and_narrows_with_more_questions() -> None:
    rng = np.random.default_rng(0)
    few, many = (rng.integers(1, 100, n) for n in (20, 2000))
    # Of an odd number of questions every median is a rank; the binomial says which: here the 3rd and the 9th of 11.
    assert median_rank_interval(np.arange(1, 12)) == pytest.approx((3, 9), abs=1)
    widths = []
    for found in (few, many):
        low, high = median_rank_interval(found)
        assert low <= median_rank(found) <= high
        widths.append(high - low)
    assert widths[1] < widths[0] / 4
    assert median_rank_interval(np.full(7, 3)) == (3, 3)


def test_an_interval_of_equal_outcomes_has_no_width() -> None:
    assert bootstrap_intervals(np.ones((7, 1))) == (1, 1)
