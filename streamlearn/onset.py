"""When a change began, and how it came, from the means of the batches around it. Knows no detector."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

#: A change that began before this share of what is remembered has no beginning there: the encoder moves.
WHOLE = 0.75
_TREND_BATCHES = 12  # fewer cannot tell a trend from a change


def likely_onset(values: Sequence[Floats]) -> int:
    """Date a slow change by values along its direction: the median of when it may have begun.

    The courses are those of `onset_of`; each is as likely as its normal likelihood says, with the values' own
    variance within a batch, and any onset as likely as another beforehand. Where the change has only begun, many onsets
    explain it almost as well as the best one, and their median is less far off than the best (docs/log.md).

    Args:
        values: of each batch, oldest first, two or more batches; (n,) each, n at least 1, of a frozen encoder.

    Returns:
        The newest batches that came after the change began.
    """
    rows = np.array([len(some) for some in values], np.float64)
    sums = np.array([some.sum() for some in values])
    within = sum(float(np.square(some - some.mean()).sum()) for some in values)
    variance = max(within / max(1.0, rows.sum() - len(rows)), 1e-12)
    courses = _courses(rows)
    courses -= (courses @ rows / rows.sum())[:, None]
    left = np.square(courses) @ rows
    likely = np.square(np.maximum(courses @ sums, 0)) / np.maximum(left, 1e-12) / (2 * variance)
    weights = np.exp(likely - likely.max()).reshape(2, -1).sum(axis=0)  # of steps and ramps, by onset
    return int(np.searchsorted(np.cumsum(weights), weights.sum() / 2)) + 1


def onset_of(sums: Floats, rows: Floats, *, moving: bool = True) -> tuple[int, bool]:
    """Date a change by the course of the mean that explains the batches best.

    The courses are constant up to the onset and then a step (the change came at once) or a ramp (it is still
    coming). Explained is the batches' weighted variance; among steps this is the maximum-likelihood split. A step
    alone would place the onset of a ramp a third too late.

    A second reading sees the same beside a straight line: the encoder that made the embeddings moves while it learns,
    and without the line its way is dated in place of a weak change (docs/log.md). It decides unless the first finds
    no beginning, that is an onset before three quarters of the batches.

    Args:
        sums: (b, d), of each batch's rows, oldest first; b at least 2.
        rows: (b,), how many they are.
        moving: whether an encoder that learns made the embeddings; of a frozen one, the second reading is left out.

    Returns:
        The newest batches that came after the change began; whether it is a ramp.
    """
    ages = np.arange(len(rows), 0, -1)  # the newest batch has age 1
    courses = _courses(rows)
    whole = np.square(courses) @ rows
    best = (len(rows), False)
    for part in (np.ones(len(rows)), ages - (ages @ rows) / rows.sum()):
        courses -= np.outer((courses * rows) @ part / (rows @ np.square(part)), part)
        left = np.square(courses) @ rows
        # A course that is almost a line has nothing of its own, only rounding.
        explained = np.where(left > 1e-3 * whole, np.square(courses @ sums).sum(axis=1) / np.maximum(left, 1e-12), 0.0)
        ramp, onset = divmod(int(np.argmax(explained)), len(rows) - 1)
        best = onset + 1, bool(ramp)
        if not moving or len(rows) < _TREND_BATCHES or best[0] > WHOLE * len(rows):
            break
    return best


def _courses(rows: Floats) -> Floats:
    """Of the mean over b batches, for every onset from the newest on: steps, then ramps. Shape: (2 (b - 1), b)."""
    ages = np.arange(len(rows), 0, -1)
    ramps = np.maximum(np.arange(1, len(rows))[:, None] + 1 - ages, 0)
    return np.concatenate([ramps > 0, ramps]).astype(np.float64)
