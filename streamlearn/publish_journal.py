"""What a broker has acknowledged of one publication, in a file, so that an interrupted one goes on.

A SQLite file with a row for each clip message that was acknowledged: its id, which of the rows of this id it was, and
a digest of row and file date. It is ahead of nothing: a message is noted after its acknowledgement, so what was sent
and not yet noted is sent again. It knows no Kafka.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from streamlearn.errors import SettingsError, StateError

_APPLICATION = 0x736C7075  # "slpu": a file of ours
_VERSION = 1
_LAYOUT = """
CREATE TABLE publication (name TEXT NOT NULL);
CREATE TABLE acknowledged (video_id TEXT, nth INTEGER, digest BLOB NOT NULL, PRIMARY KEY (video_id, nth)) WITHOUT ROWID;
"""


class Entry(NamedTuple):
    """A message to be sent: the `nth` row, from 1, that this run has read of `video_id`."""

    video_id: str
    nth: int
    digest: bytes


def publication_name(topic_id: str, paths: Sequence[Path], *, inline: bool) -> str:
    """By what a publication is known again: a topic that was made anew, or other paths, are another one."""
    return json.dumps({"topic_id": topic_id, "inline": inline, "paths": [str(path.resolve()) for path in paths]})


class Journal:
    """The journal of one publication. It is locked while it is open.

    A row is not due if it and each row of the same id before it were acknowledged just as they are now. So a row that
    was changed, added, or mended since is sent, and so are the later rows of its id, in their order.
    """

    def __init__(self, path: Path | None, publication: str) -> None:
        """Opens it, or makes it.

        Args:
            path: a file, or a folder in which each publication has one; None: nothing is kept.
            publication: its name.

        Raises:
            SettingsError: it is in use, of another publication, no journal, or cannot be written.
        """
        if path is not None and path.is_dir():
            path = path / f"{hashlib.sha256(publication.encode()).hexdigest()[:24]}.sqlite"
        self.path = path
        try:
            # An empty name: a file that SQLite makes and forgets, so that memory does not grow with the rows.
            self._file = sqlite3.connect(path or "", timeout=0, isolation_level=None)
            try:
                self._open(publication)
            except BaseException:
                self._file.close()
                raise
        except sqlite3.Error as error:
            raise SettingsError(self._sentence(error)) from error

    def _open(self, publication: str) -> None:
        self._file.execute("PRAGMA locking_mode = EXCLUSIVE")
        self._file.execute("BEGIN EXCLUSIVE")
        (tables,) = self._file.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if not tables:
            self._file.execute(f"PRAGMA application_id = {_APPLICATION}")
            self._file.execute(f"PRAGMA user_version = {_VERSION}")
            for statement in filter(str.strip, _LAYOUT.split(";")):
                self._file.execute(statement)
            self._file.execute("INSERT INTO publication VALUES (?)", [publication])
        marks = [self._file.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]
        if marks != [_APPLICATION, _VERSION]:
            raise SettingsError(f"{self.path} is no journal that this version of streamlearn reads: name another")
        (known,) = self._file.execute("SELECT name FROM publication").fetchone()
        if known != publication:
            raise SettingsError(
                f"{self.path} is the journal of another publication, {known}: name another file, or remove it"
            )
        self._file.execute("COMMIT")
        self._file.execute("CREATE TEMP TABLE seen (video_id TEXT PRIMARY KEY, rows INTEGER) WITHOUT ROWID")
        self._file.execute("BEGIN")

    def due(self, video_id: str, digest: bytes) -> Entry | None:
        """The next row of this run; None where it has been acknowledged. Called once for each valid row."""
        with self._working():
            ((nth,),) = self._file.execute(
                "INSERT INTO seen VALUES (?, 1) ON CONFLICT DO UPDATE SET rows = rows + 1 RETURNING rows", [video_id]
            ).fetchall()
            found = self._file.execute(
                "SELECT digest FROM acknowledged WHERE video_id = ? AND nth = ?", [video_id, nth]
            ).fetchone()
        return None if found is not None and found[0] == digest else Entry(video_id, nth, digest)

    def begin(self, entry: Entry) -> None:
        """It will be sent: what followed it in an earlier run is due again."""
        with self._working():
            self._file.execute("DELETE FROM acknowledged WHERE video_id = ? AND nth >= ?", entry[:2])

    def note(self, acknowledged: Iterable[Entry] = ()) -> None:
        """Keep all of this and what `begin` said, for good."""
        with self._working():
            self._file.executemany("INSERT OR REPLACE INTO acknowledged VALUES (?, ?, ?)", acknowledged)
            self._file.execute("COMMIT")
            self._file.execute("BEGIN")

    def forget(self) -> None:
        """Everything is due."""
        with self._working():
            self._file.execute("DELETE FROM acknowledged")
        self.note()

    def close(self, *, finished: bool = False) -> None:
        """Release it; remove it where the publication is finished."""
        self._file.close()
        if finished and self.path is not None:
            self.path.unlink(missing_ok=True)

    @contextmanager
    def _working(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StateError(self._sentence(error)) from error

    def _sentence(self, error: sqlite3.Error) -> str:
        if "locked" in str(error):
            return f"{self.path}: another process is publishing the same; wait for it, or stop it"
        if "not a database" in str(error):
            return f"{self.path} is no journal of streamlearn publish: name another file"
        return f"the journal {self.path} cannot be used ({error}): name another place with --journal"
