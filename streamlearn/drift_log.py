"""What the detector saw, batch by batch, in a bounded file: to try other settings on the stream as it was.

A cache beside the state, never read by the daemon. Steps that were learned again after a crash are in it twice; the
last one counts.
"""

from __future__ import annotations

import base64
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from streamlearn.detector import UNMEASURED, Measured
from streamlearn.errors import StateError
from streamlearn.records import StepStats, Vectors
from streamlearn.tail import Summary

log = logging.getLogger(__name__)

_MAX_BYTES = 8 * 2**20  # of a file; the one before it is kept: some 20,000 batches of 2 x 128 dimensions


@dataclass(frozen=True)
class Entry:
    """One batch.

    Attributes:
        step: of the learner, this batch included.
        clips: processed so far.
        score, threshold: of the detector at that time.
        outcome: "drift", "refused", "seen" by the judge alone, or "" where nothing was suspected.
        measured: on the batch.
        operator: began a task before this batch, and the detector anew.
    """

    step: int
    clips: int
    batch: Summary
    score: float
    threshold: float
    outcome: str
    measured: Measured = UNMEASURED
    operator: bool = False


class DriftLog:
    """Appends to `drift.jsonl` in a folder. A disk that refuses costs the log, not the stream."""

    def __init__(self, folder: Path, max_bytes: int = _MAX_BYTES) -> None:
        self._path, self._max_bytes = folder / "drift.jsonl", max_bytes
        self.operator = False  # began a task since the last step

    def append(self, stats: StepStats, keys: Vectors, clips: int, verdict: tuple[float, float, str]) -> None:
        """Write one step.

        Args:
            stats: of the learner.
            keys: (n, d), what the detector saw.
            clips: processed so far.
            verdict: score, threshold and outcome.
        """
        batch = Summary.of(keys)
        row = {
            "step": stats.step,
            "clips": clips,
            "rows": batch.rows,
            "square": batch.square,
            "video_square": batch.first_square,
            "traces": [None if np.isnan(x) else x for x in batch.traces.tolist()],
            "score": verdict[0],
            "threshold": verdict[1],
            "outcome": verdict[2],
            "operator": self.operator,
            "loss": stats.loss,
            "recall": stats.recall,
            "grad_norm": stats.grad_norm,
            "sums": base64.b64encode(batch.sums.astype("<f2").tobytes()).decode(),
        }
        self.operator = False
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
                full = file.tell() > self._max_bytes
            if full:
                os.replace(self._path, self._path.with_suffix(".jsonl.1"))
        except OSError as error:
            log.warning("%s cannot be written: %s", self._path, error)


def read_log(folder: Path) -> list[Entry]:
    """What a daemon logged in its state directory, oldest first; a line that is cut short or damaged is passed over.

    Raises:
        StateError: batches are of several widths, which no detector can compare.
    """
    entries: dict[int, Entry] = {}
    for name in ("drift.jsonl.1", "drift.jsonl"):
        path = folder / name
        if path.exists():
            for entry in _entries(path):
                # After a rollback or a crash, the steps that come again are another course of things.
                entries = (
                    {step: e for step, e in entries.items() if step < entry.step} if entry.step in entries else entries
                )
                entries[entry.step] = entry
    widths = sorted({len(entry.batch.sums) for entry in entries.values()})
    if len(widths) > 1:
        raise StateError(
            f"{folder / 'drift.jsonl'} holds batches of {widths[0]} and of {widths[-1]} numbers, of two models: move it"
            " away, and let the daemon write a new one"
        )
    return [entries[step] for step in sorted(entries)]


def _entries(path: Path) -> Iterator[Entry]:
    damaged = 0
    with path.open("rb") as file:  # a line that is no UTF-8 is damaged like any other
        for line in file:
            try:
                entry = _entry(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError):
                damaged += 1
            else:
                yield entry
    if damaged:
        log.warning("%s: passed over lines that cannot be read: %d", path, damaged)


def _entry(row: Mapping[str, Any]) -> Entry:
    """Of a line; whatever is not as `DriftLog` writes it raises."""
    sums = np.frombuffer(base64.b64decode(row["sums"]), "<f2").astype(np.float64)
    traces = np.array([np.nan if x is None else x for x in row["traces"]], np.float64)
    square = float(row["square"])
    batch = Summary(sums, square, row["rows"], traces, float(row.get("video_square", square / 2)))  # both unit rows
    whole = all(type(row[name]) is int and row[name] >= 0 for name in ("step", "clips", "rows"))
    finite = np.isfinite(sums).all() and math.isfinite(batch.square) and math.isfinite(batch.first_square)
    if not (whole and finite and batch.rows and len(sums) and row["outcome"] in ("", "drift", "refused", "seen")):
        raise ValueError("no line of this log")
    measured = Measured(*(float(row[name]) for name in ("loss", "recall", "grad_norm")))
    operator = bool(row.get("operator", False))
    score, threshold = float(row["score"]), float(row["threshold"])
    return Entry(row["step"], row["clips"], batch, score, threshold, row["outcome"], measured, operator)
