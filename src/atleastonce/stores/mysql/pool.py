"""Connections of aiomysql for coroutines and of PyMySQL for threads, and speaking through the user's own."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Any

from atleastonce.stores import pools
from atleastonce.stores.mysql.address import Address

if TYPE_CHECKING:
    from aiomysql import Connection
    from pymysql.connections import Connection as BlockingConnection

_IN_TRANSACTION = 1  # SERVER_STATUS_IN_TRANS
_CHARSET = ("utf8mb4", "utf8")  # what `SET NAMES` says, as the drivers name it for themselves
_RESET = 0x1F  # COM_RESET_CONNECTION: variables, tables, locks; neither the database nor what the handshake has set


class Session:
    """What each connection is told first, and how long it may be unused.

    Args:
        lock_timeout: seconds that a row is waited for: whole ones, that is what the server counts.
        idle: seconds after which the server ends a silent connection, in a transaction or not.
    """

    def __init__(self, lock_timeout: float, idle: float) -> None:
        self.idle = idle
        limits = (
            f"innodb_lock_wait_timeout = {max(1, round(lock_timeout))}, SESSION wait_timeout = {max(1, round(idle))}"
        )
        self.statements = (
            "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
            f"SET NAMES utf8mb4, autocommit = 1, SESSION sql_mode = CONCAT(@@sql_mode, ',STRICT_ALL_TABLES'), SESSION {limits}",
        )


def in_transaction(connection: Any) -> bool | None:
    """What the server said with its last answer; None where the driver does not tell (mysqlclient)."""
    status = getattr(connection, "server_status", None)
    return bool(status & _IN_TRANSACTION) if isinstance(status, int) else None


class Pool(pools.Pool["Connection"]):
    """For coroutines."""

    def __init__(self, address: Address, size: int, connect_timeout: float, session: Session) -> None:
        super().__init__(size, trusted=session.idle / 2)
        self._address, self._timeout, self._session = address, connect_timeout, session

    def is_idle(self, connection: Connection) -> bool:
        return not self.is_broken(connection) and not in_transaction(connection)

    def is_broken(self, connection: Connection) -> bool:
        return bool(connection.closed)

    async def drop(self, connection: Connection) -> None:
        connection.close()  # without a word to the server, which may not be there

    async def restore(self, connection: Connection) -> None:
        from aiomysql.cursors import Cursor

        connection.cursorclass = Cursor
        connection._charset, connection._encoding = _CHARSET
        async with asyncio.timeout(self._timeout):
            await connection._execute_command(_RESET, b"")
            await connection._read_ok_packet()
            await self._begin(connection, self._address.use)

    async def _begin(self, connection: Connection, *before: str) -> None:
        statements = (*before, *self._session.statements)
        await connection.query(";".join(statements))
        for _ in statements[1:]:
            await connection.next_result()

    async def make(self) -> Connection:
        from atleastonce.stores.mysql.connections import Awaited, Encrypted

        tls = self._address.tls
        arguments = dict(self._address.arguments)
        arguments["db"] = arguments.pop("database")
        connection = (Awaited if tls is None else Encrypted)(**arguments, ssl=tls)
        try:
            async with asyncio.timeout(self._timeout):
                await connection._connect()
                await self._begin(connection)
        except BaseException:
            connection.close()
            raise
        return connection


class BlockingPool(pools.BlockingPool["BlockingConnection[Any]"]):
    """For threads."""

    def __init__(self, address: Address, size: int, connect_timeout: float, session: Session) -> None:
        super().__init__(size, trusted=session.idle / 2)
        self._address, self._timeout, self._session = address, connect_timeout, session

    def is_idle(self, connection: BlockingConnection[Any]) -> bool:
        return not self.is_broken(connection) and not in_transaction(connection)

    def is_broken(self, connection: BlockingConnection[Any]) -> bool:
        return not connection.open

    def drop(self, connection: BlockingConnection[Any]) -> None:
        connection._force_close()

    def restore(self, connection: BlockingConnection[Any]) -> None:
        from pymysql.cursors import Cursor

        connection.cursorclass = Cursor
        connection.charset, connection.encoding = _CHARSET
        connection._execute_command(_RESET, b"")
        connection._read_ok_packet()
        for statement in (self._address.use, *self._session.statements):
            connection.query(statement)

    def make(self) -> BlockingConnection[Any]:
        from atleastonce.stores.mysql.connections import Blocking

        tls = self._address.tls
        how: dict[str, Any] = {"ssl_disabled": True} if tls is None else {"ssl": tls}
        connection = Blocking(**self._address.arguments, **how, connect_timeout=max(1, round(self._timeout)))
        try:
            for statement in self._session.statements:
                connection.query(statement)
        except BaseException:
            connection._force_close()
            raise
        return connection


async def affected(tx: Any, statement: str) -> int:
    """Run ``statement`` on the user's connection or cursor, whichever driver's; how many rows it affected."""
    cursor = await _executed(tx, statement)
    return int(cursor.rowcount)


async def rows_of(tx: Any, statement: str) -> list[tuple[Any, ...]]:
    """All rows, whatever the kind of its cursors."""
    cursor = await _executed(tx, statement)
    rows = cursor.fetchall()
    found = await rows if inspect.isawaitable(rows) else rows
    return [tuple(row.values()) if isinstance(row, dict) else tuple(row) for row in found]


async def _executed(tx: Any, statement: str) -> Any:
    connection = getattr(tx, "connection", tx)
    cursor = connection.cursor()
    if inspect.isawaitable(cursor):
        cursor = await cursor
    done = cursor.execute(statement)
    if inspect.isawaitable(done):
        await done
    return cursor
