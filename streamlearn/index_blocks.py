"""Vectors that do not change any more, and how they are searched: the one interface of every kind of index.

A block knows places, 0 to n - 1, the catalog row of each, and inner products. What of it is live is somebody else's.
`FlatBlock` is exact, in full precision, and the reference that every other kind is tested against.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Protocol

import faiss
import numpy as np
import numpy.typing as npt

from streamlearn.records import Vectors

Rows = npt.NDArray[np.int64]
Bits = npt.NDArray[np.uint8]  # packed booleans, the first in the lowest bit
Mask = npt.NDArray[np.bool_]


def configure_faiss() -> None:
    """Tune FAISS for this process; call it once, at start.

    Its default takes the BLAS path only for batches of about a thousand queries, which makes smaller ones 10 to 25
    times slower on one thread (FAISS pull request 5109).
    """
    faiss.cvar.distance_compute_blas_threshold = 1024


@contextmanager
def one_thread() -> Iterator[None]:
    """FAISS on one core, in this thread.

    Decoders want the other cores. OpenMP keeps this number per thread and shares it with torch: the thread that learns
    searches too, and must not go on with one core.
    """
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)


def packed(mask: Mask) -> Bits:
    """As FAISS's selectors want it."""
    return np.packbits(mask, bitorder="little")


class Block(Protocol):
    """Vectors at places; immutable, so any thread may ask."""

    @property
    def rows(self) -> Rows:
        """(n,) int64: the catalog row of each place."""
        ...

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        ...

    def find(self, rows: Rows) -> Rows:
        """The place of each row, the last one where it has several, -1 where it has none. Shape: (m,) -> (m,)."""
        ...

    def vectors(self, places: Rows) -> Vectors:
        """Shape: (m,) -> float32 (m, d), a copy."""
        ...

    def search(self, queries: Vectors, k: int, allowed: Bits, count: int) -> tuple[Vectors, Rows]:
        """The best places, unordered.

        Args:
            queries: (q, d) float32, contiguous.
            k: wanted, at least 1.
            allowed: which places may answer, packed.
            count: how many these are, at least 1.

        Returns:
            scores and places, both (q, m): at least min(k, count) answers for each query, except that vectors
            that are no numbers never answer; others are (-inf, -1).
        """
        ...

    def among(self, queries: Vectors, k: int, chosen: Bits, count: int) -> tuple[Vectors, Rows]:
        """As `search`, of places that a filter chose, which may lie anywhere, and far from the queries."""
        ...


class FlatBlock:
    """Exact and in full precision.

    Args:
        rows: (n,) catalog rows, in any order.
        vectors: (n, d) float32, contiguous; neither may be written to afterwards.
    """

    def __init__(self, rows: Rows, vectors: Vectors) -> None:
        assert vectors.dtype == np.float32
        assert vectors.flags.c_contiguous
        self.rows = rows
        self._vectors = vectors

    @classmethod
    def of(cls, rows: Rows, vectors: npt.NDArray[np.floating]) -> FlatBlock:
        """A copy, in ascending order of rows."""
        order = np.argsort(rows, kind="stable")
        return cls(rows[order], np.ascontiguousarray(vectors[order], np.float32))

    @cached_property
    def _ascending(self) -> tuple[Rows, Rows]:
        order = np.argsort(self.rows, kind="stable")
        return self.rows[order], order

    @property
    def nbytes(self) -> int:
        """See `Block`."""
        return self._vectors.nbytes + self.rows.nbytes

    def find(self, rows: Rows) -> Rows:
        """See `Block`."""
        return find_sorted(*self._ascending, rows)

    def vectors(self, places: Rows) -> Vectors:
        """See `Block`."""
        return self._vectors[places]

    def search(self, queries: Vectors, k: int, allowed: Bits, count: int) -> tuple[Vectors, Rows]:
        """See `Block`."""
        n = len(self.rows)
        if count == n:
            return self._nearest(queries, min(k, n), None)
        if 2 * count < n:
            return self._nearest(queries, min(k, n), allowed)
        # FAISS uses BLAS only without a selection, and is many times faster with it. So ask for some more, drop what
        # is not allowed, and select only for the queries that are then short.
        scores, at = self._nearest(queries, min(n, 2 * k + 16), None)
        out = (allowed[at >> 3] >> (at & 7) & 1) == 0
        scores[out], at[out] = -np.inf, -1
        short = (at >= 0).sum(axis=1) < min(k, count)
        if short.any():
            scores[short], at[short] = self._nearest(queries[short], at.shape[1], allowed)
        return scores, at

    def among(self, queries: Vectors, k: int, chosen: Bits, count: int) -> tuple[Vectors, Rows]:
        """See `Block`."""
        return self.search(queries, k, chosen, count)

    def _nearest(self, queries: Vectors, k: int, chosen: Bits | None) -> tuple[Vectors, Rows]:
        scores = np.empty((len(queries), k), np.float32)
        at = np.empty((len(queries), k), np.int64)
        selection = None if chosen is None else faiss.IDSelectorBitmap(len(chosen), faiss.swig_ptr(chosen))
        with one_thread():
            faiss.knn_inner_product(
                faiss.swig_ptr(queries),
                faiss.swig_ptr(self._vectors),
                self._vectors.shape[1],
                len(queries),
                len(self._vectors),
                k,
                faiss.swig_ptr(scores),
                faiss.swig_ptr(at),
                selection,
            )
        scores[at < 0] = -np.inf
        return scores, at


def counted(chosen: Bits, begin: Rows) -> Rows:
    """How many are chosen from each of these places to the next. Shape: (l + 1,) ascending -> (l,)."""
    before = np.zeros(len(chosen) + 1, np.int64)  # each byte
    np.cumsum(np.bitwise_count(chosen), out=before[1:])
    within = np.append(chosen, np.uint8(0))[begin >> 3] & ((1 << (begin & 7)) - 1)
    up_to: Rows = before[begin >> 3] + np.bitwise_count(within)
    return np.diff(up_to)


def find_sorted(ascending: Rows, order: npt.NDArray[np.signedinteger[Any]], wanted: Rows) -> Rows:
    """`order` at the last of equals in `ascending`, for each row wanted; -1 where it is not there."""
    if not len(ascending):
        return np.full(len(wanted), -1, np.int64)
    at = np.searchsorted(ascending, wanted, side="right") - 1
    found = (at >= 0) & (ascending[at] == wanted)
    return np.where(found, order[at], -1).astype(np.int64)
