"""One connection and the one thread that uses it."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Self, TypeVar

# SQLite's own reading of the clock: the same for all processes of the machine. (`unixepoch('subsec')` came with 3.42.)
NOW = "CAST((julianday('now') - 2440587.5) * 86400000.0 + 0.5 AS INTEGER) * 1000"

_T = TypeVar("_T")


class Desk:
    """Made by `open`."""

    def __init__(self, thread: ThreadPoolExecutor, connection: sqlite3.Connection) -> None:
        self._thread = thread
        self._connection = connection

    @classmethod
    async def open(cls, connect: Callable[[], sqlite3.Connection], name: str) -> Self:
        """Raises what ``connect`` does."""
        thread = ThreadPoolExecutor(1, name)
        try:
            return cls(thread, await asyncio.get_running_loop().run_in_executor(thread, connect))
        except BaseException:
            thread.shutdown(wait=False)
            raise

    async def close(self) -> None:
        """What was not committed is undone."""
        with contextlib.suppress(sqlite3.Error):
            await asyncio.get_running_loop().run_in_executor(self._thread, self._connection.close)
        self._thread.shutdown(wait=False)

    async def read(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """``work`` outside of a transaction: each statement sees what is committed when it begins."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, self._connection)

    async def write(self, work: Callable[[sqlite3.Connection, int], _T]) -> _T:
        """``work`` in one transaction, given the time. Never a deferred one: its upgrade fails without waiting."""

        def run(connection: sqlite3.Connection) -> _T:
            connection.execute("BEGIN IMMEDIATE")
            try:
                answer = work(connection, connection.execute(f"SELECT {NOW}").fetchone()[0])
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            return answer

        return await self.read(run)
