"""What an evaluation says, as plain JSON: for the page, the command line and the HTML report.

From the book, the catalog and the task log; it measures nothing.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from streamlearn.catalog import Catalog
from streamlearn.catalog_rows import Score, TaskRanks
from streamlearn.evaluate import median_rank
from streamlearn.schemas import thumbnail_url
from streamlearn.score_book import ScoreBook, Series
from streamlearn.tasks import Task

_WORST = 12
_CELL = ("value", "low", "high", "pairs", "forgetting", "median_rank", "median_low", "median_high", "clips_seen")


def thinned(scores: Sequence[Score], most: int) -> list[Score]:
    """At most so many points of each series, evenly, with its first and its last; in the order of all."""
    kept = [i for places in _by_series(scores).values() for i in _evenly(places, most)]
    return [scores[i] for i in sorted(kept)]


def over_time(scores: Sequence[Score], tasks: Sequence[Task], most: int, columns: int) -> dict[str, Any]:
    """Points and matrix, as `GET /v1/scores` says them: thinned to `most` of a series, and to `columns` times."""
    return {"points": [asdict(score) for score in thinned(scores, most)], "matrix": matrix(scores, tasks, columns)}


def matrix(scores: Sequence[Score], tasks: Sequence[Task], columns: int) -> dict[str, Any]:
    """Of every series its values at some times of evaluation: the last, those at which tasks ended, others evenly.

    Args:
        scores: oldest first.
        tasks: the task log. A name that is none of its own any more has values only where it was asked.
        columns: how many times at most.

    Returns:
        times, in clips seen; rows, by task, direction, k and view, each with a cell for each time: what was known then,
        None where that is nothing. A cell's `asked` is False where its value is from before the time to its left.
    """
    times = _columns(sorted({score.clips_seen for score in scores}), [t.ended_clips for t in tasks], columns)
    names = {task.name for task in tasks}
    rows = []
    for (task, direction, k, view), places in _by_series(scores).items():
        cells: list[dict[str, Any] | None] = []
        for before, time in zip([-1, *times], times, strict=False):
            known = bisect_right(places, time, key=lambda i: scores[i].clips_seen)
            score = scores[places[known - 1]] if known else None
            asked = score is not None and score.clips_seen > before
            shown = score is not None and (asked or task in names)
            cells.append({name: getattr(score, name) for name in _CELL} | {"asked": asked} if shown else None)
        rows.append({"task": task, "direction": direction, "k": k, "view": view, "cells": cells})
    return {"times": times, "rows": rows}


def _columns(times: Sequence[int], ends: Sequence[int | None], most: int) -> list[int]:
    if not times:
        return []
    at_end = {times[known - 1] for end in ends if end is not None and (known := bisect_right(times, end))}
    wanted = sorted({*at_end, times[-1]})
    others = [time for time in times if time not in wanted]
    return sorted([*_evenly(wanted, most), *_evenly(others, most - len(wanted))])


def _by_series(scores: Sequence[Score]) -> dict[tuple[str, str, int, str], list[int]]:
    """Places of each series."""
    of: dict[tuple[str, str, int, str], list[int]] = {}
    for i, score in enumerate(scores):
        of.setdefault((score.task, score.direction, score.k, score.view), []).append(i)
    return of


def _evenly(some: Sequence[int], most: int) -> list[int]:
    """At most so many of them, with the first and the last."""
    chosen = np.linspace(0, len(some) - 1, max(0, min(most, len(some)))).round().astype(int)
    return [some[i] for i in np.unique(chosen)]


def report(catalog: Catalog, book: ScoreBook, tasks: Sequence[Task], *, worst: int = _WORST) -> dict[str, Any]:
    """Everything but the curves.

    Returns:
        tasks: each with its values now, their intervals, the best so far and what of it was forgotten, by direction,
        view and k; summary: the numbers over all tasks, and the pairs behind them; boundaries: where tasks began;
        hardest_queries and worst_clips: at most `worst` each, by their ranks in the view "served".
    """
    ranks = catalog.matrix.ranks()
    newest = catalog.matrix.newest()
    names = list(dict.fromkeys(task.name for task in tasks))
    return {
        "tasks": [_task(name, book, newest, [of for of in ranks if of.task == name]) for name in names],
        "summary": _summary(book, newest),
        "boundaries": [
            {"task": t.name, "clips": t.started_clips, "cause": t.cause, "score": t.score, "step": t.started_step}
            for t in tasks
        ],
        "hardest_queries": _worst(catalog, [of for of in ranks if (of.direction, of.view) == ("t2v", "served")], worst),
        "worst_clips": _worst(catalog, [of for of in ranks if (of.direction, of.view) == ("v2t", "served")], worst),
    }


def _task(
    name: str,
    book: ScoreBook,
    newest: Sequence[Score],
    ranks: Sequence[TaskRanks],
) -> dict[str, Any]:
    values = [
        {
            "direction": score.direction,
            "view": score.view,
            "k": score.k,
            "recall": score.value,
            "low": score.low,
            "high": score.high,
            "best": book.best(name, score.direction, score.k, score.view),
            "forgetting": book.forgetting(name, score.direction, score.k, score.view),
            "clips_seen": score.clips_seen,
        }
        for score in newest
        if score.task == name
    ]
    return {
        "name": name,
        "pairs": max((len(of.ranks) for of in ranks), default=0),
        "values": values,
        "median_rank": [
            {"direction": of.direction, "view": of.view, "value": median_rank(np.asarray(of.ranks))} for of in ranks
        ],
    }


def _summary(book: ScoreBook, newest: Sequence[Score]) -> list[dict[str, Any]]:
    """With the pairs behind each ratio, of all tasks that it is a mean over."""

    def pairs(of: tuple[str, int, str], *, past: bool) -> int:
        known = (s for s in newest if (s.direction, s.k, s.view) == of and Series(s.task, *of) in cells)
        return sum(score.pairs for score in known if not past or book.is_past(score.task))

    cells = set(book.cells())
    return [
        {
            "direction": direction,
            "view": view,
            "k": k,
            "backward_transfer": book.backward_transfer(direction, k, view),
            "forward_transfer": book.forward_transfer(direction, k, view),
            "harmonic_mean": book.harmonic_mean(direction, k, view),
            "anytime_minimum": book.anytime_minimum(direction, k, view),
            "pairs": {
                "harmonic_mean": pairs((direction, k, view), past=False),
                "backward_transfer": pairs((direction, k, view), past=True),
                "forward_transfer": book.all_forward_pairs(direction, k, view),
                "anytime_minimum": pairs((direction, k, view), past=True),
            },
        }
        for direction, k, view in sorted({series[1:] for series in book.cells()})
    ]


def _worst(catalog: Catalog, ranks: Sequence[TaskRanks], most: int) -> list[dict[str, Any]]:
    """The pairs of the highest ranks; of those that rank equally, the earliest task's first."""
    flat = [(rank, row) for of in ranks for rank, row in zip(of.ranks, of.rows, strict=True) if rank > 1]
    flat.sort(key=lambda pair: -pair[0])
    clips = catalog.clips([row for _, row in flat[: 4 * most]])  # some may have been taken away since
    return [
        {
            "rank": rank,
            "question": clip.asked,
            "video_id": clip.video_id,
            "task": clip.task,
            "thumbnail_url": thumbnail_url(clip.video_id),
        }
        for rank, row in flat[: 4 * most]
        if (clip := clips.get(row)) is not None
    ][:most]
