"""River's detectors of drift behind ours: Page-Hinkley, ADWIN and KSWIN, each on one number a batch.

River keeps their state in objects that only pickle could write. So what is kept are the numbers that such an object was
given, and after a restart it is given them again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from streamlearn.detector import UNMEASURED, Measured, State
from streamlearn.errors import SettingsError
from streamlearn.onset import onset_of
from streamlearn.records import Vectors
from streamlearn.signals import Signal
from streamlearn.tail import Summary

LibraryName = Literal["page_hinkley", "adwin", "kswin"]
LIBRARY: tuple[LibraryName, ...] = get_args(LibraryName)

_MEMORY_BATCHES = 256  # that a library's detector remembers at least; twice as many at most
_DATED_BATCHES = 128  # among which the onset is sought


class Watcher(Protocol):
    """What river's detectors have in common."""

    @property
    def drift_detected(self) -> bool:
        """Whether the last number changed something."""
        ...

    def update(self, x: float) -> Any:
        """Take one number."""
        ...


@dataclass(frozen=True)
class Strictness:
    """How much a library's detector must see.

    Attributes:
        page_hinkley_threshold: cumulated deviation upwards, in standard deviations of the signal.
        adwin_delta: confidence of ADWIN's cuts; larger finds more.
        kswin_alpha: p-value of KSWIN's Kolmogorov-Smirnov test; larger finds more.
    """

    page_hinkley_threshold: float = 8.0
    adwin_delta: float = 0.2
    kswin_alpha: float = 0.005


def river(name: LibraryName, strictness: Strictness) -> Callable[[], Watcher]:
    """What makes a fresh detector of river's.

    Sources: Page 1954 (Page-Hinkley); Bifet & Gavaldà 2007, "Learning from time-changing data with adaptive
    windowing"; Raab et al. 2020, "Reactive soft prototype computing for concept drift streams" (KSWIN).

    Raises:
        SettingsError: river is not installed.
    """
    try:
        from river import drift
    except ImportError as error:
        raise SettingsError(f"drift.detector {name} needs river: pip install 'streamlearn[river]'") from error
    makers: dict[LibraryName, Callable[[], Watcher]] = {
        "page_hinkley": lambda: drift.PageHinkley(
            min_instances=1, delta=0.5, threshold=strictness.page_hinkley_threshold, mode="up"
        ),
        "adwin": lambda: drift.ADWIN(delta=strictness.adwin_delta, clock=1),  # type: ignore[no-untyped-call]
        "kswin": lambda: drift.KSWIN(alpha=strictness.kswin_alpha, window_size=30, stat_size=8, seed=0),
    }
    return makers[name]


class LibraryDetector:
    """A library's detector on a signal.

    The signal is standardised by its first batches since the task began, twice `warmup_batches`, so nothing is found
    before. Only a rise counts: a loss that falls is learning. After a change it begins anew; so it does after one that
    was refused, because its library has done so by then.

    Args:
        name: of the library's detector.
        make: a fresh one.
        signal: what it watches.
        warmup_batches, cooldown_batches: as for `MeanShift`; in the cool-down it finds nothing.
    """

    threshold = 0.0  # the library compares something else than the signal with it

    def __init__(
        self,
        name: LibraryName,
        make: Callable[[], Watcher],
        signal: Signal,
        *,
        warmup_batches: int = 8,
        cooldown_batches: int = 24,
    ) -> None:
        self.kind = f"{name}:{signal.name}"
        self._make, self._signal = make, signal
        self._settling, self._cooldown = 2 * warmup_batches, cooldown_batches
        self._values: list[float] = []  # since the library's detector was made
        self._watcher = make()
        self._level, self._noise = 0.0, 1.0
        self._wait = self._onset = 0
        self._score = 0.0

    @property
    def score(self) -> float:
        """The signal's last value in standard deviations above its level when the task began; 0 until that is known."""
        return self._score

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
        self._onset = 0
        if not batch.rows:
            return
        cooling = self._wait > 0
        self._wait -= cooling
        value = self._signal.of(batch, measured)
        if value is None:
            return
        if len(self._values) == 2 * _MEMORY_BATCHES:
            self._replay(self._values[-_MEMORY_BATCHES:])
        if not self._feed(value) or cooling:
            return
        newest = np.array(self._values[-_DATED_BATCHES:])
        onset, _ = onset_of(newest[:, None], np.ones(len(newest)), moving=False)
        if newest[-onset:].mean() > newest[:-onset].mean():
            self._onset, self._wait = onset, self._cooldown
            self._begin()

    def restart(self) -> None:
        """Begin anew, with a cool-down: somebody else has found a change here."""
        self._onset, self._wait, self._score = 0, self._cooldown, 0.0
        self._begin()

    def refuse(self) -> None:
        """Take the last update's alarm back: there is no cool-down."""
        if self._onset:
            self._onset = self._wait = 0

    def state_dict(self) -> State:
        """The numbers that the library's detector was given, and ours."""
        own = {
            "values": np.array(self._values, np.float64),
            "wait": np.array(self._wait),
            "onset": np.array(self._onset),
            "score": np.array(self._score),
        }
        return own | {f"signal.{name}": array for name, array in self._signal.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on exactly where `state_dict` was taken.

        Raises:
            KeyError: an array is missing.
        """
        values = [float(x) for x in state["values"]]
        self._signal.load_state_dict(
            {k.removeprefix("signal."): v for k, v in state.items() if k.startswith("signal.")}
        )
        self._replay(values)
        self._wait, self._onset, self._score = int(state["wait"]), int(state["onset"]), float(state["score"])

    def _begin(self) -> None:
        self._signal.restart()
        self._replay([])

    def _replay(self, values: list[float]) -> None:
        self._values, self._watcher = [], self._make()
        for value in values:
            self._feed(value)

    def _feed(self, value: float) -> bool:
        """Whether the library's detector finds a change with this value."""
        self._values.append(value)
        if len(self._values) < self._settling:
            self._score = 0.0
            return False
        fresh = self._values[-1:]
        if len(self._values) == self._settling:
            fresh = self._values
            self._level, self._noise = float(np.mean(fresh)), max(float(np.std(fresh, ddof=1)), 1e-9)
        found = False
        for x in fresh:
            self._score = (x - self._level) / self._noise
            if math.isfinite(self._score):
                self._watcher.update(self._score)
                found = bool(self._watcher.drift_detected)
        return found and len(fresh) == 1
