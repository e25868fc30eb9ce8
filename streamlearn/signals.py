"""What a detector that watches one number can watch: of each batch, a number that rises where something changes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, get_args

import numpy.typing as npt

from streamlearn.detector import Measured, State
from streamlearn.drift import MeanShift
from streamlearn.settings_learning import SignalName
from streamlearn.tail import Summary

SIGNALS: tuple[SignalName, ...] = get_args(SignalName)

_NEVER = 1e300  # a threshold


class Signal:
    """One of `SIGNALS`, batch by batch.

    shift, video_shift and text_shift are the logarithm of `MeanShift`'s statistic, of the keys or of one half of them;
    grad_norm is a logarithm too; recall_error is 1 - prequential recall, loss the loss.

    Args:
        name: of the signal.
        window, reference: batches that a shift compares.
    """

    def __init__(self, name: SignalName, *, window: int = 2, reference: int = 16) -> None:
        self.name = name
        self._shift = MeanShift(windows=[(window, reference)], threshold=_NEVER, warmup_batches=2)

    def of(self, batch: Summary, measured: Measured) -> float | None:
        """The number of this batch; None where it has none. Give every batch, in order, once."""
        if self.name == "loss":
            return _finite(measured.loss)
        if self.name == "recall_error":
            return _finite(1 - measured.recall) if batch.rows > 1 else None  # one clip is always found among one
        if self.name == "grad_norm":
            return _finite(math.log(max(measured.grad_norm, 1e-12)))
        self._shift.take(batch if self.name == "shift" else batch.halves()[self.name == "text_shift"])
        return math.log(max(self._shift.score, 1e-3)) if self._shift.compared else None

    def restart(self) -> None:
        """A task begins: what came before is no reference."""
        self._shift.restart()

    def state_dict(self) -> State:
        """What the next numbers depend on."""
        return self._shift.state_dict()

    def load_state_dict(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Inverse of `state_dict`."""
        self._shift.load_state_dict(state)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
