"""When a change began, and how it came, from the means of the batches around it. Knows no detector."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

#: A change that began before this share of what is remembered has no beginning there: the encoder moves.
WHOLE = 0.75
_TREND_BATCHES = 12  # fewer cannot tell a trend from a change


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
    onsets = np.arange(1, len(rows))[:, None]
    ramps = np.maximum(onsets + 1 - ages, 0)  # (b - 1, b)
    courses = np.concatenate([ramps > 0, ramps]).astype(np.float64)  # (2 (b - 1), b): steps, then ramps
    whole = np.square(courses) @ rows
    best = (len(rows), False)
    for part in (np.ones(len(rows)), ages - (ages @ rows) / rows.sum()):
        courses -= np.outer((courses * rows) @ part / (rows @ np.square(part)), part)
        left = np.square(courses) @ rows
        # A course that is almost a line has nothing of its own, only rounding.
        explained = np.where(left > 1e-3 * whole, np.square(courses @ sums).sum(axis=1) / np.maximum(left, 1e-12), 0.0)
        ramp, onset = divmod(int(np.argmax(explained)), len(onsets))
        best = onset + 1, bool(ramp)
        if not moving or len(rows) < _TREND_BATCHES or best[0] > WHOLE * len(rows):
            break
    return best
