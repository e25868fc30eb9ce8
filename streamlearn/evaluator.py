"""Measures one task: what its held-out clips are asked, and at which rank each answer stands. Three views.

`served` asks the same search that users ask, over the whole pool; `single` asks it as `search.mode = single` does,
whatever is set; `learner` re-encodes the task's own held-out clips with today's momentum encoders, which is the paper's
protocol. It reads one published snapshot and nothing that the pipeline goes on writing, so it may run in any thread. It
knows nothing of when it is called and keeps nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from streamlearn.catalog import Catalog, ClipRow
from streamlearn.era_view import EraView, QueryEncoder
from streamlearn.evaluate import Floats, Ranks, hits_in_pool, ranks
from streamlearn.frames import FrameStore
from streamlearn.metrics import KS
from streamlearn.records import Vectors
from streamlearn.search import Mode, Searcher, Snapshot
from streamlearn.settings import EvaluateSettings

_RANK_LIMIT = 1000  # ranks of the served view beyond it count as one more than it
_SINGLE_LIMIT = 200  # and of `single`: as deep as `served` would cost a quarter of an evaluation
_GALLERY = 1000  # captions that a clip is asked for in the served view
_ENCODE_BATCH = 64
_FORWARD_ANEW = 4  # times as many pairs, for the forward transfer to be measured anew


@dataclass(frozen=True)
class Measured:
    """One task's held-out clips, asked on one snapshot.

    Attributes:
        clips: n of them, in the order of the ranks.
        ranks: (n,) of each (direction, view).
        hits: (n,) of each (direction, view, k): 1 where the answer is among the first k; a chance in the view "pool".
        forward: by (direction, k), recall by the pair that was frozen before the task began - chance.
        staleness_ratio: 1 - mean cosine of the current era's stored vectors and what today's encoders make of the same
            clips; None for another task's.
        step, clips_seen: of the snapshot.
    """

    task: str
    clips: tuple[ClipRow, ...]
    ranks: Mapping[tuple[str, str], Ranks]
    hits: Mapping[tuple[str, str, int], Floats]
    forward: Mapping[tuple[str, int], float]
    staleness_ratio: float | None
    step: int
    clips_seen: int

    def __len__(self) -> int:
        return len(self.clips)


class Evaluator:
    """Asks, and notes ranks.

    Args:
        settings: how many pairs, and the size of the fixed pool.
    """

    def __init__(self, catalog: Catalog, frames: FrameStore, searcher: Searcher, settings: EvaluateSettings) -> None:
        self._catalog, self._frames, self._searcher, self._settings = catalog, frames, searcher, settings

    def measure(
        self, snapshot: Snapshot, task: str, clips_seen: int, *, forward_pairs: int | None = None
    ) -> Measured | None:
        """Ask the held-out clips of a task.

        Args:
            snapshot: what is served.
            task: its name.
            clips_seen: the time axis of the scores.
            forward_pairs: pairs that the forward transfer known so far rests on; it is measured anew where there are
                four times as many now. None: not at all.

        Returns:
            None where the task has fewer than `evaluate.min_pairs` held-out clips.
        """
        clips = tuple(self._catalog.heldout(task, self._settings.heldout_max_per_task))
        rows = np.asarray([clip.row for clip in clips], np.int64)
        served = np.zeros(len(rows), np.bool_)  # the catalog is further on than the snapshot
        for era in snapshot.eras:
            served |= era.partition.holds(rows)
        clips, rows = tuple(clip for clip, there in zip(clips, served, strict=True) if there), rows[served]
        if len(clips) < self._settings.min_pairs:
            return None
        questions = [clip.asked for clip in clips]
        now = snapshot.eras[-1]
        encoders = now.encoder.reader  # as they are, without what the index adds to them
        video, text = self._videos(encoders, rows, now.partition.dim), encoders.texts(questions)
        own = np.arange(len(clips))
        served_t2v = self._t2v(snapshot, questions, rows, _RANK_LIMIT)
        single_t2v = served_t2v  # where users are answered so
        if self._searcher.mode != "single":
            single_t2v = self._t2v(snapshot, questions, rows, _SINGLE_LIMIT, "single")
        found = {
            ("t2v", "served"): served_t2v,
            ("t2v", "single"): single_t2v,
            ("v2t", "served"): self._served_v2t(snapshot, task, questions, rows),
            ("t2v", "learner"): ranks(text @ video.T, own),
            ("v2t", "learner"): ranks(video @ text.T, own),
        }
        return Measured(
            task=task,
            clips=clips,
            ranks=found,
            hits=self._hits(found, len(snapshot)),
            forward=self._forward(snapshot, task, questions, rows, forward_pairs),
            staleness_ratio=_staleness(now, rows, video) if now.task == task else None,
            step=snapshot.step,
            clips_seen=clips_seen,
        )

    def _hits(self, found: Mapping[tuple[str, str], Ranks], candidates: int) -> dict[tuple[str, str, int], Floats]:
        hits = {(*of, k): (rank <= k).astype(np.float64) for of, rank in found.items() for k in KS}
        pool = self._settings.pool_clips
        if candidates >= pool:
            served = found["t2v", "served"]
            # A rank that was not looked up counts as not found, as it does in the view that it comes from.
            known = np.where(served <= _RANK_LIMIT, served, candidates + 1)
            hits |= {("t2v", "pool", k): hits_in_pool(known, k, candidates=candidates, pool=pool) for k in KS}
        return hits

    def _t2v(
        self, snapshot: Snapshot, questions: list[str], rows: npt.NDArray[np.int64], most: int, mode: Mode | None = None
    ) -> Ranks:
        """By the search of users, in its mode or in another; beyond `most` it is one more."""
        limit = min(most, len(snapshot))
        _, found, _ = self._searcher.ask(
            snapshot, lambda era: era.encoder.texts(questions), limit, texts=questions, mode=mode, timed=False
        )
        hits = found == rows[:, None]  # (n, limit)
        return np.where(hits.any(1), hits.argmax(1) + 1, limit + 1)

    def _served_v2t(self, snapshot: Snapshot, task: str, questions: list[str], rows: npt.NDArray[np.int64]) -> Ranks:
        """Each clip's stored vector against questions, as the text encoder of its era sees them.

        The questions are the task's own and a fair sample of other tasks', 1,000 at most: so many is what every era
        is asked, however many tasks there are.
        """
        captions = questions + self._catalog.other_questions(task, max(0, _GALLERY - len(questions)))
        out = np.full(len(rows), len(captions) + 1, np.int64)  # not yet in the snapshot
        for era in snapshot.eras:
            at = np.flatnonzero(era.partition.holds(rows))
            if len(at):
                scores = era.partition.vectors(rows[at]) @ era.encoder.texts(captions).T
                out[at] = ranks(scores, at)
        return out

    def _forward(
        self, snapshot: Snapshot, task: str, questions: list[str], rows: npt.NDArray[np.int64], pairs: int | None
    ) -> dict[tuple[str, int], float]:
        first = next((i for i, era in enumerate(snapshot.eras) if task == era.task or task in era.absorbed), 0)
        if pairs is None or first == 0 or len(rows) < _FORWARD_ANEW * pairs:
            return {}
        if snapshot.eras[first - 1].encoder.borrowed:
            return {}  # a later pair reads for it, which may have learned the task
        before = snapshot.eras[first - 1].encoder.reader
        text, video, own = (
            before.texts(questions),
            self._videos(before, rows, snapshot.eras[-1].partition.dim),
            np.arange(len(rows)),
        )
        found = {"t2v": ranks(text @ video.T, own), "v2t": ranks(video @ text.T, own)}
        return {
            (direction, k): float((rank <= k).mean()) - min(1.0, k / len(rows))
            for direction, rank in found.items()
            for k in KS
        }

    def _videos(self, encoder: QueryEncoder, rows: npt.NDArray[np.int64], dim: int) -> Vectors:
        """Vectors of clips; of a clip whose frames are gone, zeros: it is never found. Shape: (n,) -> (n, d).

        The frames are read anew each time: what is kept decoded for many tasks is much, and seldom the one needed.
        """
        out = np.zeros((len(rows), dim), np.float32)
        for start in range(0, len(rows), _ENCODE_BATCH):
            batch = {
                start + i: frames
                for i, row in enumerate(rows[start : start + _ENCODE_BATCH].tolist())
                if (frames := self._frames.get(row)) is not None
            }
            for shape in {frames.shape for frames in batch.values()}:  # settings may have changed meanwhile
                same = [i for i, frames in batch.items() if frames.shape == shape]
                out[same] = encoder.clips(np.stack([batch[i] for i in same]))
        return out


def _staleness(era: EraView, rows: npt.NDArray[np.int64], video: Vectors) -> float | None:
    """Of the last era alone: a sealed era's vectors are meant to differ from today's."""
    at = np.flatnonzero(era.partition.holds(rows))
    if not len(at):
        return None
    return float(1 - (era.partition.vectors(rows[at]) * video[at]).sum(1).mean())
