"""The durable truth about clips, vectors and scores: one SQLite file. It knows nothing of models or indexes.

One thread writes; any thread reads, on connections of its own, and sees a batch whole or not at all.

Time travel. Every row says in which working generation it was `born` and `died`; a checkpoint numbered g is the cut
of rows with born <= g that had not died by then. `rewind(g)` makes that cut the present again: after a crash, or to
roll back. Writes of the working generation cost no fsync; `sync` makes them outlive a power loss.
"""

from __future__ import annotations

import json
import sqlite3
from array import array
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from streamlearn import catalog_cuts
from streamlearn.catalog_file import CatalogFile
from streamlearn.catalog_learned import Learned
from streamlearn.catalog_rows import (
    CLIP_COLUMNS,
    INSERT_CLIP,
    ClipRow,
    Score,
    TaskRanks,
    clip_of,
    clip_values,
)
from streamlearn.catalog_scores import Scores
from streamlearn.errors import StateError
from streamlearn.filters import tags, where
from streamlearn.records import Vectors

__all__ = ["Catalog", "ClipRow", "Rows", "Score"]

Rows = npt.NDArray[np.int64]
Halves = npt.NDArray[np.float16]

_FETCHED = 4_096  # rows at once


_LIVE_CLIPS = f"SELECT {CLIP_COLUMNS} FROM clips WHERE died IS NULL"
_LIVE_ID = "SELECT row FROM clips WHERE died IS NULL AND video_id = ?"
_OF_ROWS = "row IN (SELECT value FROM json_each(?))"


class Catalog:
    """The catalog in one file, made where there is none.

    Args:
        path: of the SQLite file; its folder must exist.

    Raises:
        NewerStateError: a newer streamlearn wrote it.
        StateError: it is something else, or cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._file = CatalogFile(path)
        self.learned, self.matrix = Learned(self._file), Scores(self._file)
        stamps = [f"SELECT coalesce(max(born), 1) FROM {table}" for table in ("clips", "vectors", "moves", "scores")]
        stamps += [f"SELECT coalesce(max(died), 1) FROM {table}" for table in ("clips", "vectors")]
        self._generation: int = max(stamp for query in stamps for (stamp,) in self._file.fetch(query))

    @property
    def generation(self) -> int:
        """The working generation: what is written now belongs to the checkpoint of this number."""
        return self._generation

    def begin(self, generation: int) -> None:
        """Stamp the writes from now on with `generation`, which never goes down but by `rewind`."""
        if generation < self._generation:
            raise ValueError(f"generation {generation} is over; the working one is {self._generation}")
        self._generation = generation

    def rewind(
        self,
        cut: int,
        *,
        working: int | None = None,
        forget: Iterable[str] = (),
        lineage: str | None = None,
        parent: str | None = None,
    ) -> list[int]:
        """Make the cut of a checkpoint the present.

        Args:
            cut: the number of that checkpoint; 0 is the empty catalog.
            working: the generation that is written now; the one after the cut where it is None.
            forget: ids of clips that are taken out again at once, where the cut has them.
            lineage: whose weights go with the cut; None: not checked.
            parent: the lineage that it left at this cut, where it is a rollback's.

        Returns:
            Rows of clips that are gone for good: their frames can go too.

        Raises:
            StateError: what that generation needs was pruned (0, the empty catalog, always works), or its vectors are
                of another lineage.
        """
        with self._file.transaction() as db:
            try:
                if lineage is not None:
                    catalog_cuts.adopt(db, lineage, cut, parent)
                gone = catalog_cuts.rewind(db, cut)
            except StateError as error:
                raise StateError(f"{self._file.path}: {error}") from error
            self._generation = cut + 1 if working is None else working
            for video_id in forget:
                self.delete(video_id)
        return gone

    def prune(self, cuts: Iterable[int]) -> list[int]:
        """Drop what neither these cuts nor the present needs; older ones cannot be rewound to any more.

        Returns:
            Rows of clips that are gone for good: their frames can go too.
        """
        with self._file.transaction() as db:
            return catalog_cuts.prune(db, sorted(set(cuts)))

    def deleted_since(self, cut: int) -> list[str]:
        """Ids of clips that were live in a cut, and have been deleted, not replaced, since."""
        with self._file.reading() as db:
            return catalog_cuts.deleted_since(db, cut)

    def changes(self, older: int, newer: int) -> dict[str, int]:
        """How many clips came and went, and vectors were written, between two cuts that are kept."""
        with self._file.reading() as db:
            return catalog_cuts.changes(db, older, newer)

    def transaction(self) -> AbstractContextManager[object]:
        """Everything written inside becomes visible at once, or not at all on an exception; may be nested."""
        return self._file.transaction()

    def sync(self) -> None:
        """Return when everything committed so far survives a loss of power."""
        self._file.sync()

    def close(self) -> None:
        """Close every connection; idempotent. A read in flight ends first."""
        self._file.close()

    def put(self, clips: Sequence[ClipRow]) -> tuple[list[int], list[int]]:
        """Store clips; a video_id that is live, or comes twice, is replaced and the last one stays.

        Returns:
            The clips' rows, in order, and the rows that are thereby not live (any more), also those of `clips`.
        """
        with self._file.transaction() as db:
            (last,) = db.execute("SELECT coalesce(max(seq), 0) FROM sqlite_sequence").fetchone()
            rows = list(range(last + 1, last + 1 + len(clips)))
            newest = {clip.video_id: (row, clip) for row, clip in zip(rows, clips, strict=True)}
            # One by one: text with NUL survives a bound parameter, but not SQLite's JSON.
            replaced = [row for video_id in newest for row in _column(db, _LIVE_ID, video_id)]
            self._bury(db, replaced)
            db.executemany(
                INSERT_CLIP,
                [clip_values(row, clip, self._generation) for row, clip in newest.values()],
            )
            db.executemany(
                "INSERT INTO tags (name, value, row) VALUES (?, ?, ?)",
                [(*tag, row) for row, clip in newest.values() for tag in tags(clip.meta)],
            )
            self.learned.note(db, clips, self._generation)
        stored = {row for row, _ in newest.values()}
        return rows, replaced + [row for row in rows if row not in stored]

    def delete(self, video_id: str) -> int | None:
        """Take a clip and its vector out; returns its row, None where there is none."""
        with self._file.transaction() as db:
            rows = _column(db, _LIVE_ID, video_id)
            self._bury(db, rows)
        return rows[0] if rows else None

    def put_vectors(self, rows: Sequence[int], vectors: Vectors, *, era: int, step: int) -> list[int]:
        """Store vectors, in half precision, in the place of the rows' present ones.

        Args:
            rows: of clips; those that are not live (any more) are passed over. The last of equal ones counts.
            vectors: (n, d) float32; d is one for the whole catalog.
            era: whose encoder made them.
            step: of that encoder.

        Returns:
            The rows that were stored.

        Raises:
            StateError: d is not that of the vectors which are here.
        """
        blobs = {int(r): v.tobytes() for r, v in zip(rows, np.asarray(vectors, dtype="<f2"), strict=True)}
        with self._file.transaction() as db:
            known = db.execute("SELECT length(vector) / 2 FROM vectors LIMIT 1").fetchone()
            if known and known[0] != vectors.shape[1]:
                raise StateError(f"{self._file.path}: {vectors.shape[1]} dimensions do not fit vectors of {known[0]}")
            wanted = json.dumps(list(blobs))
            live = _column(db, f"SELECT row FROM clips WHERE died IS NULL AND {_OF_ROWS}", wanted)
            db.execute(
                f"UPDATE vectors SET died = ? WHERE died IS NULL AND born < ? AND {_OF_ROWS}",
                (self._generation, self._generation, wanted),
            )
            db.executemany(
                "INSERT INTO vectors (row, era, step, vector, born) VALUES (?, ?, ?, ?, ?)"
                " ON CONFLICT (row) WHERE died IS NULL"
                " DO UPDATE SET era = excluded.era, step = excluded.step, vector = excluded.vector",
                [(row, era, step, blobs[row], self._generation) for row in live],
            )
        return live

    def move(self, *, from_era: int, since_step: int, to_era: int, to_task: str) -> list[int]:
        """Hand the clips of `from_era` that arrived at or after a step to another era and task.

        Returns:
            Their rows.
        """
        now = self._generation
        with self._file.transaction() as db:
            rows = _column(
                db,
                "SELECT row FROM clips WHERE died IS NULL AND step >= ?"
                " AND row IN (SELECT row FROM vectors WHERE died IS NULL AND era = ?)",
                since_step,
                from_era,
            )
            of_rows = json.dumps(rows)
            db.execute(
                f"INSERT INTO moves (row, task, born) SELECT row, task, ? FROM clips WHERE {_OF_ROWS}", (now, of_rows)
            )
            db.execute(f"UPDATE clips SET task = ? WHERE {_OF_ROWS}", (to_task, of_rows))
            older = json.dumps(
                _column(db, f"SELECT id FROM vectors WHERE died IS NULL AND born < ? AND {_OF_ROWS}", now, of_rows)
            )
            of_older = "id IN (SELECT value FROM json_each(?))"
            db.execute(
                f"UPDATE vectors SET era = ? WHERE died IS NULL AND born = ? AND {_OF_ROWS}", (to_era, now, of_rows)
            )
            db.execute(f"UPDATE vectors SET died = ? WHERE {of_older}", (now, older))
            db.execute(
                "INSERT INTO vectors (row, era, step, vector, born)"
                f" SELECT row, ?, step, vector, ? FROM vectors WHERE {of_older}",
                (to_era, now, older),
            )
        return rows

    def add_scores(self, scores: Sequence[Score], ranks: Sequence[TaskRanks] = ()) -> None:
        """Append to the matrix; the ranks take the place of earlier ones of the same task, direction and view."""
        with self._file.transaction() as db:
            self.matrix.add(db, scores, ranks, self._generation)

    def clips(self, rows: Iterable[int]) -> dict[int, ClipRow]:
        """The clips of those rows that are live."""
        wanted = json.dumps([int(row) for row in rows])
        found = self._file.fetch(f"{_LIVE_CLIPS} AND {_OF_ROWS}", wanted)
        return {values[0]: clip_of(values) for values in found}

    def successors(self, rows: Iterable[int]) -> dict[int, ClipRow]:
        """Of those rows that were replaced and are still remembered, the live clips of the same ids."""
        of = f"SELECT row AS old, video_id AS id FROM clips WHERE died IS NOT NULL AND {_OF_ROWS}"
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
        found = self._file.fetch(f"SELECT row FROM clips WHERE died IS NULL AND ({condition})", *bound)
        return np.sort(np.fromiter((row for (row,) in found), np.int64, len(found)))

    def heldout(self, task: str, limit: int) -> list[ClipRow]:
        """The live clips that a task is evaluated with: of those held out, the ones that drew the lowest lots."""
        query = f"{_LIVE_CLIPS} AND task = ? AND split = 'heldout' ORDER BY lot, row LIMIT ?"
        return [clip_of(values) for values in self._file.fetch(query, task, limit)]

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

    def eras(self) -> list[int]:
        """Eras that have live vectors, ascending."""
        return [era for (era,) in self._file.fetch("SELECT DISTINCT era FROM vectors WHERE died IS NULL ORDER BY era")]

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
        return dict(self._file.fetch(f"SELECT row, step FROM vectors WHERE died IS NULL AND {_OF_ROWS}", wanted))

    def stale_rows(self, era: int, before_step: int, limit: int, *, since_row: int = 0) -> list[int]:
        """Rows from a row on whose vector in this era was made before a step of the encoder, oldest first."""
        query = (
            "SELECT row FROM vectors WHERE died IS NULL AND era = ? AND step < ? AND row >= ? ORDER BY step, id LIMIT ?"
        )
        return [row for (row,) in self._file.fetch(query, era, before_step, since_row, limit)]

    def scores(self, task: str | None = None) -> list[Score]:
        """The matrix, oldest first; of one task where one is named."""
        return self.matrix.scores(task=task)

    def _bury(self, db: sqlite3.Connection, rows: list[int]) -> None:
        for table in ("clips", "vectors"):
            db.execute(
                f"UPDATE {table} SET died = ? WHERE died IS NULL AND {_OF_ROWS}", (self._generation, json.dumps(rows))
            )


def _column(db: sqlite3.Connection, query: str, *bound: Any) -> list[int]:
    return [value for (value,) in db.execute(query, bound)]
