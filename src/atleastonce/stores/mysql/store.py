"""The store: a list is one statement and a look at its rows, sent together."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from atleastonce.contract.outcomes import Fault
from atleastonce.durations import Duration, seconds, whole
from atleastonce.errors import AtLeastOnceError, ConfigurationError, MissingExtra
from atleastonce.stores import protocol
from atleastonce.stores.contract import SAVEPOINT
from atleastonce.stores.inbox import Asked, finish
from atleastonce.stores.mysql import faults, sql
from atleastonce.stores.mysql.address import Address
from atleastonce.stores.mysql.outbox import MySQLOutbox
from atleastonce.stores.mysql.pool import BlockingPool, Pool, Session, affected, rows_of
from atleastonce.stores.options import SCHEMA_VERSION, ensure_all, missing_schema, table_prefix, wrong_version
from atleastonce.stores.protocol import SECOND, State
from atleastonce.stores.records import (
    MAX_ID,
    WEEK,
    Claim,
    ClaimRequest,
    Completion,
    Count,
    Entry,
    Lease,
    Stats,
)
from atleastonce.stores.texts import as_text

if TYPE_CHECKING:
    from aiomysql import Connection
    from pymysql.connections import Connection as BlockingConnection

_T = TypeVar("_T")
_EXACT = 100_000  # rows up to which counting them all is cheap
_CHUNK = 500  # keys in one statement: from 1000 on, MariaDB makes a join of an IN list


class MySQLStore(MySQLOutbox):
    """Leases, inbox and outbox in MySQL 8.0 or MariaDB 10.6, or later, through aiomysql, and PyMySQL for handlers that block
    (``pip install "atleastonce[mysql]"``).

    Args:
        url: ``mysql://user:password@host/database``, or ``mariadb://``. ``?ssl_mode=`` is ``disabled``, ``required``,
            ``verify-ca`` or ``verify-identity``, the default where ``ssl_ca=``, ``ssl_cert=`` or ``ssl_key=`` name files.
            ``?unix_socket=`` instead of a host.
        prefix: begins the names of the tables; may name a database (``messaging.alo``).
        create: make the tables where they are missing (needs the right to).
        connections: at most so many at a time for handlers on the loop, for those on threads, and for what the store asks itself.
            Fewer: they wait for each other. More: the server has more to hold.
        lock_timeout: how long a row is waited for, in whole seconds. Shorter: more repeats under contention. Longer: a hanging
            transaction holds up its duplicates as long.
        timeout: how long a call may take.
        idle_in_transaction: after so long a silence the server ends a connection and its transaction, so that a frozen handler
            does not hold up its successor for ever. Longer than the longest pause between two statements of a handler.
    """

    scheme: ClassVar[str] = "mysql"

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "alo",
        create: bool = False,
        connections: int = 4,
        lock_timeout: Duration = "2s",
        timeout: Duration = "10s",
        connect_timeout: Duration = "5s",
        idle_in_transaction: Duration = "60s",
    ) -> None:
        super().__init__()
        self._address = Address(url)
        self._prefix = table_prefix(prefix, "mysql store")
        self._create = create
        self._timeout = seconds(timeout, name="timeout", minimum=0.01)
        self._sql = sql.Statements(self._prefix)
        self._size = whole(connections, name="connections", high=1000)
        self._connect_timeout = seconds(connect_timeout, name="connect_timeout", minimum=0.01)
        self._session = Session(
            seconds(lock_timeout, name="lock_timeout", minimum=1.0),
            seconds(idle_in_transaction, name="idle_in_transaction", minimum=1.0),
        )
        self._pool, self._lent = self._make_pool(), self._make_pool(lent=True)
        self._threads = BlockingPool(self._address, self._size, self._connect_timeout, self._session)

    def __repr__(self) -> str:
        return f"MySQLStore({str(self._address)!r})"

    @property
    def _shown(self) -> str:
        return f"mysql store {self._address}"

    def _make_pool(self, *, lent: bool = False) -> Pool:
        return Pool(self._address, self._size, self._connect_timeout, self._session)

    def schema(self) -> str:
        """The tables as SQL, for one's own migrations."""
        return sql.schema(self._prefix)

    # ------------------------------------------------------------------------------------------------------- lifecycle

    def _ensure_driver(self) -> None:
        try:
            import aiomysql  # noqa: F401
        except ModuleNotFoundError:
            raise MissingExtra("mysql", "aiomysql") from None

    async def _make_tables(self, connection: Connection) -> None:
        for statement in self.schema().split(";\n"):
            if statement.strip():
                await connection.query(statement)

    async def _check_schema(self, connection: Connection) -> None:
        try:
            rows = await rows_of(connection, self._sql.version)
        except Exception as error:
            if self._lacks_table(error):
                raise missing_schema("mysql store", str(self._address)) from None
            raise
        if not rows or rows[0][0] != SCHEMA_VERSION:
            raise wrong_version("mysql store", str(self._address), rows[0][0] if rows else "unknown")
        found = await rows_of(connection, self._sql.tables)
        ensure_all([as_text(name) for (name,) in found], self._prefix, "mysql store", str(self._address))
        columns = await rows_of(connection, self._sql.columns)
        if len(columns) < 4:
            raise missing_schema("mysql store", str(self._address))
        for table, engine, kind, length in columns:
            if str(engine).lower() != "innodb":
                raise ConfigurationError(
                    f"mysql store {self._address}: table {table} has the engine {engine}, which has no transactions; "
                    f"ALTER TABLE {table} ENGINE=InnoDB"
                )
            if str(kind).lower() != "varbinary" or int(length) < MAX_ID:
                raise ConfigurationError(
                    f"mysql store {self._address}: scope and id of {table} must be VARBINARY({MAX_ID}), not {kind}({length}); "
                    "a collation or a cut would make one message of two"
                )

    async def _disconnect(self) -> None:
        await self._pool.close()
        await self._lent.close()
        self._threads.close()

    def _lacks_table(self, error: Exception) -> bool:
        return faults.number_of(error) == faults.NO_TABLE

    async def _ask(self, *statements: str) -> list[tuple[Any, ...]]:
        """The rows of the last of ``statements``: one round trip. Each commits by itself; none is sent after one that fails."""

        async def ask(connection: Connection) -> list[tuple[Any, ...]]:
            await connection.query(";".join(statements))
            for _ in statements[1:]:
                await connection.next_result()
            return list(connection._result.rows or ())

        return await self._run(ask)

    # ---------------------------------------------------------------------------------------------------------- leases

    async def _claim(self, requests: Sequence[ClaimRequest]) -> Sequence[Claim]:
        found: dict[tuple[bytes, bytes], tuple[Any, ...]] = {}
        for some in _chunks(requests):
            rows = await self._ask(self._sql.claim(some), self._sql.look((each.scope, each.id) for each in some))
            found.update(((row[0], row[1]), row[2:]) for row in rows)
        return [_answer(request, found.get(_key(request))) for request in requests]

    async def _change(self, statements: Sequence[str], leases: Sequence[Lease], wanted: State) -> Sequence[bool]:
        for large in statements[:-1]:  # each as much as the server takes at once
            await self._ask(large)
        rows = await self._ask(statements[-1], self._sql.holders((each.scope, each.id) for each in leases))
        held = {(scope, id): (token, state) for scope, id, token, state in rows}
        return [held.get(_key(lease)) == (lease.token, wanted) for lease in leases]

    async def _extend(self, leases: Sequence[Lease], seconds: float) -> Sequence[bool]:
        return [
            held
            for some in _chunks(leases)
            for held in await self._change([self._sql.extend(some, seconds)], some, State.HELD)
        ]

    async def _complete(self, completions: Sequence[Completion]) -> Sequence[bool]:
        return [
            done
            for some in _chunks(completions)
            for done in await self._change(self._sql.complete(some), [each.lease for each in some], State.DONE)
        ]

    async def _release(self, leases: Sequence[Lease]) -> Sequence[bool]:
        return [
            free for some in _chunks(leases) for free in await self._change([self._sql.release(some)], some, State.FREE)
        ]

    # ---------------------------------------------------------------------------------------------------- housekeeping

    async def purge(self, limit: int = 1000) -> int:
        self._check_open()

        async def remove(connection: Connection) -> int:
            return sum([await connection.query(each) for each in self._sql.purges(limit)])

        return await self._told(self._persist(lambda: self._run(remove)))

    async def stats(self) -> Stats:
        self._check_open()

        async def look() -> Stats:
            found = []
            for each in self._sql.stats:
                ((counted, estimate, oldest),) = await self._ask(each.format(limit=_EXACT + 1))
                many = counted > _EXACT
                detail = "estimated by the server" if many else ""
                found.append(Count(estimate if many else counted, None if oldest is None else oldest / SECOND, detail))
            return Stats(*found)

        return await self._told(self._persist(look))

    def classify(self, error: BaseException) -> Fault:
        return faults.classify(error)

    # ----------------------------------------------------------------------------------------------------------- inbox

    @property
    def patience(self) -> float | None:
        return self._timeout

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """An ``aiomysql.Connection`` inside a transaction (READ COMMITTED)."""
        self._check_open()
        async with contextlib.AsyncExitStack() as stack:

            async def begin() -> Connection:
                async with contextlib.AsyncExitStack() as tried:
                    connection = await tried.enter_async_context(self._lent.lent())
                    async with asyncio.timeout(self._timeout):
                        await connection.begin()
                    stack.push_async_exit(tried.pop_all())
                return connection

            connection = await self._told(self._persist(begin))
            try:
                yield connection
            except BaseException:
                if not connection.closed:
                    await connection.rollback()
                raise
            await connection.commit()

    @contextlib.contextmanager
    def transaction_sync(self) -> Iterator[BlockingConnection[Any]]:
        with contextlib.ExitStack() as stack:

            def begin() -> BlockingConnection[Any]:
                with contextlib.ExitStack() as tried:
                    connection = tried.enter_context(self._threads.lent())
                    connection.begin()
                    stack.push(tried.pop_all())
                return connection

            try:
                try:
                    connection = begin()
                except Exception as error:
                    if not faults.classify(error).retryable:
                        raise
                    connection = begin()  # a connection that had ended unnoticed
            except AtLeastOnceError:
                raise
            except Exception as error:  # noqa: BLE001 - whatever a driver makes of a failing server
                raise self._as_error(error) from None
            try:
                yield connection
            except BaseException:
                if connection.open:
                    connection.rollback()
                raise
            connection.commit()

    async def claim_in(
        self, tx: Any, scope: str, ids: Sequence[str], fingerprints: Sequence[bytes], *, ttl: float = WEEK
    ) -> list[Entry]:
        """``tx``: a connection or cursor of aiomysql, asyncmy, PyMySQL or mysqlclient (those that block, block the loop that
        awaits this)."""
        asked = Asked.of(scope, ids, fingerprints, ttl)
        if not asked.distinct:
            return []
        count = await affected(tx, self._sql.record(scope, asked.distinct, ttl))
        await affected(tx, f"SAVEPOINT {SAVEPOINT}")
        if count == len(asked.distinct):
            return finish(asked, asked.distinct, {})
        new, known = set[str](), dict[str, bytes]()
        for id, fingerprint, seen in await rows_of(tx, self._sql.recorded(scope, asked.distinct)):
            if int(seen):
                known[as_text(id)] = bytes(fingerprint)
            else:
                new.add(as_text(id))
        return finish(asked, new, known)

    def lost_a_race(self, error: BaseException) -> bool:
        return faults.number_of(error) in faults.LOST_RACES

    async def holds_in(self, tx: Any, *, failed: bool = False) -> bool:
        try:
            await affected(tx, f"{'ROLLBACK TO' if failed else 'RELEASE'} SAVEPOINT {SAVEPOINT}")
        except Exception as error:
            if faults.number_of(error) != faults.NO_SAVEPOINT:
                raise
            return False
        return True


def _chunks(items: Sequence[_T]) -> Iterator[Sequence[_T]]:
    for start in range(0, len(items), _CHUNK):
        yield items[start : start + _CHUNK]


def _key(item: ClaimRequest | Lease) -> tuple[bytes, bytes]:
    return item.scope.encode(), item.id.encode()


def _answer(request: ClaimRequest, row: tuple[Any, ...] | None) -> Claim:
    if row is None:
        return protocol.GONE
    state, token, fence, attempts, doubt, fingerprint, result, left = row
    return protocol.answer(
        request,
        state,
        token,
        fence,
        attempts,
        doubt=bool(doubt),
        fingerprint=fingerprint,
        result=result,
        left=left / SECOND,
    )
