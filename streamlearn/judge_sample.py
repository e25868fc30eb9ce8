"""Which of the current task's clips the judge looks at, and what a frozen pair makes of them.

Knows vectors of clips, not where they are kept. Which clips are chosen follows from their order alone, so that a daemon
that was killed chooses the same ones again; each is encoded once.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from streamlearn.records import Vectors

Rows = npt.NDArray[np.int64]

_PROFILE_CLIPS = 12  # a step
_MOST_KEPT = 1024  # clips whose vectors are kept


class Clips(Protocol):
    """The clips of the current task, as a frozen encoder sees them."""

    def rows(self) -> Rows:
        """Numbers of the clips, in the order of their steps: the same after a crash but for gaps."""
        ...

    def steps(self, rows: Sequence[int]) -> Mapping[int, int]:
        """The learner's step, by row."""
        ...

    def vectors(self, rows: Sequence[int]) -> Mapping[int, Vectors]:
        """Video and text side by side, (2 d,), by row, of those that can still be seen, in order."""
        ...


class Sample:
    """See the module.

    Args:
        clips: of the current task.
    """

    def __init__(self, clips: Clips) -> None:
        self._clips = clips
        self._kept: dict[int, Vectors] = {}

    def rows(self) -> Rows:
        """Of all clips of the task."""
        return self._clips.rows()

    def forget(self) -> None:
        """The rows may be other clips now."""
        self._kept = {}

    def cut(self, rows: Rows, since_step: int) -> int:
        """How many of the rows were written up to a step."""
        return bisect_right(rows, since_step, key=lambda row: self._clips.steps([int(row)]).get(int(row), 0))

    def crowd(self, rows: Rows) -> int:
        """The most of these that came in one step: batches are smaller where clips trickle in."""
        return max(Counter(self._clips.steps(rows.tolist()).values()).values(), default=1)

    def see(self, rows: Rows) -> Vectors:
        """The vectors of these clips, of those that can still be seen, in order. Shape: (n, d)."""
        seen = self._vectors(rows.tolist())
        return np.stack(list(seen.values())) if seen else np.zeros((0, 0), np.float32)

    def _vectors(self, rows: Sequence[int]) -> dict[int, Vectors]:
        self._kept |= self._clips.vectors([row for row in rows if row not in self._kept])
        seen = {row: self._kept[row] for row in rows if row in self._kept}
        if len(self._kept) > _MOST_KEPT:
            self._kept = dict(seen)
        return seen

    def profile(self, rows: Rows, first: int) -> dict[int, list[Vectors]]:
        """Some clips of each step, by step, of the rows from `first` on."""
        places: dict[int, list[int]] = {}
        steps = self._clips.steps(rows[first:].tolist())
        for place, row in enumerate(rows[first:].tolist(), first):
            if row in steps:
                places.setdefault(steps[row], []).append(place)
        chosen = {
            of: rows[spread(some[0], some[-1] + 1, _PROFILE_CLIPS)].tolist() for of, some in sorted(places.items())
        }
        vectors = self._vectors([row for some in chosen.values() for row in some])
        profile = {of: [vectors[row] for row in some if row in vectors] for of, some in chosen.items()}
        return {of: some for of, some in profile.items() if some}


def spread(first: int, end: int, most: int) -> Rows:
    """At most so many of the places from `first` to `end`, by a hash of each: of more, mostly the same ones."""
    places = np.arange(first, end)
    if len(places) <= most:
        return places
    hashed = (places.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(20)
    return np.sort(places[np.argpartition(hashed, most)[:most]])
