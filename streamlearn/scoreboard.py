"""Writes down what was measured: the book, the catalog's matrix, the gauges. Only the pipeline's thread calls it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

import numpy as np
from prometheus_client import Gauge

from streamlearn.catalog import Catalog, Score
from streamlearn.catalog_rows import TaskRanks
from streamlearn.evaluate import bootstrap_intervals, median_rank, median_rank_interval
from streamlearn.evaluator import Measured
from streamlearn.metrics import Metrics
from streamlearn.score_book import ScoreBook, Series


class Scoreboard:
    """The one writer of scores.

    Args:
        book: the matrix of tasks and time, of which forgetting and transfer are read.
    """

    def __init__(self, book: ScoreBook, catalog: Catalog, metrics: Metrics) -> None:
        self.book, self._catalog, self._metrics = book, catalog, metrics

    def record(self, measured: Sequence[Measured]) -> None:
        """Keep and show what was measured, oldest first."""
        if not measured:
            return
        scores: list[Score] = []
        for one in measured:
            of, hits = list(one.hits), np.stack(list(one.hits.values()), axis=1)  # (n, series)
            low, high = bootstrap_intervals(hits)
            medians = {of: (median_rank(rank), *median_rank_interval(rank)) for of, rank in one.ranks.items()}
            now = datetime.now(UTC).isoformat(timespec="seconds")
            for i, (direction, view, k) in enumerate(of):
                value = float(hits[:, i].mean())
                self.book.record(one.task, direction, k, view, value)
                facts = (one.clips_seen, one.step, now, one.task, direction, k, view, value, len(one))
                lost = self.book.forgetting(one.task, direction, k, view)
                median = medians.get((direction, view), (None, None, None))
                scores.append(Score(*facts, float(low[i]), float(high[i]), lost, *median))
            for (direction, k), value in one.forward.items():
                self.book.record_forward(one.task, direction, k, "learner", value, len(one))
        ranks = [
            TaskRanks(one.task, *of, one.clips_seen, tuple(clip.row for clip in one.clips), tuple(rank.tolist()))
            for one in measured
            for of, rank in one.ranks.items()
        ]
        self._catalog.add_scores(scores, ranks)
        tasks = {one.task for one in measured}
        self._show([series for series in self.book.cells() if series.task in tasks], ranks)

    def drop(self, task: str) -> None:
        """The task has too few held-out pairs by now: nothing stands behind its ratios."""
        with contextlib.suppress(KeyError):
            self._metrics.eval_pairs.remove(task)  # else it never had any
            self._catalog.forget_ranks(task)  # or they would be back after a restart

    def restart(self) -> None:
        """Book and catalog are others than before, after a rollback or another name: gauges of tasks that were go."""
        m = self._metrics
        for gauge in (
            m.eval_pairs, m.median_rank, m.recall_ratio, m.forgetting_ratio, m.backward_transfer_ratio,
            m.forward_transfer_ratio, m.harmonic_mean_ratio, m.anytime_minimum_ratio,
        ):  # fmt: skip
            gauge.clear()
        self.export()

    def export(self) -> None:
        """Set every gauge from book and catalog: after a restart, before the first evaluation."""
        self._show(self.book.cells(), self._catalog.matrix.ranks())

    def _show(self, cells: Iterable[Series], ranks: Iterable[TaskRanks]) -> None:
        m, book = self._metrics, self.book
        for series in cells:
            labels = (series.task, series.direction, str(series.k), series.view)
            _set(m.recall_ratio, labels, book.now(*series))
            _set(m.forgetting_ratio, labels, book.forgetting(*series))
        for direction, k, view in {series[1:] for series in book.cells()}:
            over_all = (direction, str(k), view)
            _set(m.backward_transfer_ratio, over_all, book.backward_transfer(direction, k, view))
            _set(m.forward_transfer_ratio, over_all, book.forward_transfer(direction, k, view))
            _set(m.harmonic_mean_ratio, over_all, book.harmonic_mean(direction, k, view))
            _set(m.anytime_minimum_ratio, over_all, book.anytime_minimum(direction, k, view))
        for of in ranks:
            m.median_rank.labels(of.task, of.direction, of.view).set(median_rank(np.asarray(of.ranks)))
            m.eval_pairs.labels(of.task).set(len(of.ranks))


def _set(gauge: Gauge, labels: tuple[str, ...], value: float | None) -> None:
    """What is not defined (yet) is not there: 0 would be the worst of scores."""
    if value is not None:
        gauge.labels(*labels).set(value)
        return
    with contextlib.suppress(KeyError):
        gauge.remove(*labels)
