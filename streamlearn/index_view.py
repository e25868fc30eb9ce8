"""What a partition of the index held at one moment, for readers: immutable, searched from any thread for ever."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from streamlearn.index_blocks import Bits, Block, Mask, Rows, packed
from streamlearn.records import Vectors


@dataclass(frozen=True, slots=True)
class Layer:
    """A block and what of it is live."""

    block: Block
    live: Bits
    count: int

    def live_places(self, rows: Rows) -> Rows:
        """Where rows are live in this layer, -1 where they are not."""
        places = self.block.find(rows)
        return np.where((places >= 0) & (self.live[places >> 3] >> (places & 7) & 1 == 1), places, -1)

    def chosen(self, rows: Rows) -> tuple[Bits, int]:
        """The live places of these rows, packed, and how many they are."""
        mask = np.zeros(len(self.block.rows), np.bool_)
        places = self.live_places(rows)
        mask[places[places >= 0]] = True
        return packed(mask), int(np.count_nonzero(mask))

    def live_rows(self) -> Rows:
        """In the order of places."""
        mask = np.unpackbits(self.live, count=len(self.block.rows), bitorder="little").view(np.bool_)
        return self.block.rows[mask]


def best_of(scores: Sequence[Vectors], rows: Sequence[Rows], k: int) -> tuple[Vectors, Rows]:
    """The k highest of answers side by side, descending. Shape: (q, m) each, at least k in all -> (q, k) twice."""
    all_scores = scores[0] if len(scores) == 1 else np.concatenate(scores, 1)
    all_rows = rows[0] if len(rows) == 1 else np.concatenate(rows, 1)
    best = np.argsort(-all_scores, axis=1, kind="stable")[:, :k]
    if len(best) == 1:  # a user's query: without the cost of two index arrays
        return all_scores[0].take(best), all_rows[0].take(best)
    line = np.arange(len(best))[:, None]
    return all_scores[line, best], all_rows[line, best]


class PartitionView:
    """What a partition held at one moment; immutable, and safe in any thread for as long as anyone keeps it."""

    def __init__(self, dim: int, layers: Sequence[Layer], asked: deque[Vectors]) -> None:
        self.dim = dim
        self._layers = [layer for layer in layers if layer.count]
        self._asked = asked

    def __len__(self) -> int:
        return sum(layer.count for layer in self._layers)

    @cached_property
    def rows(self) -> Rows:
        """(n,) int64: the live rows, ascending."""
        return np.sort(np.concatenate([np.empty(0, np.int64), *(layer.live_rows() for layer in self._layers)]))

    @property
    def nbytes(self) -> int:
        """Memory that it takes, or shares with other views."""
        return sum(layer.block.nbytes + layer.live.nbytes for layer in self._layers)

    @cached_property
    def newest(self) -> int:
        """The highest live row, of at least one."""
        return max(int(layer.live_rows().max()) for layer in self._layers)

    def holds(self, rows: Sequence[int] | Rows) -> Mask:
        """Whether each row is live here. Shape: (n,)."""
        wanted = np.asarray(rows, np.int64)
        found = np.zeros(len(wanted), np.bool_)
        for layer in self._layers:
            found |= layer.live_places(wanted) >= 0
        return found

    def search(self, queries: Vectors, k: int, allowed: Rows | None = None) -> tuple[Vectors, Rows]:
        """The k largest inner products: all of them from an exact block, nearly all from one with lists.

        Args:
            queries: (q, d) float32.
            k: answers wanted for each query.
            allowed: only these rows may answer; others in it are passed over.

        Returns:
            scores: (q, k) float32, descending, -inf where there are no more; rows: (q, k) int64, -1 there.
        """
        queries = np.ascontiguousarray(queries, np.float32)
        assert queries.shape == (len(queries), self.dim), f"queries {queries.shape}, dimension {self.dim}"
        if len(queries):
            self._asked.append(queries[-1].copy())
        scores: list[Vectors] = []
        rows: list[Rows] = []
        for layer in self._layers if len(queries) and k else ():
            bits, count = (layer.live, layer.count) if allowed is None else layer.chosen(allowed)
            if count:
                ask = layer.block.search if allowed is None else layer.block.among
                found, places = ask(queries, k, bits, count)
                scores.append(found)
                rows.append(np.where(places < 0, -1, layer.block.rows[places]))
        missing = k - sum(part.shape[1] for part in scores)
        if missing > 0 or not scores:
            scores.append(np.full((len(queries), max(0, missing)), -np.inf, np.float32))
            rows.append(np.full((len(queries), max(0, missing)), -1, np.int64))
        return best_of(scores, rows, k)

    def vectors(self, rows: Sequence[int] | Rows) -> Vectors:
        """The stored vectors of rows.

        Returns:
            (n, d) float32, a copy.

        Raises:
            KeyError: a row is not live here.
        """
        wanted = np.asarray(rows, np.int64)
        out = np.empty((len(wanted), self.dim), np.float32)
        missing = np.ones(len(wanted), np.bool_)
        for layer in self._layers:
            places = layer.live_places(wanted)
            here = places >= 0
            out[here] = layer.block.vectors(places[here])
            missing &= ~here
        if missing.any():
            raise KeyError(int(wanted[missing][0]))
        return out
