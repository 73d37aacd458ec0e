"""The SQLite file of jobs: opened as it has to be, one transaction at a time, its errors in our words."""

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from isocenter.core.errors import DiskFull, IsocenterError, StoreUnavailable
from isocenter.serving.jobs.files import refusal_of

_FORMAT: Final = 1
_BUSY_S: Final = 2.0
_BROKEN: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_IOERR})
_TABLES: Final = """
CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    key TEXT UNIQUE,
    kind TEXT NOT NULL,
    asked TEXT NOT NULL,
    priority INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('queued', 'running', 'done', 'failed', 'cancelled')),
    created_at REAL NOT NULL,
    started_at REAL,
    finished_at REAL,
    stage TEXT NOT NULL DEFAULT '',
    share REAL NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0,
    worker TEXT,
    revision INTEGER NOT NULL DEFAULT 1,
    summary TEXT,
    error TEXT,
    files TEXT NOT NULL DEFAULT '{}',
    input_bytes INTEGER NOT NULL DEFAULT 0,
    result_bytes INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS waiting ON jobs (priority, number) WHERE state = 'queued';
CREATE INDEX IF NOT EXISTS ended ON jobs (finished_at) WHERE finished_at IS NOT NULL;
CREATE TABLE IF NOT EXISTS gone (id TEXT PRIMARY KEY, at REAL NOT NULL);
"""


class Database:
    """One connection, for any number of threads. A file that turns out broken is opened anew by the next one, and so
    is one that has been moved away: what is written to it nobody would find again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._guard = threading.RLock()
        self._db: sqlite3.Connection | None = None
        self._opened: tuple[int, int] | None = None
        self.times_opened = 0

    def open(self) -> None:
        """Open the file, or make it. A second time does nothing.

        Raises:
            StoreUnavailable: it cannot be opened, is none of these, or was written by a later version.
            DiskFull: there is no room for it.
        """
        with self._guard:
            if self._db is not None and self._opened != _file_at(self._path):
                self.close()
            if self._db is None:
                self._db = self._connect()
                self.times_opened += 1

    def close(self) -> None:
        """Close it. A second time does nothing."""
        with self._guard:
            if self._db is not None:
                with suppress(sqlite3.Error):
                    self._db.close()
                self._db = None

    @contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """A block that is recorded as a whole or not at all; `durable`: even if the power fails.

        Raises:
            StoreUnavailable, DiskFull: it could not be.
        """
        with self.reading() as db:
            if not durable:
                db.execute("PRAGMA synchronous = NORMAL")
            try:
                db.execute("BEGIN IMMEDIATE")
                try:
                    yield db
                    db.execute("COMMIT")
                except BaseException:
                    if db.in_transaction:
                        db.execute("ROLLBACK")
                    raise
            finally:
                if not durable:
                    db.execute("PRAGMA synchronous = FULL")

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A block of statements of which each stands alone.

        Raises:
            StoreUnavailable: it cannot be read.
        """
        with self._guard:
            self.open()
            assert self._db is not None
            try:
                yield self._db
            except sqlite3.Error as error:
                if _number(error) in _BROKEN:
                    self.close()  # somebody may mend the file: the next one who asks opens it anew
                raise _refusal_of(error) from None

    def _connect(self) -> sqlite3.Connection:
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._path.touch(mode=0o600)
            self._opened = _file_at(self._path)
        except OSError as error:
            raise refusal_of(error) from None
        db = None
        try:
            db = sqlite3.connect(self._path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
            _write_ahead(db)
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA secure_delete = ON").fetchall()  # paths may name patients: what is deleted is gone
            found = db.execute("PRAGMA user_version").fetchone()[0]
            if found > _FORMAT:
                message = f"the file of jobs was written by a later version: format {found}, here {_FORMAT}"
                raise StoreUnavailable(message, details={"format": found}, retry_after_s=60.0)
            db.executescript(f"BEGIN IMMEDIATE; {_TABLES} PRAGMA user_version = {_FORMAT}; COMMIT;")
        except (sqlite3.Error, IsocenterError) as error:
            if db is not None:
                db.close()
            if isinstance(error, sqlite3.Error):
                raise _refusal_of(error) from None
            raise
        return db


def _file_at(path: Path) -> tuple[int, int] | None:
    """Which file has a name now; None: no one, or that cannot be told."""
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_dev, facts.st_ino


def _write_ahead(db: sqlite3.Connection) -> None:
    """Switch a file to its write-ahead log, once for all: here SQLite does not wait for others by itself."""
    until_s = time.monotonic() + _BUSY_S
    while db.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        try:
            db.execute("PRAGMA journal_mode = WAL").fetchall()
        except sqlite3.OperationalError as error:
            if _number(error) != sqlite3.SQLITE_BUSY or time.monotonic() >= until_s:
                raise
            _pause()
        else:
            return  # a disk that cannot have one keeps its own


def _pause() -> None:
    time.sleep(0.01)


def _refusal_of(error: sqlite3.Error) -> DiskFull | StoreUnavailable:
    """What SQLite says, in our words."""
    name = getattr(error, "sqlite_errorname", None) or type(error).__name__
    number = _number(error)
    if number == sqlite3.SQLITE_FULL:
        return DiskFull("there is no room on the disk of the jobs", details={"sqlite": name}, retry_after_s=30.0)
    if number in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        message = f"the file of jobs is locked by another process, for more than {_BUSY_S} s"
        return StoreUnavailable(message, details={"sqlite": name}, retry_after_s=1.0)
    if number in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        message = "the file of jobs is broken: move it away, or bring back a copy"
        return StoreUnavailable(message, details={"sqlite": name}, retry_after_s=60.0)
    return StoreUnavailable(f"the file of jobs cannot be used: {name}", details={"sqlite": name}, retry_after_s=5.0)


def _number(error: sqlite3.Error) -> int:
    """SQLite's primary code; 0 for what the module itself raises."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF
