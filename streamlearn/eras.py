"""Eras: the partition of the index that was written while a task was learned, and the momentum pair that wrote it.

The encoders move on and forget; a vector written in its time remembers, as long as the query is encoded by the
text encoder of that time (docs/log.md has the measurement). So when a task ends, its era is sealed with the momentum
snapshot from just before the drift began, its clips are re-encoded once with it, a few after each step, and the
finished partition is swapped in whole. Only the pipeline thread calls `Eras`; its `views` are immutable.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from streamlearn.catalog import Catalog
from streamlearn.encoders import Towers
from streamlearn.frames import FrameStore
from streamlearn.index import Partition, PartitionView
from streamlearn.learner import Learner
from streamlearn.records import Frames, Vectors
from streamlearn.settings import SearchSettings

_FAMILIAR_CAPTIONS = 256  # of an era's captions, for its mean
_CACHED_TEXTS = 4096


class QueryEncoder:
    """A frozen pair behind a small cache; safe from any thread. Evaluation asks the same captions again and again."""

    def __init__(self, towers: Towers) -> None:
        self._towers = towers
        self._texts: dict[str, Vectors] = {}

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Vectors:
        """Shape: n -> (n, d) unit rows."""
        new = [text for text in dict.fromkeys(texts) if text not in self._texts]
        found = {text: self._texts[text] for text in texts if text in self._texts}
        if new:
            found |= dict(zip(new, self._towers.encode_text(new).float().cpu().numpy(), strict=True))
            if len(self._texts) + len(new) > _CACHED_TEXTS:
                self._texts = {}  # a new dict: other threads may be reading the old one
            self._texts.update({text: found[text] for text in new})
        return np.stack([found[text] for text in texts])

    @torch.inference_mode()
    def clips(self, frames: Frames) -> Vectors:
        """Shape: uint8 (n, T, H, W, 3) -> (n, d) unit rows."""
        device = next(self._towers.parameters()).device
        out: Vectors = self._towers.encode_video(torch.from_numpy(frames).to(device)).float().cpu().numpy()
        return out


@dataclass(frozen=True)
class EraView:
    """An era as readers see it.

    Attributes:
        encoder: the pair that wrote the partition; for the current era, as it was at publication.
        familiarity: (d,) mean of the era's caption embeddings; its inner product with a query says how much the
            query's words are this era's.
    """

    number: int
    task: str
    encoder: QueryEncoder
    partition: PartitionView
    familiarity: Vectors


@dataclass
class Era:
    """The writer's side of one era."""

    number: int
    task: str
    opened_step: int
    partition: Partition
    familiarity: Vectors
    sealed_step: int | None = None  # the step of its snapshot; None while it is the current one
    encoder: QueryEncoder | None = None
    pair: Towers | None = None
    reencoded: dict[int, Vectors] = field(default_factory=dict)  # finished rows of a partition not yet swapped in


class Eras:
    """All eras, the current one last.

    Args:
        learner: its local momentum pair writes the current era.
        catalog: where vectors are durable.
        frames: what sealed eras are re-encoded from.
        settings: how often to take snapshots, how many, how much to re-encode at a time.
    """

    def __init__(self, learner: Learner, catalog: Catalog, frames: FrameStore, settings: SearchSettings) -> None:
        self._learner, self._catalog, self._frames, self._settings = learner, catalog, frames, settings
        self._dim = learner.online.dim
        self._snapshots: deque[tuple[int, dict[str, Tensor]]] = deque(maxlen=settings.snapshots)
        self._snapshot_clips = 0
        self.eras = [self._open(1, "")]  # its task is named when the first clip comes

    @property
    def current(self) -> Era:
        """The era being written."""
        return self.eras[-1]

    def upsert(self, rows: Sequence[int], vectors: Vectors, captions: Vectors) -> None:
        """The step's keys become index entries of the current era.

        Args:
            rows: n catalog rows.
            vectors: (n, d) video keys.
            captions: (m, d) text keys of the same step, for the era's familiarity.
        """
        era = self.current
        self._catalog.put_vectors(rows, vectors, era=era.number, step=self._learner.steps)
        era.partition.upsert(np.asarray(rows, np.int64), vectors)
        if len(captions):
            # A running mean over about the last 256 captions: the current era's own text space moves.
            share = min(1.0, len(captions) / _FAMILIAR_CAPTIONS) if era.familiarity.any() else 1.0
            era.familiarity = (1 - share) * era.familiarity + share * captions.mean(0)

    def remove(self, rows: Sequence[int]) -> None:
        """Rows leave the index, whichever era has them."""
        if rows:
            for era in self.eras:
                era.partition.remove(np.asarray(rows, np.int64))
                for row in rows:
                    era.reencoded.pop(row, None)

    def remember(self) -> None:
        """Call after each step: keeps momentum snapshots, from which an era can be sealed as it was before a drift."""
        if self._learner.clips - self._snapshot_clips >= self._settings.snapshot_interval_clips or not self._snapshots:
            self._snapshots.append((self._learner.steps, _half(self._learner.local)))
            self._snapshot_clips = self._learner.clips

    def start(self, task: str, since_step: int) -> None:
        """Seal the current era and open the next.

        Call before the learner's `start_task`, which moves the momentum pair.

        Args:
            task: whose era opens.
            since_step: clips of later steps already belong to it.
        """
        era = self.current
        before = [(step, state) for step, state in self._snapshots if step <= since_step]
        era.sealed_step, state = before[-1] if before else (self._learner.steps, _half(self._learner.local))
        self._freeze(era, state)
        following = self._open(era.number + 1, task)
        moved = np.asarray(
            self._catalog.move(
                from_era=era.number, since_step=since_step + 1, to_era=following.number, to_task=task
            ),
            np.int64,
        )  # fmt: skip
        if len(moved):
            following.partition.upsert(moved, era.partition.view().vectors(moved))
            era.partition.remove(moved)
        era.familiarity = self._mean_caption(era)
        self.eras.append(following)
        self._snapshots.clear()

    def reencode(self) -> int:
        """Re-encode some clips of sealed eras; returns how many are left."""
        left = 0
        for era in self.eras[:-1]:
            assert era.encoder is not None
            assert era.sealed_step is not None
            stale = self._stale(era)
            if not stale:
                continue
            batch = stale[: self._settings.reencode_batch_clips] if left == 0 else []
            frames = {row: stored for row in batch if (stored := self._frames.get(row)) is not None}
            for shape in {stored.shape for stored in frames.values()}:  # settings may have changed meanwhile
                rows = [row for row, stored in frames.items() if stored.shape == shape]
                vectors = era.encoder.clips(np.stack([frames[row] for row in rows]))
                era.reencoded.update(zip(rows, vectors, strict=True))
            # Frames that are gone leave the vector that was written on arrival.
            gone = [row for row in batch if row not in frames]
            if gone:
                era.reencoded.update(
                    zip(gone, era.partition.view().vectors(np.asarray(gone, np.int64)), strict=True)
                )  # fmt: skip
            left += len(stale) - len(batch)
            if len(stale) == len(batch):
                self._swap_in(era)
        return left

    def _stale(self, era: Era) -> list[int]:
        assert era.sealed_step is not None
        budget = len(era.reencoded) + 10 * self._settings.reencode_batch_clips
        rows = self._catalog.stale_rows(era.number, era.sealed_step, budget)
        return [row for row in rows if row not in era.reencoded]

    def _swap_in(self, era: Era) -> None:
        assert era.sealed_step is not None
        live = set(era.partition.view().rows.tolist())
        rows = [row for row in era.reencoded if row in live]
        if rows:
            vectors = np.stack([era.reencoded[row] for row in rows])
            with self._catalog.transaction():
                self._catalog.put_vectors(rows, vectors, era=era.number, step=era.sealed_step)
            era.partition.upsert(np.asarray(rows, np.int64), vectors)
        era.reencoded = {}

    def views(self) -> tuple[EraView, ...]:
        """Every era that has clips, immutable."""
        out = []
        for era in self.eras:
            partition = era.partition.view()
            if len(partition) == 0:
                continue
            encoder = era.encoder or QueryEncoder(self._learner.local.frozen_copy())
            norm = float(np.linalg.norm(era.familiarity)) or 1.0
            out.append(EraView(era.number, era.task, encoder, partition, era.familiarity / norm))
        return tuple(out)

    def state(self) -> list[dict[str, Any]]:
        """JSON-able facts; the vectors are in the catalog, the weights in `tensors`."""
        return [
            {"number": e.number, "task": e.task, "opened_step": e.opened_step, "sealed_step": e.sealed_step}
            for e in self.eras
        ]

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Weights of the sealed eras, fp16, which never change, and every era's familiarity."""
        parts: dict[str, dict[str, Tensor]] = {
            f"eras/{era.number:04d}": _half(era.pair) for era in self.eras if era.pair is not None
        }
        parts["familiarity"] = {f"{era.number:04d}": torch.from_numpy(era.familiarity.copy()) for era in self.eras}
        return parts

    def restore(self, state: Sequence[Mapping[str, Any]], tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Inverse of `state` and `tensors`, with the catalog already cut to the same generation."""
        self.eras = []
        for facts in state:
            era = self._open(facts["number"], facts["task"], facts["opened_step"])
            era.familiarity = tensors["familiarity"][f"{era.number:04d}"].numpy()
            era.sealed_step = facts["sealed_step"]
            if era.sealed_step is not None:
                self._freeze(era, tensors[f"eras/{era.number:04d}"])
            rows, vectors, _ = self._catalog.era_vectors(era.number)
            if len(rows):
                era.partition.upsert(rows, vectors)
            self.eras.append(era)

    def _open(self, number: int, task: str, step: int | None = None) -> Era:
        opened = self._learner.steps if step is None else step
        return Era(number, task, opened, Partition(self._dim), np.zeros(self._dim, np.float32))

    def _freeze(self, era: Era, state: Mapping[str, Tensor]) -> None:
        era.pair = self._learner.local.frozen_copy()
        era.pair.load_state_dict({name: tensor.to(self._learner.device) for name, tensor in state.items()})
        era.encoder = QueryEncoder(era.pair)

    def _mean_caption(self, era: Era) -> Vectors:
        """Of the era's learned clips: captions of held-out ones are questions, and stay out."""
        rows = era.partition.view().rows
        spread = rows[:: max(1, len(rows) // _FAMILIAR_CAPTIONS)].tolist()
        captions = [c.captions[0] for c in self._catalog.clips(spread).values() if c.split == "train"]
        assert era.encoder is not None
        mean: Vectors = era.encoder.texts(captions).mean(0) if captions else era.familiarity
        return mean


def _half(towers: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().half().cpu() for name, tensor in towers.state_dict().items()}
