"""Writes what became of each record, in the stream's order: catalog, frame store, index, dead letters, counts."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from streamlearn.catalog import Catalog, ClipRow
from streamlearn.catalog_learned import Seen
from streamlearn.eras import Eras
from streamlearn.frames import FrameStore
from streamlearn.heldout import Footage, keep_back, split_of
from streamlearn.metrics import OUTCOMES, Metrics
from streamlearn.records import Clip, Event, Rejected, Vectors
from streamlearn.source import DeadLetters

log = logging.getLogger(__name__)


class Ledger:
    """The writer's side of everything that is kept about clips.

    Args:
        heldout_ratio: share of the clips that is held out where their messages leave it open.
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
    ) -> None:
        self._catalog, self._frames, self._eras = catalog, frames, eras
        self._dead_letters, self._metrics = dead_letters, metrics
        self._ratio = heldout_ratio
        # A batch's frames are written while the next is learned; the store knows one writer at a time.
        self._writer, self._writes = ThreadPoolExecutor(1, "frames"), list[Future[None]]()
        self.counts = Counter(dict.fromkeys(OUTCOMES, 0))
        self.rows: dict[int, int] = {}  # of the clips that were last written, by their places

    @property
    def full(self) -> bool:
        """Whether dead letters that cannot be delivered should not become more."""
        return getattr(self._dead_letters, "full", False)

    def splits(self, clips: Sequence[Clip]) -> list[str]:
        """What each clip of a batch is for.

        "train"; "heldout", a question; or "extra", neither learned from nor asked: a clip that would be held out but
        was learned from, under this id or as the same footage under another, or one that shows what a held-out clip
        shows. A clip that was held out stays so when it comes again and its message leaves the split open.
        """
        footages = [Footage.of(clip.sha256, clip.start_s, clip.end_s) for clip in clips]
        sha256s = {clip.sha256 for clip in clips if clip.sha256}
        held = self._catalog.learned.held_out([clip.video_id for clip in clips], list(sha256s))
        trained: list[Seen] = []  # of this batch, so far
        out: list[str] = []
        for clip, footage in zip(clips, footages, strict=True):
            this = Seen(clip.video_id, footage)
            split: str = split_of(clip.split, clip.video_id, self._ratio)
            if clip.split == "auto" and any(other.video_id == clip.video_id for other in held):
                split = "heldout"
            twin = any(other.video_id != clip.video_id and footage.shares(other.footage) for other in held)
            if split == "heldout":
                same = any(other.video_id == clip.video_id or footage.shares(other.footage) for other in trained)
                if twin or same or self._catalog.learned.was(clip.video_id, footage):
                    split = "extra"  # a question on it would prove nothing, or is asked already
                else:
                    held.append(this)
            elif twin:
                split = "extra"  # it would teach the answer
            else:
                trained.append(this)
            out.append(split)
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

    def write(
        self,
        events: Sequence[Event],
        splits: Mapping[int, str],
        vectors: Mapping[int, Vectors],
        *,
        tasks: Mapping[int, str],
        step: int,
    ) -> bool:
        """Apply a batch; readers of the catalog see it whole.

        Args:
            events: in the stream's order.
            splits: of each clip, by its place in `events`.
            vectors: likewise, (d,).
            tasks: likewise, what it belongs to.
            step: the learner's, after the batch.

        Returns:
            Whether a clip was replaced or deleted: then the old snapshot shows what is gone.
        """
        changed, self.rows = False, {}
        self.settle()
        with self._catalog.transaction():
            pending: dict[str, int] = {}
            for i, event in enumerate(events):
                if isinstance(event, Clip):
                    if event.video_id in pending:
                        changed |= self._put(events, pending, splits, vectors, tasks, step)
                    pending[event.video_id] = i
                    continue
                changed |= self._put(events, pending, splits, vectors, tasks, step)
                if isinstance(event, Rejected):
                    self._dead_letters.write(event)
                    self._count("dead_lettered")
                    self._metrics.dead_letters_total.labels(event.code).inc()
                elif (row := self._catalog.delete(event.video_id)) is not None:
                    self.settle()
                    self._eras.remove([row])
                    self._frames.delete([row])
                    self._count("deleted")
                    changed = True
            changed |= self._put(events, pending, splits, vectors, tasks, step)
        return changed

    def _put(
        self,
        events: Sequence[Event],
        pending: dict[str, int],
        splits: Mapping[int, str],
        vectors: Mapping[int, Vectors],
        tasks: Mapping[int, str],
        step: int,
    ) -> bool:
        if not pending:
            return False
        places = list(pending.values())
        pending.clear()
        clips = [clip for i in places if isinstance(clip := events[i], Clip)]
        rows, replaced = self._catalog.put(
            [_row(clip, splits[i], tasks[i], step) for i, clip in zip(places, clips, strict=True)]
        )  # fmt: skip
        self.rows |= dict(zip(places, rows, strict=True))
        self._writes += [
            self._writer.submit(self._frames.put, row, clip.kept) for row, clip in zip(rows, clips, strict=True)
        ]
        try:
            self._frames.recent.put(rows, np.stack([clip.frames for clip in clips]))
        except OSError as error:  # a cache: these are read from their JPEGs
            log.warning("recent frames could not be kept: %s", error)
        self._eras.remove(replaced)  # their frames stay until no generation can bring them back
        self._eras.upsert(rows, np.stack([vectors[i] for i in places]))
        for i in places:
            self._count("learned" if splits[i] == "train" else "held_out")
        self._count("replaced", len(replaced))
        return bool(replaced)

    def _count(self, outcome: str, n: int = 1) -> None:
        self.counts[outcome] += n
        self._metrics.clips_total.labels(outcome).inc(n)


def _row(clip: Clip, split: str, task: str, step: int) -> ClipRow:
    question, rest = keep_back(clip.captions) if split == "heldout" else (None, clip.captions)
    return ClipRow(
        row=0,
        video_id=clip.video_id,
        uri=clip.uri,
        start_s=clip.start_s,
        end_s=clip.end_s,
        captions=rest,
        meta=clip.meta,
        time=clip.time,
        split=split,
        task=task,
        step=step,
        sha256=clip.sha256,
        topic=clip.position.topic,
        partition=clip.position.partition,
        offset=clip.position.offset,
        question=question,
    )
