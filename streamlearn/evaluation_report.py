"""What an evaluation says, as plain JSON: for the page, the command line and the HTML report.

From the book, the catalog and the task log; it measures nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from streamlearn.catalog import Catalog
from streamlearn.catalog_rows import Score, TaskRanks
from streamlearn.evaluate import median_rank
from streamlearn.schemas import thumbnail_url
from streamlearn.score_book import ScoreBook
from streamlearn.tasks import Task

_WORST = 12


def thinned(scores: Sequence[Score], most: int) -> list[Score]:
    """At most so many points of each series, evenly, with its first and its last; in the order of all."""
    of: dict[tuple[str, str, int, str], list[int]] = {}
    for i, score in enumerate(scores):
        of.setdefault((score.task, score.direction, score.k, score.view), []).append(i)
    kept: set[int] = set()
    for places in of.values():
        chosen = np.unique(np.linspace(0, len(places) - 1, min(most, len(places))).round().astype(int))
        kept.update(places[i] for i in chosen)
    return [scores[i] for i in sorted(kept)]


def report(catalog: Catalog, book: ScoreBook, tasks: Sequence[Task], *, worst: int = _WORST) -> dict[str, Any]:
    """Everything but the curves.

    Returns:
        tasks: each with its values now, their intervals and what was forgotten, by direction, view and k;
        summary: the numbers over all tasks; boundaries: where tasks began; hardest_queries and worst_clips: at most
        `worst` each, by their ranks in the view "served".
    """
    ranks = catalog.matrix.ranks()
    newest = catalog.matrix.newest()
    names = list(dict.fromkeys(task.name for task in tasks))
    return {
        "tasks": [_task(name, book, newest, [of for of in ranks if of.task == name]) for name in names],
        "summary": _summary(book),
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


def _summary(book: ScoreBook) -> list[dict[str, Any]]:
    return [
        {
            "direction": direction,
            "view": view,
            "k": k,
            "backward_transfer": book.backward_transfer(direction, k, view),
            "forward_transfer": book.forward_transfer(direction, k, view),
            "harmonic_mean": book.harmonic_mean(direction, k, view),
            "anytime_minimum": book.anytime_minimum(direction, k, view),
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
