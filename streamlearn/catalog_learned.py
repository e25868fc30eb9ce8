"""What was ever learned from, for as long as the weights may remember it: longer than any clip stays in the catalog.

A clip that was learned, taken away and sent again as held out would be a question whose answer the weights have seen.
Of each learned clip two hashes and a stretch of time are kept, through replacement, tombstone and pruning; only a
rewind takes them out, because it takes the weights back too.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from streamlearn.catalog_file import CatalogFile
from streamlearn.catalog_rows import ClipRow
from streamlearn.heldout import Footage, fingerprint


@dataclass(frozen=True, slots=True)
class Seen:
    """A clip that another one may be, or may show."""

    video_id: str
    footage: Footage


class Learned:
    """The table of what was learned, and the live held-out clips beside it."""

    def __init__(self, file: CatalogFile) -> None:
        self._file = file

    def note(self, db: sqlite3.Connection, clips: Iterable[ClipRow], generation: int) -> None:
        """Clips that are being stored; of those for learning it is kept that they were learned."""
        db.executemany(
            "INSERT OR IGNORE INTO learned (id, media, start_s, end_s, born) VALUES (?, ?, ?, ?, ?)",
            [
                (fingerprint(clip.video_id), footage.media, footage.start_s, footage.end_s, generation)
                for clip in clips
                if clip.split == "train" and (footage := Footage.of(clip.sha256, clip.start_s, clip.end_s))
            ],
        )

    def was(self, video_id: str, footage: Footage) -> bool:
        """Whether this id, or some of the same footage under any id, was ever learned from."""
        query = (
            "SELECT EXISTS (SELECT 1 FROM learned WHERE id = ?)"
            " OR EXISTS (SELECT 1 FROM learned WHERE media = ? AND media != 0 AND start_s < ? AND end_s > ?)"
        )
        found = self._file.fetch(query, fingerprint(video_id), footage.media, footage.end_s, footage.start_s)
        return bool(found[0][0])

    def held_out(self, video_ids: Sequence[str], sha256s: Sequence[str]) -> list[Seen]:
        """The live held-out clips that have one of these ids or were cut from one of these files."""
        held = "SELECT video_id, sha256, start_s, end_s FROM clips WHERE died IS NULL AND split = 'heldout' AND"
        found = []
        for column, values in (("video_id", video_ids), ("sha256", sha256s)):
            # Bound one by one: text with NUL survives a bound parameter, but not SQLite's JSON.
            places = ", ".join("?" * len(values))
            found += self._file.fetch(f"{held} {column} IN ({places})", *values)
        return [Seen(video_id, Footage.of(*media)) for video_id, *media in found]
