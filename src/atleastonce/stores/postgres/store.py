"""The store: one round trip a list, by arrays."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from atleastonce.contract.outcomes import Code, Fault
from atleastonce.durations import Duration, seconds, whole
from atleastonce.errors import AtLeastOnceError, InvalidMessage, MissingExtra
from atleastonce.stores import protocol
from atleastonce.stores.contract import SAVEPOINT
from atleastonce.stores.inbox import Asked, finish
from atleastonce.stores.options import SCHEMA_VERSION, ensure_all, missing_schema, table_prefix, wrong_version
from atleastonce.stores.postgres import faults, sql
from atleastonce.stores.postgres.blocking import BlockingPool
from atleastonce.stores.postgres.outbox import PostgresOutbox
from atleastonce.stores.postgres.pool import Pool, rows_of, run
from atleastonce.stores.records import (
    WEEK,
    Claim,
    ClaimRequest,
    Completion,
    Count,
    Entry,
    Lease,
    Stats,
    Status,
)
from atleastonce.stores.texts import as_text
from atleastonce.urls import mask_url

if TYPE_CHECKING:
    from psycopg import AsyncConnection, Connection

_T = TypeVar("_T")
_R = TypeVar("_R")
_EXACT = 100_000  # rows up to which counting them all is cheap


class PostgresStore(PostgresOutbox):
    """Leases, inbox and outbox in PostgreSQL 12 or later, through psycopg 3 (``pip install "atleastonce[postgres]"``).

    Args:
        dsn: ``postgresql://user:password@host/database?...``, or libpq's ``key=value`` text.
        prefix: begins the names of the tables; may name a schema (``messaging.alo``).
        create: make the tables where they are missing (needs the right to).
        connections: at most so many at a time for handlers on the loop, for those on threads, and for what the store asks itself.
            Fewer: they wait for each other. More: the server has more to hold.
        lock_timeout: how long a row is waited for. Shorter: more repeats under contention. Longer: a hanging transaction
            holds up its duplicates as long.
        timeout: how long a call may take.
        idle_in_transaction: after so long a silence in a transaction the server ends it, so that a frozen handler does not
            hold up its successor for ever. Longer than the longest pause between two statements of a handler.
        notify: whether a commit with outbox rows wakes the relays (``NOTIFY``). Off: where very many transactions a second write
            rows, for PostgreSQL lets those that notify commit one after the other; or behind a pooler that cannot ``LISTEN``.
    """

    scheme: ClassVar[str] = "postgresql"

    def __init__(
        self,
        dsn: str,
        *,
        prefix: str = "alo",
        create: bool = False,
        connections: int = 4,
        lock_timeout: Duration = "2s",
        timeout: Duration = "10s",
        connect_timeout: Duration = "5s",
        idle_in_transaction: Duration = "60s",
        notify: bool = True,
    ) -> None:
        super().__init__()
        self._dsn = dsn
        self._prefix = table_prefix(prefix, "postgres store")
        self._notify = notify
        self._create = create
        self._timeout = seconds(timeout, name="timeout", minimum=0.01)
        self._sql = sql.Statements(self._prefix)
        self._size = whole(connections, name="connections", high=1000)
        self._connect_timeout = seconds(connect_timeout, name="connect_timeout", minimum=0.01)
        self._settings = {
            "lock_timeout": f"{seconds(lock_timeout, name='lock_timeout', minimum=0.001) * 1000:.0f}",
            "idle_in_transaction_session_timeout": f"{seconds(idle_in_transaction, name='idle_in_transaction') * 1000:.0f}",
            "application_name": "atleastonce",
        }
        self._pool, self._lent = self._make_pool(), self._make_pool(lent=True)
        self._threads = BlockingPool(self._dsn, self._size, self._connect_timeout, self._settings)

    def __repr__(self) -> str:
        return f"PostgresStore({self._place!r})"

    @property
    def _shown(self) -> str:
        return f"postgres store {self._place}"

    @property
    def _place(self) -> str:
        return mask_url(self._dsn) if "://" in self._dsn else "..."

    def _make_pool(self, *, lent: bool = False) -> Pool:
        # Its own statements go by indexes, and stop where they have enough. What they ask for the planner cannot know: it believes
        # in so few rows that it reads all of an outbox into a bitmap, and sorts.
        more = {} if lent else {"enable_bitmapscan": "off"}
        return Pool(self._dsn, self._size, self._connect_timeout, {**self._settings, **more})

    def schema(self) -> str:
        """The tables as SQL, for one's own migrations."""
        return sql.schema(self._prefix)

    # ------------------------------------------------------------------------------------------------------- lifecycle

    def _ensure_driver(self) -> None:
        try:
            import psycopg  # noqa: F401
        except ModuleNotFoundError:
            raise MissingExtra("postgres", "psycopg") from None

    async def _make_tables(self, connection: AsyncConnection[Any]) -> None:
        async with connection.transaction():
            # IF NOT EXISTS is not safe against itself: two at once both find nothing.
            await connection.execute("SELECT pg_advisory_xact_lock(hashtext('atleastonce.stores'))")
            for statement in self.schema().split(";\n"):
                if statement.strip():
                    await connection.execute(statement.encode())

    async def _check_schema(self, connection: AsyncConnection[Any]) -> None:
        import psycopg

        try:
            row = await (await connection.execute(self._sql.version.encode())).fetchone()
        except psycopg.errors.UndefinedTable:
            raise missing_schema("postgres store", self._place) from None
        if row is None or row[0] != SCHEMA_VERSION:
            raise wrong_version("postgres store", self._place, row[0] if row else "unknown")
        found = await (await connection.execute(self._sql.tables.encode())).fetchall()
        ensure_all([as_text(name) for (name,) in found], self._prefix, "postgres store", self._place)

    async def _disconnect(self) -> None:
        await self._outbox_close()
        await self._pool.close()
        await self._lent.close()
        self._threads.close()

    def _lacks_table(self, error: Exception) -> bool:
        return self.classify(error).code is Code.NOT_FOUND

    # ---------------------------------------------------------------------------------------------------------- leases

    async def _claim(self, requests: Sequence[ClaimRequest]) -> Sequence[Claim]:
        return await self._apart(requests, self._claim_all, _unholdable)

    async def _apart(
        self,
        items: Sequence[_T],
        ask: Callable[[Sequence[_T]], Awaitable[Sequence[_R]]],
        refuse: Callable[[Exception], _R],
    ) -> Sequence[_R]:
        """What ``ask`` says of ``items``; ``refuse`` for each whose text the database's encoding cannot hold. Such a one fails the
        statement for all: it is looked for by halves."""
        try:
            return await ask(items)
        except Exception as error:
            if not faults.is_unholdable(error):
                raise
            if len(items) == 1:
                return [refuse(error)]
            half = len(items) // 2
            return [*await self._apart(items[:half], ask, refuse), *await self._apart(items[half:], ask, refuse)]

    async def _claim_all(self, requests: Sequence[ClaimRequest]) -> Sequence[Claim]:
        asked = {
            "scopes": [each.scope for each in requests],
            "ids": [each.id for each in requests],
            "tokens": [each.token for each in requests],
            "fingerprints": [each.fingerprint for each in requests],
            "leases": [float(each.lease) for each in requests],
            "ttls": [float(each.ttl) for each in requests],
        }

        async def ask(connection: AsyncConnection[Any]) -> list[Any]:
            # One round trip and, without BEGIN, one transaction: a pipeline up to its sync.
            async with connection.pipeline():
                await connection.execute(self._sql.claim.encode(), asked)
                cursor = connection.cursor(binary=True)
                await cursor.execute(self._sql.look.encode(), asked)
            return await cursor.fetchall()

        answers = [protocol.GONE] * len(requests)
        for position, state, token, fence, attempts, doubt, fingerprint, result, left in await self._run(ask):
            answers[position - 1] = protocol.answer(
                requests[position - 1],
                state,
                token,
                fence,
                attempts,
                doubt=doubt,
                fingerprint=fingerprint,
                result=result,
                left=left,
            )
        return answers

    async def _change(self, statement: str, leases: Sequence[Lease], **arrays: Sequence[Any]) -> Sequence[bool]:
        async def change(places: Sequence[int]) -> Sequence[bool]:
            asked = {
                "scopes": [leases[place].scope for place in places],
                "ids": [leases[place].id for place in places],
                "tokens": [leases[place].token for place in places],
                **{name: [values[place] for place in places] for name, values in arrays.items()},
            }

            async def ask(connection: AsyncConnection[Any]) -> list[Any]:
                return await (await connection.execute(statement.encode(), asked)).fetchall()

            held = {position for (position,) in await self._run(ask)}
            return [position in held for position in range(1, len(places) + 1)]

        # What cannot be held was never granted.
        return await self._apart(range(len(leases)), change, lambda _: False)

    async def _extend(self, leases: Sequence[Lease], seconds: float) -> Sequence[bool]:
        return await self._change(self._sql.extend, leases, spans=[float(seconds)] * len(leases))

    async def _complete(self, completions: Sequence[Completion]) -> Sequence[bool]:
        return await self._change(
            self._sql.complete,
            [each.lease for each in completions],
            results=[each.result for each in completions],
            spans=[float(each.ttl) for each in completions],
        )

    async def _release(self, leases: Sequence[Lease]) -> Sequence[bool]:
        return await self._change(self._sql.release, leases)

    # ---------------------------------------------------------------------------------------------------- housekeeping

    async def purge(self, limit: int = 1000) -> int:
        self._check_open()

        async def remove(connection: AsyncConnection[Any]) -> int:
            return sum([(await connection.execute(each.encode(), [limit])).rowcount for each in self._sql.purges])

        return await self._told(self._persist(lambda: self._run(remove)))

    async def stats(self) -> Stats:
        self._check_open()

        async def look(connection: AsyncConnection[Any]) -> Stats:
            found = []
            for look, count in zip(self._sql.stats, self._sql.counts, strict=True):
                rows, size, oldest = await (await connection.execute(look.encode())).fetchone() or (None, 0, None)
                detail = "estimated by the server when it last analysed the table"
                if size < _EXACT * 64 or rows is None or rows < 0:
                    (rows,) = await (await connection.execute(count.encode())).fetchone() or (None,)
                    detail = ""
                found.append(Count(rows, oldest, detail))
            return Stats(*found)

        return await self._told(self._persist(lambda: self._run(look)))

    def classify(self, error: BaseException) -> Fault:
        return faults.classify(error)

    # ----------------------------------------------------------------------------------------------------------- inbox

    @property
    def patience(self) -> float | None:
        return self._timeout

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection[Any]]:
        self._check_open()
        stack = contextlib.AsyncExitStack()
        async with stack:
            connection = await self._told(stack.enter_async_context(self._lent.lent()))

            async def begin() -> None:
                async with asyncio.timeout(self._timeout):
                    await stack.enter_async_context(connection.transaction())

            await self._told(begin())
            yield connection

    @contextlib.contextmanager
    def transaction_sync(self) -> Iterator[Connection[Any]]:
        with contextlib.ExitStack() as stack:
            try:
                connection = stack.enter_context(self._threads.lent())
            except AtLeastOnceError:
                raise
            except Exception as error:  # noqa: BLE001 - whatever psycopg makes of a failing server
                raise self._as_error(error) from None
            with connection.transaction():
                yield connection

    async def claim_in(
        self, tx: Any, scope: str, ids: Sequence[str], fingerprints: Sequence[bytes], *, ttl: float = WEEK
    ) -> list[Entry]:
        """``tx``: a psycopg 3 connection or cursor, async or sync (a sync one blocks the loop that awaits this)."""
        asked = Asked.of(scope, ids, fingerprints, ttl)
        given = (scope, float(ttl), list(asked.distinct), list(asked.distinct.values()))
        try:
            rows = await rows_of(tx, self._sql.insert_inbox, given, then=f"SAVEPOINT {SAVEPOINT}")
        except Exception as error:
            if faults.is_unholdable(error):
                raise InvalidMessage(_unheld(error)) from None
            raise
        new = {as_text(row[0]) for row in rows}
        known: dict[str, bytes] = {}
        if len(new) < len(asked.distinct):
            others = [id for id in asked.distinct if id not in new]
            found = await rows_of(tx, self._sql.read_inbox, (scope, others))
            known = {as_text(id): bytes(value) for id, value in found}
        return finish(asked, new, known)

    def lost_a_race(self, error: BaseException) -> bool:
        return getattr(error, "sqlstate", None) in faults.LOST_RACES

    async def holds_in(self, tx: Any, *, failed: bool = False) -> bool:
        from psycopg import errors

        try:
            await run(tx, f"{'ROLLBACK TO' if failed else 'RELEASE'} SAVEPOINT {SAVEPOINT}")
        except (errors.InvalidSavepointSpecification, errors.NoActiveSqlTransaction):
            return False
        return True


def _unheld(error: Exception) -> str:
    why = " ".join(str(error).split())
    return f"the database's encoding cannot hold it ({why}); make the key ASCII, a digest for instance, or the database UTF8"


def _unholdable(error: Exception) -> Claim:
    return Claim(Status.REJECTED, fault=Fault(Code.INVALID, detail=_unheld(error)))
