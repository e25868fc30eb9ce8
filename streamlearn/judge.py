"""Looks twice at a suspected boundary: with the encoders of the stream's start, which never move.

The detector watches the keys of the learner's step, which cost nothing but come from an encoder that learns. Where it
suspects a boundary, some stored clips from before and after are encoded by a frozen pair: has the stream changed, or
the encoder; when did it begin; and is what comes a task that we know? Only the pipeline thread calls it.
"""

from __future__ import annotations

import hashlib
import logging
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from streamlearn.catalog import Catalog, ClipRow
from streamlearn.encoders import Towers
from streamlearn.era_view import QueryEncoder
from streamlearn.eras import Eras
from streamlearn.frames import FrameStore
from streamlearn.index import Rows
from streamlearn.onset import onset_of
from streamlearn.recognition import Statistics, TaskMemory
from streamlearn.records import Vectors
from streamlearn.tasks import Boundary

log = logging.getLogger(__name__)

_BEFORE, _AFTER = 192, 96  # clips that are compared
_FEWEST = 24  # clips on either side; with fewer the detector's word stands
_PROFILE_BATCHES, _PROFILE_CLIPS = 64, 6  # a batch, that a slow change is dated by
_SLOW_BATCHES = 4  # an onset further back than this is dated anew
_ENCODE_BATCH = 64


@dataclass(frozen=True)
class Verdict:
    """What the frozen pair says of a suspected boundary.

    Attributes:
        boundary: with its onset, its shift and, for a task that returns, its name; None: the stream has not changed.
        shift: of the clips after it from those before; None where too few are kept to tell.
        limit: that it was compared with.
    """

    boundary: Boundary | None
    shift: float | None = None
    limit: float | None = None


class Judge:
    """See the module.

    Args:
        frozen: the pair; nobody else may train it.
        batch_size: clips a step.
        clips_per_false_boundary: how often it may be wrong.
        revisits: whether tasks that return are recognised.
    """

    def __init__(
        self,
        frozen: Towers,
        catalog: Catalog,
        frames: FrameStore,
        eras: Eras,
        *,
        batch_size: int,
        clips_per_false_boundary: float,
        revisits: bool,
    ) -> None:
        self._encoder, self._catalog, self._frames, self._eras = QueryEncoder(frozen), catalog, frames, eras
        self._p = min(0.1, batch_size / clips_per_false_boundary)
        self._revisits = revisits
        self.memory = TaskMemory(_frame(frozen))
        self._kept: dict[int, Vectors] = {}  # of clips of the current task, encoded once

    def judge(self, suspected: Boundary, task: str, step: int) -> Verdict:
        """Decide on what a detector found.

        Args:
            suspected: the detector's boundary.
            task: the current one.
            step: of the learner.
        """
        rows = self._rows()
        since = step - suspected.onset_steps_ago
        cut = self._cut(rows, since)
        before, after = self._before(rows[:cut]), self._encode(rows[cut:][-_AFTER:].tolist())
        if min(len(before), len(after)) < _FEWEST:
            return Verdict(suspected)
        known = Statistics.of(before)
        shift, limit = known.shift(after.mean(axis=0, dtype=np.float64), len(after)), known.limit(self._p)
        if shift <= limit:
            log.info("no boundary: score %.2f, but a shift of %.2f only", suspected.score, shift)
            return Verdict(None, shift, limit)
        onset = suspected.onset_steps_ago
        if onset > _SLOW_BATCHES:
            onset = self._onset(rows, step, after.mean(axis=0) - before.mean(axis=0)) or onset
        name, _ = self.memory.recognise(after, besides=task) if self._revisits else (None, 0.0)
        return Verdict(replace(suspected, onset_steps_ago=onset, name=name, shift=shift), shift, limit)

    def close(self, task: str, since_step: int) -> None:
        """A task ends with the clips of `since_step`: remember what it looked like. Call before its era is sealed."""
        if self._revisits:
            rows = self._rows()
            self.memory.learn(task, self._before(rows[: self._cut(rows, since_step)]))
        self._kept = {}

    def _rows(self) -> Rows:
        return np.sort(self._eras.current.partition.view().rows)

    def _cut(self, rows: Rows, since_step: int) -> int:
        """How many of the rows, which are in the order of their steps, were written up to a step."""

        def step_of(row: int) -> int:
            clip = self._catalog.clips([row]).get(row)
            return clip.step if clip else 0

        return bisect_right(rows, since_step, key=lambda row: step_of(int(row)))

    def _before(self, rows: Rows) -> Vectors:
        """A sample of the task so far that changes little as the task grows. Shape: (n, d)."""
        chosen = _spread(rows, _BEFORE)
        new = [row for row in chosen if row not in self._kept]
        self._kept |= self._vectors(new)
        self._kept = {row: vector for row in chosen if (vector := self._kept.get(row)) is not None}
        return _stack(list(self._kept.values()))

    def _encode(self, rows: Sequence[int]) -> Vectors:
        return _stack(list(self._vectors(rows).values()))

    def _vectors(self, rows: Sequence[int]) -> dict[int, Vectors]:
        """Video and text side by side, (2 d,), of the rows whose frames are kept."""
        out: dict[int, Vectors] = {}
        for start in range(0, len(rows), _ENCODE_BATCH):
            clips = self._catalog.clips(rows[start : start + _ENCODE_BATCH])
            stored = {row: frames for row in clips if (frames := self._frames.get(row)) is not None}
            for shape in {frames.shape for frames in stored.values()}:  # settings may have changed meanwhile
                same = [row for row, frames in stored.items() if frames.shape == shape]
                video = self._encoder.clips(np.stack([stored[row] for row in same]))
                text = self._encoder.texts([clips[row].captions[0] for row in same])
                out |= dict(zip(same, np.concatenate([video, text], axis=1), strict=True))
        return {row: out[row] for row in rows if row in out}

    def _onset(self, rows: Rows, step: int, direction: Vectors) -> int:
        """Date a slow change by how far the newest batches have gone in its direction; 0: it cannot be said."""
        newest = rows[self._cut(rows, step - _PROFILE_BATCHES) :]
        by_step: dict[int, list[ClipRow]] = {}
        for clip in self._catalog.clips(newest.tolist()).values():
            by_step.setdefault(clip.step, []).append(clip)
        chosen = {s: _spread(np.array([c.row for c in clips]), _PROFILE_CLIPS) for s, clips in sorted(by_step.items())}
        vectors = self._vectors([row for some in chosen.values() for row in some])
        along = {s: [float(vectors[row] @ direction) for row in some if row in vectors] for s, some in chosen.items()}
        along = {s: values for s, values in along.items() if values}
        if len(along) < 2:
            return 0
        sums = np.array([[sum(values)] for values in along.values()])  # (b, 1)
        onset, _ = onset_of(sums, np.array([float(len(values)) for values in along.values()]), moving=False)
        return step - list(along)[-onset] + 1


def _spread(rows: Rows, most: int) -> list[int]:
    """At most so many of the rows, by a hash of each: of more rows, mostly the same ones are chosen."""
    if len(rows) <= most:
        return [int(row) for row in rows]
    hashed = (rows.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(20)
    return [int(row) for row in np.sort(rows[np.argpartition(hashed, most)[:most]])]


def _stack(vectors: Sequence[Vectors]) -> Vectors:
    return np.stack(vectors) if vectors else np.zeros((0, 0), np.float32)


def _frame(towers: Towers) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for tensor in towers.state_dict().values():
        digest.update(tensor.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()
