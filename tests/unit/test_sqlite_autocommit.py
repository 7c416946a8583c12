"""A sqlite3 connection that was told to commit each statement by itself."""

from __future__ import annotations

import contextlib
import sqlite3
import sys
from pathlib import Path

import pytest

from atleastonce import ConfigurationError, Outbox, Queue, SQLiteStore

pytestmark = pytest.mark.skipif(sys.version_info < (3, 12), reason="sqlite3.connect(autocommit=) came with Python 3.12")


@pytest.mark.parametrize("level", ["", None])
async def test_an_outbox_refuses_it_outside_of_a_transaction(tmp_path: Path, level: str | None) -> None:
    """Its ``rollback()`` does nothing, so that the message would leave."""
    path = tmp_path / "shop.db"
    outbox, out = Outbox(store := SQLiteStore(path)), Queue("out")
    async with store:
        connection = sqlite3.connect(path, isolation_level=level, autocommit=True)  # type: ignore[call-overload]
        with contextlib.closing(connection):
            with pytest.raises(ConfigurationError, match="in no transaction"):
                outbox.publish_sync(connection, out, b"1")
            connection.execute("BEGIN")
            outbox.publish_sync(connection, out, b"2")
            connection.execute("ROLLBACK")
        assert (await store.outbox_stats()).waiting == 0


async def test_an_outbox_refuses_it_on_aiosqlite(tmp_path: Path) -> None:
    aiosqlite = pytest.importorskip("aiosqlite", reason="aiosqlite is not installed")
    path = tmp_path / "shop.db"
    outbox, out = Outbox(store := SQLiteStore(path)), Queue("out")
    async with store:
        async with aiosqlite.connect(path, autocommit=True) as connection:
            with pytest.raises(ConfigurationError, match="in no transaction"):
                await outbox.publish(connection, out, b"1")
        assert (await store.outbox_stats()).waiting == 0


async def test_a_connection_that_begins_by_itself_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "shop.db"
    outbox, out = Outbox(store := SQLiteStore(path)), Queue("out")
    async with store:
        with contextlib.closing(sqlite3.connect(path, autocommit=False)) as connection:  # type: ignore[call-overload]
            outbox.publish_sync(connection, out, b"1")
            connection.commit()
        assert (await store.outbox_stats()).waiting == 1
