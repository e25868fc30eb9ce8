"""How a main block is made: from an old one and what came since, or, after a restart or a rollback, as it was.

Pure work on immutable things: it may run in any thread. A layout holds centroids and which row lies in which list.
Vectors and rows come from the catalog; a layout that is wrong would cost recall, never a wrong score.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from streamlearn.index_blocks import Block, FlatBlock, Mask, Rows
from streamlearn.index_device import DeviceBlock
from streamlearn.index_lists import (
    Depth,
    ListsBlock,
    exact,
    extended,
    halves_of,
    laid,
    trained,
    tuned,
)
from streamlearn.records import Vectors

log = logging.getLogger(__name__)

_JUDGES = 64  # queries that decide how deep to search


class Layout(NamedTuple):
    """How the vectors of a partition lie: with the same vectors it has another one answer as this one does.

    Attributes:
        name: of the lists; those of one name are the same.
        lists: makes what is to be kept of them.
        fresh: (m,) the rows that lie in none yet.
    """

    name: str
    lists: Callable[[], Mapping[str, Tensor]]
    fresh: Rows


def tensors_of(block: ListsBlock) -> dict[str, Tensor]:
    """What `Layout.lists` makes."""
    arrays = {"rows": block.rows, "begin": block.begin, "centroids": block.centroids, **block.depth._asdict()}
    return {name: torch.from_numpy(np.asarray(array)) for name, array in arrays.items()}


def settled(
    rows: Rows,
    vectors: npt.NDArray[np.floating],
    *,
    flat_max: int,
    layout: Layout | None = None,
    device: str | None = None,
) -> FlatBlock | ListsBlock | DeviceBlock:
    """A block for these vectors that is ready soon: no training. Shape: unique rows (n,), ascending, (n, d).

    A large one lies on the `device`, where one is given and has room, or as the layout says, without what was fresh.
    """
    if layout is None and len(rows) <= flat_max:
        return FlatBlock.of(rows, vectors)
    halves = vectors.astype(np.float16, copy=False)
    if device is not None and (block := _on_device(rows, halves, device)) is not None:
        return block
    if layout is None:
        return exact(rows, halves)
    return _restored(rows, halves, layout)


def _restored(rows: Rows, halves: npt.NDArray[np.float16], layout: Layout) -> ListsBlock:
    tensors = layout.lists()
    listed, begin, centroids = (tensors[name].numpy() for name in ("rows", "begin", "centroids"))
    depth = Depth._make(tensors[name].item() for name in Depth._fields)
    at = np.minimum(np.searchsorted(rows, listed), max(0, len(rows) - 1))
    there = (rows[at] == listed) & ~np.isin(listed, layout.fresh) if len(rows) else np.zeros(len(listed), np.bool_)
    before = np.concatenate([[0], np.cumsum(there)])  # of each place, how many are still there
    return laid(rows, halves, at[there], before[begin], centroids, depth)


def compacted(
    main: tuple[Block, Mask],
    fresh: tuple[FlatBlock, Mask],
    asked: list[Vectors],
    *,
    flat_max: int,
    device: str | None = None,
) -> FlatBlock | ListsBlock | DeviceBlock:
    """One block of what is live in two. `asked` are queries, (d,) each, to measure recall with."""
    (old, old_live), (new, new_live) = main, fresh
    old_places, new_places = np.flatnonzero(old_live), np.flatnonzero(new_live)
    count = len(old_places) + len(new_places)
    if count <= flat_max:
        rows = np.concatenate([old.rows[old_places], new.rows[new_places]])
        return FlatBlock.of(rows, np.concatenate([old.vectors(old_places), new.vectors(new_places)]))
    if device is not None:
        on_device = _on_device(*halves_of([(old, old_places), (new, new_places)]), device)
        if on_device is not None:
            return on_device
    block: ListsBlock | None = None
    if isinstance(old, ListsBlock) and len(old.centroids) > 1:
        block = old
        if len(old_places) < len(old.rows) or len(new_places):
            block = extended(old, old_live, new.rows[new_places], new.vectors(new_places))
        # The old block is not needed for more; its vectors are in the new one.
        layers: list[tuple[Block, Rows]] = [(block, np.arange(count, dtype=np.int64))]
        block = tuned(block, _judges(layers, asked))
    else:
        layers = [(old, old_places), (new, new_places)]
    if block is None:
        judges = _judges(layers, asked)
        rows, halves = halves_of(layers)
        block = trained(rows, halves, judges)
        log.info("%d vectors in %d new lists, %d looked into", count, len(block.centroids), block.depth.probes)
    return block


def _on_device(rows: Rows, halves: npt.NDArray[np.float16], device: str) -> DeviceBlock | None:
    try:
        return DeviceBlock(rows, halves, device)
    except torch.OutOfMemoryError as error:
        log.warning("%d vectors do not fit on %s: they lie in lists, here (%s)", len(rows), device, error)
        return None


def _judges(layers: list[tuple[Block, Rows]], asked: list[Vectors]) -> Vectors:
    """Queries that were asked, filled up with stored vectors. Shape: (at most 64, d)."""
    rng = np.random.default_rng(0)
    total = sum(len(places) for _, places in layers)
    chosen = np.sort(rng.choice(total, min(total, max(_JUDGES // 2, _JUDGES - len(asked))), replace=False))
    stored, begin = [], 0
    for block, places in layers:
        inside = chosen[(chosen >= begin) & (chosen < begin + len(places))] - begin
        stored.append(block.vectors(places[inside]))
        begin += len(places)
    real = asked[-_JUDGES // 2 :]
    judges = np.concatenate([*(query[None] for query in real), *stored])
    return np.ascontiguousarray(judges[np.isfinite(judges).all(axis=1)], np.float32)
