"""Keeps a rate without drifting: the time of each clip follows from the first one's, not from the last one's."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

_EARLY_S = 0.1  # so that fast rates go in portions of one flush
_LATE_S = 1.0


class Pace:
    """Lets at most `per_s` clips a second pass; all where it is None.

    Time lost to a slow broker is made up for up to one second; beyond that the clips come later, not in a burst.
    """

    def __init__(
        self,
        per_s: float | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], object] | None = None,
    ) -> None:
        """Starts with the first clip.

        Args:
            per_s: clips a second, above 0.
            clock: seconds, monotonic.
            wait: returns after so many seconds, or earlier.
        """
        self._per_s, self._clock = per_s, clock
        self._wait = wait or threading.Event().wait
        self._origin_s: float | None = None
        self._passed = 0

    def take(self, before_waiting: Callable[[], None]) -> None:
        """Return when the next clip may go; `before_waiting` is called first where that is not yet."""
        if self._per_s is None:
            return
        now = self._clock()
        if self._origin_s is None:
            self._origin_s = now
        due = self._origin_s + self._passed / self._per_s
        self._passed += 1
        if now > due + _LATE_S:
            self._origin_s += now - due - _LATE_S
        elif now < due - _EARLY_S:
            before_waiting()
            while (left := due - self._clock()) > 0:
                self._wait(left)
