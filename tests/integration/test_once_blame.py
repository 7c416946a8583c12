"""Whose fault it is when a transaction of an inbox is undone: the store's, which is waited for, or its handler's."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pymysql
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from once_kit import Database, Order, billing, counts, dead_letters, until

from atleastonce import Context, FailurePolicy, Inbox, MySQLStore, PostgresStore, Queue, wire
from atleastonce.patterns.once import outage

MakeQueue = Callable[[str], Queue[Any]]
ONCE = FailurePolicy(in_place=None, chain=None)


@pytest.fixture
def database(inbox_database: Database) -> Database:
    return inbox_database


@pytest.mark.parametrize("form", ["async", "sync"])
async def test_another_database_that_is_away_is_no_outage_of_the_store(
    queue: MakeQueue, database: Database, form: str, tmp_path: Path
) -> None:
    """Over the same driver: the message that needs it fails, and its neighbours notice nothing."""
    orders, service = queue("orders"), billing()
    locked = sqlite3.connect(tmp_path / "locked.db", isolation_level=None)
    locked.execute("BEGIN EXCLUSIVE")

    def other() -> None:
        if database.kind == "postgres":
            psycopg.connect("postgresql://127.0.0.1:1/other", connect_timeout=2)
        elif database.kind == "mysql":
            pymysql.connect(host="127.0.0.1", port=1, user="other", connect_timeout=2)
        else:
            with contextlib.closing(sqlite3.connect(tmp_path / "locked.db", timeout=0.05)) as second:
                second.execute("CREATE TABLE t (n)")

    if form == "async":

        @service.consumer(orders, idempotency=Inbox(database.make()), failure=ONCE)
        async def handle(order: Order, ctx: Context) -> None:
            await database.effect(ctx, order.n)
            if order.n == 0:
                await asyncio.to_thread(other)

    else:

        @service.consumer(orders, idempotency=Inbox(database.make()), failure=ONCE)
        def handle_sync(order: Order, ctx: Context) -> None:
            database.execute_sync(ctx, database.insert, (order.n,))
            if order.n == 0:
                other()

    async with service:
        for n in range(3):
            await service.broker.publish(orders, Order(n), id=f"o{n}")
        await until(lambda: counts(service)["dead"] == 1 and counts(service)["done"] == 2, service)
        assert not counts(service)["held"] + counts(service)["conflicts"]
    assert database.effects() == Counter([1, 2])
    locked.close()


@pytest.mark.parametrize("limit", ["a statement", "a lock"])
@pytest.mark.parametrize("kind", ["postgres", "mysql"])
async def test_a_statement_of_the_handlers_that_takes_too_long_is_its_failure(
    queue: MakeQueue, request: pytest.FixtureRequest, kind: str, limit: str
) -> None:
    """It would take too long each time: neither waited for as if the store were away, nor tried again for ever."""
    database: Database = request.getfixturevalue(f"{kind}_database")
    orders, service = queue("orders"), billing()
    database.query(f"INSERT INTO {database.table} VALUES (-1)")
    update = f"UPDATE {database.table} SET n = n WHERE n = -1"

    @service.consumer(orders, idempotency=Inbox(database.make()), failure=ONCE)
    async def handle(order: Order, ctx: Context) -> None:
        if order.n:
            await database.effect(ctx, order.n)
        elif kind == "postgres":
            await ctx.tx.execute(f"SET LOCAL {'statement' if limit == 'a statement' else 'lock'}_timeout = '100ms'")
            await ctx.tx.execute("SELECT pg_sleep(10)" if limit == "a statement" else update)
        elif limit == "a statement":
            await database.execute(
                ctx,
                "SET STATEMENT max_statement_time = 0.1 FOR SELECT count(*) "
                "FROM information_schema.columns a, information_schema.columns b, information_schema.columns c",
            )
        else:
            await database.execute(ctx, "SET SESSION innodb_lock_wait_timeout = 1")
            await database.execute(ctx, update)

    with _holding(database, update):
        async with service:
            for n in range(3):
                await service.broker.publish(orders, Order(n), id=f"o{n}")
            await until(lambda: counts(service)["dead"] == 1 and counts(service)["done"] == 2, service)
            assert not counts(service)["held"] + counts(service)["conflicts"]
            (letter,) = await dead_letters(service, 1)
            assert letter.message.headers.get(wire.ERROR_STAGE) == "handler"
    assert database.effects() == Counter([-1, 1, 2])


@pytest.mark.parametrize("form", ["async", "sync", "batch"])
@pytest.mark.parametrize(("kind", "what"), [("postgres", "idle"), ("mysql", "idle"), ("mysql", "large")])
async def test_a_handler_that_loses_its_connection_each_time_fails(
    queue: MakeQueue, request: pytest.FixtureRequest, kind: str, what: str, form: str
) -> None:
    """The server ends the connection of who is silent for too long, or says too much at once. That looks like an outage, which it
    is not: the first times it is waited for, and then it is the handler's failure. Its neighbours have their effects."""
    database: Database = request.getfixturevalue(f"{kind}_database")
    orders, service = queue("orders"), billing()
    make: Any = PostgresStore if kind == "postgres" else MySQLStore
    prefix = database.table.replace("effect", "alo")
    store = make(database.where, prefix=prefix, create=True, idle_in_transaction="1s")

    def again(n: int) -> tuple[str, tuple[Any, ...]]:
        return (database.insert, (n,)) if what == "idle" else ("SELECT length(%s)", ("x" * (17 << 20),))

    async def one(order: Order, ctx: Context) -> None:
        await database.effect(ctx, order.n)
        if order.n == 0:
            await asyncio.sleep(1.5 if what == "idle" else 0)  # longer than the server bears
            await database.execute(ctx, *again(0))

    if form == "async":
        service.consumer(orders, idempotency=Inbox(store), failure=ONCE)(one)
    elif form == "batch":

        @service.batch_consumer(orders, max_messages=3, idempotency=Inbox(store), failure=ONCE)
        async def many(batch: list[Order], contexts: list[Context]) -> None:
            for order, ctx in zip(batch, contexts, strict=True):
                await one(order, ctx)

    else:

        @service.consumer(orders, idempotency=Inbox(store), failure=ONCE)
        def handle(order: Order, ctx: Context) -> None:
            database.execute_sync(ctx, database.insert, (order.n,))
            if order.n == 0:
                time.sleep(1.5 if what == "idle" else 0)
                database.execute_sync(ctx, *again(0))

    async with service:
        await service.broker.publish_many(orders, [Order(n) for n in range(3)], id=lambda order: f"o{order.n}")
        await until(lambda: counts(service)["dead"] == 1 and counts(service)["done"] == 2, service, within=60)
        assert counts(service)["held"] >= 4 or what == "large"  # of which the server may say what it is
        (letter,) = await dead_letters(service, 1)
        assert letter.message.id == "o0"
        assert letter.message.headers.get(wire.ERROR_STAGE) == "handler"
    assert database.effects() == Counter([1, 2])


_RAISES = "DO $$ BEGIN RAISE EXCEPTION 'no room' USING ERRCODE = '{}'; END $$"
_SIGNALS = "SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = {}, MESSAGE_TEXT = 'no room'"
_SORTS = "SELECT count(*) FROM (SELECT n FROM generate_series(1, 1000000) n ORDER BY md5(n::text) OFFSET 1) s"
_NO_ROOM = {
    ("postgres", "memory"): [_RAISES.format("53200")],
    ("postgres", "temporary files"): ["SET LOCAL work_mem = '64kB'", "SET LOCAL temp_file_limit = '64kB'", _SORTS],
    ("postgres", "disk"): [_RAISES.format("53100")],
    ("mysql", "memory"): [_SIGNALS.format(1037)],
    ("mysql", "the machine's memory"): [_SIGNALS.format(1041)],
    ("mysql", "disk"): [_SIGNALS.format(1021)],
}


@pytest.mark.parametrize("form", ["async", "sync"])
@pytest.mark.parametrize(("kind", "what"), _NO_ROOM)
async def test_a_statement_that_finds_no_room_each_time_is_its_handlers_failure(
    queue: MakeQueue,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    what: str,
    form: str,
) -> None:
    """While others are committed. Alone, a full disk is the database's, and is waited for."""
    monkeypatch.setattr(outage, "_FULL", 2)
    database: Database = request.getfixturevalue(f"{kind}_database")
    orders, service, statements = queue("orders"), billing(), _NO_ROOM[kind, what]

    if form == "async":

        @service.consumer(orders, idempotency=Inbox(database.make()), failure=ONCE)
        async def handle(order: Order, ctx: Context) -> None:
            await database.effect(ctx, order.n)
            for statement in statements if order.n == 0 else []:
                await database.execute(ctx, statement)

    else:

        @service.consumer(orders, idempotency=Inbox(database.make()), failure=ONCE)
        def handle_sync(order: Order, ctx: Context) -> None:
            database.execute_sync(ctx, database.insert, (order.n,))
            for statement in statements if order.n == 0 else []:
                database.execute_sync(ctx, statement)

    async with service:
        await service.broker.publish(orders, Order(0), id="o0")
        if what == "disk":
            await until(lambda: counts(service)["held"] >= 4, service)
            assert not counts(service)["dead"]
        sent = 0
        while not counts(service)["dead"] and sent < 12:
            sent += 1
            await service.broker.publish(orders, Order(sent), id=f"o{sent}")
            was = counts(service)["held"]

            def went_on(done: int = sent, held: int = was) -> bool:
                found = counts(service)
                return found["done"] >= done and (found["held"] > held or found["dead"] > 0)

            await until(went_on, service)
        assert counts(service)["held"] >= 4
        (letter,) = await dead_letters(service, 1)
        assert letter.message.headers.get(wire.ERROR_STAGE) == "handler"
    assert database.effects() == Counter(range(1, sent + 1))


@contextlib.contextmanager
def _holding(database: Database, update: str) -> Any:
    """Somebody else's transaction, which holds the row of ``update``."""
    if database.kind == "mysql":
        with contextlib.closing(database.mysql()) as my, my.cursor() as cursor:
            cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")  # locks this row, and no gap
            my.begin()
            cursor.execute(update)
            yield
            my.rollback()
    else:
        with psycopg.connect(database.where) as pg:
            pg.execute(update.encode())
            yield
            pg.rollback()


@pytest.mark.parametrize("kind", ["postgres", "mysql"])
async def test_a_duplicate_that_waits_for_a_long_run_is_no_outage(
    queue: MakeQueue, request: pytest.FixtureRequest, kind: str
) -> None:
    """In a session of the user's, whose statements wait for a lock for as long as it takes."""
    pytest.importorskip("sqlalchemy", reason="SQLAlchemy is not installed")
    from sqlalchemy import text
    from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

    database: Database = request.getfixturevalue(f"{kind}_database")
    driver = "postgresql+psycopg" if kind == "postgres" else "mysql+aiomysql"
    engine = create_async_engine(f"{driver}://{database.where.partition('://')[2]}")
    orders, service = queue("orders"), billing()
    begun, may_end = asyncio.Event(), asyncio.Event()
    make: Any = PostgresStore if kind == "postgres" else MySQLStore
    store = make(database.where, prefix=database.table.replace("effect", "alo"), create=True, timeout="1s")

    @service.consumer(orders, idempotency=Inbox(store, session=async_sessionmaker(engine).begin), failure=ONCE)
    async def handle(order: Order, ctx: Context) -> None:
        await ctx.tx.execute(text(f"INSERT INTO {database.table} VALUES (:n)"), {"n": order.n})
        begun.set()
        await may_end.wait()

    async with service:
        await service.broker.publish(orders, Order(1), id="long")
        await asyncio.wait_for(begun.wait(), 30)
        await service.broker.publish(orders, Order(1), id="long")
        try:
            await until(lambda: counts(service)["conflicts"] >= 2, service)
            assert not counts(service)["held"]
        finally:
            may_end.set()
        await until(lambda: counts(service)["done"] == counts(service)["duplicates"] == 1, service)
    assert database.effects() == Counter([1])
    await engine.dispose()
