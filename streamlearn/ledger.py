"""Writes what became of each record, in the stream's order: catalog, frame store, index, dead letters, counts."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from streamlearn.catalog import Catalog, ClipRow
from streamlearn.eras import Eras
from streamlearn.frames import FrameStore
from streamlearn.metrics import OUTCOMES, Metrics
from streamlearn.records import Clip, Event, Rejected, Vectors
from streamlearn.source import DeadLetters
from streamlearn.tasks import split_of

log = logging.getLogger(__name__)


class Ledger:
    """The writer's side of everything that is kept about clips.

    Args:
        heldout_ratio, heldout_max: which clips are held out, and how many a task is evaluated with.
    """

    def __init__(
        self,
        catalog: Catalog,
        frames: FrameStore,
        eras: Eras,
        dead_letters: DeadLetters,
        metrics: Metrics,
        *,
        heldout_ratio: float,
        heldout_max: int,
    ) -> None:
        self._catalog, self._frames, self._eras = catalog, frames, eras
        self._dead_letters, self._metrics = dead_letters, metrics
        self._ratio, self._max = heldout_ratio, heldout_max
        # A batch's frames are written while the next is learned; the store knows one writer at a time.
        self._writer, self._writes = ThreadPoolExecutor(1, "frames"), list[Future[None]]()
        self._heldout: dict[str, int] = {}  # held-out clips by task
        self.counts = Counter(dict.fromkeys(OUTCOMES, 0))

    def splits(self, clips: Sequence[Clip], task: str) -> list[str]:
        """What each clip is for: "train", "heldout", or "extra" where the task has enough held-out clips."""
        out: list[str] = []
        earlier: dict[str, str] = {}  # in this batch
        if task not in self._heldout:
            self._heldout[task] = len(self._catalog.heldout(task, self._max))
        held = self._heldout[task]
        for clip in clips:
            split: str = split_of(clip.split, clip.video_id, self._ratio)
            if split == "heldout":
                known = self._catalog.clip(clip.video_id)
                before = earlier.get(clip.video_id) or (known.split if known else None)
                if before is None and held < self._max:
                    held += 1
                elif before != "heldout":
                    # Too many, or perhaps learned from under this id: a question on it would prove nothing.
                    split = "extra"
            earlier[clip.video_id] = split
            out.append(split)
        self._heldout[task] = held
        return out

    def settle(self) -> None:
        """Wait for the frames that are being written; before anything else changes the frame store."""
        writes, self._writes = self._writes, []
        failed = [error for write in writes if (error := write.exception()) is not None]
        if failed:  # the store is a cache: what it lost has no thumbnail, and is not re-encoded
            log.warning("frames of %d clips could not be kept: %s", len(failed), failed[0])

    def restore(self, counts: Mapping[str, int]) -> None:
        """The counts of a checkpoint; nothing else is remembered."""
        self.counts = Counter(dict.fromkeys(OUTCOMES, 0) | dict(counts))
        self.recount()

    def recount(self) -> None:
        """A boundary moved clips to another task, or a tombstone took some: count the held-out ones anew."""
        self._heldout.clear()

    def write(
        self,
        events: Sequence[Event],
        splits: Mapping[int, str],
        vectors: Mapping[int, Vectors],
        *,
        task: str,
        step: int,
    ) -> bool:
        """Apply a batch; readers of the catalog see it whole.

        Args:
            events: in the stream's order.
            splits: of each clip, by its place in `events`.
            vectors: likewise, (d,).
            task: the current one.
            step: the learner's, after the batch.

        Returns:
            Whether a clip was replaced or deleted: then the old snapshot shows what is gone.
        """
        changed = False
        self.settle()
        with self._catalog.transaction():
            pending: dict[str, int] = {}
            for i, event in enumerate(events):
                if isinstance(event, Clip):
                    if event.video_id in pending:
                        changed |= self._put(events, pending, splits, vectors, task, step)
                    pending[event.video_id] = i
                    continue
                changed |= self._put(events, pending, splits, vectors, task, step)
                if isinstance(event, Rejected):
                    self._dead_letters.write(event)
                    self._count("dead_lettered")
                    self._metrics.dead_letters_total.labels(event.code).inc()
                elif (row := self._catalog.delete(event.video_id)) is not None:
                    self.settle()
                    self._eras.remove([row])
                    self._frames.delete([row])
                    self._count("deleted")
                    self.recount()
                    changed = True
            changed |= self._put(events, pending, splits, vectors, task, step)
        return changed

    def _put(
        self,
        events: Sequence[Event],
        pending: dict[str, int],
        splits: Mapping[int, str],
        vectors: Mapping[int, Vectors],
        task: str,
        step: int,
    ) -> bool:
        if not pending:
            return False
        places = list(pending.values())
        pending.clear()
        clips = [clip for i in places if isinstance(clip := events[i], Clip)]
        rows, replaced = self._catalog.put(
            [_row(clip, splits[i], task, step) for i, clip in zip(places, clips, strict=True)]
        )  # fmt: skip
        self._writes += [
            self._writer.submit(self._frames.put, row, clip.kept) for row, clip in zip(rows, clips, strict=True)
        ]
        self._frames.recent.put(rows, np.stack([clip.frames for clip in clips]))
        self._eras.remove(replaced)  # their frames stay until no generation can bring them back
        self._eras.upsert(rows, np.stack([vectors[i] for i in places]))
        for i in places:
            self._count("learned" if splits[i] == "train" else "held_out")
        self._count("replaced", len(replaced))
        if replaced:
            self.recount()
        return bool(replaced)

    def _count(self, outcome: str, n: int = 1) -> None:
        self.counts[outcome] += n
        self._metrics.clips_total.labels(outcome).inc(n)


def _row(clip: Clip, split: str, task: str, step: int) -> ClipRow:
    return ClipRow(
        row=0,
        video_id=clip.video_id,
        uri=clip.uri,
        start_s=clip.start_s,
        end_s=clip.end_s,
        captions=clip.captions,
        meta=clip.meta,
        time=clip.time,
        split=split,
        task=task,
        step=step,
        sha256=clip.sha256,
        topic=clip.position.topic,
        partition=clip.position.partition,
        offset=clip.position.offset,
    )
