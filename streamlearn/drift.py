"""The default detector of drift: the mean of a batch's embeddings moves further than chance would have it.

It knows nothing of tasks, encoders or torch, and costs no forward pass: the embeddings are the keys that a learner
step makes anyway.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from streamlearn.detector import UNMEASURED, Measured, State
from streamlearn.onset import WHOLE, onset_of
from streamlearn.records import Vectors
from streamlearn.tail import Quiet, Spread, Summary

Floats = npt.NDArray[np.float64]

_PAUSE_BATCHES = 4  # after a refused alarm, before the next,
_LOUDER = 1.5  # unless its score is so many times that of the refused one
_STEP_BATCHES = 4


class MeanShift:
    """The mean of the newest batches against the mean of those before them, normalised by the noise of both.

        score = |mean(w) - mean(r)|^2 / (tr(cov(r)) (1/n_w + 1/n_r))

    with a window w (newest batches, n_w rows) and its reference r (the batches before the window, n_r rows). Without
    drift the expectation is 1 whatever the width, scale and number of rows. There are two windows: a short one beside
    a short reference, from which an encoder that learns has not moved far, finds what comes at once; a long one finds
    what comes slowly.

    The threshold of each window follows from how often it may be wrong: once in `rows_per_false_alarm` rows, both
    together. How far a score strays by chance is known from the spread of the rows (`streamlearn.tail.Spread`), and
    is corrected by how far it has strayed (`streamlearn.tail.Quiet`).

    A score above the threshold is judged by when its change began and how it came (`streamlearn.onset`):
    - It began before most of what is remembered: the encoder moves, not the stream, as it does while it learns. What
      came before is forgotten, without an alarm. So a change that takes longer than that goes unnoticed; one that
      comes at once while the encoder moves is found a few batches later.
    - It is a ramp inside the cool-down: the reported change is still coming. The reference is flushed again, so that
      a gradual change is found once.
    - Otherwise it is an alarm: the reference is flushed and the cool-down begins. A step is found in the cool-down,
      too, as soon as the reference is warm.

    Example:
        >>> rng, detector = np.random.default_rng(0), MeanShift()
        >>> for batch in range(40):
        ...     detector.update(rng.normal(0.5 * (batch >= 30), size=(32, 64)).astype(np.float32))
        ...     if detector.drift_detected:
        ...         print(batch, detector.onset_batches_ago)
        30 1

    Args:
        windows: of each the batches in the window, and in its reference at most; the first is the shortest.
        threshold: the score above which a change is found, in place of the calibrated ones; 0: those.
        rows_per_false_alarm: see above.
        warmup_batches: batches a reference needs before a change can be found.
        cooldown_batches: batches after a change in which a ramp is taken for the rest of it.

    Raises:
        ValueError: a reference cannot hold the warm-up, or a number is out of range.
    """

    kind = "mean_shift"

    def __init__(
        self,
        *,
        windows: Sequence[tuple[int, int]] = ((2, 16), (8, 48)),
        threshold: float = 0.0,
        rows_per_false_alarm: float = 100_000,
        warmup_batches: int = 8,
        cooldown_batches: int = 24,
    ) -> None:
        if not windows or min(w for w, _ in windows) < 1 or cooldown_batches < 0 or (threshold and threshold <= 1):
            raise ValueError("windows must be at least 1 long, cooldown_batches at least 0, threshold above 1, or 0")
        if not 2 <= warmup_batches <= min(r for _, r in windows) or rows_per_false_alarm < 1:
            raise ValueError(
                f"warmup_batches = {warmup_batches} must be at least 2, at most the shortest reference of {windows}"
            )
        self._windows = tuple(windows)
        # Twice the longest is remembered: to see that a slow change has a beginning, one must see before it.
        self._capacity = 2 * max(w + r for w, r in windows)
        self._threshold, self._rows_per_alarm = threshold, rows_per_false_alarm
        self._warmup, self._cooldown = warmup_batches, cooldown_batches
        # One entry a batch, oldest first. Batches are kept, not running totals: adding and taking away again would
        # round differently after a restart, and the onset is sought among them.
        self._sums: Floats = np.empty((0, 0))  # (b, d), of the rows
        self._squares: Floats = np.empty(0)  # (b,), of the rows' squared norms
        self._rows: Floats = np.empty(0)  # (b,), how many
        self._spread, self._quiet = Spread(), [Quiet() for _ in windows]
        self._wait = self._onset = self._pause = 0
        self._score, self._limit, self._refused = 1.0, 0.0, 0.0
        self._before_alarm: tuple[Floats, Floats, Floats] | None = None

    @property
    def score(self) -> float:
        """The short window's statistic, or that of the window which found a change; 1 while there is too little."""
        return self._score

    @property
    def threshold(self) -> float:
        """What that window's score is compared with; 0 while there is too little to calibrate it."""
        return self._limit or self._threshold

    @property
    def compared(self) -> bool:
        """Whether there was enough for that score to compare."""
        return self._limit > 0

    @property
    def drift_detected(self) -> bool:
        """Whether the last update found a change."""
        return self._onset > 0

    @property
    def onset_batches_ago(self) -> int:
        """How many of the newest batches came after the change began; 0 where none was found."""
        return self._onset

    def update(self, x: Vectors, measured: Measured = UNMEASURED) -> None:
        """Take one batch; an empty one changes nothing but the alarm, which is over.

        Shape:
            x: (n, d).

        Raises:
            ValueError: another width than before, or a value that is not finite.
        """
        self.take(Summary.of(x), measured)

    def take(self, batch: Summary, measured: Measured = UNMEASURED) -> None:
        """As `update`."""
        self._onset, self._before_alarm = 0, None
        if not batch.rows:
            return
        if not math.isfinite(batch.square):
            raise ValueError("embeddings must be finite")
        self._append(batch.sums, batch.square, batch.rows)
        self._spread.update(batch.traces)
        cooling = self._wait > 0
        self._wait -= cooling
        found = self._look()
        self._pause = max(0, self._pause - 1)
        if not found or (self._pause and self._score < _LOUDER * self._refused):
            return
        onset, is_ramp = onset_of(self._sums, self._rows)
        remembered = len(self._rows)
        coming = is_ramp and onset > _STEP_BATCHES  # a shorter ramp cannot be told from a step
        if cooling and (coming or onset > remembered / 2):
            self._keep_newest(self._warmup + self._windows[0][0])  # with none it would be blind for as long
        elif onset > WHOLE * remembered:
            self._keep_newest(onset)
        else:
            self._before_alarm = self._sums, self._squares, self._rows
            self._onset, self._wait = onset, self._cooldown
            self._keep_newest(0)

    def restart(self) -> None:
        """Flush the reference and begin the cool-down, as after an alarm of its own."""
        self._score, self._limit, self._onset, self._wait = 1.0, 0.0, 0, self._cooldown
        self._keep_newest(0)

    def refuse(self) -> None:
        """Take the last update's alarm back, and be quiet for a moment: what is remembered stays, and counts."""
        if self._before_alarm is not None:
            self._sums, self._squares, self._rows = self._before_alarm
            self._onset, self._wait, self._before_alarm = 0, 0, None
            self._pause, self._refused = _PAUSE_BATCHES, self._score

    def state_dict(self) -> State:
        """The remembered batches, the calibration, the cool-down and the last answer. Settings are not in it."""
        state = {
            "sums": self._sums.copy(),
            "squares": self._squares.copy(),
            "rows": self._rows.copy(),
            "spread": self._spread.state(),
            "wait": np.array(self._wait),
            "pause": np.array(self._pause),
            "refused": np.array(self._refused),
            "score": np.array(self._score),
            "limit": np.array(self._limit),
            "onset": np.array(self._onset),
        }
        return state | {f"quiet{w}": quiet.state() for (w, _), quiet in zip(self._windows, self._quiet, strict=True)}

    def load_state_dict(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on exactly where `state_dict` was taken; a smaller memory keeps the newest batches.

        A state from before there was a calibration, or of other windows, begins that anew.

        Raises:
            KeyError: an array is missing.
            ValueError: the arrays do not belong together.
        """
        sums, squares, rows = (np.array(state[name], np.float64) for name in ("sums", "squares", "rows"))
        if sums.ndim != 2 or squares.shape != rows.shape or rows.shape != sums.shape[:1]:
            raise ValueError(f"detector state of shapes {sums.shape}, {squares.shape}, {rows.shape}")
        self._sums, self._squares, self._rows = (a[-self._capacity :] for a in (sums, squares, rows))
        self._wait, self._onset = int(state["wait"]), int(state["onset"])
        self._score, self._limit = float(state["score"]), float(state["limit"] if "limit" in state else 0.0)
        self._pause = int(state["pause"]) if "pause" in state else 0
        self._refused = float(state["refused"]) if "refused" in state else 0.0
        if "spread" in state:
            self._spread.load(state["spread"])
        for (w, _), quiet in zip(self._windows, self._quiet, strict=True):
            if f"quiet{w}" in state:
                quiet.load(state[f"quiet{w}"])

    def _look(self) -> bool:
        """Compare every window with its reference; whether a score is above its threshold."""
        self._score, self._limit, surprise = 1.0, 0.0, 1.0
        p = float(self._rows[-1]) / self._rows_per_alarm / len(self._windows)
        for i, ((window, reference), quiet) in enumerate(zip(self._windows, self._quiet, strict=True)):
            compared = min(len(self._rows) - window, reference)
            if compared < 2:
                continue
            score = self._statistic(window, compared)
            if compared < self._warmup:
                self._score = score if i == 0 else self._score
                continue
            # Long windows overlap: what one finds by chance, its neighbours find too, and it is one alarm.
            alike = min(0.1, p * max(1.0, window / 8) ** 0.5)
            limit = self._threshold or quiet.threshold(alike, self._spread.variance, self._spread.skewness)
            quiet.update(score, 1.5 * limit)
            if i == 0 or score / limit > surprise:
                self._score, self._limit = score, limit
                surprise = max(surprise, score / limit)
        return surprise > 1

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
        for quiet in self._quiet:
            quiet.drop_waiting()

    def _statistic(self, window: int, reference: int) -> float:
        newest, before = slice(-window, None), slice(-window - reference, -window)
        n_w, n_r = self._rows[newest].sum(), self._rows[before].sum()
        mean_w = self._sums[newest].sum(axis=0) / n_w  # (d,)
        mean_r = self._sums[before].sum(axis=0) / n_r  # (d,)
        squares = self._squares[before].sum()
        # The floor is far below any real spread and far above rounding: rows all alike score 0, not 0 / 0.
        trace = max((squares - n_r * (mean_r @ mean_r)) / (n_r - 1), 1e-12 * squares / n_r, 1e-300)
        shift = mean_w - mean_r
        return float(shift @ shift / (trace * (1 / n_w + 1 / n_r)))
