"""Which generations are kept, by number, age, size and pins."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from streamlearn.retention import Kept, Retention

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SHARED = {999: 50}  # an era's file


def generations(*, pinned: int = 0) -> list[Kept]:
    """Five, an hour apart, of 100 bytes each and one file of 50 that all share; the newest is an hour old."""
    return [
        Kept(n, n, NOW - timedelta(hours=6 - n), n == pinned, {n: 100} | SHARED)
        for n in range(1, 6)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("limits", "kept"),
    [
        ({"keep": 1}, {5}),
        ({"keep": 3}, {3, 4, 5}),
        ({"keep": 99}, {1, 2, 3, 4, 5}),
        ({"keep": 99, "keep_age_s": 3 * 3600}, {3, 4, 5}),
        ({"keep": 2, "keep_age_s": 3 * 3600}, {4, 5}),
        ({"keep": 99, "keep_age_s": 1}, {5}),
        ({"keep": 99, "keep_bytes": 350}, {3, 4, 5}),
        ({"keep": 99, "keep_bytes": 349}, {4, 5}),
        ({"keep": 99, "keep_bytes": 1}, {5}),
    ],
)
def test_the_newest_is_kept_and_others_within_every_limit(limits: dict[str, Any], kept: set[int]) -> None:
    assert Retention(**limits).choose(generations(), NOW) == kept


def test_pinned_ones_stay_beside_those_that_are_counted_and_take_their_room() -> None:
    assert Retention(2).choose(generations(pinned=1), NOW) == {1, 4, 5}
    assert Retention(2, keep_age_s=1).choose(generations(pinned=2), NOW) == {2, 5}
    assert Retention(99, keep_bytes=350).choose(generations(pinned=1), NOW) == {1, 4, 5}
    assert Retention(1).choose(generations(pinned=5), NOW) == {4, 5}
    assert generations()[0].bytes_used == 150
