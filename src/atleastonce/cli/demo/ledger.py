"""What a service has done, in an SQLite file: the effect and the id of its message in one transaction.

This is what makes a consumer idempotent, and what the account at the end is made of: a process that is killed takes its
counters with it, but not what it committed.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec

from atleastonce.context import Context

_SCHEMA = """
CREATE TABLE IF NOT EXISTS effects (
    message_id TEXT PRIMARY KEY,
    effect     TEXT NOT NULL,               -- charged, shipped, discarded
    cents      INTEGER NOT NULL,
    attempt    INTEGER NOT NULL,
    redrives   INTEGER NOT NULL,
    suppressed INTEGER NOT NULL DEFAULT 0   -- how often the message came again and was not done again
) WITHOUT ROWID;
CREATE VIEW IF NOT EXISTS endings AS SELECT message_id, suppressed, CASE
    WHEN effect = 'discarded' THEN 'discarded'
    WHEN redrives > 0 THEN 'redriven'
    WHEN attempt > 1 THEN 'done_after_retry'
    ELSE 'done' END AS ending
FROM effects;
"""

# How long a writer waits for the other process of its service. Too short fails a batch, which is then merely retried.
_PATIENCE_SECONDS = 10.0


class Effects:
    """The open transaction of a `Ledger`."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def suppress(self, context: Context) -> bool:
        """Whether this message had its effect before; counts that it came again."""
        sql = "UPDATE effects SET suppressed = suppressed + 1 WHERE message_id = ?"
        return self._db.execute(sql, (context.message.id,)).rowcount > 0

    def record(self, context: Context, effect: str, cents: int = 0) -> None:
        """The effect of this message, with its id."""
        self._db.execute(
            "INSERT INTO effects (message_id, effect, cents, attempt, redrives) VALUES (?, ?, ?, ?, ?)",
            (context.message.id, effect, cents, context.attempt, context.redrives),
        )


class Totals(msgspec.Struct, frozen=True):
    """A ledger in numbers: messages by how they ended, and repetitions that had no effect."""

    done: int = 0
    done_after_retry: int = 0
    redriven: int = 0
    discarded: int = 0
    suppressed: int = 0

    @property
    def messages(self) -> int:
        return self.done + self.done_after_retry + self.redriven + self.discarded


class Ledger:
    """The ledger of one service; its processes share the file. Safe to use from several threads."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, timeout=_PATIENCE_SECONDS, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.executescript(_SCHEMA)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Effects]:
        """All effects of the block, or none of them."""
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield Effects(self._db)
                self._db.execute("COMMIT")
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")

    def endings(self) -> dict[str, str]:
        """How each message ended, by its id: a name of the account."""
        with self._lock:
            return dict(self._db.execute("SELECT message_id, ending FROM endings"))

    def totals(self) -> Totals:
        """The sums of `endings`, and the repetitions."""
        with self._lock:
            rows = self._db.execute("SELECT ending, count(*), sum(suppressed) FROM endings GROUP BY ending").fetchall()
        return Totals(**{ending: count for ending, count, _ in rows}, suppressed=sum(row[2] for row in rows))

    def close(self) -> None:
        with self._lock:
            self._db.close()
