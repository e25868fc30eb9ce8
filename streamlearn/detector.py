"""What every detector of drift is: one batch at a time, an alarm where the stream changes.

A detector watches what the learner's step makes anyway: keys, loss, recall, the gradient's norm. All of these move
while the encoders learn, so an alarm is a suspicion, which `streamlearn.judge` can refuse. A detector's whole state
survives a restart, bit by bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy.typing as npt

from streamlearn.records import Vectors
from streamlearn.tail import Summary

State = dict[str, npt.NDArray[Any]]


class Measured(NamedTuple):
    """What a step measured on its batch; NaN where it did not (`streamlearn.records.StepStats`)."""

    loss: float = float("nan")
    recall: float = float("nan")
    grad_norm: float = float("nan")


UNMEASURED = Measured()


class Detector(Protocol):
    """Watches a stream of batches; `drift_detected` is true after the update that found a change, and only then."""

    @property
    def kind(self) -> str:
        """What it is and watches, however strict: its state is of use to a detector of the same kind alone."""
        ...

    @property
    def score(self) -> float:
        """The statistic after the last update; of a mean shift, about 1 where nothing drifts."""
        ...

    @property
    def threshold(self) -> float:
        """What the score is compared with; 0 where that cannot be said."""
        ...

    @property
    def drift_detected(self) -> bool:
        """Whether the last update found a change. The detector has by then restarted by itself."""
        ...

    @property
    def onset_batches_ago(self) -> int:
        """How many of the newest batches came after the change began; 0 where none was found."""
        ...

    def update(self, x: Vectors, measured: Measured = UNMEASURED) -> None:
        """Take one batch, (n, d), and what was measured on it; n may differ from batch to batch, d may not."""
        ...

    def take(self, batch: Summary, measured: Measured = UNMEASURED) -> None:
        """As `update`, of a batch that was logged."""
        ...

    def restart(self) -> None:
        """Forget what came before: somebody else has found a change here."""
        ...

    def refuse(self) -> None:
        """The alarm of the last update was none: what came before it is still the reference for what comes."""
        ...

    def state_dict(self) -> State:
        """Everything that decides what follows, as arrays."""
        ...

    def load_state_dict(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on exactly where `state_dict` was taken."""
        ...


class NoDetector:
    """Finds nothing: boundaries are the operator's alone."""

    kind = "none"
    score = 1.0
    threshold = 0.0
    drift_detected = False
    onset_batches_ago = 0

    def update(self, x: Vectors, measured: Measured = UNMEASURED) -> None:
        """Do nothing."""

    def take(self, batch: Summary, measured: Measured = UNMEASURED) -> None:
        """Do nothing."""

    def restart(self) -> None:
        """Do nothing."""

    def refuse(self) -> None:
        """Do nothing."""

    def state_dict(self) -> State:
        """There is none."""
        return {}

    def load_state_dict(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """There is none."""
