"""The store: each call one transaction with the write lock taken first, in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from atleastonce.contract.outcomes import Code, Fault, Scope
from atleastonce.durations import Duration, seconds
from atleastonce.errors import AtLeastOnceError, ConfigurationError
from atleastonce.stores import protocol
from atleastonce.stores.contract import SAVEPOINT
from atleastonce.stores.inbox import Asked, finish
from atleastonce.stores.options import missing_schema, table_prefix
from atleastonce.stores.protocol import SECOND, Record, State, micros
from atleastonce.stores.records import WEEK, Claim, ClaimRequest, Completion, Count, Entry, Lease, Stats
from atleastonce.stores.sqlite import schema
from atleastonce.stores.sqlite.desk import NOW, Desk
from atleastonce.stores.sqlite.outbox import SQLiteOutbox
from atleastonce.stores.sqlite.threads import in_thread
from atleastonce.stores.sqlite.users import ensure_begun, rows_of
from atleastonce.stores.texts import as_text

_COLUMNS = "state, token, fence, attempts, doubt, lease_until, fingerprint, result, created, expires"

_T = TypeVar("_T")


class SQLiteStore(SQLiteOutbox):
    """Leases, inbox and outbox in one file, shared by any number of processes of one machine (not over a network file system).

    Args:
        path: of the file; made if it is missing.
        prefix: begins the names of the tables.
        create: make the tables where they are missing.
        patience: how long a call waits for other processes' transactions. Shorter: more unknown outcomes while others
            write. Longer: a process that hangs in a transaction is noticed later.

    Raises:
        ConfigurationError: an argument out of range.
    """

    scheme: ClassVar[str] = "sqlite"

    def __init__(
        self, path: str | Path, *, prefix: str = "alo", create: bool = True, patience: Duration = "5s"
    ) -> None:
        super().__init__()
        if str(path) in ("", ":memory:"):
            raise ConfigurationError("sqlite store: give it a file, or use MemoryStore")
        self.path = Path(path)
        self._prefix = table_prefix(prefix, "sqlite store")
        self._create = create
        self._patience = seconds(patience, name="patience")
        self._desk: Desk | None = None
        # Begins and commits the handlers' transactions, of which there is one at a time. Not the desk's: that one may be waiting
        # for the very transaction that is to be committed.
        self._committing: ThreadPoolExecutor | None = None
        # Two handlers' transactions of this process do not wait for each other inside SQLite.
        self._users = asyncio.Lock()
        self._threads = threading.Lock()

    def __repr__(self) -> str:
        return f"SQLiteStore({str(self.path)!r})"

    def schema(self) -> str:
        """The tables as SQL."""
        return schema.schema(self._prefix)

    async def init(self) -> None:
        def make() -> None:
            with contextlib.closing(schema.connect(self.path, self._patience)) as connection:
                self._made(connection)

        await asyncio.to_thread(make)

    def _made(self, connection: sqlite3.Connection) -> None:
        try:
            schema.create(connection, self._prefix)
            schema.check(connection, self.path, self._prefix)
        except sqlite3.Error as error:
            raise schema.as_error(error, self.path) from None

    async def _connect(self) -> None:
        def work() -> sqlite3.Connection:
            if not self._create and not self.path.exists():  # to open it would make it
                raise missing_schema("sqlite store", f"{self.path} (there is no such file)")
            connection = schema.connect(self.path, self._patience)
            try:
                if self._create:
                    self._made(connection)
                else:
                    schema.check(connection, self.path, self._prefix)
            except BaseException:
                connection.close()
                raise
            return connection

        self._desk = await Desk.open(work, "sqlite store")
        self._committing = ThreadPoolExecutor(1, "sqlite store transactions")

    async def _disconnect(self) -> None:
        await self._outbox_close()
        self._committing = None  # not shut down: a transaction that is open still may end, and the thread ends with it
        if self._desk is not None:
            await self._desk.close()
            self._desk = None

    async def _write(self, work: Callable[[sqlite3.Connection, int], _T]) -> _T:
        self._check_open()
        assert self._desk is not None  # noqa: S101 - an open store has one
        return await self._desk.write(work)

    def _read(self, connection: sqlite3.Connection, keys: Sequence[tuple[str, str]]) -> list[Record | None]:
        sql = f"SELECT {_COLUMNS} FROM {self._prefix}_lease WHERE scope = ? AND id = ?"
        rows = [connection.execute(sql, key).fetchone() for key in keys]
        return [_record(row) if row else None for row in rows]

    async def _claim(self, requests: Sequence[ClaimRequest]) -> Sequence[Claim]:
        write = f"INSERT OR REPLACE INTO {self._prefix}_lease (scope, id, {_COLUMNS}) VALUES ({', '.join('?' * 12)})"

        def work(connection: sqlite3.Connection, now: int) -> list[Claim]:
            records = self._read(connection, [(each.scope, each.id) for each in requests])
            answers, rows = [], []
            for request, found in zip(requests, records, strict=True):
                answer, record = protocol.claim(found, request, now)
                answers.append(answer)
                if record is not None:
                    rows.append((request.scope, request.id, *_values(record)))
            connection.executemany(write, rows)
            return answers

        return await self._write(work)

    async def _change(
        self, leases: Sequence[Lease], change: Callable[[int, Record | None, int], bool]
    ) -> Sequence[bool]:
        update = (
            f"UPDATE {self._prefix}_lease SET state = ?, lease_until = ?, result = ?, expires = ? "
            "WHERE scope = ? AND id = ?"
        )

        def work(connection: sqlite3.Connection, now: int) -> list[bool]:
            records = self._read(connection, [(each.scope, each.id) for each in leases])
            held = [change(position, record, now) for position, record in enumerate(records)]
            rows = [
                (record.state, record.lease_until, record.result, record.expires, lease.scope, lease.id)
                for lease, record, good in zip(leases, records, held, strict=True)
                if good and record is not None
            ]
            connection.executemany(update, rows)
            return held

        return await self._write(work)

    async def _extend(self, leases: Sequence[Lease], seconds: float) -> Sequence[bool]:
        return await self._change(leases, lambda at, old, now: protocol.extend(old, leases[at].token, seconds, now))

    async def _complete(self, completions: Sequence[Completion]) -> Sequence[bool]:
        def change(at: int, old: Record | None, now: int) -> bool:
            each = completions[at]
            return protocol.complete(old, each.lease.token, each.result, each.ttl, now)

        return await self._change([each.lease for each in completions], change)

    async def _release(self, leases: Sequence[Lease]) -> Sequence[bool]:
        return await self._change(leases, lambda at, old, now: protocol.release(old, leases[at].token, now))

    async def purge(self, limit: int = 1000) -> int:
        def work(connection: sqlite3.Connection, now: int) -> int:
            return sum(
                connection.execute(
                    f"DELETE FROM {self._prefix}_{table} WHERE rowid IN "
                    f"(SELECT rowid FROM {self._prefix}_{table} WHERE expires <= ? ORDER BY expires LIMIT ?)",
                    (now, limit),
                ).rowcount
                for table in ("lease", "inbox")
            )

        return await self._told(self._write(work))

    async def stats(self) -> Stats:
        def count(connection: sqlite3.Connection, now: int, table: str) -> Count:
            (rows,) = connection.execute(f"SELECT count(*) FROM {self._prefix}_{table}").fetchone()
            first = connection.execute(
                f"SELECT created FROM {self._prefix}_{table} ORDER BY expires LIMIT 1"
            ).fetchone()
            return Count(rows, (now - first[0]) / SECOND if first else None)

        return await self._told(self._write(lambda c, now: Stats(count(c, now, "lease"), count(c, now, "inbox"))))

    async def _told(self, work: Awaitable[_T]) -> _T:
        try:
            return await work
        except sqlite3.Error as error:
            raise schema.as_error(error, self.path) from None

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[sqlite3.Connection]:
        """A ``sqlite3.Connection`` inside ``BEGIN IMMEDIATE``. One at a time in a process: SQLite has one writer.

        A thread of yours that uses it has to have ended when the block does, also when that is cancelled.
        """
        self._check_open()
        thread = self._committing
        assert thread is not None  # noqa: S101 - an open store has one
        async with self._users:
            connection = await in_thread(thread, self._begun, undo=sqlite3.Connection.close)
            try:
                yield connection
                await in_thread(thread, lambda: connection.execute("COMMIT"))
            finally:
                connection.close()  # what was not committed is undone

    @contextlib.contextmanager
    def transaction_sync(self) -> Iterator[sqlite3.Connection]:
        with self._threads:  # SQLite would let them wait by polling
            connection = self._begun()
            try:
                yield connection
                connection.execute("COMMIT")
            finally:
                connection.close()

    def _begun(self) -> sqlite3.Connection:
        connection = schema.connect(self.path, self._patience)
        try:
            connection.execute("BEGIN IMMEDIATE")
        except BaseException as error:
            connection.close()
            if isinstance(error, sqlite3.Error):
                raise schema.as_error(error, self.path) from None
            raise
        return connection

    async def claim_in(
        self, tx: Any, scope: str, ids: Sequence[str], fingerprints: Sequence[bytes], *, ttl: float = WEEK
    ) -> list[Entry]:
        """``tx``: a ``sqlite3.Connection`` or an ``aiosqlite.Connection``. Begin with ``BEGIN IMMEDIATE``."""
        asked = Asked.of(scope, ids, fingerprints, ttl)
        await ensure_begun(tx, f"{self._prefix}_inbox")
        rows = json.dumps([[id, value.hex()] for id, value in asked.distinct.items()])
        fresh = await rows_of(
            tx,
            # Hex, since JSON has no bytes and `unhex` came with 3.41 (and `->>` with 3.38); the clock once for all.
            f"INSERT INTO {self._prefix}_inbox (scope, id, fingerprint, created, expires) "
            "SELECT ?, json_extract(j.value, '$[0]'), json_extract(j.value, '$[1]'), n.t, n.t + ? "
            f"FROM json_each(?) j, (SELECT {NOW} AS t) n WHERE true "
            "ON CONFLICT DO NOTHING RETURNING id",
            (scope, micros(ttl), rows),
        )
        new = {as_text(row[0]) for row in fresh}
        known: dict[str, bytes] = {}
        if len(new) < len(asked.distinct):
            others = json.dumps([id for id in asked.distinct if id not in new])
            found = await rows_of(
                tx,
                f"SELECT id, fingerprint FROM {self._prefix}_inbox "
                "WHERE scope = ? AND id IN (SELECT value FROM json_each(?))",
                (scope, others),
            )
            known = {as_text(id): bytes.fromhex(as_text(value)) for id, value in found}
        await rows_of(tx, f"SAVEPOINT {SAVEPOINT}")
        return finish(asked, new, known)

    def lost_a_race(self, error: BaseException) -> bool:
        return False  # who has claimed is the one writer: a file that is locked is another one

    async def holds_in(self, tx: Any, *, failed: bool = False) -> bool:
        try:
            await rows_of(tx, f"{'ROLLBACK TO' if failed else 'RELEASE'} {SAVEPOINT}")
        except sqlite3.OperationalError as error:
            if "no such savepoint" not in str(error):
                raise
            return False
        return True

    def classify(self, error: BaseException) -> Fault:
        if isinstance(error, AtLeastOnceError):
            return Fault(Code.UNAVAILABLE, True, Scope.CONNECTION, str(error))
        number = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
        for numbers, code, retryable, text in _FAULTS:
            if number in numbers:
                return Fault(code, retryable, Scope.CONNECTION, f"{text} ({error})")
        if isinstance(error, sqlite3.OperationalError) and "no such table" in str(error):
            return Fault(Code.NOT_FOUND, False, Scope.CONNECTION, f"{error}: call the store's init()")
        return Fault(Code.INTERNAL, False, Scope.MESSAGE, f"{type(error).__name__}: {error}")


_FAULTS = (
    ({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}, Code.CONFLICT, True, "other processes held the file for too long"),
    ({sqlite3.SQLITE_FULL}, Code.OVERLOADED, True, "the disk is full"),
    ({sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN}, Code.UNAVAILABLE, True, "the file cannot be read or written"),
    ({sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM}, Code.PERMISSION, False, "the file is read-only"),
    ({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}, Code.INTERNAL, False, "the file is damaged; restore it"),
)


def _record(row: Any) -> Record:
    state, token, fence, attempts, doubt, *rest = row
    return Record(State(state), token, fence, attempts, bool(doubt), *rest)


def _values(record: Record) -> tuple[Any, ...]:
    return (
        int(record.state), record.token, record.fence, record.attempts, int(record.doubt), record.lease_until,
        record.fingerprint, record.result, record.created, record.expires,
    )  # fmt: skip
