"""Speaking through the user's own connection, of sqlite3 or of a driver that awaits (aiosqlite)."""

from __future__ import annotations

from typing import Any

from atleastonce.errors import ConfigurationError
from atleastonce.stores.telling import IN_NO_TRANSACTION


async def rows_of(tx: Any, sql: str, parameters: tuple[Any, ...] = ()) -> list[Any]:
    """All rows as tuples, whatever its row factory."""
    cursor = tx.cursor()
    if hasattr(cursor, "__await__"):
        cursor = await cursor
    cursor.row_factory = None
    done = cursor.execute(sql, parameters)
    if hasattr(done, "__await__"):
        await done
    rows = cursor.fetchall()
    return list(await rows if hasattr(rows, "__await__") else rows)


async def ensure_begun(tx: Any, table: str) -> None:
    """Return if what is written through ``tx`` now is part of a transaction.

    A connection that was told nothing begins one by itself, with the first statement that writes. Whether this one does is seen by
    one that changes nothing in ``table``: of ``autocommit=`` aiosqlite says nothing.

    Raises:
        ConfigurationError: each statement would be committed by itself.
    """
    if not tx.in_transaction:
        await rows_of(tx, f"DELETE FROM {table} WHERE false")
        if not tx.in_transaction:
            raise ConfigurationError(IN_NO_TRANSACTION)
