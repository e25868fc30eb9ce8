"""The durable truth about clips, vectors and scores: one SQLite file. It knows nothing of models or indexes.

One thread writes; any thread reads, on connections of its own, and sees a batch whole or not at all.

Time travel. Every row says in which working generation it was `born` and `died`; a checkpoint numbered g is the cut
of rows with born <= g that had not died by then. `rewind(g)` makes that cut the present again: after a crash, or to
roll back. Writes of the working generation cost no fsync; `sync` makes them outlive a power loss.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from streamlearn import catalog_cuts
from streamlearn.catalog_file import CatalogFile
from streamlearn.catalog_learned import Learned
from streamlearn.catalog_reader import OF_ROWS, CatalogReader, Rows
from streamlearn.catalog_rows import (
    INSERT_CLIP,
    ClipRow,
    Score,
    TaskRanks,
    clip_values,
)
from streamlearn.catalog_scores import Scores
from streamlearn.errors import StateError
from streamlearn.filters import tags

__all__ = ["Catalog", "ClipRow", "Rows", "Score"]


_LIVE_ID = "SELECT row FROM clips WHERE died IS NULL AND video_id = ?"


class Catalog(CatalogReader):
    """The catalog in one file, made where there is none.

    Args:
        path: of the SQLite file; its folder must exist.

    Raises:
        NewerStateError: a newer streamlearn wrote it.
        StateError: it is something else, or cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(CatalogFile(path))
        self.learned, self.matrix = Learned(self._file), Scores(self._file)
        stamps = [f"SELECT coalesce(max(born), 1) FROM {table}" for table in ("clips", "vectors", "moves", "scores")]
        stamps += [
            f"SELECT coalesce(max(died), 1) FROM {table} WHERE died IS NOT NULL" for table in ("clips", "vectors")
        ]
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

    def quick_commits(self) -> AbstractContextManager[object]:
        """Inside, a commit leaves what takes long to a later one."""
        return self._file.quick_commits()

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

    def put_vectors(self, rows: Sequence[int], vectors: npt.NDArray[np.floating], *, era: int, step: int) -> list[int]:
        """Store vectors, in half precision, in the place of the rows' present ones.

        Args:
            rows: of clips; those that are not live (any more) are passed over. The last of equal ones counts.
            vectors: (n, d); d is one for the whole catalog.
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
            live = _column(db, f"SELECT row FROM clips WHERE died IS NULL AND {OF_ROWS}", wanted)
            db.execute(
                f"UPDATE vectors SET died = ? WHERE died IS NULL AND born < ? AND {OF_ROWS}",
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
                f"INSERT INTO moves (row, task, born) SELECT row, task, ? FROM clips WHERE {OF_ROWS}", (now, of_rows)
            )
            db.execute(f"UPDATE clips SET task = ? WHERE {OF_ROWS}", (to_task, of_rows))
            older = json.dumps(
                _column(db, f"SELECT id FROM vectors WHERE died IS NULL AND born < ? AND {OF_ROWS}", now, of_rows)
            )
            of_older = "id IN (SELECT value FROM json_each(?))"
            db.execute(
                f"UPDATE vectors SET era = ? WHERE died IS NULL AND born = ? AND {OF_ROWS}", (to_era, now, of_rows)
            )
            db.execute(f"UPDATE vectors SET died = ? WHERE {of_older}", (now, older))
            db.execute(
                "INSERT INTO vectors (row, era, step, vector, born)"
                f" SELECT row, ?, step, vector, ? FROM vectors WHERE {of_older}",
                (to_era, now, older),
            )
        return rows

    def rename_task(self, old: str, new: str) -> None:
        """Give the live clips of a task another one, whichever era they are in."""
        with self._file.transaction() as db:
            of_task = "FROM clips WHERE died IS NULL AND task = ?"
            db.execute(f"INSERT INTO moves (row, task, born) SELECT row, task, ? {of_task}", (self._generation, old))
            db.execute("UPDATE clips SET task = ? WHERE died IS NULL AND task = ?", (new, old))

    def add_scores(self, scores: Sequence[Score], ranks: Sequence[TaskRanks] = ()) -> None:
        """Append to the matrix; the ranks take the place of earlier ones of the same task, direction and view."""
        with self._file.transaction() as db:
            self.matrix.add(db, scores, ranks, self._generation)

    def forget_ranks(self, task: str) -> None:
        """A task is gone: what was last measured of it is nobody's."""
        with self._file.transaction() as db:
            db.execute("DELETE FROM ranks WHERE task = ?", (task,))

    def scores(self, task: str | None = None) -> list[Score]:
        """The matrix, oldest first; of one task where one is named."""
        return self.matrix.scores(task=task)

    def _bury(self, db: sqlite3.Connection, rows: list[int]) -> None:
        for table in ("clips", "vectors"):
            db.execute(
                f"UPDATE {table} SET died = ? WHERE died IS NULL AND {OF_ROWS}", (self._generation, json.dumps(rows))
            )


def _column(db: sqlite3.Connection, query: str, *bound: Any) -> list[int]:
    return [value for (value,) in db.execute(query, bound)]
