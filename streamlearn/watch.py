"""Looks for a boundary after each learned batch: what the detector suspects, what the judge says, the log of both.

It changes nothing: the pipeline acts on what it answers. Only the pipeline thread calls it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from streamlearn.detector import Measured
from streamlearn.drift_log import DriftLog
from streamlearn.judge import Judge
from streamlearn.metrics import Metrics
from streamlearn.records import StepStats
from streamlearn.tasks import Boundaries, Boundary


@dataclass(frozen=True)
class Look:
    """What there was to see.

    Attributes:
        boundary: a task began, if one did.
        known: the task that the current one turned out to be, if it did.
        score: of the detector.
    """

    boundary: Boundary | None
    known: str | None
    score: float


class Watch:
    """See the module.

    Args:
        judge: None: the detector's word stands.
        settle: writes what is still on its way to the disk; called before the judge reads clips.
        log: None: nothing is logged.
        detector: its name, a label of the gauge.
    """

    def __init__(
        self,
        boundaries: Boundaries,
        judge: Judge | None,
        *,
        settle: Callable[[], None],
        log: DriftLog | None,
        metrics: Metrics,
        detector: str,
    ) -> None:
        self.boundaries, self._judge, self._settle, self._log = boundaries, judge, settle, log
        self._score = metrics.drift_score.labels(detector)

    def look(self, stats: StepStats, *, explicit: str | None, task: str, clips: int) -> Look:
        """After a step.

        Args:
            stats: of the step.
            explicit: the operator's name of the batch's task, if it has one.
            task: the current one.
            clips: processed so far, this batch included.
        """
        keys = np.concatenate([stats.keys_video, stats.keys_text], axis=1)  # (n, 2 d)
        measured = Measured(stats.loss, stats.recall, stats.grad_norm)
        suspected = boundary = self.boundaries.update(keys, measured, explicit_task=explicit)
        score, threshold, known = self.boundaries.score, self.boundaries.threshold, None
        self._score.set(score)
        if self._judge is not None and suspected is not None:
            self._settle()  # the newest clips' frames
            boundary = self._judge.judge(suspected, task, stats.step).boundary
        elif self._judge is not None:
            if explicit is None and self._judge.wants_glance(score, threshold, stats.step):
                self._settle()
                boundary = self._judge.glance(score, task, stats.step).boundary
            if boundary is None and self._judge.is_due(stats.step):
                self._settle()
                known = self._judge.recognise_late(task, stats.step)
        outcome = ("drift" if suspected else "seen") if boundary else "refused" if suspected else ""
        if outcome == "refused":
            self.boundaries.refuse()
        elif outcome == "seen":
            self.boundaries.restart()
        if self._log is not None:
            self._log.append(stats, keys, clips, (score, threshold, outcome))
        return Look(boundary, known, score)

    def began(self, boundary: Boundary) -> None:
        """A task has begun; if by an operator's word, the next step's line of the log says so."""
        if self._log is not None and boundary.cause == "operator":
            self._log.operator = True
