"""The vectors of one era, as the writer changes them; readers get a `PartitionView`.

One thread writes; views never change and may be searched from any thread for ever. A partition is a main block that
nobody writes to, a fresh one that is only appended to (a view sees a prefix of it), and one bit a vector that says
whether it is live, copied for each view. When enough is fresh or dead, both become a new main block, beside the old
one; it is swapped in whole, and old views keep the old one. A small main block is exact, a large one has lists, or
lies on a GPU.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from uuid import uuid4

import numpy as np
import numpy.typing as npt

from streamlearn import allocator
from streamlearn.index_blocks import Block, FlatBlock, Mask, Rows, configure_faiss, packed
from streamlearn.index_compact import Layout, compacted, settled, tensors_of
from streamlearn.index_lists import ListsBlock, halves_of
from streamlearn.index_view import Layer, PartitionView
from streamlearn.records import Vectors

__all__ = ["Layout", "Partition", "PartitionView", "Rows", "Sizes", "configure_faiss"]

log = logging.getLogger(__name__)

_ASKED = 64  # queries remembered, for the recall of the lists to be measured with


@dataclass(frozen=True)
class Sizes:
    """When the index changes its shape, in vectors.

    Attributes:
        flat_max: so many are searched exactly, in full precision; more lie in lists, in half precision.
        at_once_max: more that come at once are not put up with as fresh ones, in full precision: they and what there
            was become the main block, at once, and its lists are made anew.
        fresh_min, fresh_max: so many fresh ones are put up with before a compaction, and between the two a quarter of
            the main block. They are searched exactly, at some 4 MB a millisecond.
    """

    flat_max: int = 8_192
    at_once_max: int = 32_768
    fresh_min: int = 1_024
    fresh_max: int = 16_384


class _Fresh:
    """Vectors in the order of arrival; what was appended does not change."""

    def __init__(self, dim: int, room: int) -> None:
        self.used = 0
        self.rows: Rows = np.empty(room, np.int64)
        self.vectors: Vectors = np.empty((room, dim), np.float32)  # memory that is not written to is not taken
        self.live: Mask = np.zeros(room, np.bool_)
        self.place: dict[int, int] = {}

    def append(self, rows: Rows, vectors: Vectors, live: Mask | None = None) -> None:
        end = self.used + len(rows)
        if end > len(self.rows):
            room = max(end, 2 * len(self.rows))
            for name in ("rows", "vectors", "live"):
                old = getattr(self, name)  # readers may have it
                new = np.zeros((room, *old.shape[1:]), old.dtype)
                new[: self.used] = old[: self.used]
                setattr(self, name, new)
        self.rows[self.used : end], self.vectors[self.used : end] = rows, vectors
        self.live[self.used : end] = True if live is None else live
        self.place.update(zip(rows.tolist(), range(self.used, end), strict=True))
        self.used = end

    def kill(self, rows: Rows) -> int:
        places = [place for row in rows.tolist() if (place := self.place.pop(row, None)) is not None]
        self.live[places] = False
        return len(places)

    def layer(self) -> Layer:
        live = self.live[: self.used]
        block = FlatBlock(self.rows[: self.used], self.vectors[: self.used])
        return Layer(block, packed(live), int(np.count_nonzero(live)))


class _Job(threading.Thread):
    """A new main block in the making."""

    _turn = threading.Lock()  # each has its vectors twice

    def __init__(self, make: Callable[[], Block], cut: int) -> None:
        super().__init__(name="compaction")
        self.made: Block | None = None
        self.cut = cut  # so much of the fresh block goes into it
        self.killed: list[Rows] = []  # since it began
        self.wanted = True
        self._make = make

    def run(self) -> None:
        with self._turn:
            if self.wanted:
                self.work()

    def work(self) -> None:
        """In this thread, without waiting for others."""
        try:
            self.made = self._make()
        except Exception:  # the old block goes on serving
            log.exception("the index could not be compacted; it is tried again later")


class Partition:
    """The writer's side of one era; use it from one thread.

    Args:
        dim: of the vectors.
        sizes: when its shape changes.
        device: where a large main block lies; None: in this memory, in lists.
    """

    def __init__(self, dim: int, *, sizes: Sizes | None = None, device: str | None = None) -> None:
        self.dim = dim
        self._sizes, self._device = sizes or Sizes(), device
        self._view: PartitionView | None = None
        self._asked: deque[Vectors] = deque(maxlen=_ASKED)
        self._job: _Job | None = None
        self._install(FlatBlock(np.empty(0, np.int64), np.empty((0, dim), np.float32)))
        self._fresh = _Fresh(dim, self._sizes.fresh_min)
        self._not_before = 0  # fresh vectors before a compaction: one has failed, or was due when nothing came
        self._outgrown: weakref.ref[Block] | None = None  # a large main block that readers may still have

    def upsert(self, rows: Sequence[int] | Rows, vectors: npt.NDArray[np.floating]) -> None:
        """Add rows or replace their vectors; the last of equal rows counts.

        Args:
            rows: n catalog rows.
            vectors: (n, d), copied.
        """
        wanted, unique = self._unique(rows, vectors)
        self._kill(wanted)
        if len(wanted) > self._sizes.at_once_max:
            fresh = self._fresh.layer()
            layers = [(self._main, np.flatnonzero(self._live)), (fresh.block, fresh.live_places(fresh.live_rows()))]
            if any(len(places) for _, places in layers):
                others, halves = halves_of(layers)
                wanted, unique = np.concatenate([others, wanted]), np.concatenate([halves, unique.astype(np.float16)])
            self.replace_all(wanted, unique)
            return
        self._fresh.append(wanted, unique.astype(np.float32, copy=False))
        self._view = None
        self._tend()

    def remove(self, rows: Sequence[int] | Rows) -> int:
        """Take rows out; those that are not there are passed over. Returns how many were."""
        killed = self._kill(np.asarray(rows, np.int64))
        self._tend()
        return killed

    @property
    def layout(self) -> Layout | None:
        """How its vectors lie in lists; None where there are none, as all of them are looked at."""
        if not isinstance(self._main, ListsBlock) or len(self._main.centroids) == 1:
            return None
        fresh = self._fresh
        live = fresh.live[: fresh.used]
        return Layout(self._name, partial(tensors_of, self._main), fresh.rows[: fresh.used][live])

    def replace_all(
        self, rows: Sequence[int] | Rows, vectors: npt.NDArray[np.floating], layout: Layout | None = None
    ) -> None:
        """Hold these and nothing else, at once; arguments as those of `upsert`, half precision will do.

        With a layout they are found as they were where it is from, until something changes.
        """
        wanted, unique = self._unique(rows, vectors)
        self.abandon()
        self._install(settled(wanted, unique, flat_max=self._sizes.flat_max, layout=layout, device=self._device))
        self._fresh = _Fresh(self.dim, self._sizes.fresh_min)
        self._not_before = 0
        if not isinstance(self._main, ListsBlock):
            return
        if layout is None:
            self._compact()
            return
        self._name = layout.name
        left = wanted[self._main.find(wanted) < 0]
        in_order = np.concatenate([layout.fresh[np.isin(layout.fresh, left)], np.setdiff1d(left, layout.fresh)])
        self._fresh.append(in_order, unique[np.searchsorted(wanted, in_order)])
        self._not_before = self._fresh.used

    def view(self) -> PartitionView:
        """The present content, for readers; the same object until something changes."""
        self._tend()
        if self._view is None:
            main = Layer(self._main, packed(self._live), len(self._live) - self._dead)
            self._view = PartitionView(self.dim, [main, self._fresh.layer()], self._asked)
        return self._view

    @property
    def compacting(self) -> bool:
        """Whether there is work in the background that `view` has not swapped in."""
        return self._job is not None

    def close(self, timeout_s: float | None = None) -> bool:
        """Wait for work in the background to end, at most so long; returns whether it has."""
        if self._job is not None:
            self._job.join(timeout_s)
        return self._job is None or not self._job.is_alive()

    def abandon(self) -> None:
        """Work in the background is not wanted any more; it ends by itself, which nobody need wait for."""
        if self._job is not None:
            self._job.wanted = False
            self._job = None

    def _unique(
        self, rows: Sequence[int] | Rows, vectors: npt.NDArray[np.floating]
    ) -> tuple[Rows, npt.NDArray[np.floating]]:
        wanted = np.asarray(rows, np.int64)
        assert vectors.shape == (len(wanted), self.dim), f"vectors {vectors.shape}, {len(wanted)} x {self.dim} wanted"
        if (np.diff(wanted) > 0).all():
            return wanted, vectors
        unique, backwards = np.unique(wanted[::-1], return_index=True)
        return unique, vectors[len(wanted) - 1 - backwards]

    def _kill(self, rows: Rows) -> int:
        """Mark as dead; nothing moves."""
        if self._job is not None:
            self._job.killed.append(rows)
        killed = self._kill_main(rows) + self._fresh.kill(rows)
        if killed:
            self._view = None
        return killed

    def _kill_main(self, rows: Rows) -> int:
        places = self._main.find(rows)
        places = np.unique(places[(places >= 0) & self._live[places]]) if len(self._live) else places[:0]
        self._live[places] = False
        self._dead += len(places)
        return len(places)

    def _tend(self) -> None:
        """Swap in what is finished, and begin to compact where it is due."""
        if self._outgrown is not None and self._outgrown() is None:
            self._outgrown = None
            allocator.trim()  # its lists lay in the heap: as much again as what is searched
        if self._job is not None:
            if self._job.is_alive():
                return
            self._swap_in(self._job)
        quarter = max(self._sizes.fresh_min, len(self._live) // 4)
        enough = max(self._not_before, min(quarter, self._sizes.fresh_max))
        if self._fresh.used > enough or (self._dead > quarter and self._fresh.used >= self._not_before):
            self._compact()

    def _compact(self) -> None:
        cut, fresh = self._fresh.used, self._fresh
        main, live, fresh_live = self._main, self._live.copy(), fresh.live[:cut].copy()
        block = FlatBlock(fresh.rows[:cut], fresh.vectors[:cut])
        asked, flat_max, device = list(self._asked), self._sizes.flat_max, self._device

        def make() -> Block:
            return compacted((main, live), (block, fresh_live), asked, flat_max=flat_max, device=device)

        self._job = _Job(make, cut)
        if len(live) + cut > self._sizes.flat_max:
            self._job.start()
        else:
            self._job.work()  # it is done sooner than a thread has started
            self._swap_in(self._job)

    def _swap_in(self, job: _Job) -> None:
        self._job = None
        if job.made is None:
            self._not_before = 2 * max(self._fresh.used, self._sizes.fresh_min)
            return
        self._not_before = 0
        if len(job.made.rows) > self._sizes.flat_max:
            self._outgrown = weakref.ref(self._main)
        self._install(job.made)
        old, self._fresh = self._fresh, _Fresh(self.dim, self._sizes.fresh_min)
        later = slice(job.cut, old.used)
        live = old.live[later]
        self._fresh.append(old.rows[later][live], old.vectors[later][live])
        for rows in job.killed:
            self._kill_main(rows)

    def _install(self, main: Block) -> None:
        self._main = main
        self._name = uuid4().hex[:12]
        self._live: Mask = np.ones(len(main.rows), np.bool_)
        self._dead = 0
        self._view = None
