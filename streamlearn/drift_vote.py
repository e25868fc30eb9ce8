"""Several detectors that vote: a change is what enough of them find at about the same time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from streamlearn.detector import UNMEASURED, Detector, Measured, State
from streamlearn.records import Vectors
from streamlearn.tail import Summary


class Vote:
    """A detector made of detectors.

    A member's alarm counts for `window_batches` batches; with `quorum` members' alarms there is a change, dated to the
    median of what they say. A member that alarms alone has begun anew, as it does by itself.

    Args:
        members: detectors, different ones.
        quorum: so many must agree, of 1 to all.
        window_batches: within so many batches.
    """

    def __init__(self, members: Sequence[Detector], *, quorum: int, window_batches: int) -> None:
        if not 1 <= quorum <= len(members) or window_batches < 1:
            raise ValueError(f"quorum = {quorum} must be 1 to {len(members)}, window_batches at least 1")
        self.kind = f"vote({', '.join(member.kind for member in members)})"
        self._members, self._quorum, self._window = tuple(members), quorum, window_batches
        self._ages = np.full(len(members), window_batches)  # batches since each one's last alarm, at most the window
        self._onsets = np.zeros(len(members), np.int64)  # that it was dated to then
        self._onset, self._agreed = 0, False

    @property
    def score(self) -> float:
        """How many members agree that there is a change now."""
        return float((self._ages < self._window).sum())

    @property
    def threshold(self) -> float:
        """Half a vote less than the quorum: the score is above it where there is a change."""
        return self._quorum - 0.5

    @property
    def drift_detected(self) -> bool:
        """Whether the last update found a change."""
        return self._onset > 0

    @property
    def onset_batches_ago(self) -> int:
        """How many of the newest batches came after the change began; 0 where none was found."""
        return self._onset

    def update(self, x: Vectors, measured: Measured = UNMEASURED) -> None:
        """Take one batch, (n, d), and what was measured on it."""
        self.take(Summary.of(x), measured)

    def take(self, batch: Summary, measured: Measured = UNMEASURED) -> None:
        """As `update`."""
        if self._agreed:  # and nobody has refused it
            self.restart()
        self._onset = 0
        self._ages = np.minimum(self._ages + (batch.rows > 0), self._window)
        for i, member in enumerate(self._members):
            member.take(batch, measured)
            if member.drift_detected:
                self._ages[i], self._onsets[i] = 0, member.onset_batches_ago
        voted = self._ages < self._window
        if voted.sum() >= self._quorum:
            self._onset, self._agreed = max(1, int(np.median((self._ages + self._onsets)[voted]))), True

    def restart(self) -> None:
        """Every member begins anew."""
        self._forget()
        for member in self._members:
            member.restart()

    def refuse(self) -> None:
        """Take the last update's alarm back: those that raised it now take theirs back, and no vote counts any more."""
        if self._agreed:
            self._forget()
            for member in self._members:
                if member.drift_detected:
                    member.refuse()

    def _forget(self) -> None:
        self._onset, self._agreed = 0, False
        self._ages = np.full(len(self._members), self._window)

    def state_dict(self) -> State:
        """The votes, and what the members say."""
        own = {
            "ages": self._ages.copy(),
            "onsets": self._onsets.copy(),
            "onset": np.array(self._onset),
            "agreed": np.array(self._agreed),
        }
        members = [(i, member.state_dict()) for i, member in enumerate(self._members)]
        return own | {f"{i}.{name}": array for i, state in members for name, array in state.items()}

    def load_state_dict(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on exactly where `state_dict` was taken.

        Raises:
            KeyError: an array is missing, or the members are others.
        """
        if len(state["ages"]) != len(self._members):
            raise KeyError(f"votes of {len(state['ages'])} detectors, not {len(self._members)}")
        for i, member in enumerate(self._members):
            own = f"{i}."
            member.load_state_dict({k.removeprefix(own): v for k, v in state.items() if k.startswith(own)})
        self._ages, self._onsets = np.array(state["ages"]), np.array(state["onsets"])
        self._onset, self._agreed = int(state["onset"]), bool(state["agreed"])
