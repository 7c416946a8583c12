"""The file: how it is opened, what it holds, and what is said when it cannot be used."""

from __future__ import annotations

import os
import random
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from atleastonce.errors import AtLeastOnceError, BrokerUnavailable, ConfigurationError, NotFound, PermissionDenied

T = TypeVar("T")

MINIMUM_SQLITE = (3, 35, 0)  # the first with RETURNING
APPLICATION_ID = 0x414C4F31  # "ALO1": tells our file from another program's database
SCHEMA_VERSION = 1

_CHECKPOINT_PAGES = 4000  # 16 MiB of WAL: fewer fsyncs of the database file; more would only lengthen recovery
_WAL_LIMIT = 64 * 2**20  # a WAL that a burst made larger is cut back to this

# One row of `messages` for each message, one of `deliveries` for each source that has yet to settle it.
#
# deliveries.visible is when the row may be handed out next: its due time, the end of a lease or of a retry's delay;
# NULL while it is blocked behind an earlier message of its lane. So one index range holds what is ready, what has become
# due and what has outlived its lease, and no sweeper is needed. deliveries.claim rises with each hand-out: it is the
# fence that refuses the settlement of a reader whose message has gone to another.
#
# broker.next numbers messages; a number is never used twice, unlike a rowid: else a late settlement could meet a newer
# message. broker.high and broker.skew make a clock that never goes back, for all processes alike (Store.begin).
_SCHEMA = (
    """CREATE TABLE broker (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        next INTEGER NOT NULL, high REAL NOT NULL, skew REAL NOT NULL, generation INTEGER NOT NULL)""",
    "INSERT INTO broker VALUES (1, 1, 0.0, 0.0, 1)",
    """CREATE TABLE channels (
        id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, fifo INTEGER NOT NULL)""",
    """CREATE TABLE sources (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        channel INTEGER NOT NULL REFERENCES channels, name TEXT NOT NULL,
        UNIQUE (channel, name))""",
    """CREATE TABLE messages (
        seq INTEGER PRIMARY KEY, channel INTEGER NOT NULL, id TEXT NOT NULL,
        key BLOB, headers BLOB, published REAL NOT NULL, body BLOB NOT NULL)""",
    """CREATE TABLE deliveries (
        source INTEGER NOT NULL, seq INTEGER NOT NULL, visible REAL, due REAL NOT NULL,
        held INTEGER NOT NULL, count INTEGER NOT NULL, claim INTEGER NOT NULL, lane BLOB,
        PRIMARY KEY (source, seq)) WITHOUT ROWID""",
    "CREATE INDEX deliveries_visible ON deliveries (source, visible, seq, held) WHERE visible IS NOT NULL",
    "CREATE INDEX deliveries_lane ON deliveries (source, lane, seq) WHERE lane IS NOT NULL",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)


class NoFile(ConfigurationError, NotFound):
    """There is no file, and it was not to be made: its name is wrong, or nobody has used it yet."""


def is_busy(error: BaseException) -> bool:
    """Whether another process held the file, which passes."""
    return isinstance(error, sqlite3.OperationalError) and (error.sqlite_errorcode or 0) & 0xFF in (
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
    )


def patiently(call: Callable[[], T], patience: float) -> T:
    """``call()``, again and again while the file is busy, for ``patience`` seconds.

    SQLite's own busy handler sleeps up to 100 ms between looks; competing writers then leave the file idle most of the
    time. Looking about every millisecond costs little and shares it evenly.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            return call()
        except sqlite3.OperationalError as error:
            if not is_busy(error) or time.monotonic() >= deadline:
                raise
        time.sleep(random.uniform(0.0002, 0.002))


def open_database(path: Path, patience: float, *, create: bool = True) -> sqlite3.Connection:
    """Open ``path``, creating file and tables where there are none; safe when many processes do it at once.

    Raises:
        NoFile: there is none, or an empty one, and it is not to be created.
        ConfigurationError: no such directory, not a database, someone else's, or another version's.
        PermissionDenied: the file or its directory cannot be written.
        BrokerUnavailable: locked for longer than ``patience`` seconds, or the disk fails.
    """
    if sqlite3.sqlite_version_info < MINIMUM_SQLITE:
        wanted = ".".join(map(str, MINIMUM_SQLITE))
        raise ConfigurationError(
            f"this Python carries SQLite {sqlite3.sqlite_version}; the sqlite:// broker needs {wanted} or newer"
        )
    _check_place(path)
    if not create and not (path.exists() and path.stat().st_size):
        raise NoFile(f'sqlite file "{path}" does not exist; check the name, or publish to it first')
    try:
        db = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False, cached_statements=256)
    except sqlite3.Error as error:
        raise explain(error, path) from error
    try:
        patiently(lambda: _prepare(db, path), patience)
    except (sqlite3.Error, AtLeastOnceError) as error:
        db.close()
        if isinstance(error, sqlite3.Error):
            raise explain(error, path) from error
        raise
    return db


def empty_database() -> sqlite3.Connection:
    """One in memory, as `open_database` makes it."""
    db = sqlite3.connect(":memory:", isolation_level=None)
    _make_tables(db)
    return db


def _check_place(path: Path) -> None:
    """Say what SQLite would only call "unable to open database file"."""
    denied = PermissionDenied(f'sqlite file "{path}": no right to write it and its directory, where its log lies')
    try:
        if not path.parent.is_dir():
            raise ConfigurationError(f'sqlite file "{path}": there is no directory "{path.parent}"; create it first')
        if path.is_dir():
            raise ConfigurationError(f'sqlite file "{path}" is a directory; name a file in it')
        if not os.access(path.parent, os.W_OK) or (path.exists() and not os.access(path, os.R_OK | os.W_OK)):
            raise denied
    except OSError as error:
        raise denied from error


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    if not _is_ours(db, path):
        # Only now is anything written: a stranger's file stays as it is.
        mode = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            raise ConfigurationError(
                f'sqlite file "{path}": its file system allows no write-ahead log; use a local disk'
            )
        db.execute("BEGIN IMMEDIATE")
        try:
            if not _is_ours(db, path):  # another process may have been first
                _make_tables(db)
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
    db.execute("SELECT next FROM broker").fetchone()  # a damaged file is told now, not at the first message
    db.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
    db.execute(f"PRAGMA journal_size_limit = {_WAL_LIMIT}")


def _make_tables(db: sqlite3.Connection) -> None:
    for statement in _SCHEMA:
        db.execute(statement)


def _is_ours(db: sqlite3.Connection, path: Path) -> bool:
    """Whether the tables are there; False for a new file.

    Raises:
        ConfigurationError: the file is not ours, or of another version.
    """
    application = db.execute("PRAGMA application_id").fetchone()[0]
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if application == APPLICATION_ID:
        if version != SCHEMA_VERSION:
            raise ConfigurationError(
                f'sqlite file "{path}" has schema {version}, this atleastonce knows {SCHEMA_VERSION}; '
                "use the release that wrote it, or another file"
            )
        return True
    if application or version or db.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone():
        raise ConfigurationError(f'sqlite file "{path}" is another program\'s database; name a file of its own')
    return False


def explain(error: sqlite3.Error, path: Path) -> AtLeastOnceError:
    """``error`` as one line that says what to do."""
    code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
    if code == sqlite3.SQLITE_NOTADB:
        return ConfigurationError(f'sqlite file "{path}" is not a SQLite database; name another file')
    if code == sqlite3.SQLITE_CORRUPT:
        return ConfigurationError(f'sqlite file "{path}" is damaged ({error}); restore it, or name another file')
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN):
        return PermissionDenied(f'sqlite file "{path}" cannot be opened for writing ({error})')
    if is_busy(error):
        return BrokerUnavailable(f'sqlite file "{path}" stays locked by another process; see who has it open')
    return BrokerUnavailable(f'sqlite file "{path}": {error}')
