"""Eras: the partition of the index that was written while a task was learned, and the momentum pair that wrote it.

The encoders move on and forget; a vector written in its time remembers, as long as the query is encoded by the
text encoder of that time (docs/log.md has the measurement). So when a task ends, its era is sealed with the momentum
snapshot from just before the drift began, its clips are re-encoded once with it, a few after each step, and the
finished partition is swapped in whole. Only the pipeline thread calls `Eras`; its `views` are immutable.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from streamlearn.catalog import Catalog, Rows
from streamlearn.catalog_rows import as_stored
from streamlearn.era import SLICE, Era
from streamlearn.era_bounds import EraBounds
from streamlearn.era_clips import EraClips
from streamlearn.era_maps import Mapped, MappedEncoder, affine
from streamlearn.era_merge import Merge, mapped
from streamlearn.era_readout import read_open, recent_readout
from streamlearn.era_view import EraView, QueryEncoder
from streamlearn.era_words import Words
from streamlearn.frames import FrameStore
from streamlearn.index import Partition
from streamlearn.index_lists import Halves
from streamlearn.learner import Learner
from streamlearn.records import Vectors
from streamlearn.settings import SearchSettings
from streamlearn.snapshots import Snapshots, half

log = logging.getLogger(__name__)

_CAPTIONS = 1024  # that an era knows itself by
_REFRESH_AGE_STEPS = 8  # younger vectors are not worth a refresh
_COMPACTION_WAIT_S = 0.1  # to wait for a compaction that is under way


class Eras:
    """All eras, the current one last.

    Args:
        learner: its served pair writes the current era.
        catalog: where vectors are durable.
        frames: what sealed eras are re-encoded from.
        settings: how often to take snapshots, how many, how much to re-encode at a time.
    """

    def __init__(self, learner: Learner, catalog: Catalog, frames: FrameStore, settings: SearchSettings) -> None:
        self._learner, self._catalog, self._frames, self._settings = learner, catalog, frames, settings
        self._dim = learner.online.dim
        self.snapshots = Snapshots(learner, settings.snapshot_interval_clips, settings.snapshots)
        self._kept_from, self._restored_step = 0, -1  # the lowest row that may have frames; of the learner, then
        self._clips = EraClips(catalog, frames, anew=settings.merge_vectors == "encode")
        self._bounds = EraBounds(self._clips, settings)
        self._reading: tuple[tuple[Vectors, int, bool | None], tuple[QueryEncoder, Vectors]] | None = None
        self.eras = [self._open(1, "")]  # its task is named when the first clip comes

    @property
    def current(self) -> Era:
        """The era being written."""
        return self.eras[-1]

    @property
    def _through_readouts(self) -> bool | None:
        """Whether sealed eras whose vectors are final are read through readouts; None where there are none."""
        final = [era.readout for era in self.eras[:-1] if not era.closing]
        return (final[-1] is not None and final[-1].helps) if final else None

    def note_pairs(self, texts: Vectors, clips: Vectors, told: Sequence[Sequence[str]]) -> None:
        """The keys of a step, (n, d) each, and what each clip was told; the current era knows itself by its latest."""
        era = self.current
        era.words = era.words.plus(Words.of(told))
        era.captions = np.concatenate([era.captions, texts])[-_CAPTIONS:]
        era.caption_clips = np.concatenate([era.caption_clips, clips])[-_CAPTIONS:]

    def upsert(self, rows: Sequence[int], vectors: Vectors) -> None:
        """Keys become index entries of the current era. Shape: n catalog rows, (n, d); those of no live clip do not."""
        vectors = as_stored(vectors)
        live = self._catalog.put_vectors(rows, vectors, era=self.current.number, step=self._learner.steps)
        self.current.partition.upsert(np.asarray(live, np.int64), vectors[[rows.index(row) for row in live]])

    def remove(self, rows: Sequence[int]) -> None:
        """Rows leave the index, whichever era has them."""
        if rows:
            for era in self.eras:
                era.partition.remove(np.asarray(rows, np.int64))

    def start(self, task: str, since_step: int) -> None:
        """Seal the current era and open the next.

        Call before the learner's `start_task`, which moves the momentum pair.

        Args:
            task: whose era opens.
            since_step: clips of later steps already belong to it.
        """
        era = self.current
        snapshot = self.snapshots.before(since_step)
        following = self._open(era.number + 1, task)
        rows = self._catalog.move(
            from_era=era.number, since_step=since_step + 1, to_era=following.number, to_task=task
        )  # fmt: skip
        if rows:
            moved = np.asarray(rows, np.int64)
            following.partition.upsert(moved, era.partition.view().vectors(moved))
            era.partition.remove(moved)
        # The latest captions came with the clips that moved; those that wait to be learned have brought none.
        moved_clips, now = self._catalog.clips(rows).values(), self._learner.steps
        learned = [clip.captions for clip in moved_clips if clip.split == "train" and clip.step <= now]
        following.words = Words.of(learned)
        era.words = era.words.less(following.words)
        cut = len(era.captions) - min(len(learned), len(era.captions))
        following.captions, following.caption_clips = era.captions[cut:].copy(), era.caption_clips[cut:].copy()
        era.captions = era.captions[:cut]
        readout = recent_readout(era.captions, era.caption_clips[:cut], self._through_readouts)
        era.sealed_step, era.caption_clips = snapshot.step, era.caption_clips[:0]
        better = self._bounds.better(era, snapshot, self._learner.served)
        self._freeze(era, better, readout)  # until its vectors are final
        era.pending = deque(era.partition.view().rows.tolist())
        self._note_own_captions(era)
        self.eras.append(following)
        self.snapshots.clear()
        self._bounds.join(era, self.eras)
        self._bounds.keep(self.eras)

    def _note_own_captions(self, era: Era) -> None:
        """Of clips learned in a sealed era."""
        assert era.encoder is not None
        if learned := self._clips.learned(era.partition.view().rows, _CAPTIONS):
            era.caption_rows = np.fromiter(learned, np.int64, len(learned))
            era.captions = era.encoder.reader.texts(list(learned.values()))

    @property
    def stale(self) -> int:
        """Clips of sealed eras that are not read well before they are encoded anew, or lie in another era."""
        return sum(len(e.pending) or len(e.partition.view()) for e in self.eras if e.closing and not e.renewing)

    def oldest_age_steps(self) -> int:
        """Steps since the oldest vector of the current era was written."""
        rows = self._catalog.stale_rows(self.current.number, self._learner.steps, 1)
        return self._learner.steps - min(self._catalog.vector_steps(rows).values(), default=self._learner.steps)

    def reencode(self) -> int:
        """Encode some clips anew: of eras that ended, else the current one's oldest; and of those that are renewed."""
        most = max(1, round(self._settings.reencode_per_clip * self._learner.settings.batch_size))
        if closed := self._close(most, renewing=False):
            return closed + self._close(most - closed, renewing=True)
        refreshed = self._refresh()
        return refreshed + self._close(max(1, most - refreshed), renewing=True)

    def catch_up(self, seconds: float) -> tuple[int, bool]:
        """Encode anew what waits, and wait for compactions, for so long; returns what was done, and whether all is."""
        end, done, last = time.monotonic() + seconds, 0, 1
        while last and time.monotonic() < end:
            done += (last := self.reencode())
        busy = [era.partition for era in self.eras if era.partition.compacting]
        return done + sum(partition.close(_COMPACTION_WAIT_S) for partition in busy), not last and not busy

    def _close(self, most: int, *, renewing: bool) -> int:
        left = most
        while left > 0 and (era := next((e for e in self.eras if e.ready and e.renewing == renewing), None)):
            encoder = era.written_by(self._settings.merge_vectors).encoder
            assert encoder is not None
            batch = [era.pending.popleft() for _ in range(min(left, len(era.pending)))]
            found = self._clips.encode(batch, encoder)
            era.reencoded.update((row, vector.astype(np.float16)) for row, vector in found.items())
            if not era.pending:
                self._finish(era)
            left -= max(1, len(batch))  # a merge that encodes nothing changes what is to be served, too
        return most - left

    def _refresh(self) -> int:
        """The current era's vectors were written by encoders that knew less: bring some up to date."""
        era, step = self.current, self._learner.steps
        if step == self._restored_step:  # nothing was learned since: a generation answers as it did
            return 0
        most, before = self._learner.clips_within(self._settings.refresh_share), step - _REFRESH_AGE_STEPS
        rows = self._catalog.stale_rows(era.number, before, most, since_row=max(self._kept_from, self._frames.oldest))
        fresh = self._clips.encode(rows, QueryEncoder(self._learner.served))
        # The store evicts the lowest rows: below one that is gone there is nothing to refresh from.
        self._kept_from = max([self._kept_from, *(row + 1 for row in rows if row not in fresh)])
        if fresh:
            self._store(era, np.array([*fresh]), np.stack([*fresh.values()]).astype(np.float16), step)
        return len(fresh)

    def _finish(self, era: Era) -> None:
        if not self._bounds.give_up(era):
            self._swap_in(era)
        self._bounds.read_out(self.eras)
        self._bounds.keep(self.eras)

    def _swap_in(self, era: Era) -> None:
        target, writer = era.into or era, era.written_by(self._settings.merge_vectors)
        assert writer.sealed_step is not None
        rows, vectors = era.take_reencoded()
        # Without frames, the vector that was written on arrival stays, turned into the other space where it is merged.
        if target is not era:
            partition = era.partition.view()
            left = np.setdiff1d(partition.rows, rows)
            others = partition.vectors(left)
            if writer is not era and len(rows) and len(left):
                others = mapped(partition.vectors(rows), vectors.astype(np.float32), others)
            rows, vectors = np.concatenate([rows, left]), np.concatenate([vectors, others.astype(np.float16)])
        self._store(target, rows, vectors, writer.sealed_step)
        if era.into is not None:
            self.eras.remove(era)
            self._bounds.forget(era.number)
            self._bounds.forget(target.number)
            target.take_in(era)
            log.info("era %d of %s is now part of era %d", era.number, era.task, target.number)
        self._note_own_captions(target)

    def _store(self, era: Era, rows: Rows, vectors: Halves, step: int) -> None:
        with self._catalog.transaction():
            for begin in range(0, len(rows), SLICE):
                some = slice(begin, begin + SLICE)
                self._catalog.put_vectors(rows[some].tolist(), vectors[some], era=era.number, step=step)
        era.partition.upsert(rows, vectors)

    def views(self) -> tuple[EraView, ...]:
        """Every era that has clips, and the current one, whose encoder is today's; immutable."""
        out = []
        for era in self.eras:
            partition = era.partition.view()
            if len(partition) == 0 and era is not self.current:
                continue
            encoder, captions = (era.encoder, era.known) if era.encoder else self._read_open(era)
            absorbed = frozenset(era.tasks - {era.task})
            out.append(EraView(era.number, era.task, encoder, partition, captions, era.words, absorbed))
        return tuple(out)

    def _read_open(self, era: Era) -> tuple[QueryEncoder, Vectors]:
        """As today's pair reads it. Where nothing was learned since, by the same encoder: it remembers queries."""
        # One pair for all eras knows its own words alone: then there is none.
        use = self._through_readouts if self._settings.mode == "eras" else False
        as_of = era.captions, self._learner.steps, use  # each step brings captions; so does each way to other weights
        if self._reading is None or self._reading[0][0] is not as_of[0] or self._reading[0][1:] != as_of[1:]:
            towers = self._learner.served.frozen_copy()
            self._reading = as_of, read_open(towers, era.known, era.caption_clips, use)
        return self._reading[1]

    def state(self) -> list[dict[str, Any]]:
        """JSON-able facts; the vectors are in the catalog, the weights in `tensors`."""
        return [era.facts() for era in self.eras]

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """By kind and era: `Era.tensors`."""
        parts: dict[str, dict[str, Tensor]] = {"text_maps": {}, "clip_maps": {}}
        for era in self.eras:
            for kind, tensor in era.tensors().items():
                parts.setdefault(kind, {})[f"{era.number:04d}"] = tensor
        return parts

    def sealed(self) -> dict[str, Callable[[], Mapping[str, Tensor]]]:
        """What never changes: weights, fp16, of sealed eras and of the current one's snapshots; and lists of eras."""
        pairs = {
            f"eras/{e.number:04d}": partial(half, e.encoder.towers)
            for e in self.eras
            if e.encoder is not None and not e.mapped
        }
        laid = {e.number: layout for e in self.eras if (layout := e.partition.layout) is not None}
        lists = {f"lists/{number:04d}-{layout.name}": layout.lists for number, layout in laid.items()}
        return {**pairs, **lists, **self.snapshots.sealed(self.current.number)}

    def restore(self, state: Sequence[Mapping[str, Any]], tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Inverse of `state`, `tensors` and `sealed`, with the catalog already cut to the same generation."""
        for era in self.eras:
            era.partition.abandon()
            self._bounds.forget(era.number)  # which may be another's now
        self.eras = []
        for facts in state:
            era = self._open(facts["number"], facts["task"], facts["opened_step"])
            name = f"{era.number:04d}"
            era.load(facts, {kind: of[name] for kind, of in tensors.items() if name in of})
            if era.sealed_step is not None and not facts.get("mapped"):
                readout = tensors.get("text_maps", {}).get(name)
                self._freeze(era, tensors[f"eras/{name}"], None if readout is None else readout.numpy())
            rows, vectors, _ = self._catalog.era_vectors(era.number)
            if len(rows):
                era.partition.replace_all(rows, vectors, era.layout(facts, tensors))
            if not facts["reencoded"]:
                era.pending = deque(rows.tolist())
            self.eras.append(era)
        for era, facts in zip(self.eras, state, strict=True):
            if facts.get("mapped"):
                era.mapped = Mapped(**facts["mapped"])
                reader = next((other.encoder for other in self.eras if other.number == era.mapped.reader), None)
                if reader is None or reader.borrowed:
                    raise ValueError(f"era {era.number} is read by era {era.mapped.reader}, which has no pair")
                maps = (tensors[kind][f"{era.number:04d}"].numpy() for kind in ("text_maps", "clip_maps"))
                era.encoder = MappedEncoder(reader.reader, *map(affine, maps))
            if facts.get("merge"):
                era.merge = Merge(**facts["merge"])
                era.into = next(other for other in self.eras if other.number == era.merge.keep)
        self.snapshots.restore(tensors)
        self._kept_from, self._restored_step = 0, self._learner.steps
        self._bounds.keep(self.eras)

    def _open(self, number: int, task: str, step: int | None = None) -> Era:
        opened = self._learner.steps if step is None else step
        none = np.zeros((0, self._dim), np.float32)
        device = None if self._settings.index_device == "cpu" else self._settings.index_device
        return Era(number, task, opened, Partition(self._dim, device=device), none, none)

    def _freeze(self, era: Era, state: Mapping[str, Tensor], readout: Vectors | None) -> None:
        pair = self._learner.served.frozen_copy()
        pair.load_state_dict({name: tensor.to(self._learner.device) for name, tensor in state.items()})
        era.encoder = QueryEncoder(pair)
        if readout is not None:
            era.encoder = MappedEncoder(era.encoder, readout)
