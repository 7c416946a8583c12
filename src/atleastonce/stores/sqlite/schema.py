"""The tables, and opening a file."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from atleastonce.errors import ConfigurationError, PermissionDenied, StoreUnavailable
from atleastonce.stores.options import SCHEMA_VERSION, ensure_all, missing_schema, wrong_version
from atleastonce.stores.outbox import SLOTS

OLDEST = (3, 35, 0)  # RETURNING


def schema(prefix: str = "alo") -> str:
    """The tables as SQL. Times are microseconds since 1970 by SQLite's reading of the machine's clock."""
    slots = ", ".join(f"({slot}, NULL, 0)" for slot in range(SLOTS))
    return f"""
CREATE TABLE IF NOT EXISTS {prefix}_store (version INTEGER NOT NULL);
INSERT INTO {prefix}_store SELECT {SCHEMA_VERSION} WHERE NOT EXISTS (SELECT 1 FROM {prefix}_store);
CREATE TABLE IF NOT EXISTS {prefix}_lease (
    scope TEXT NOT NULL, id TEXT NOT NULL, state INTEGER NOT NULL, token BLOB NOT NULL, fence INTEGER NOT NULL,
    attempts INTEGER NOT NULL, doubt INTEGER NOT NULL, lease_until INTEGER NOT NULL, fingerprint BLOB NOT NULL,
    result BLOB NOT NULL, created INTEGER NOT NULL, expires INTEGER NOT NULL, PRIMARY KEY (scope, id));
CREATE INDEX IF NOT EXISTS {prefix}_lease_expires ON {prefix}_lease (expires);
CREATE TABLE IF NOT EXISTS {prefix}_inbox (
    scope TEXT NOT NULL, id TEXT NOT NULL, fingerprint TEXT NOT NULL, created INTEGER NOT NULL, expires INTEGER NOT NULL,
    PRIMARY KEY (scope, id));
CREATE INDEX IF NOT EXISTS {prefix}_inbox_expires ON {prefix}_inbox (expires);
CREATE TABLE IF NOT EXISTS {prefix}_outbox (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, slot INTEGER NOT NULL, state INTEGER NOT NULL, id TEXT NOT NULL,
    destination TEXT NOT NULL, settings TEXT, key BLOB, headers TEXT NOT NULL, body BLOB NOT NULL, created INTEGER NOT NULL,
    due INTEGER NOT NULL, reason TEXT, parked INTEGER);
CREATE INDEX IF NOT EXISTS {prefix}_outbox_ready ON {prefix}_outbox (slot, seq) WHERE state = 0;
CREATE INDEX IF NOT EXISTS {prefix}_outbox_due ON {prefix}_outbox (due) WHERE state = 1;
CREATE INDEX IF NOT EXISTS {prefix}_outbox_parked ON {prefix}_outbox (seq) WHERE state >= 2;
CREATE INDEX IF NOT EXISTS {prefix}_outbox_blocked ON {prefix}_outbox (destination, key) WHERE state = 3;
CREATE TABLE IF NOT EXISTS {prefix}_outbox_slot (slot INTEGER PRIMARY KEY, relay BLOB, until INTEGER NOT NULL);
INSERT OR IGNORE INTO {prefix}_outbox_slot VALUES {slots};
CREATE TABLE IF NOT EXISTS {prefix}_outbox_relay (relay BLOB PRIMARY KEY, name TEXT NOT NULL, until INTEGER NOT NULL);
"""


def connect(path: Path, patience: float) -> sqlite3.Connection:
    """A connection in WAL mode that leaves transactions to us.

    Raises:
        StoreUnavailable, PermissionDenied, ConfigurationError: as named.
    """
    if sqlite3.sqlite_version_info < OLDEST:
        raise ConfigurationError(f"sqlite store: SQLite {sqlite3.sqlite_version} is too old; 3.35 or later is needed")
    try:
        connection = sqlite3.connect(path, timeout=patience, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
        except BaseException:
            connection.close()
            raise
        return connection
    except sqlite3.Error as error:
        raise as_error(error, path) from None


def as_error(error: sqlite3.Error, path: Path) -> Exception:
    """What the user is told."""
    number = (getattr(error, "sqlite_errorcode", 0) or 0) & 0xFF
    if number in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH):
        return PermissionDenied(f"sqlite store {path}: {error}")
    if number == sqlite3.SQLITE_NOTADB:
        return ConfigurationError(f"sqlite store {path}: this file is no SQLite database")
    if number == sqlite3.SQLITE_CANTOPEN:
        return StoreUnavailable(
            f"sqlite store {path}: cannot be opened; does its directory exist, and may we write there?"
        )
    return StoreUnavailable(f"sqlite store {path}: {error}")


def check(connection: sqlite3.Connection, path: Path, prefix: str) -> None:
    """Raises ConfigurationError unless the schema is there and ours."""
    try:
        row = connection.execute(f"SELECT version FROM {prefix}_store").fetchone()
    except sqlite3.OperationalError as error:
        if "no such table" in str(error):
            raise missing_schema("sqlite store", str(path)) from None
        raise
    if row is None or row[0] != SCHEMA_VERSION:
        raise wrong_version("sqlite store", str(path), row[0] if row else "unknown")
    found = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    ensure_all([name for (name,) in found], prefix, "sqlite store", str(path))


def create(connection: sqlite3.Connection, prefix: str) -> None:
    """Make what is missing, in one transaction."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        for statement in schema(prefix).split(";\n"):
            if statement.strip():
                connection.execute(statement)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
