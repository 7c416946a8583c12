"""Connections of psycopg for coroutines, and reading from the user's own."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from atleastonce.stores import pools

if TYPE_CHECKING:
    from psycopg import AsyncConnection
    from psycopg import Connection as BlockingConnection

    from atleastonce.stores.postgres.unhurried import Connection


def is_idle(connection: AsyncConnection[Any] | BlockingConnection[Any]) -> bool:
    """Whether it can be used again: connected, in no transaction, nothing under way."""
    return not connection.closed and connection.info.transaction_status.name == "IDLE"


def arguments(dsn: str) -> dict[str, Any]:
    """What a connection is made with: a peer that vanished is noticed in half a minute, where the system's own settings take hours.
    What the DSN says itself stands."""
    from psycopg.conninfo import conninfo_to_dict

    given = conninfo_to_dict(dsn)
    return {"conninfo": dsn, **{name: value for name, value in _ATTENTIVE.items() if name not in given}}


_ATTENTIVE = {"keepalives_idle": 15, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 30_000}


def restoring(settings: dict[str, str]) -> bytes:
    """A statement, in one round trip, after which a session is as it was made. ``DISCARD ALL`` but for the prepared statements, of
    which psycopg keeps account."""
    calls = ", ".join(f"set_config('{name}', '{value}', false)" for name, value in settings.items())
    return (
        "CLOSE ALL; SET SESSION AUTHORIZATION DEFAULT; RESET ALL; UNLISTEN *; DISCARD TEMP; "
        f"SELECT pg_advisory_unlock_all(), {calls}"
    ).encode()


class Pool(pools.Pool["Connection"]):
    """At most ``size`` connections in use at a time.

    Args:
        dsn: of libpq.
        size: of the pool.
        connect_timeout: seconds.
        settings: of each session.
    """

    def __init__(self, dsn: str, size: int, connect_timeout: float, settings: dict[str, str]) -> None:
        super().__init__(size)
        self._dsn = dsn
        self._connect_timeout = connect_timeout
        self._settings = settings

    def is_idle(self, connection: Connection) -> bool:
        return is_idle(connection)

    def is_broken(self, connection: Connection) -> bool:
        return connection.broken

    async def drop(self, connection: Connection) -> None:
        await connection.close()

    async def restore(self, connection: Connection) -> None:
        from psycopg import AsyncCursor
        from psycopg.rows import tuple_row

        connection.cursor_factory, connection.row_factory = AsyncCursor, tuple_row
        async with asyncio.timeout(self._connect_timeout):
            await connection.execute(restoring(self._settings))

    async def make(self) -> Connection:
        from atleastonce.stores.postgres.unhurried import Connection

        async with asyncio.timeout(self._connect_timeout):
            connection = await Connection.connect(**arguments(self._dsn), autocommit=True)
        try:
            # Set here and not in the DSN: connection poolers refuse start-up options that they do not know.
            calls = ", ".join("set_config(%s, %s, false)" for _ in self._settings)
            values = [text for pair in self._settings.items() for text in pair]
            async with asyncio.timeout(self._connect_timeout):
                await connection.execute(f"SELECT {calls}".encode(), values)
        except BaseException:
            await self._drop(connection)
            raise
        return connection


async def rows_of(tx: Any, statement: str, parameters: Sequence[Any], *, then: str | None = None) -> list[Any]:
    """All rows as tuples, from a connection or cursor that awaits or does not, whatever its row factory.

    Args:
        tx: the connection or cursor.
        statement: whose rows.
        parameters: of the statement.
        then: a second statement, in the same round trip; left out where there is no transaction.
    """
    from psycopg.rows import tuple_row

    connection = getattr(tx, "connection", tx)
    cursor = connection.cursor(row_factory=tuple_row)
    if then is None or (connection.autocommit and connection.info.transaction_status.name == "IDLE"):
        done = cursor.execute(statement.encode(), parameters)
        if inspect.isawaitable(done):
            await done
    elif inspect.iscoroutinefunction(connection.execute):
        async with connection.pipeline():
            await cursor.execute(statement.encode(), parameters)
            await connection.execute(then.encode())
    else:
        with connection.pipeline():
            cursor.execute(statement.encode(), parameters)
            connection.execute(then.encode())
    rows = cursor.fetchall()
    return list(await rows if inspect.isawaitable(rows) else rows)


async def run(tx: Any, statement: str) -> None:
    """Run ``statement`` on a connection or cursor that awaits or does not."""
    done = getattr(tx, "connection", tx).execute(statement.encode(), prepare=False)
    if inspect.isawaitable(done):
        await done
