"""Time travel in the catalog's tables: which rows a cut needs, what a rewind undoes, what pruning may drop.

A row is live in cut g when it was born in g or before and had not died by then. So going back is a deletion of what
came later, and costs what changed since, not what there is; keeping a cut costs the rows that died after it.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from itertools import pairwise

from streamlearn.errors import StateError
from streamlearn.filters import tags
from streamlearn.lineage import joined


def rewind(db: sqlite3.Connection, cut: int) -> list[int]:
    """Make a cut the present.

    Returns:
        Rows of clips that are gone for good.

    Raises:
        StateError: what the cut needs was pruned. 0, the empty catalog, always works.
    """
    kept = _kept(db)
    (floor,) = db.execute("SELECT generation FROM pruned").fetchone()
    if cut and (cut < floor or (kept and cut < kept[-1] and cut not in kept)):
        oldest = f"; the oldest is {kept[0] if kept else floor}" if cut < floor else ""
        raise StateError(f"generation {cut} was pruned{oldest}")
    gone = _drop_clips(db, "born > ?", cut)
    db.execute(
        "UPDATE clips SET task = first.task FROM"
        " (SELECT row, task, min(id) FROM moves WHERE born > ? GROUP BY row) AS first"
        " WHERE clips.row = first.row",
        (cut,),
    )
    for table in ("vectors", "moves", "scores", "ranks", "learned"):
        db.execute(f"DELETE FROM {table} WHERE born > ?", (cut,))
    for table in ("clips", "vectors"):
        db.execute(f"UPDATE {table} SET died = NULL WHERE died > ?", (cut,))
    db.execute("DELETE FROM kept WHERE generation > ?", (cut,))
    if not cut:
        db.execute("UPDATE pruned SET generation = 0")
    return gone


def prune(db: sqlite3.Connection, cuts: Sequence[int]) -> list[int]:
    """Drop what neither these cuts nor the present needs; older ones cannot be rewound to any more.

    Args:
        db: of the catalog, in a transaction.
        cuts: at least one, ascending.

    Returns:
        Rows of clips that are gone for good.
    """
    before = _kept(db)
    gone = _drop_dead(db, 0, 0, cuts[0])
    for older, newer in pairwise(cuts):
        # Rows that live in no cut between two kept ones were born after the one and dead by the other. Of a gap that
        # was looked at before, only what a cut kept alive that is now gone.
        left = [cut for cut in before if older < cut < newer]
        if left or not before or newer > before[-1]:
            gone += _drop_dead(db, older, min(left, default=older), newer)
    db.execute("DELETE FROM moves WHERE born <= ?", (cuts[0],))
    db.execute("UPDATE pruned SET generation = max(generation, ?)", (cuts[0],))
    db.execute("DELETE FROM kept")
    db.executemany("INSERT INTO kept VALUES (?)", [(cut,) for cut in cuts])
    return gone


def adopt(db: sqlite3.Connection, lineage: str, cut: int, parent: str | None) -> None:
    """Say whose vectors these are from now on.

    Raises:
        StateError: what is here at the cut is of another lineage.
    """
    known = db.execute("SELECT lineage, cut FROM lineages ORDER BY id").fetchall() if cut else []
    chain = joined(known, lineage, cut, parent)
    db.execute("DELETE FROM lineages")
    db.executemany("INSERT INTO lineages (lineage, cut) VALUES (?, ?)", chain)


def deleted_since(db: sqlite3.Connection, cut: int) -> list[str]:
    """Ids of clips that are live in a cut and in the present not at all."""
    return [
        video_id
        for (video_id,) in db.execute(
            # One by one: all ids that are live would be a list of everything there is.
            "SELECT video_id FROM clips AS gone WHERE +born <= :cut AND died > :cut AND NOT EXISTS"
            " (SELECT 1 FROM clips WHERE died IS NULL AND video_id = gone.video_id)",
            {"cut": cut},
        )
    ]


def changes(db: sqlite3.Connection, older: int, newer: int) -> dict[str, int]:
    """What became of clips between two cuts: how many came, went, and were encoded again."""
    cuts = {"older": older, "newer": newer}
    born = "SELECT count(*) FROM {} WHERE born > :older AND born <= :newer AND (died IS NULL OR died > :newer)"
    added, written = (db.execute(born.format(table), cuts).fetchone()[0] for table in ("clips", "vectors"))
    (removed,) = db.execute(
        "SELECT count(*) FROM clips WHERE +born <= :older AND died > :older AND died <= :newer", cuts
    ).fetchone()
    return {"clips_added": added, "clips_removed": removed, "vectors_written": written}


def _kept(db: sqlite3.Connection) -> list[int]:
    return [cut for (cut,) in db.execute("SELECT generation FROM kept ORDER BY generation")]


def _drop_dead(db: sqlite3.Connection, born_after: int, died_after: int, died_by: int) -> list[int]:
    gap = (born_after, died_after, died_by)
    condition = "+born > ? AND died > ? AND died <= ?"  # the plus keeps SQLite to the index of the dead, which are few
    db.execute(f"DELETE FROM vectors WHERE {condition}", gap)
    return _drop_clips(db, condition, *gap)


def _drop_clips(db: sqlite3.Connection, condition: str, *bound: int) -> list[int]:
    gone = db.execute(f"SELECT row, meta FROM clips WHERE {condition}", bound).fetchall()
    db.executemany(
        "DELETE FROM tags WHERE name = ? AND value = ? AND row = ?",
        [(*tag, row) for row, meta in gone for tag in tags(json.loads(meta))],
    )
    db.execute(f"DELETE FROM clips WHERE {condition}", bound)
    return [row for row, _ in gone]
