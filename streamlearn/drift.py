"""Detectors of drift: one batch of embeddings at a time, an alarm where their distribution changes.

They know nothing of tasks, encoders or torch. They cost no forward pass: the embeddings are the keys that a
learner step makes anyway. Their whole state survives a restart, bit by bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from streamlearn.records import Vectors

Floats = npt.NDArray[np.float64]
State = dict[str, npt.NDArray[Any]]


class Detector(Protocol):
    """Watches a stream of batches; `drift_detected` is true after the update that found a change, and only then."""

    @property
    def score(self) -> float:
        """The statistic after the last update; about 1 where nothing drifts."""
        ...

    @property
    def drift_detected(self) -> bool:
        """Whether the last update found a change. The detector has by then restarted by itself."""
        ...

    @property
    def onset_batches_ago(self) -> int:
        """How many of the newest batches came after the change began; 0 where none was found."""
        ...

    def update(self, x: Vectors) -> None:
        """Take one batch, (n, d); n may differ from batch to batch, d may not."""
        ...

    def restart(self) -> None:
        """Forget what came before: somebody else has found a change here."""
        ...

    def state_dict(self) -> State:
        """Everything that decides what follows, as arrays."""
        ...

    def load_state_dict(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on exactly where `state_dict` was taken."""
        ...


class NoDetector:
    """Finds nothing: boundaries are the operator's alone."""

    score = 1.0
    drift_detected = False
    onset_batches_ago = 0

    def update(self, x: Vectors) -> None:
        """Do nothing."""

    def restart(self) -> None:
        """Do nothing."""

    def state_dict(self) -> State:
        """There is none."""
        return {}

    def load_state_dict(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """There is none."""


class MeanShift:
    """The mean of the newest batches against the mean of those before them, normalised by the noise of both.

        score = |mean(w) - mean(r)|^2 / (tr(cov(r)) (1/n_w + 1/n_r))

    with the window w (newest batches, n_w rows) and the reference r (the batches before the window, n_r rows).
    Without drift the expectation is 1 whatever the width, scale and number of rows, so one threshold serves every
    stream. What does depend on the stream is the spread around 1: its variance is near 2 / e, where
    e = tr(cov)^2 / tr(cov^2) counts the directions in which the rows really vary. The default threshold is meant
    for e of 10 and more; rows that vary in fewer directions alarm more often.

    A score above the threshold is judged by when its change began and how it came (`_onset`):
    - It began before most of what is remembered, which is twice the reference: the encoder moves, not the stream, as
      it does while it learns. What came before is forgotten, without an alarm. So a change that takes longer than
      that goes unnoticed; one that comes at once while the encoder moves is found a few batches later.
    - It is a ramp inside the cool-down: the reported change is still coming. The reference is flushed again, so that
      a gradual change is found once. A step inside the cool-down is another change, found when the cool-down ends.
    - Otherwise it is an alarm: the reference is flushed and the cool-down begins.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> detector = MeanShift()
        >>> for batch in range(40):
        ...     x = rng.normal(size=(32, 64)).astype(np.float32)
        ...     detector.update(x + 0.5 if batch >= 30 else x)
        ...     if detector.drift_detected:
        ...         print(batch, detector.onset_batches_ago)
        30 1

    Args:
        window_batches: batches in the window. More are steadier and slower.
        reference_batches: batches in the reference at most.
        threshold: the score above which a change is found.
        warmup_batches: batches the reference needs before a change can be found.
        cooldown_batches: batches after a change in which none is found.

    Raises:
        ValueError: the reference cannot hold the warm-up, or a number is out of range.
    """

    def __init__(
        self,
        *,
        window_batches: int = 2,
        reference_batches: int = 48,
        threshold: float = 5.0,
        warmup_batches: int = 8,
        cooldown_batches: int = 24,
    ) -> None:
        if window_batches < 1 or cooldown_batches < 0 or threshold <= 1:
            raise ValueError("window_batches must be at least 1, cooldown_batches at least 0, threshold above 1")
        if not 2 <= warmup_batches <= reference_batches:
            raise ValueError(
                f"warmup_batches = {warmup_batches} must be at least 2"
                f" and at most reference_batches = {reference_batches}"
            )
        self._window = window_batches
        self._compared = window_batches + reference_batches
        # Twice the reference is remembered: to see that a slow change has a beginning, one must see before it.
        self._capacity = window_batches + 2 * reference_batches
        self._threshold = threshold
        self._warmup = warmup_batches
        self._cooldown = cooldown_batches
        # One entry a batch, oldest first. Batches are kept, not running totals: adding and taking away again would
        # round differently after a restart, and the onset is sought among them.
        self._sums: Floats = np.empty((0, 0))  # (b, d), of the rows
        self._squares: Floats = np.empty(0)  # (b,), of the rows' squared norms
        self._rows: Floats = np.empty(0)  # (b,), how many
        self._wait = 0
        self._score = 1.0
        self._onset = 0

    @property
    def score(self) -> float:
        """The statistic after the last update; 1, its expectation, while there is too little to compare."""
        return self._score

    @property
    def drift_detected(self) -> bool:
        """Whether the last update found a change."""
        return self._onset > 0

    @property
    def onset_batches_ago(self) -> int:
        """How many of the newest batches came after the change began; 0 where none was found."""
        return self._onset

    def update(self, x: Vectors) -> None:
        """Take one batch; an empty one changes nothing but the alarm, which is over.

        Shape:
            x: (n, d).

        Raises:
            ValueError: another width than before, or a value that is not finite.
        """
        self._onset = 0
        if not len(x):
            return
        wide = x.astype(np.float64)
        square = float(np.vdot(wide, wide))
        if not math.isfinite(square):
            raise ValueError("embeddings must be finite")
        self._append(wide.sum(axis=0), square, len(x))
        cooling = self._wait > 0
        self._wait -= cooling
        reference = len(self._rows) - self._window
        self._score = self._statistic() if reference >= 2 else 1.0
        if self._score <= self._threshold or reference < self._warmup:
            return
        onset, is_ramp = _onset(self._sums, self._rows)
        if cooling:
            if is_ramp:
                self._keep_newest(0)
        elif onset > 0.75 * len(self._rows):
            self._keep_newest(onset)
        else:
            self._onset, self._wait = onset, self._cooldown
            self._keep_newest(0)

    def restart(self) -> None:
        """Flush the reference and begin the cool-down, as after an alarm of its own."""
        self._score, self._onset, self._wait = 1.0, 0, self._cooldown
        self._keep_newest(0)

    def state_dict(self) -> State:
        """The remembered batches, the cool-down and the last answer. Settings are not in it."""
        return {
            "sums": self._sums.copy(),
            "squares": self._squares.copy(),
            "rows": self._rows.copy(),
            "wait": np.array(self._wait),
            "score": np.array(self._score),
            "onset": np.array(self._onset),
        }

    def load_state_dict(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on exactly where `state_dict` was taken; a smaller memory keeps the newest batches.

        Raises:
            KeyError: an array is missing.
            ValueError: the arrays do not belong together.
        """
        sums, squares, rows = (np.array(state[name], np.float64) for name in ("sums", "squares", "rows"))
        if sums.ndim != 2 or squares.shape != rows.shape or rows.shape != sums.shape[:1]:
            raise ValueError(f"detector state of shapes {sums.shape}, {squares.shape}, {rows.shape}")
        self._sums, self._squares, self._rows = (a[-self._capacity :] for a in (sums, squares, rows))
        self._wait, self._onset = int(state["wait"]), int(state["onset"])
        self._score = float(state["score"])

    def _append(self, row_sum: Floats, square: float, rows: int) -> None:
        sums = self._sums if self._sums.shape[1] else np.empty((0, len(row_sum)))
        if sums.shape[1] != len(row_sum):
            raise ValueError(f"embeddings are {len(row_sum)} wide, were {sums.shape[1]}")
        keep = slice(-self._capacity, None)
        self._sums = np.concatenate([sums, row_sum[None]])[keep]
        self._squares = np.append(self._squares, square)[keep]
        self._rows = np.append(self._rows, rows)[keep]

    def _keep_newest(self, batches: int) -> None:
        first = len(self._rows) - batches
        self._sums, self._squares, self._rows = self._sums[first:], self._squares[first:], self._rows[first:]

    def _statistic(self) -> float:
        window, reference = slice(-self._window, None), slice(-self._compared, -self._window)
        n_w, n_r = self._rows[window].sum(), self._rows[reference].sum()
        mean_w = self._sums[window].sum(axis=0) / n_w  # (d,)
        mean_r = self._sums[reference].sum(axis=0) / n_r  # (d,)
        squares = self._squares[reference].sum()
        # The floor is far below any real spread and far above rounding: rows all alike score 0, not 0 / 0.
        trace = max((squares - n_r * (mean_r @ mean_r)) / (n_r - 1), 1e-12 * squares / n_r, 1e-300)
        shift = mean_w - mean_r
        return float(shift @ shift / (trace * (1 / n_w + 1 / n_r)))


def _onset(sums: Floats, rows: Floats) -> tuple[int, bool]:
    """When the change began and how it comes, by the course of the mean that explains the batches best.

    The courses are constant up to the onset and then a step (the change came at once) or a ramp (it is still
    coming). Explained is the batches' weighted variance; for a step that is the between-segment mean shift.
    A step alone would place the onset of a ramp a third too late.

    Shape:
        sums: (b, d).
        rows: (b,).

    Returns:
        The newest batches that came after the change began; whether it is a ramp.
    """
    ages = np.arange(len(rows), 0, -1)  # the newest batch has age 1
    onsets = np.arange(1, len(rows))[:, None]
    ramps = np.maximum(onsets + 1 - ages, 0)  # (b - 1, b)
    courses = np.concatenate([ramps > 0, ramps]).astype(np.float64)  # (2 (b - 1), b): steps, then ramps
    courses -= (courses @ rows)[:, None] / rows.sum()
    fits = courses @ sums  # (2 (b - 1), d)
    explained = np.square(fits).sum(axis=1) / (np.square(courses) @ rows)
    ramp, onset = divmod(int(np.argmax(explained)), len(onsets))
    return onset + 1, bool(ramp)
