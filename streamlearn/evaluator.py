"""Continual evaluation on held-out clips, in two views.

`served` asks the same search that users ask, over the whole pool; `learner` re-encodes each task's own held-out
clips with today's momentum encoders, which is the paper's protocol. Knows nothing of when it is called.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import numpy as np
from prometheus_client import Gauge

from streamlearn.catalog import Catalog, ClipRow, Score
from streamlearn.evaluate import ScoreBook, median_rank, ranks, recall_at
from streamlearn.frames import FrameStore
from streamlearn.learner import Learner
from streamlearn.metrics import KS, Metrics
from streamlearn.records import Frames, Vectors
from streamlearn.search import Searcher, Snapshot
from streamlearn.settings import EvaluateSettings

_RANK_LIMIT = 1000  # ranks of the served view beyond it count as one more than it
_FRAMES_BYTES = 256 * 2**20  # of held-out clips, kept decoded
_ENCODE_BATCH = 64


class Evaluator:
    """Measures recall per task and keeps the book.

    Args:
        book: the matrix of tasks and time.
        settings: how many pairs.
    """

    def __init__(
        self,
        learner: Learner,
        catalog: Catalog,
        frames: FrameStore,
        searcher: Searcher,
        book: ScoreBook,
        settings: EvaluateSettings,
        metrics: Metrics,
    ) -> None:
        self._learner, self._catalog, self._frames, self._searcher = learner, catalog, frames, searcher
        self.book, self._settings, self._metrics = book, settings, metrics
        self._decoded: dict[int, Frames] = {}
        self._decoded_bytes = 0
        self._last = time.monotonic()
        metrics.eval_age_seconds.set_function(lambda: time.monotonic() - self._last)

    def run(self, snapshot: Snapshot, tasks: Sequence[str], clips_seen: int) -> float | None:
        """Evaluate every task that has enough held-out clips, record and export.

        Args:
            snapshot: what is served.
            tasks: their names.
            clips_seen: the time axis of the book.

        Returns:
            1 - mean cosine of the current era's stored vectors and what today's encoders make of the same clips.
        """
        sets = {task: self._catalog.heldout(task, self._settings.heldout_max_per_task) for task in tasks}
        sets = {task: clips for task, clips in sets.items() if len(clips) >= self._settings.min_pairs}
        wanted = {clip.row for clips in sets.values() for clip in clips}
        self._decoded = {row: frames for row, frames in self._decoded.items() if row in wanted}
        self._decoded_bytes = sum(frames.nbytes for frames in self._decoded.values())
        self._last = time.monotonic()
        if not sets:
            return None
        found = {
            ("t2v", "served"): self._served_t2v(snapshot, sets),
            ("v2t", "served"): self._served_v2t(snapshot, sets),
        }
        video = {task: self._videos(clips) for task, clips in sets.items()}
        text = {task: self._learner.encode_text([c.captions[0] for c in clips]) for task, clips in sets.items()}
        for direction, queries, gallery in (("t2v", text, video), ("v2t", video, text)):
            found[direction, "learner"] = {
                task: ranks(queries[task] @ gallery[task].T, np.arange(len(clips))) for task, clips in sets.items()
            }
        self._record(found, clips_seen)
        return _staleness(snapshot, sets, video)

    def _served_t2v(self, snapshot: Snapshot, sets: Mapping[str, Sequence[ClipRow]]) -> dict[str, np.ndarray]:
        out = {}
        limit = min(_RANK_LIMIT, len(snapshot))
        for task, clips in sets.items():
            captions = [clip.captions[0] for clip in clips]
            _, rows, _ = self._searcher.ask(snapshot, lambda era, q=captions: era.encoder.texts(q), limit)  # type: ignore[misc]
            hits = rows == np.asarray([clip.row for clip in clips])[:, None]  # (q, limit)
            out[task] = np.where(hits.any(1), hits.argmax(1) + 1, limit + 1)
        return out

    def _served_v2t(self, snapshot: Snapshot, sets: Mapping[str, Sequence[ClipRow]]) -> dict[str, np.ndarray]:
        """Each clip's stored vector against all held-out captions, as the text encoder of its era sees them."""
        captions = [clip.captions[0] for clips in sets.values() for clip in clips]
        rank: dict[int, int] = {}
        place = {clip.row: i for i, clip in enumerate(c for clips in sets.values() for c in clips)}
        for era in snapshot.eras:
            rows = np.intersect1d(era.partition.rows, np.fromiter(place, np.int64))
            if len(rows):
                scores = era.partition.vectors(rows) @ era.encoder.texts(captions).T
                targets = np.asarray([place[int(row)] for row in rows])
                rank |= dict(zip(rows.tolist(), ranks(scores, targets).tolist(), strict=True))
        missed = len(captions) + 1  # not yet in the snapshot
        return {task: np.asarray([rank.get(clip.row, missed) for clip in clips]) for task, clips in sets.items()}

    def _videos(self, clips: Sequence[ClipRow]) -> Vectors:
        """Today's vectors of clips; of a clip whose frames are gone, zeros: it is never found. Shape: (n, d)."""
        out = np.zeros((len(clips), self._learner.online.dim), np.float32)
        for start in range(0, len(clips), _ENCODE_BATCH):
            batch = {
                i: f
                for i in range(start, min(start + _ENCODE_BATCH, len(clips)))
                if (f := self._get(clips[i].row)) is not None
            }
            for shape in {f.shape for f in batch.values()}:
                same = [i for i, f in batch.items() if f.shape == shape]
                out[same] = self._learner.encode_video(np.stack([batch[i] for i in same]))
        return out

    def _get(self, row: int) -> Frames | None:
        frames = self._decoded.get(row)
        if frames is None:
            frames = self._frames.get(row)
            if frames is not None and self._decoded_bytes + frames.nbytes <= _FRAMES_BYTES:
                self._decoded[row] = frames
                self._decoded_bytes += frames.nbytes
        return frames

    def _record(self, found: Mapping[tuple[str, str], Mapping[str, np.ndarray]], clips_seen: int) -> None:
        now, step, scores = datetime.now(UTC).isoformat(timespec="seconds"), self._learner.steps, []
        m = self._metrics
        m.eval_pairs.clear()
        for (direction, view), by_task in found.items():
            for task, rank in by_task.items():
                m.eval_pairs.labels(task).set(len(rank))
                m.median_rank.labels(task, direction, view).set(median_rank(rank))
                for k in KS:
                    value = recall_at(rank, k)
                    self.book.record(task, direction, k, view, value)
                    scores.append(Score(clips_seen, step, now, task, direction, k, view, value, len(rank)))
        with self._catalog.transaction():
            self._catalog.add_scores(scores)
        self.export()

    def restart(self) -> None:
        """The book is another one: gauges of tasks that never happened go."""
        m = self._metrics
        for gauge in (
            m.eval_pairs, m.median_rank, m.recall_ratio, m.forgetting_ratio, m.backward_transfer_ratio,
            m.harmonic_mean_ratio,
        ):  # fmt: skip
            gauge.clear()
        self.export()

    def export(self) -> None:
        """Set the gauges from the book; also after a restart, before the first evaluation."""
        m, book = self._metrics, self.book
        for task, direction, k, view in book.cells():
            labels = (task, direction, str(k), view)
            _set(m.recall_ratio.labels(*labels), book.now(task, direction, k, view))
            _set(m.forgetting_ratio.labels(*labels), book.forgetting(task, direction, k, view))
        for direction, k, view in {cell[1:] for cell in book.cells()}:
            _set(m.backward_transfer_ratio.labels(direction, str(k), view), book.backward_transfer(direction, k, view))
            _set(m.harmonic_mean_ratio.labels(direction, str(k), view), book.harmonic_mean(direction, k, view))


def _set(gauge: Gauge, value: float | None) -> None:
    if value is not None:
        gauge.set(value)


def _staleness(snapshot: Snapshot, sets: Mapping[str, Sequence[ClipRow]], video: Mapping[str, Vectors]) -> float | None:
    """Of the last era alone: a sealed era's vectors are meant to differ from today's."""
    era = snapshot.eras[-1]
    live = set(era.partition.rows.tolist())
    clips, fresh = sets.get(era.task, ()), video.get(era.task)
    at = [i for i, clip in enumerate(clips) if clip.row in live]
    if fresh is None or not at:
        return None
    stored = era.partition.vectors(np.asarray([clips[i].row for i in at], np.int64))
    return float(1 - (stored * fresh[at]).sum(1).mean())
