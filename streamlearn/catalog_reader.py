"""The catalog's clips and vectors as any thread may read them: what is live, each batch whole or not at all."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from streamlearn.catalog_file import CatalogFile
from streamlearn.catalog_rows import CLIP_COLUMNS, ClipRow, clip_of
from streamlearn.filters import where

Rows = npt.NDArray[np.int64]
Halves = npt.NDArray[np.float16]

#: A condition on one bound value: a JSON list of rows.
OF_ROWS = "row IN (SELECT value FROM json_each(?))"

_FETCHED = 4_096  # rows at once
_LIVE_CLIPS = f"SELECT {CLIP_COLUMNS} FROM clips WHERE died IS NULL"


class CatalogReader:
    """Queries of live clips and vectors.

    Args:
        file: an open catalog.
    """

    def __init__(self, file: CatalogFile) -> None:
        self._file = file

    def clips(self, rows: Iterable[int]) -> dict[int, ClipRow]:
        """The clips of those rows that are live."""
        wanted = json.dumps([int(row) for row in rows])
        found = self._file.fetch(f"{_LIVE_CLIPS} AND {OF_ROWS}", wanted)
        return {values[0]: clip_of(values) for values in found}

    def successors(self, rows: Iterable[int]) -> dict[int, ClipRow]:
        """Of those rows that were replaced and are still remembered, the live clips of the same ids."""
        of = f"SELECT row AS old, video_id AS id FROM clips WHERE died IS NOT NULL AND {OF_ROWS}"
        query = f"SELECT old, {CLIP_COLUMNS} FROM ({of}) JOIN clips ON video_id = id AND died IS NULL"
        found = self._file.fetch(query, json.dumps([int(row) for row in rows]))
        return {old: clip_of(tuple(values)) for old, *values in found}

    def clip(self, video_id: str) -> ClipRow | None:
        """The live clip of this id."""
        found = self._file.fetch(f"{_LIVE_CLIPS} AND video_id = ?", video_id)
        return clip_of(found[0]) if found else None

    def rows_where(self, filter: Mapping[str, Any]) -> Rows:  # noqa: A002 -- the contract's word
        """Live rows that pass a search's filter (`streamlearn.filters`), ascending.

        Raises:
            SearchError: it is no filter.
        """
        condition, bound = where(filter)
        # In one text, not row by row: a wide filter takes a third of the time, and holds up no other thread meanwhile.
        query = f"SELECT coalesce(group_concat(row), '') FROM clips WHERE died IS NULL AND ({condition})"
        ((found,),) = self._file.fetch(query, *bound)
        return np.sort(np.fromstring(found, np.int64, sep=","))

    def last_buried(self) -> Rows:
        """Rows that were taken away in the last generation in which any were."""
        found = self._file.fetch(
            "SELECT row FROM clips WHERE died = (SELECT max(died) FROM clips WHERE died IS NOT NULL)"
        )
        return np.fromiter((row for (row,) in found), np.int64, len(found))

    def heldout(self, task: str, limit: int) -> list[ClipRow]:
        """The live clips that a task is evaluated with: of those held out, the ones that drew the lowest lots."""
        query = f"{_LIVE_CLIPS} AND task = ? AND split = 'heldout' ORDER BY lot, row LIMIT ?"
        return [clip_of(values) for values in self._file.fetch(query, task, limit)]

    def heldout_of_era(self, era: int, limit: int) -> list[ClipRow]:
        """Live held-out clips, of whatever task, whose vectors an era has: a fair sample of them."""
        of = "SELECT 1 FROM vectors WHERE vectors.row = clips.row AND vectors.died IS NULL AND era = ?"
        clips = _LIVE_CLIPS.replace("FROM clips", "FROM clips INDEXED BY clips_lot")  # of held-out clips alone
        query = f"{clips} AND split = 'heldout' AND EXISTS ({of}) ORDER BY lot, row LIMIT ?"
        return [clip_of(values) for values in self._file.fetch(query, era, limit)]

    def other_questions(self, task: str, limit: int) -> list[str]:
        """What held-out clips of other tasks are asked with, a fair sample of them."""
        query = f"{_LIVE_CLIPS} AND task != ? AND split = 'heldout' ORDER BY lot, row LIMIT ?"
        return [clip_of(values).asked for values in self._file.fetch(query, task, limit)]

    def count(self, up_to_row: int = 2**63 - 1) -> int:
        """Live clips, of those with a row up to this one."""
        (found,) = self._file.fetch("SELECT count(*) FROM clips WHERE died IS NULL AND row <= ?", up_to_row)
        return int(found[0])

    def counts_by_task(self) -> dict[str, int]:
        """Live clips of each task that has any."""
        return dict(self._file.fetch("SELECT task, count(*) FROM clips WHERE died IS NULL GROUP BY task"))

    def kept_rows(self) -> Rows:
        """Rows that are live, or would be after a rewind: those whose frames are worth keeping, ascending."""
        found = self._file.fetch("SELECT row FROM clips ORDER BY row")
        return np.fromiter((row for (row,) in found), np.int64, len(found))

    def era_vectors(self, era: int) -> tuple[Rows, Halves, Rows]:
        """The live vectors of an era, as they are stored.

        Returns:
            rows: (n,) int64; vectors: (n, d) float16, (0, 0) where there are none; steps: (n,) int64.
        """
        rows, steps, halves = array("q"), array("q"), bytearray()
        with self._file.reading() as db:
            found = db.execute("SELECT row, step, vector FROM vectors WHERE died IS NULL AND era = ?", (era,))
            while some := found.fetchmany(_FETCHED):
                some_rows, some_steps, some_vectors = zip(*some, strict=True)
                rows.extend(some_rows)
                steps.extend(some_steps)
                halves += b"".join(some_vectors)
        # A zero width cannot be inferred from nothing.
        width = len(halves) // 2 // len(rows) if rows else 0
        vectors = np.frombuffer(halves, "<f2").reshape(len(rows), width)
        return np.array(rows, np.int64), vectors, np.array(steps, np.int64)

    def vector_steps(self, rows: Iterable[int]) -> dict[int, int]:
        """The encoder's step that made the live vector of each row that has one."""
        wanted = json.dumps([int(row) for row in rows])
        return dict(self._file.fetch(f"SELECT row, step FROM vectors WHERE died IS NULL AND {OF_ROWS}", wanted))

    def stale_rows(self, era: int, before_step: int, limit: int, *, since_row: int = 0) -> list[int]:
        """Rows from a row on whose vector in this era was made before a step of the encoder, oldest first."""
        query = (
            "SELECT row FROM vectors WHERE died IS NULL AND era = ? AND step < ? AND row >= ? ORDER BY step, id LIMIT ?"
        )
        return [row for (row,) in self._file.fetch(query, era, before_step, since_row, limit)]
