"""What a `testing.FakeService` says of evaluations: a few tasks whose recall falls slowly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from streamlearn.schemas import thumbnail_url


def fake_scores(names: Sequence[str]) -> dict[str, Any]:
    """Recall@5 of every task, slowly falling."""
    points = [
        {
            "clips_seen": 250 * n,
            "step": 8 * n,
            "time": "2024-05-01T12:00:00Z",
            "task": name,
            "direction": "t2v",
            "k": 5,
            "view": shown,
            "value": (0.9 if shown == "served" else 0.85) - (0.004 if shown == "served" else 0.04) * (n - 4 * i) % 1,
            "pairs": 50,
            "low": None,
            "high": None,
            "forgetting": 0.0,
        }
        for i, name in enumerate(names)
        for n in range(4 * i, 4 * len(names))
        for shown in ("served", "learner")
    ]
    times = [1000 * (i + 1) - 250 for i in range(len(names))]
    rows: dict[tuple[str, str], list[dict[str, Any] | None]] = {}
    for name in names:
        for view in ("served", "learner"):
            of = {p["clips_seen"]: p for p in points if (p["task"], p["view"]) == (name, view)}
            rows[name, view] = [{**of[time], "asked": True} if time in of else None for time in times]
    matrix = [{"task": name, "direction": "t2v", "k": 5, "view": view, "cells": c} for (name, view), c in rows.items()]
    return {"points": points, "matrix": {"times": times, "rows": matrix}}


def fake_evaluation(clips: Sequence[tuple[str, str, str]]) -> dict[str, Any]:
    """Of the same numbers, as `evaluation_report.report` says them; of clips by id, caption and task."""
    names = sorted({task for *_, task in clips})
    worst = [
        {
            "rank": 90 - i,
            "question": caption,
            "video_id": video_id,
            "task": task,
            "thumbnail_url": thumbnail_url(video_id),
        }
        for i, (video_id, caption, task) in enumerate(clips[:3])
    ]
    return {
        "tasks": [
            {
                "name": name,
                "pairs": 50,
                "values": [
                    {"direction": "t2v", "view": view, "k": 5, "recall": 0.8, "low": 0.7, "high": 0.88,
                     "best": 0.9, "forgetting": 0.1 * i, "clips_seen": 3000}
                    for view in ("served", "learner")
                ],
                "median_rank": [{"direction": "t2v", "view": "served", "value": 2.0}],
            }
            for i, name in enumerate(names)
        ],
        "summary": [
            {"direction": "t2v", "view": "served", "k": 5, "backward_transfer": -0.05, "forward_transfer": None,
             "harmonic_mean": 0.8, "anytime_minimum": 0.7,
             "pairs": {"backward_transfer": 100, "forward_transfer": 0, "harmonic_mean": 150, "anytime_minimum": 100}}
        ],
        "boundaries": [
            {"task": name, "clips": 1000 * i, "cause": "drift" if i else "start", "score": 6.1 if i else None,
             "step": 30 * i}
            for i, name in enumerate(names)
        ],
        "hardest_queries": worst,
        "worst_clips": worst[:2],
    }  # fmt: skip
