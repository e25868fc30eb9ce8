"""The matrix of tasks and time, and the ranks behind its newest column, in the catalog's tables."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

import numpy as np

from streamlearn.catalog_file import CatalogFile
from streamlearn.catalog_rows import INSERT_SCORE, SCORE_COLUMNS, Score, TaskRanks, score_values


class Scores:
    """Reads and writes the tables `scores` and `ranks`."""

    def __init__(self, file: CatalogFile) -> None:
        self._file = file

    def add(self, db: sqlite3.Connection, scores: Sequence[Score], ranks: Sequence[TaskRanks], generation: int) -> None:
        """Append scores and replace ranks, inside a transaction."""
        db.executemany(INSERT_SCORE, [score_values(score, generation) for score in scores])
        db.executemany(
            "INSERT OR REPLACE INTO ranks (task, direction, view, clips_seen, clip_rows, ranks, born)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            [
                (r.task, r.direction, r.view, r.clips_seen, _pack(r.rows), _pack(r.ranks), generation)
                for r in ranks
            ],
        )  # fmt: skip

    def scores(
        self, *, task: str | None = None, direction: str | None = None, k: int | None = None, view: str | None = None
    ) -> list[Score]:
        """The matrix, oldest first; only what is named."""
        wanted = {"task": task, "direction": direction, "k": k, "view": view}
        named = {column: value for column, value in wanted.items() if value is not None}
        where = " AND ".join(["1", *(f"{column} = ?" for column in named)])
        found = self._file.fetch(f"SELECT {SCORE_COLUMNS} FROM scores WHERE {where} ORDER BY id", *named.values())
        return [Score(*values) for values in found]

    def newest(self) -> list[Score]:
        """The last score of every series."""
        last = "SELECT max(id) FROM scores GROUP BY task, direction, k, view"
        found = self._file.fetch(f"SELECT {SCORE_COLUMNS} FROM scores WHERE id IN ({last}) ORDER BY id")
        return [Score(*values) for values in found]

    def pairs(self) -> dict[str, int]:
        """How many questions each task was last asked."""
        return dict(self._file.fetch("SELECT task, max(length(ranks)) / 8 FROM ranks GROUP BY task"))

    def ranks(self) -> list[TaskRanks]:
        """Of every task that was evaluated, by direction and view."""
        found = self._file.fetch(
            "SELECT task, direction, view, clips_seen, clip_rows, ranks FROM ranks ORDER BY task, direction, view"
        )
        return [
            TaskRanks(task, direction, view, clips_seen, _unpack(rows), _unpack(ranks))
            for task, direction, view, clips_seen, rows, ranks in found
        ]


def _pack(numbers: Sequence[int]) -> bytes:
    return np.asarray(numbers, "<i8").tobytes()


def _unpack(data: bytes) -> tuple[int, ...]:
    return tuple(np.frombuffer(data, "<i8").tolist())
