"""Vectors on a GPU: exact, in half precision, all of them looked at in one product.

A card reads a million vectors of 256 numbers in less time than a processor needs for the lists that it looks into, and
nothing is to be trained. It is torch's, not FAISS's: FAISS's GPU build takes the place of its CPU build and brings a
second CUDA runtime beside torch's (docs/decisions.md).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from streamlearn.index_blocks import Bits, Rows, find_sorted
from streamlearn.records import Vectors

_AT_ONCE = 2**27  # numbers, so that the scores of many queries fit
_PART = 2**16  # vectors that are copied at a time
_MORE = 32  # candidates beyond those asked for, as their scores are rounded
_ROUNDED = 2**-11  # the most that a number loses, of itself, where it becomes a half


class DeviceBlock:
    """See `index_blocks.Block`; searches of several threads queue up on the card.

    Args:
        rows: (n,) unique catalog rows.
        vectors: (n, d), at best halves.
        device: a torch device.

    Raises:
        torch.OutOfMemoryError: they do not fit.
    """

    def __init__(self, rows: Rows, vectors: npt.NDArray[np.floating], device: str) -> None:
        order = np.argsort(rows, kind="stable")
        self.rows, self._order = rows[order], np.arange(len(rows))
        self._device = torch.device(device)
        # Of its own, and first: the default stream is full of the learner's steps.
        cuda = self._device.type == "cuda"
        self._stream = torch.cuda.Stream(self._device, priority=-1) if cuda else None  # type: ignore[no-untyped-call]
        halves = vectors.astype(np.float16, copy=False)[order]
        with self._working():
            self._halves = torch.from_numpy(halves).to(self._device)  # (n, d)
            # (n,), in parts: all at once would take the room of the vectors twice more
            self._finite = torch.cat([some.isfinite().all(1) for some in torch.split(self._halves, _PART)])
            self._whole = bool(self._finite.all())

    @property
    def nbytes(self) -> int:
        """See `Block`; most of it is the card's."""
        return self._halves.nbytes + self._finite.nbytes + self.rows.nbytes + self._order.nbytes

    def find(self, rows: Rows) -> Rows:
        """See `Block`."""
        return find_sorted(self.rows, self._order, rows)

    @torch.inference_mode()
    def vectors(self, places: Rows) -> Vectors:
        """See `Block`."""
        with self._working():
            out: Vectors = self._halves[torch.from_numpy(places).to(self._device)].float().cpu().numpy()
        return out

    @torch.inference_mode()
    def search(self, queries: Vectors, k: int, allowed: Bits, count: int) -> tuple[Vectors, Rows]:
        """See `Block`."""
        n = len(self.rows)
        few = max(1, _AT_ONCE // max(n, (min(k, count) + _MORE) * queries.shape[1]))
        with self._working():
            may = self._finite if count == n else self._finite & self._unpacked(allowed)
            asked, all_may = torch.from_numpy(queries).to(self._device), self._whole and count == n
            parts = [self._nearest(some, min(k, count), may, all_may) for some in torch.split(asked, few)]
            scores, at = (torch.cat(part).cpu().numpy() for part in zip(*parts, strict=True))
        at[scores == -np.inf] = -1
        return scores, at

    def among(self, queries: Vectors, k: int, chosen: Bits, count: int) -> tuple[Vectors, Rows]:
        """See `Block`."""
        return self.search(queries, k, chosen, count)

    def _nearest(self, queries: Tensor, k: int, may: Tensor, all_may: bool) -> tuple[Tensor, Tensor]:
        """Shape: (q, d), (n,) -> (q, k) twice, -inf where there are no more."""
        rounded = queries.half() @ self._halves.T  # (q, n)
        if not all_may:
            rounded.masked_fill_(~may, -torch.inf)
        best, candidates = rounded.topk(min(k + _MORE, rounded.shape[1]), dim=1)  # (q, c)
        exact = (self._halves[candidates].float() @ queries.unsqueeze(2)).squeeze(2)
        exact = exact.masked_fill(~may[candidates], -torch.inf)
        scores, at = exact.topk(k, dim=1)
        at = candidates.gather(1, at)
        if best.shape[1] < rounded.shape[1]:
            # Of unit vectors the query's rounding changes a score by so much at most, and its own by so much of it.
            others = best[:, -1:] + _ROUNDED * (1 + best[:, -1:].float().abs())
            doubtful = (scores[:, -1:] < others).any(1)  # there are more that are nearly alike than were looked at
            if doubtful.any():
                scores[doubtful], at[doubtful] = self._exactly(queries[doubtful], k, may)
        return scores, at

    def _exactly(self, queries: Tensor, k: int, may: Tensor) -> tuple[Tensor, Tensor]:
        """As `_nearest`, all in full precision."""
        scores = torch.cat([queries @ some.float().T for some in torch.split(self._halves, _PART)], 1)
        return scores.masked_fill_(~may, -torch.inf).topk(k, dim=1)

    def _unpacked(self, bits: Bits) -> Tensor:
        """Shape: (ceil(n / 8),) -> (n,)."""
        packed = torch.from_numpy(bits).to(self._device)
        shifts = torch.arange(8, device=self._device, dtype=torch.uint8)
        return (packed[:, None].bitwise_right_shift(shifts) & 1).bool().flatten()[: len(self.rows)]

    def _working(self) -> AbstractContextManager[object]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)
