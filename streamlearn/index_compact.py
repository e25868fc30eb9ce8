"""How a new main block is made from an old one and what came since, and remembered for the next start.

Pure work on immutable things: it may run in any thread. The hints file holds centroids and which row lay in which list.
Vectors and rows come from the catalog; a hint that is wrong costs recall, which is measured afterwards, nothing else.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from streamlearn.index_blocks import Block, FlatBlock, Mask, Rows
from streamlearn.index_device import DeviceBlock
from streamlearn.index_lists import (
    Depth,
    ListsBlock,
    assigned,
    exact,
    extended,
    filled,
    halves_of,
    trained,
    tuned,
)
from streamlearn.records import Vectors

log = logging.getLogger(__name__)

_JUDGES = 64  # queries that decide how deep to search


def settled(
    rows: Rows, vectors: npt.NDArray[np.floating], *, flat_max: int, hints: Path | None, device: str | None = None
) -> FlatBlock | ListsBlock | DeviceBlock:
    """A block for these vectors that is ready soon: no training. Shape: unique rows (n,), (n, d).

    A large one lies on the `device`, where one is given and has room.
    """
    if len(rows) <= flat_max:
        return FlatBlock.of(rows, vectors)
    halves = vectors.astype(np.float16, copy=False)
    if device is not None and (block := _on_device(rows, halves, device)) is not None:
        return block
    known = _read_hints(hints, vectors.shape[1]) if hints is not None else None
    if known is None:
        return exact(rows, halves)
    centroids, hinted_rows, hinted_lists, depth = known
    at = np.searchsorted(hinted_rows, rows)
    at[at == len(hinted_rows)] = 0
    hit = hinted_rows[at] == rows
    lists = np.where(hit, hinted_lists[at], -1).astype(np.int32)
    lists[~hit] = assigned(halves[~hit], centroids)
    return filled(rows, halves, lists, centroids, depth)


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


def remember(path: Path, block: ListsBlock) -> None:
    """Write down how vectors lie in lists, for the next start."""
    order = np.argsort(block.rows, kind="stable")
    tensors: dict[str, npt.NDArray[Any]] = {
        "rows": block.rows[order],
        "lists": block.lists[order],
        "centroids": block.centroids,
    }
    aside = path.with_suffix(".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, aside, metadata={"depth": json.dumps(block.depth._asdict())})
        os.replace(aside, path)
    except OSError as error:
        log.warning("%s cannot be written (%s): the next start will take longer", path, error)


def sweep(folder: Path, eras: Collection[int]) -> None:
    """Forget how eras lay in lists that are not among these: merged, or undone by a rollback."""
    for path in folder.glob("*.safetensors"):
        if path.stem.isdecimal() and int(path.stem) not in eras:
            path.unlink(missing_ok=True)


def _read_hints(path: Path, dim: int) -> tuple[Vectors, Rows, npt.NDArray[np.int32], Depth] | None:
    """Centroids, rows in ascending order, their lists, and the depth; None where there is nothing to rely on."""
    try:
        with safe_open(path, "numpy") as file:
            centroids, rows, lists = (file.get_tensor(name) for name in ("centroids", "rows", "lists"))
            depth = Depth(**json.loads(file.metadata()["depth"]))
        good = (
            centroids.dtype == np.float32 and rows.dtype == np.int64 and lists.dtype == np.int32
            and centroids.ndim == 2 and centroids.shape[1] == dim and np.isfinite(centroids).all()
            and rows.shape == lists.shape == (len(rows),) and len(rows) > 0 and (np.diff(rows) > 0).all()
            and lists.min() >= 0 and lists.max() < len(centroids) and 1 <= depth.probes <= len(centroids)
        )  # fmt: skip
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
        log.warning("%s cannot be used (%s): the index is built anew, in the background", path, error)
        return None
    if not good:
        log.warning("%s does not fit: the index is built anew, in the background", path)
        return None
    return centroids, rows, lists, depth
