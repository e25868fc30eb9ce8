"""The vectors of one era, searched exactly with FAISS's kernels. It knows rows and inner products, nothing of clips.

One thread writes a `Partition`; it hands out views, which never change and may be searched from any thread for ever.
A partition is a main block that nobody writes to, a fresh block that is only appended to (a view sees a prefix of
it), and one bit a vector that says whether it is live, copied for each view. So a view costs n / 8 bytes and what
was written since the last; memory is that of the vectors. When the fresh block is full, or many vectors are dead,
both become a new main block, while old views keep the old one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from streamlearn.records import Vectors

Rows = npt.NDArray[np.int64]
Bits = npt.NDArray[np.uint8]  # packed booleans, the first in the lowest bit

_LEAST_FRESH = 1024


def configure_faiss() -> None:
    """Tune FAISS for this process; call it once, at start.

    Its default takes the BLAS path only for batches of about a thousand queries, which makes smaller ones 10 to 25
    times slower on one thread (FAISS pull request 5109).
    """
    faiss.cvar.distance_compute_blas_threshold = 1024


@dataclass(frozen=True, slots=True)
class _Block:
    rows: Rows  # (n,)
    vectors: Vectors  # (n, d), contiguous
    live: Bits  # (ceil(n / 8),)
    live_count: int

    def mask(self) -> npt.NDArray[np.bool_]:
        return np.unpackbits(self.live, count=len(self.rows), bitorder="little").view(np.bool_)

    def search(self, queries: Vectors, k: int, chosen: Bits | None) -> tuple[Vectors, Rows]:
        """The best live vectors, unordered, at least k for each query where there are; others are (-inf, -1)."""
        if chosen is not None:
            scores, at = self._nearest(queries, min(k, len(self.rows)), chosen)
            return scores, np.where(at < 0, -1, self.rows[at])
        # FAISS uses BLAS only without a selection, and is many times faster with it. So ask for some more, drop the
        # dead, and select only for the queries that are then short.
        dead = len(self.rows) - self.live_count
        scores, at = self._nearest(queries, min(len(self.rows), 2 * k + 16 if dead else k), None)
        if dead:
            scores[(self.live[at >> 3] >> (at & 7) & 1) == 0] = -np.inf
            short = (scores > -np.inf).sum(axis=1) < min(k, self.live_count)
            if short.any():
                scores[short], at[short] = self._nearest(queries[short], at.shape[1], self.live)
        return scores, np.where(scores > -np.inf, self.rows[at], -1)

    def _nearest(self, queries: Vectors, k: int, chosen: Bits | None) -> tuple[Vectors, Rows]:
        scores = np.empty((len(queries), k), np.float32)
        at = np.empty((len(queries), k), np.int64)
        selection = None if chosen is None else faiss.IDSelectorBitmap(len(chosen), faiss.swig_ptr(chosen))
        # Decoders want the other cores. OpenMP keeps this number per thread and shares it with torch: the thread that
        # learns searches too, and must not go on with one core.
        threads = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(1)
        try:
            faiss.knn_inner_product(
                faiss.swig_ptr(queries),
                faiss.swig_ptr(self.vectors),
                self.vectors.shape[1],
                len(queries),
                len(self.rows),
                k,
                faiss.swig_ptr(scores),
                faiss.swig_ptr(at),
                selection,
            )
        finally:
            faiss.omp_set_num_threads(threads)
        scores[at < 0] = -np.inf
        return scores, at


class PartitionView:
    """What a partition held at one moment; immutable, and safe in any thread for as long as anyone keeps it."""

    def __init__(self, dim: int, blocks: Sequence[_Block]) -> None:
        self.dim = dim
        self._blocks = [block for block in blocks if block.live_count]

    def __len__(self) -> int:
        return sum(block.live_count for block in self._blocks)

    @property
    def rows(self) -> Rows:
        """(n,) int64: the live rows, ascending."""
        return self._directory[0]

    def search(self, queries: Vectors, k: int, allowed: Rows | None = None) -> tuple[Vectors, Rows]:
        """The k largest inner products.

        Args:
            queries: (q, d) float32.
            k: answers wanted for each query.
            allowed: only these rows may answer; others in it are passed over.

        Returns:
            scores: (q, k) float32, descending, -inf where there are no more; rows: (q, k) int64, -1 there.
        """
        queries = np.ascontiguousarray(queries, np.float32)
        assert queries.shape == (len(queries), self.dim), f"queries {queries.shape}, dimension {self.dim}"
        scores: list[Vectors] = [np.full((len(queries), k), -np.inf, np.float32)]
        rows: list[Rows] = [np.full((len(queries), k), -1, np.int64)]
        chosen: Sequence[Bits | None] = [None] * len(self._blocks) if allowed is None else self._choose(allowed)
        for block, bits in zip(self._blocks, chosen, strict=True):
            if len(queries) and k and (bits is None or bits.any()):
                block_scores, block_rows = block.search(queries, k, bits)
                scores.append(block_scores)
                rows.append(block_rows)
        all_scores, all_rows = np.hstack(scores), np.hstack(rows)
        best = np.argsort(-all_scores, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(all_scores, best, axis=1), np.take_along_axis(all_rows, best, axis=1)

    def vectors(self, rows: Sequence[int] | Rows) -> Vectors:
        """The stored vectors of rows.

        Returns:
            (n, d) float32, a copy.

        Raises:
            KeyError: a row is not live here.
        """
        wanted = np.asarray(rows, np.int64)
        found, at = self._find(wanted)
        if not found.all():
            raise KeyError(int(wanted[~found][0]))
        out = np.empty((len(wanted), self.dim), np.float32)
        for block, inside, places in self._by_block(at):
            out[inside] = block.vectors[places]
        return out

    @cached_property
    def _directory(self) -> tuple[Rows, Rows]:
        """Live rows, ascending, and where each stands when the blocks are laid end to end."""
        empty = np.empty(0, np.int64)
        at = np.flatnonzero(np.concatenate([empty.astype(np.bool_), *(block.mask() for block in self._blocks)]))
        rows = np.concatenate([empty, *(block.rows for block in self._blocks)])[at]
        order = np.argsort(rows, kind="stable")
        return rows[order], at[order]

    def _find(self, wanted: Rows) -> tuple[npt.NDArray[np.bool_], Rows]:
        rows, at = self._directory
        if not len(rows):
            return np.zeros(len(wanted), np.bool_), np.empty(0, np.int64)
        places = np.minimum(np.searchsorted(rows, wanted), len(rows) - 1)
        found: npt.NDArray[np.bool_] = rows[places] == wanted
        return found, at[places[found]]

    def _by_block(self, at: Rows) -> list[tuple[_Block, npt.NDArray[np.bool_], Rows]]:
        split = []
        begin = 0
        for block in self._blocks:
            inside = (at >= begin) & (at < begin + len(block.rows))
            split.append((block, inside, at[inside] - begin))
            begin += len(block.rows)
        return split

    def _choose(self, allowed: Rows) -> list[Bits]:
        _, at = self._find(np.asarray(allowed, np.int64))
        chosen = []
        for block, _, places in self._by_block(at):
            mask = np.zeros(len(block.rows), np.bool_)
            mask[places] = True
            chosen.append(np.packbits(mask, bitorder="little"))
        return chosen


class Partition:
    """The writer's side of one era; use it from one thread.

    Args:
        dim: of the vectors.
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self._view: PartitionView | None = None
        self._fresh = 0  # how much of the fresh block is used
        self._dead = 0
        self._settle(np.empty(0, np.int64), np.empty((0, dim), np.float32))

    def upsert(self, rows: Sequence[int] | Rows, vectors: Vectors) -> None:
        """Add rows or replace their vectors; the last of equal rows counts.

        Args:
            rows: n catalog rows.
            vectors: (n, d) float32, copied.
        """
        wanted, unique = self._unique(rows, vectors)
        self._kill(wanted)
        if self._fresh + len(wanted) > len(self._fresh_rows):
            live_rows, live_vectors = self._live()
            self._settle(np.concatenate([live_rows, wanted]), np.concatenate([live_vectors, unique]))
            return
        begin, self._fresh = self._fresh, self._fresh + len(wanted)
        self._fresh_rows[begin : self._fresh] = wanted
        self._fresh_vectors[begin : self._fresh] = unique
        self._fresh_live[begin : self._fresh] = True
        self._fresh_at.update(zip(wanted.tolist(), range(begin, self._fresh), strict=True))
        self._compact_where_dead()

    def remove(self, rows: Sequence[int] | Rows) -> int:
        """Take rows out; those that are not there are passed over. Returns how many were."""
        killed = self._kill(np.asarray(rows, np.int64))
        if killed:
            self._compact_where_dead()
        return killed

    def replace_all(self, rows: Sequence[int] | Rows, vectors: Vectors) -> None:
        """Hold these and nothing else; arguments as those of `upsert`."""
        self._settle(*self._unique(rows, vectors))

    def view(self) -> PartitionView:
        """The present content, for readers; the same object until something changes."""
        if self._view is None:
            fresh = slice(0, self._fresh)
            self._view = PartitionView(
                self.dim,
                [
                    _block(self._main_rows, self._main_vectors, self._main_live),
                    _block(self._fresh_rows[fresh], self._fresh_vectors[fresh], self._fresh_live[fresh]),
                ],
            )
        return self._view

    def _unique(self, rows: Sequence[int] | Rows, vectors: Vectors) -> tuple[Rows, Vectors]:
        wanted = np.asarray(rows, np.int64)
        assert vectors.shape == (len(wanted), self.dim), f"vectors {vectors.shape}, {len(wanted)} x {self.dim} wanted"
        unique, backwards = np.unique(wanted[::-1], return_index=True)
        return unique, vectors[len(wanted) - 1 - backwards]

    def _kill(self, rows: Rows) -> int:
        """Mark as dead; nothing moves."""
        killed = 0
        if len(self._main_rows):
            at = np.minimum(np.searchsorted(self._main_rows, rows), len(self._main_rows) - 1)
            at = np.unique(at[(self._main_rows[at] == rows) & self._main_live[at]])
            self._main_live[at] = False
            killed += len(at)
        for row in rows.tolist():
            place = self._fresh_at.pop(row, None)
            if place is not None:
                self._fresh_live[place] = False
                killed += 1
        self._dead += killed
        if killed:
            self._view = None
        return killed

    def _live(self) -> tuple[Rows, Vectors]:
        fresh = slice(0, self._fresh)
        live = self._fresh_live[fresh]
        return (
            np.concatenate([self._main_rows[self._main_live], self._fresh_rows[fresh][live]]),
            np.concatenate([self._main_vectors[self._main_live], self._fresh_vectors[fresh][live]]),
        )

    def _compact_where_dead(self) -> None:
        self._view = None
        if self._dead > max(_LEAST_FRESH, len(self._main_rows) // 4):
            self._settle(*self._live())

    def _settle(self, rows: Rows, vectors: Vectors) -> None:
        """Make these, in new memory, the main block, and begin a fresh one; views keep what they have."""
        order = np.argsort(rows, kind="stable")
        self._main_rows: Rows = rows[order]
        self._main_vectors: Vectors = np.ascontiguousarray(vectors[order], np.float32)
        self._main_live = np.ones(len(rows), np.bool_)
        room = max(_LEAST_FRESH, len(rows) // 4)  # memory that is not written to is not taken
        self._fresh_rows: Rows = np.empty(room, np.int64)
        self._fresh_vectors: Vectors = np.empty((room, self.dim), np.float32)
        self._fresh_live = np.zeros(room, np.bool_)
        self._fresh_at: dict[int, int] = {}
        self._fresh = 0
        self._dead = 0
        self._view = None


def _block(rows: Rows, vectors: Vectors, live: npt.NDArray[Any]) -> _Block:
    return _Block(rows, vectors, np.packbits(live, bitorder="little"), int(np.count_nonzero(live)))
