"""Connections of psycopg for threads: what `Pool` is on a loop."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from atleastonce.stores import pools
from atleastonce.stores.postgres.pool import arguments, is_idle, restoring

if TYPE_CHECKING:
    from psycopg import Connection


class BlockingPool(pools.BlockingPool["Connection[Any]"]):
    """At most ``size`` connections in use at a time; arguments as `Pool`."""

    def __init__(self, dsn: str, size: int, connect_timeout: float, settings: dict[str, str]) -> None:
        super().__init__(size)
        self._dsn = dsn
        self._connect_timeout = connect_timeout
        self._settings = settings

    def is_idle(self, connection: Connection[Any]) -> bool:
        return is_idle(connection)

    def is_broken(self, connection: Connection[Any]) -> bool:
        return connection.broken

    def drop(self, connection: Connection[Any]) -> None:
        connection.close()

    def restore(self, connection: Connection[Any]) -> None:
        from psycopg import Cursor
        from psycopg.rows import tuple_row

        connection.cursor_factory, connection.row_factory = Cursor, tuple_row
        connection.execute(restoring(self._settings))

    def make(self) -> Connection[Any]:
        import psycopg

        within = max(2, round(self._connect_timeout))
        connection = psycopg.connect(**arguments(self._dsn), autocommit=True, connect_timeout=within)
        try:
            calls = ", ".join("set_config(%s, %s, false)" for _ in self._settings)
            connection.execute(f"SELECT {calls}".encode(), [text for pair in self._settings.items() for text in pair])
        except BaseException:
            with contextlib.suppress(Exception):
                connection.close()
            raise
        return connection
