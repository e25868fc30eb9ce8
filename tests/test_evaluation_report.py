"""The matrix of tasks and times, out of points that were measured whenever there was time."""

from __future__ import annotations

from typing import Any

import pytest

from streamlearn.catalog_rows import Score
from streamlearn.evaluation_report import matrix, over_time
from streamlearn.records import Position
from streamlearn.tasks import Task


def point(task: str, clips: int, value: float, **other: Any) -> Score:
    return Score(clips, clips // 8, "2026-01-01T00:00:00Z", task, "t2v", 5, "served", value, clips // 10, **other)


def tasks(*ends: int | None) -> list[Task]:
    starts = [0, *(end or 0 for end in ends)]
    return [
        Task(f"t{i + 1}", i + 1, "drift", None, 0, 0, start, Position("clips", "0", start), ended_clips=end)
        for i, (start, end) in enumerate(zip(starts, ends, strict=False))
    ]


def shown(found: dict[str, Any], task: str) -> list[str]:
    """Values of a row; in brackets where nobody asked since the column before."""
    (row,) = [row for row in found["rows"] if row["task"] == task]
    return [
        "" if cell is None else f"{cell['value']:.1f}" if cell["asked"] else f"({cell['value']:.1f})"
        for cell in row["cells"]
    ]


def test_columns_are_the_ends_of_tasks_and_now_and_others_evenly_between() -> None:
    points = [point("t1", clips, 0.9) for clips in range(50, 2001, 50)]
    found = matrix(points, tasks(330, 1000, None), 8)
    assert len(found["times"]) == 8
    assert {300, 1000, 2000} <= set(found["times"])  # at 330, what was known at 300 was known
    assert found["times"] == sorted(found["times"])
    assert matrix(points, tasks(330, 1000, None), 2)["times"] == [300, 2000]
    assert matrix(points[:3], tasks(None), 8)["times"] == [50, 100, 150]
    assert matrix([], tasks(None), 8) == {"times": [], "rows": []}


def test_a_cell_is_what_was_known_at_that_time_and_says_whether_it_was_asked_since_the_one_before() -> None:
    points = [
        point("t1", 100, 0.8), point("t1", 200, 0.9), point("t2", 300, 0.5),
        point("t2", 400, 0.6), point("t1", 500, 0.3, forgetting=2 / 3), point("t2", 600, 0.7),
    ]  # fmt: skip
    found = matrix(points, tasks(200, None), 4)
    assert found["times"] == [100, 200, 500, 600]
    assert shown(found, "t1") == ["0.8", "0.9", "0.3", "(0.3)"]
    assert shown(found, "t2") == ["", "", "0.6", "0.7"]
    cell = found["rows"][0]["cells"][2]
    assert (cell["pairs"], cell["clips_seen"], cell["forgetting"]) == (50, 500, pytest.approx(2 / 3))


def test_a_name_that_no_task_has_any_more_has_values_where_it_was_asked_and_none_later() -> None:
    points = [point("t1", 100, 0.8), point("t9", 200, 0.4), point("t1", 300, 0.7)]
    assert shown(matrix(points, tasks(None), 8), "t9") == ["", "0.4", ""]


def test_series_are_rows_of_their_own_and_points_stay_beside_the_matrix() -> None:
    one = point("t1", 100, 0.8)
    other = Score(100, 12, one.time, "t1", "v2t", 1, "learner", 0.2, 10, median_rank=7.5, median_low=5, median_high=9)
    found = over_time([one, other], tasks(None), 10, 10)
    assert [(row["direction"], row["k"], row["view"]) for row in found["matrix"]["rows"]] == [
        ("t2v", 5, "served"), ("v2t", 1, "learner"),
    ]  # fmt: skip
    assert found["matrix"]["rows"][1]["cells"][0]["median_rank"] == 7.5
    assert [p["value"] for p in found["points"]] == [0.8, 0.2]
