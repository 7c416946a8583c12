"""What a store lends to handlers: theirs for as long as they like, and nobody else notices what they did with it."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest

from atleastonce import MySQLStore, PostgresStore
from atleastonce.stores import scope_key
from atleastonce.stores.records import LOST, Entry, Lease, new_token

SCOPE = scope_key("svc", "orders", "h")
MARKS = {
    "postgres": (
        "SET search_path = pg_catalog",
        "SET default_transaction_read_only = on",
        "SET default_transaction_isolation = serializable",
        "SET lock_timeout = '7s'",
        "SET statement_timeout = '70s'",
        "SET TIME ZONE 'Asia/Tokyo'",
        "CREATE TEMP TABLE of_mine (n int)",
        "SELECT pg_advisory_lock(4711)",
        "LISTEN somebody",
    ),
    "mysql": (
        "USE information_schema",
        "SET SESSION sql_mode = ''",
        "SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE",
        "SET SESSION innodb_lock_wait_timeout = 7",
        "SET NAMES latin1",
        "SET foreign_key_checks = 0",
        "SET time_zone = '+09:00'",
        "SET @mine = 1",
        "DO GET_LOCK('of mine', 0)",
    ),
}
LOOKS = {
    "postgres": (
        "SELECT name, setting FROM pg_settings WHERE name <> 'transaction_deferrable' ORDER BY 1",
        "SELECT current_user, session_user, current_database()",
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
        "SELECT count(*) FROM pg_class WHERE relname = 'of_mine'",
        "SELECT count(*) FROM pg_listening_channels()",
    ),
    "mysql": (
        "SHOW SESSION VARIABLES WHERE Variable_name NOT IN ('timestamp', 'last_gtid', 'rand_seed1', 'rand_seed2')",
        "SELECT database(), @mine, IS_USED_LOCK('of mine')",
    ),
}


@pytest.fixture(params=["postgres", "mysql"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def store(request: pytest.FixtureRequest, kind: str) -> AsyncIterator[Any]:
    """With one connection of each kind, so that the next one is the last one."""
    make: Any = PostgresStore if kind == "postgres" else MySQLStore
    url = request.getfixturevalue(f"{kind}_url")
    made = make(url, prefix=f"alo_{uuid.uuid4().hex[:8]}", create=True, connections=1, timeout="1s")
    async with made:
        yield made


async def ask(tx: Any, sql: str) -> list[Any]:
    cursor = tx.cursor()
    cursor = await cursor if hasattr(cursor, "__await__") else cursor
    done = cursor.execute(sql)
    if hasattr(done, "__await__"):
        await done
    if cursor.description is None:
        return []
    rows = cursor.fetchall()
    return list(await rows if hasattr(rows, "__await__") else rows)


@contextlib.asynccontextmanager
async def transaction(store: Any, form: str) -> AsyncIterator[Any]:
    if form == "async":
        async with store.transaction() as tx:
            yield tx
    else:
        with store.transaction_sync() as tx:
            yield tx


@pytest.mark.parametrize("form", ["async", "sync"])
async def test_what_a_handler_has_set_is_not_there_for_the_next_one(store: Any, kind: str, form: str) -> None:
    async def look() -> list[Any]:
        async with transaction(store, form) as tx:
            text = await ask(tx, "SELECT '\u017c\u00f3\u0142w'")  # as the driver encodes and decodes it
            return [id(tx), text, *[await ask(tx, sql) for sql in LOOKS[kind]]]

    before = await look()
    async with transaction(store, form) as tx:
        for mark in MARKS[kind]:
            await ask(tx, mark)
        if kind == "postgres":
            from psycopg.rows import dict_row

            tx.row_factory = dict_row
        else:
            import aiomysql.cursors
            import pymysql.cursors

            tx.cursorclass = (aiomysql if form == "async" else pymysql).cursors.DictCursor
            done = (tx.set_charset if form == "async" else tx.set_character_set)("latin1")
            if done is not None:
                await done
    assert await look() == before
    async with transaction(store, form) as tx:
        if form == "async":
            assert await store.claim_in(tx, SCOPE, ["a"], [b""]) == [Entry.NEW]


async def test_a_store_asks_and_relays_while_handlers_hold_all_that_it_lends(store: Any) -> None:
    async with store.transaction() as tx:
        await store.claim_in(tx, SCOPE, ["a"], [b""])
        (outcome,) = await store.extend([Lease(SCOPE, "probe", new_token())], 1.0)
        assert outcome == LOST  # answered: the store is there
        assert len((await store.outbox_hold(b"r" * 16, "relay", 5.0)).slots) == 8
