"""Many vectors, in half precision, in inverted lists: FAISS's IVF, searched as deep as a measured recall asks for.

How deep is measured, not set: `tuned` asks real queries, where there are any, and compares with the exact answer. The
lists are only a way to look at fewer vectors, so a vector in a wrong list costs recall and never a wrong score.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import faiss
import numpy as np
import numpy.typing as npt

from streamlearn.index_blocks import Bits, Block, Rows, counted, find_sorted, one_thread
from streamlearn.records import Vectors

Halves = npt.NDArray[np.float16]
Lists = npt.NDArray[np.int32]  # (n,): the list of each vector

#: What the depth is chosen for: this share of the exact first ten. Stored vectors as judges flatter it by some points.
TARGET_RECALL = 0.98
_TUNED_K = 10
DEEP_K = 128  # whoever asks for more than this gets an exact answer
_CHOSEN = 8_192  # of the vectors that a filter leaves, so many are looked at; a millisecond or two
_CHUNK = 65_536
_ITERATIONS = 8
_POINTS_PER_LIST = 39  # for k-means; FAISS's own advice
_MOST_LISTS = 8_192


class Depth(NamedTuple):
    """How deep a search goes, and what it was measured on.

    Attributes:
        probes: lists looked into for each query.
        recall: that was measured with it.
        trained_share: of all vectors, what was looked at when the lists were new.
        trained_n: vectors there were then.
        n: vectors there were when it was measured, whichever of them live on.
    """

    probes: int
    recall: float
    trained_share: float
    trained_n: int
    n: int


@dataclass(frozen=True)
class ListsBlock:
    """Vectors in inverted lists; places run through the lists, one after the other.

    Attributes:
        rows: (n,) the catalog row of each place.
        begin: (lists + 1,) the first place of each list.
        centroids: (lists, d) float32.
    """

    rows: Rows
    begin: Rows
    centroids: Vectors
    depth: Depth
    _index: Any  # faiss.IndexIVFScalarQuantizer; what its stubs say of it is not true
    _ascending: Rows
    _order: npt.NDArray[np.int32]

    @property
    def lists(self) -> Lists:
        """The list of each place. Shape: (n,)."""
        return np.repeat(np.arange(len(self.centroids), dtype=np.int32), np.diff(self.begin))

    @property
    def nbytes(self) -> int:
        """See `Block`."""
        codes = len(self.rows) * (2 * self.centroids.shape[1] + 8)  # a vector and its place, in FAISS
        return int(codes + 2 * self.rows.nbytes + self._order.nbytes + 2 * self.centroids.nbytes)

    def find(self, rows: Rows) -> Rows:
        """See `Block`."""
        return find_sorted(self._ascending, self._order, rows)

    def halves(self, number: int) -> Halves:
        """The vectors of one list, not to be written to. Shape: (m, d)."""
        m, d = int(self.begin[number + 1] - self.begin[number]), self.centroids.shape[1]
        if not m:
            return np.empty((0, d), np.float16)
        codes = faiss.rev_swig_ptr(self._index.invlists.get_codes(number), m * d * 2)
        out: Halves = codes.view("<f2").reshape(m, d)
        return out

    def vectors(self, places: Rows) -> Vectors:
        """See `Block`."""
        out = np.empty((len(places), self.centroids.shape[1]), np.float32)
        number = np.searchsorted(self.begin, places, side="right") - 1
        order = np.argsort(number, kind="stable")
        ends = np.flatnonzero(np.diff(number[order], append=-1)) + 1
        for start, end in zip([0, *ends.tolist()[:-1]], ends.tolist(), strict=True) if len(places) else ():
            these = order[start:end]
            its = int(number[these[0]])
            out[these] = self.halves(its)[places[these] - self.begin[its]]
        return out

    def search(self, queries: Vectors, k: int, allowed: Bits, count: int) -> tuple[Vectors, Rows]:
        """See `Block`. Approximate; exact beyond 128 answers."""
        lists, most = len(self.centroids), max(k, DEEP_K)
        # As many allowed vectors are looked at as when the depth was measured.
        probes = lists if k > DEEP_K else min(lists, round(self.depth.probes * self.depth.n / count))
        chosen = None if count == len(self.rows) else allowed
        # Whether enough is found must not depend on k: pages of one ranking ask for more and more.
        scores, at = self.probe(queries, most, probes, chosen)
        if probes < lists:
            short = (at >= 0).sum(axis=1) < min(most, count)
            if short.any():
                scores[short], at[short] = self.probe(queries[short], most, lists, chosen)
        return scores, at

    def among(self, queries: Vectors, k: int, chosen: Bits, count: int) -> tuple[Vectors, Rows]:
        """See `Block`. Approximate; exact beyond 128 answers, or where no more than 8,192 places are chosen.

        The depth was measured where queries lie among the vectors. What a filter leaves may lie elsewhere, all around:
        so lists are looked into, nearest first, until enough of it was looked at.
        """
        usual = self.depth.probes * self.depth.n // len(self.centroids)
        enough = count if k > DEEP_K else max(_CHOSEN, usual)
        nearest = np.argsort(-(queries @ self.centroids.T), axis=1)  # (q, lists)
        held = counted(chosen, self.begin)[nearest]
        lists = np.where((held > 0) & (np.cumsum(held, axis=1) - held < enough), nearest, -1)
        return self._look_into(queries, k, np.ascontiguousarray(lists[:, (lists >= 0).any(axis=0)]), chosen)

    def _look_into(self, queries: Vectors, k: int, lists: Rows, chosen: Bits) -> tuple[Vectors, Rows]:
        """The best of these lists. Shape: (q, d), (q, l), -1 for none -> (q, m) twice."""
        selector = faiss.IDSelectorBitmap(len(chosen), faiss.swig_ptr(chosen))
        parameters = faiss.SearchParametersIVF(nprobe=lists.shape[1], sel=selector)  # type: ignore[call-arg]
        shape, pointer = (len(queries), min(k, len(self.rows))), faiss.swig_ptr
        scores, at, unused = np.empty(shape, np.float32), np.empty(shape, np.int64), np.zeros(lists.shape, np.float32)
        with one_thread():
            # The wrapper of this takes no parameters, and without them no selector.
            self._index.search_preassigned_c(
                shape[0], pointer(queries), shape[1], pointer(lists), pointer(unused), pointer(scores), pointer(at),
                False, parameters,
            )  # fmt: skip
        scores[at < 0] = -np.inf
        return scores, at

    def probe(self, queries: Vectors, k: int, probes: int, chosen: Bits | None = None) -> tuple[Vectors, Rows]:
        """The best of so many lists; all of them make it exact."""
        selector = None if chosen is None else faiss.IDSelectorBitmap(len(chosen), faiss.swig_ptr(chosen))
        parameters = faiss.SearchParametersIVF(nprobe=probes, sel=selector)  # type: ignore[call-arg]
        with one_thread():
            scores, at = self._index.search(queries, min(k, len(self.rows)), params=parameters)
        scores[at < 0] = -np.inf
        return scores, at


def trained(rows: Rows, halves: Halves, asked: Vectors) -> ListsBlock:
    """New lists for vectors, and the depth that they need. Shape: (n,), (n, d), queries (m, d)."""
    centroids = _centroids(halves)
    block = filled(rows, halves, assigned(halves, centroids), centroids, Depth(1, 0.0, 1.0, len(rows), len(rows)))
    depth = _measure(block, asked)
    share = depth.probes / len(centroids)
    return replace(block, depth=depth._replace(trained_share=share, trained_n=len(rows)))


def tuned(block: ListsBlock, asked: Vectors) -> ListsBlock | None:
    """The block with a depth that reaches the recall; None where new lists are due.

    They are when twice as much as at first must be looked at, or there are four times as many vectors.
    """
    depth = _measure(block, asked)
    share = depth.probes / len(block.centroids)
    if share > 2 * depth.trained_share or len(block.rows) > 4 * depth.trained_n:
        return None
    return replace(block, depth=depth)


def exact(rows: Rows, halves: Halves) -> ListsBlock:
    """One list, always searched whole: at once there, and exact but for the rounding to half precision."""
    lists, centroids = np.zeros(len(rows), np.int32), np.zeros((1, halves.shape[1]), np.float32)
    return filled(rows, halves, lists, centroids, Depth(1, 1.0, 1.0, 0, len(rows)))


def filled(rows: Rows, halves: Halves, lists: Lists, centroids: Vectors, depth: Depth) -> ListsBlock:
    """Vectors put into their lists."""
    order = np.argsort(lists, kind="stable")
    begin = np.searchsorted(lists[order], np.arange(len(centroids) + 1))
    return laid(rows, halves, order, begin, centroids, depth)


def laid(rows: Rows, halves: Halves, order: Rows, begin: Rows, centroids: Vectors, depth: Depth) -> ListsBlock:
    """Vectors in this order, which runs through the lists; each begins where `begin` says."""
    pieces = (halves[order[begin[i] : begin[i + 1]]] for i in range(len(centroids)))
    return _assemble(rows[order], pieces, begin, centroids, depth)


def extended(block: ListsBlock, live: npt.NDArray[np.bool_], rows: Rows, vectors: Vectors) -> ListsBlock:
    """The block's live places and more vectors, in the lists that there are. Shape: (n,), (m,), (m, d)."""
    halves = vectors.astype(np.float16)
    lists = assigned(halves, block.centroids)
    order = np.argsort(lists, kind="stable")
    new = np.searchsorted(lists[order], np.arange(len(block.centroids) + 1))
    old = block.begin

    def pieces() -> Iterator[Halves]:
        for i in range(len(block.centroids)):
            kept = block.halves(i)[live[old[i] : old[i + 1]]]
            yield np.concatenate([kept, halves[order[new[i] : new[i + 1]]]])

    all_lists = np.concatenate([block.lists[live], lists])
    by_list = np.argsort(all_lists, kind="stable")
    begin = np.searchsorted(all_lists[by_list], np.arange(len(block.centroids) + 1))
    return _assemble(
        np.concatenate([block.rows[live], rows])[by_list], pieces(), begin, block.centroids, block.depth
    )  # fmt: skip


def assigned(halves: Halves, centroids: Vectors) -> Lists:
    """The list of each vector: that of the nearest centroid. Shape: (n, d), (l, d) -> (n,)."""
    out = np.zeros(len(halves), np.int32)
    if len(centroids) == 1:
        return out
    quantizer = faiss.IndexFlatIP(centroids.shape[1])
    quantizer.add(centroids)
    for start in range(0, len(halves), _CHUNK):
        with one_thread():
            _, nearest = quantizer.search(halves[start : start + _CHUNK].astype(np.float32), 1)
        out[start : start + _CHUNK] = np.maximum(nearest[:, 0], 0)  # -1: not a number
    return out


def halves_of(blocks: Sequence[tuple[Block, Rows]]) -> tuple[Rows, Halves]:
    """Vectors of chosen places of blocks, copied into one array, with their rows."""
    rows = np.concatenate([block.rows[places] for block, places in blocks])
    halves: Halves | None = None
    at = 0
    for block, places in blocks:
        for start in range(0, len(places), _CHUNK):
            vectors = block.vectors(places[start : start + _CHUNK])
            if halves is None:
                halves = np.empty((len(rows), vectors.shape[1]), np.float16)
            halves[at : at + len(vectors)] = vectors
            at += len(vectors)
    assert halves is not None, "no vectors"
    return rows, halves


def _assemble(rows: Rows, pieces: Iterator[Halves], begin: Rows, centroids: Vectors, depth: Depth) -> ListsBlock:
    count, dim = centroids.shape
    quantizer = faiss.IndexFlatIP(dim)
    quantizer.add(centroids)
    index: Any = faiss.IndexIVFScalarQuantizer(
        quantizer, dim, count, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT, False
    )
    index.referenced_objects = [quantizer]
    index.is_trained = True
    places = np.arange(len(rows), dtype=np.int64)
    for number, piece in enumerate(pieces):
        if len(piece):
            codes = np.ascontiguousarray(piece, "<f2")
            # All of a list at once: FAISS then reserves no more than it needs.
            index.invlists.add_entries(
                number, len(piece), faiss.swig_ptr(places[begin[number] :]), faiss.swig_ptr(codes.view(np.uint8))
            )
    index.ntotal = len(rows)
    order = np.argsort(rows, kind="stable").astype(np.int32)
    return ListsBlock(rows, begin, centroids, depth, index, rows[order], order)


def _centroids(halves: Halves) -> Vectors:
    """By spherical k-means on a sample; about 4 sqrt(n) of them."""
    n, dim = halves.shape
    count = min(_MOST_LISTS, max(1, int(4 * n**0.5)), max(1, n // _POINTS_PER_LIST))
    sample = halves[np.random.default_rng(0).permutation(n)[: count * _POINTS_PER_LIST]].astype(np.float32)
    sample = sample[np.isfinite(sample).all(axis=1)]
    count = min(count, len(sample))
    if not count:
        return np.zeros((1, dim), np.float32)
    clustering = faiss.Clustering(dim, count)
    clustering.niter, clustering.spherical, clustering.seed = _ITERATIONS, True, 1
    clustering.min_points_per_centroid = 1
    with one_thread():
        clustering.train(sample, faiss.IndexFlatIP(dim))
    out: Vectors = faiss.vector_to_array(clustering.centroids).reshape(count, dim).copy()
    return out


def _measure(block: ListsBlock, asked: Vectors) -> Depth:
    """The fewest probes that reach the recall on the queries, and find twice what a query not too deep asks for."""
    lists, depth = len(block.centroids), block.depth
    least = min(lists, -(-2 * DEEP_K * lists // len(block.rows)))
    k = min(_TUNED_K + 1, len(block.rows))
    scores, truth = block.probe(asked, k, lists)
    own = scores >= 0.998 * (asked**2).sum(axis=1, keepdims=True)  # a stored vector that asks finds itself anywhere
    truth[own] = -1
    probes, recall, judged = lists, 1.0, int((truth >= 0).sum())
    for tried in sorted({max(least, round(2 ** (step / 2))) for step in range(2 * lists.bit_length())}):
        if tried >= lists:
            break
        _, found = block.probe(asked, k, tried)
        overlap = (truth[:, :, None] == found[:, None, :]) & (truth >= 0)[:, :, None]
        reached = float(overlap.sum() / max(1, judged))
        if reached >= TARGET_RECALL:
            probes, recall = tried, reached
            break
    return depth._replace(probes=probes, recall=recall, n=len(block.rows))
