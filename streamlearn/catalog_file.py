"""The catalog's SQLite file: its schema and migrations, one writing connection, and readers for any thread.

It knows the tables' shape, not their meaning. A transaction is visible whole or not at all, costs no fsync, and
survives the death of the process; `sync` makes it survive a loss of power.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from streamlearn.errors import NewerStateError, StateError
from streamlearn.heldout import fingerprint, keep_back, lot

_APPLICATION_ID = 0x736C6541  # "sleA": tells our file from any other SQLite file

# The log is copied into the file, with two fsyncs, every 16 MiB and not every 4: a batch is a few pages.
_CHECKPOINTS = "PRAGMA wal_autocheckpoint = 4096"

_CACHE, _SMALL_CACHE = "PRAGMA cache_size = -32768", "PRAGMA cache_size = -4096"  # KiB

#: Scripts that lead from schema version i to i + 1; never edited once released, only appended to.
MIGRATIONS = (
    """
    CREATE TABLE clips (
        row INTEGER PRIMARY KEY AUTOINCREMENT, video_id TEXT NOT NULL, uri TEXT, start_s REAL, end_s REAL,
        captions TEXT NOT NULL, meta TEXT NOT NULL, time TEXT, split TEXT NOT NULL, task TEXT NOT NULL,
        step INTEGER NOT NULL, sha256 TEXT, topic TEXT NOT NULL, partition TEXT NOT NULL, offset INTEGER NOT NULL,
        time_us INTEGER, born INTEGER NOT NULL, died INTEGER,
        CHECK (split IN ('train', 'heldout', 'extra'))
    ) STRICT;
    CREATE UNIQUE INDEX clips_video_id ON clips (video_id) WHERE died IS NULL;
    CREATE INDEX clips_task ON clips (task, split) WHERE died IS NULL;
    CREATE INDEX clips_time ON clips (time_us) WHERE died IS NULL;
    CREATE INDEX clips_born ON clips (born);
    CREATE INDEX clips_died ON clips (died) WHERE died IS NOT NULL;

    -- What of the metadata can be filtered by.
    CREATE TABLE tags (name TEXT NOT NULL, value ANY NOT NULL, row INTEGER NOT NULL, PRIMARY KEY (name, value, row))
    STRICT, WITHOUT ROWID;

    CREATE TABLE vectors (
        id INTEGER PRIMARY KEY, row INTEGER NOT NULL, era INTEGER NOT NULL, step INTEGER NOT NULL,
        vector BLOB NOT NULL, born INTEGER NOT NULL, died INTEGER
    ) STRICT;
    CREATE UNIQUE INDEX vectors_row ON vectors (row) WHERE died IS NULL;
    CREATE INDEX vectors_era ON vectors (era, step) WHERE died IS NULL;
    CREATE INDEX vectors_born ON vectors (born);
    CREATE INDEX vectors_died ON vectors (died) WHERE died IS NOT NULL;

    -- A clip keeps its row when it changes task; what it was before is here, to be undone by a rewind.
    CREATE TABLE moves (id INTEGER PRIMARY KEY, row INTEGER NOT NULL, task TEXT NOT NULL, born INTEGER NOT NULL)
    STRICT;
    CREATE INDEX moves_born ON moves (born);

    CREATE TABLE scores (
        id INTEGER PRIMARY KEY, clips_seen INTEGER NOT NULL, step INTEGER NOT NULL, time TEXT NOT NULL,
        task TEXT NOT NULL, direction TEXT NOT NULL, k INTEGER NOT NULL, view TEXT NOT NULL, value REAL,
        pairs INTEGER NOT NULL, born INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX scores_task ON scores (task);
    CREATE INDEX scores_born ON scores (born);

    CREATE TABLE pruned (generation INTEGER NOT NULL) STRICT;
    INSERT INTO pruned VALUES (0);
    """,
    """
    -- What a held-out clip is asked with, and its place in the draw of those that are asked (streamlearn.heldout).
    ALTER TABLE clips ADD COLUMN question TEXT;
    ALTER TABLE clips ADD COLUMN lot INTEGER NOT NULL DEFAULT 0;
    UPDATE clips SET lot = lot_of(video_id);
    UPDATE clips SET question = question_of(captions), captions = rest_of(captions) WHERE split = 'heldout';
    CREATE INDEX clips_lot ON clips (task, lot) WHERE died IS NULL AND split = 'heldout';
    CREATE INDEX clips_heldout_media ON clips (sha256) WHERE died IS NULL AND split = 'heldout';

    -- Never pruned. An "extra" clip may have been learned from before: it counts as if it was.
    CREATE TABLE learned (
        id INTEGER NOT NULL, media INTEGER NOT NULL, start_s REAL NOT NULL, end_s REAL NOT NULL, born INTEGER NOT NULL,
        PRIMARY KEY (id, media, start_s, end_s)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX learned_media ON learned (media);
    INSERT OR IGNORE INTO learned
        SELECT fingerprint_of(video_id), fingerprint_of(sha256), coalesce(start_s, 0.0), coalesce(end_s, 9e999), born
        FROM clips WHERE split != 'heldout' ORDER BY born;

    -- The interval of a score; and of the last evaluation of each series, the rank of every question.
    ALTER TABLE scores ADD COLUMN low REAL;
    ALTER TABLE scores ADD COLUMN high REAL;
    CREATE TABLE ranks (
        task TEXT NOT NULL, direction TEXT NOT NULL, view TEXT NOT NULL, clips_seen INTEGER NOT NULL,
        clip_rows BLOB NOT NULL, ranks BLOB NOT NULL, born INTEGER NOT NULL, PRIMARY KEY (task, direction, view)
    ) STRICT;
    """,
    """
    -- The cuts that the last pruning left; before it is empty, every cut from `pruned` on.
    CREATE TABLE kept (generation INTEGER PRIMARY KEY) STRICT;
    -- Whose vectors these are, oldest first, each from the cut on at which it left the one before; empty: not said.
    CREATE TABLE lineages (id INTEGER PRIMARY KEY, lineage TEXT NOT NULL, cut INTEGER NOT NULL) STRICT;
    """,
    """
    -- What else was known at the time of a score; not said of those before.
    ALTER TABLE scores ADD COLUMN forgetting REAL;
    ALTER TABLE scores ADD COLUMN median_rank REAL;
    ALTER TABLE scores ADD COLUMN median_low REAL;
    ALTER TABLE scores ADD COLUMN median_high REAL;
    """,
)

#: What migrations compute that SQL cannot.
_FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "lot_of": lot,
    "fingerprint_of": fingerprint,
    "question_of": lambda captions: json.dumps(keep_back(json.loads(captions))[0]),
    "rest_of": lambda captions: json.dumps(keep_back(json.loads(captions))[1]),
}


class CatalogFile:
    """The file, made where there is none and brought up to date where it is older.

    Args:
        path: of the SQLite file; its folder must exist.

    Raises:
        NewerStateError: a newer streamlearn wrote it.
        StateError: it is something else, or cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        self._owner: int | None = None  # the thread inside `transaction`
        self._idle: deque[sqlite3.Connection] = deque()  # readers; append and pop are atomic
        self._closed = False
        self._writer = _open(path)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Write on the connection given, all or nothing; one inside another joins it."""
        with self._lock:
            if self._owner is not None:
                yield self._writer
                return
            self._writer.execute("BEGIN IMMEDIATE")
            self._owner = threading.get_ident()
            try:
                yield self._writer
                self._writer.execute("COMMIT")
            finally:
                self._owner = None
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")

    @contextmanager
    def quick_commits(self) -> Iterator[None]:
        """Inside, no commit copies the log into the file, which the first one after it does.

        Nor has it much to write into the log: pages go there as they change, where they find no room in the cache.
        """
        self._writer.execute("PRAGMA wal_autocheckpoint = 0")
        self._writer.execute(_SMALL_CACHE)
        try:
            yield
        finally:
            self._writer.execute(_CHECKPOINTS)
            self._writer.execute(_CACHE)

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Read on the connection given; inside its own transaction a thread sees what it wrote."""
        if self._owner == threading.get_ident():
            yield self._writer
            return
        if self._closed:
            raise StateError(f"{self.path}: the catalog is closed")
        # A pool, not one per thread: a server's worker threads come and go, and would leave their connections open.
        try:
            reader = self._idle.pop()
        except IndexError:
            reader = _open_reader(self.path)
        try:
            yield reader
        finally:
            self._idle.append(reader)
            if self._closed:
                self._close_idle()

    def fetch(self, query: str, *bound: Any) -> list[Any]:
        """All answers of one query."""
        with self.reading() as db:
            return db.execute(query, bound).fetchall()

    def sync(self) -> None:
        """Return when everything committed so far survives a loss of power."""
        with self._lock:
            # A commit in mode FULL fsyncs the log, and with it all commits before; this is the smallest commit.
            self._writer.execute("PRAGMA synchronous = FULL")
            self._writer.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
            self._writer.execute("PRAGMA synchronous = NORMAL")

    def close(self) -> None:
        """Close every connection, readers in use when they are done; idempotent."""
        with self._lock:
            self._closed = True
            self._close_idle()
            self._writer.close()  # as the last one it takes the log in, which a reader cannot

    def _close_idle(self) -> None:
        while True:
            try:
                self._idle.pop().close()
            except IndexError:
                return


@contextmanager
def reading_only(path: Path) -> Iterator[sqlite3.Connection]:
    """Look at a catalog beside whoever writes it, or where nothing can be written; it is neither changed nor migrated.

    Raises:
        NewerStateError: a newer streamlearn wrote it.
        StateError: it is missing, or something else.
    """
    if not path.exists():
        raise StateError(f"{path}: the catalog is missing; restore it beside its generations")
    log = path.with_name(f"{path.name}-wal")
    with ExitStack() as stack:
        # Without a log nobody has it open, and SQLite need lay nothing beside it.
        db = stack.enter_context(closing(_open_reader(path, "mode=ro" if log.exists() else "immutable=1")))
        try:
            try:
                _checked(db, path)
            except sqlite3.OperationalError:  # it wants to, and cannot
                copy = Path(stack.enter_context(TemporaryDirectory(prefix="streamlearn-")))
                for file in (path, log):
                    shutil.copy(file, copy)
                db = stack.enter_context(closing(_open_reader(copy / path.name)))
                _checked(db, path)
        except (sqlite3.Error, OSError) as error:
            raise StateError(f"{path}: this is no catalog that can be used: {error}") from error
        yield db


def _open(path: Path) -> sqlite3.Connection:
    try:
        db = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
    except sqlite3.Error as error:
        raise StateError(f"{path}: the catalog cannot be opened: {error}") from error
    try:
        _prepare(db, path)
    except BaseException as error:
        db.close()
        if isinstance(error, sqlite3.Error):
            raise StateError(f"{path}: this is no catalog that can be used: {error}") from error
        raise
    return db


def _open_reader(path: Path, how: str = "mode=ro") -> sqlite3.Connection:
    # Close comes from another thread than use; each connection is used by one thread at a time.
    return sqlite3.connect(
        f"{path.resolve().as_uri()}?{how}", uri=True, timeout=30, isolation_level=None, check_same_thread=False
    )


def _checked(db: sqlite3.Connection, path: Path) -> int:
    """The version of its schema."""
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application != _APPLICATION_ID and (application or version or tables):
        raise StateError(f"{path}: this is a database of another application, not a catalog")
    if version > len(MIGRATIONS):
        raise NewerStateError(
            f"{path}: its schema is version {version}, this streamlearn knows {len(MIGRATIONS)}; install the newer one"
        )
    return int(version)


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    version = _checked(db, path)  # nothing is written before we know that the file is ours
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute(_CHECKPOINTS)
    db.execute(_CACHE)
    for name, function in _FUNCTIONS.items():
        db.create_function(name, 1, function, deterministic=True)
    for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
        db.executescript(
            f"BEGIN IMMEDIATE; PRAGMA application_id = {_APPLICATION_ID};"
            f" {script}; PRAGMA user_version = {number}; COMMIT;"
        )
