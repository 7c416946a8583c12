"""Handlers that end their inbox's transaction and go on, and connections that end under them: what is left undone is never taken
for a duplicate, and what is in no database is never taken for done."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pymysql
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from once_kit import Database, Order, billing, counts, dead_letters, until
from test_once_sessions import ORM, sqlalchemy_url

from atleastonce import Context, FailurePolicy, Inbox, Queue, Service, wire

MakeQueue = Callable[[str], Queue[Any]]


@pytest.fixture
def database(inbox_database: Database) -> Database:
    return inbox_database


async def ended(service: Service, *ids: str) -> None:
    """Exactly ``ids`` are dead letters, because the handler ended its transaction."""
    await until(lambda: counts(service)["dead"] == len(ids), service)
    letters = await dead_letters(service, len(ids))
    assert {letter.message.id for letter in letters} == set(ids)
    for letter in letters:
        assert letter.message.headers.get(wire.ERROR_TYPE) == "TransactionEnded"
        assert "leave that to the inbox" in (letter.message.headers.get(wire.ERROR_MESSAGE) or "")
    assert not counts(service)["retried"] + counts(service)["retried_in_place"] + counts(service)["duplicates"]


@pytest.mark.parametrize("then", ["raises", "begins and raises", "begins and returns", "begins, fails and returns"])
@pytest.mark.parametrize("how", ["COMMIT", "ROLLBACK"])
@pytest.mark.parametrize("form", ["async", "sync"])
async def test_what_a_handler_left_undone_is_no_duplicate(
    queue: MakeQueue, database: Database, form: str, how: str, then: str
) -> None:
    orders, service = queue("orders"), billing()
    runs: list[int] = []

    def steps(n: int) -> Iterator[tuple[str, tuple[Any, ...]]]:
        runs.append(n)
        yield database.insert, (n,)
        if n != 1:
            return
        yield how, ()
        if then != "raises":
            yield "BEGIN", ()
            yield database.insert, (100,)
        if "fails" in then:
            yield "SELECT nothing FROM nowhere", ()
        if "raises" in then:
            raise ValueError("not now")

    quiet = contextlib.suppress(Exception) if "fails" in then else contextlib.nullcontext()

    if form == "async":

        @service.consumer(orders, idempotency=Inbox(database.make()), retry=["100ms"])
        async def one(order: Order, ctx: Context) -> None:
            with quiet:
                for sql, values in steps(order.n):
                    await database.execute(ctx, sql, values)

    else:

        @service.consumer(orders, idempotency=Inbox(database.make()), retry=["100ms"])
        def one_sync(order: Order, ctx: Context) -> None:
            with quiet:
                for sql, values in steps(order.n):
                    database.execute_sync(ctx, sql, values)

    async with service:
        for n in range(3):
            await service.broker.publish(orders, Order(n), id=f"o{n}")
        await until(lambda: counts(service)["done"] == 2, service)
        await ended(service, "o1")
    assert sorted(runs) == [0, 1, 2]
    assert database.effects() == Counter([0, 1, 2] if how == "COMMIT" else [0, 2])


async def test_no_member_of_a_batch_whose_claims_were_committed_is_taken_for_seen(
    queue: MakeQueue, database: Database
) -> None:
    """But one that was a duplicate before stays one."""
    orders, service = queue("orders"), billing()
    runs: list[list[int]] = []
    meddling = False

    @service.batch_consumer(
        orders, idempotency=Inbox(database.make()), max_messages=10, max_wait="500ms", retry=["100ms"]
    )
    async def handle(batch: list[Order], contexts: list[Context]) -> None:
        runs.append([order.n for order in batch])
        for order, ctx in zip(batch, contexts, strict=True):
            await database.effect(ctx, order.n)
            if meddling and order.n == 1:
                await database.execute(ctx, "COMMIT")
            if meddling and order.n == 2:
                raise ValueError("a bad member")

    async with service:
        await service.broker.publish(orders, Order(0), id="o0")
        await until(lambda: counts(service)["done"] == 1, service)
        meddling = True
        await asyncio.gather(*(service.broker.publish(orders, Order(n), id=f"o{n}") for n in range(6)))
        await until(lambda: counts(service)["dead"] == 5, service)
        assert counts(service)["duplicates"] == 1
        letters = await dead_letters(service, 5)
        assert {letter.message.id for letter in letters} == {f"o{n}" for n in range(1, 6)}
        assert {letter.message.headers.get(wire.ERROR_TYPE) for letter in letters} == {"TransactionEnded"}
    assert runs == [[0], [1, 2, 3, 4, 5]]


@pytest.mark.parametrize("then", ["raises", "goes on", "begins and goes on"])
@pytest.mark.parametrize("form", ["async", "sync"])
async def test_a_commit_of_a_sqlalchemy_session(queue: MakeQueue, database: Database, form: str, then: str) -> None:
    pytest.importorskip("sqlalchemy", reason=ORM)
    from sqlalchemy import create_engine, text
    from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
    from sqlalchemy.orm import sessionmaker

    insert = text(f"INSERT INTO {database.table} VALUES (:n)")
    orders, service = queue("orders"), billing()
    engine: Any
    if form == "async":
        engine = create_async_engine(sqlalchemy_url(database, blocking=False))

        @service.consumer(
            orders, idempotency=Inbox(database.make(), session=async_sessionmaker(engine).begin), retry=["50ms"]
        )
        async def one(order: Order, ctx: Context) -> None:
            await ctx.tx.execute(insert, {"n": order.n})
            await ctx.tx.commit()
            if then == "raises":
                raise ValueError("not now")
            if then == "begins and goes on":
                await ctx.tx.begin()
            await ctx.tx.execute(insert, {"n": 100})

    else:
        engine = create_engine(sqlalchemy_url(database, blocking=True))

        @service.consumer(
            orders, idempotency=Inbox(database.make(), session=sessionmaker(engine).begin), retry=["50ms"]
        )
        def one_sync(order: Order, ctx: Context) -> None:
            ctx.tx.execute(insert, {"n": order.n})
            ctx.tx.commit()
            if then == "raises":
                raise ValueError("not now")
            if then == "begins and goes on":
                ctx.tx.begin()
            ctx.tx.execute(insert, {"n": 100})

    async with service:
        await service.broker.publish(orders, Order(1), id="o1")
        await ended(service, "o1")
    assert database.effects() == Counter([1])
    if form == "async":
        await engine.dispose()
    else:
        engine.dispose()


@pytest.mark.parametrize("answer", ["lets it out", "rolls back and lets it out"])
async def test_a_failed_flush_of_sqlalchemy_is_a_failure_like_any_other(
    queue: MakeQueue, database: Database, answer: str
) -> None:
    """The session undoes the transaction then, or the handler does, and nothing is committed."""
    pytest.importorskip("sqlalchemy", reason=ORM)
    from sqlalchemy import Integer, create_engine
    from sqlalchemy.exc import IntegrityError
    from sqlalchemy.orm import DeclarativeBase, Session, mapped_column, sessionmaker

    database.query(f"CREATE UNIQUE INDEX {database.table}_one ON {database.table} (n)")

    class Base(DeclarativeBase): ...

    class Effect(Base):
        __tablename__ = database.table
        n = mapped_column(Integer, primary_key=True)

    engine = create_engine(sqlalchemy_url(database, blocking=True))
    orders, service = queue("orders"), billing()
    runs: list[int] = []

    @service.consumer(orders, idempotency=Inbox(database.make(), session=sessionmaker(engine).begin), retry=["50ms"])
    def one(order: Order, ctx: Context) -> None:
        session: Session = ctx.tx
        runs.append(ctx.attempt)
        try:
            for n in (1, 2) if len(runs) > 1 else (1, 0):
                session.add(Effect(n=n))
                session.flush()
        except IntegrityError:
            if answer == "rolls back and lets it out":
                session.rollback()
            raise

    database.query(f"INSERT INTO {database.table} VALUES (0)")
    async with service:
        await service.broker.publish(orders, Order(1), id="o1")
        await until(lambda: counts(service)["done"] == 1, service)
        assert not counts(service)["dead"]
        assert counts(service)["retried"] + counts(service)["retried_in_place"] == 1
    assert database.effects() == Counter([0, 1, 2])
    engine.dispose()


@pytest.mark.parametrize("how", ["with", "aiosqlite"])
async def test_the_ways_in_which_sqlite_commits(queue: MakeQueue, tmp_path: Path, how: str) -> None:
    aiosqlite = pytest.importorskip("aiosqlite", reason="aiosqlite is not installed")
    database = Database("sqlite", str(tmp_path / "shop.db"))

    @contextlib.asynccontextmanager
    async def own() -> AsyncIterator[Any]:
        async with aiosqlite.connect(database.where, isolation_level=None, timeout=20) as connection:
            await connection.execute("BEGIN IMMEDIATE")
            yield connection
            await connection.commit()

    orders, service = queue("orders"), billing()
    inbox = Inbox(database.make(), session=own if how == "aiosqlite" else None)

    @service.consumer(orders, idempotency=inbox, retry=["50ms"])
    async def handle(order: Order, ctx: Context) -> None:
        if how == "with":
            with ctx.tx:  # sqlite3's commits, and does not close
                await database.effect(ctx, order.n)
        else:
            await database.effect(ctx, order.n)
            await ctx.tx.commit()
        raise ValueError("not now")

    async with service:
        await service.broker.publish(orders, Order(1), id="o1")
        await ended(service, "o1")
    assert database.effects() == Counter([1])


@pytest.mark.parametrize("how", ["commit", "DDL"])
async def test_the_ways_in_which_mysql_commits(queue: MakeQueue, mysql_database: Database, how: str) -> None:
    orders, service, database = queue("orders"), billing(), mysql_database
    made = f"{database.table}_made"

    @service.consumer(orders, idempotency=Inbox(database.make()), retry=["50ms"])
    async def handle(order: Order, ctx: Context) -> None:
        await database.effect(ctx, order.n)
        if how == "DDL":
            await database.execute(ctx, f"CREATE TABLE {made} (n int)")
        else:
            await ctx.tx.commit()
        raise ValueError("not now")

    async with service:
        await service.broker.publish(orders, Order(1), id="o1")
        await ended(service, "o1")
    assert database.effects() == Counter([1])
    database.query(f"DROP TABLE IF EXISTS {made}")


@pytest.mark.parametrize("then", ["returns", "goes on"])
async def test_async_with_a_connection_of_psycopg_commits_and_closes_it(
    queue: MakeQueue, postgres_database: Database, then: str
) -> None:
    orders, service, database = queue("orders"), billing(), postgres_database

    @contextlib.asynccontextmanager
    async def own() -> AsyncIterator[Any]:
        async with await psycopg.AsyncConnection.connect(database.where) as pg:
            yield pg

    @service.consumer(orders, idempotency=Inbox(database.make(), session=own), retry=["50ms"])
    async def handle(order: Order, ctx: Context) -> None:
        async with ctx.tx:
            await database.effect(ctx, order.n)
        if then == "goes on":
            await database.effect(ctx, 100)

    async with service:
        await service.broker.publish(orders, Order(1), id="o1")
        await ended(service, "o1")
    assert database.effects() == Counter([1])


@pytest.mark.parametrize("then", ["returns", "raises", "goes on"])
@pytest.mark.parametrize("form", ["async", "sync", "batch", "with"])
async def test_a_handler_that_closes_its_connection(queue: MakeQueue, database: Database, form: str, then: str) -> None:
    """It is told so, and is not taken for a store that is away, which would be waited for again and again."""
    if form == "with" and database.kind != "mysql":
        pytest.skip("psycopg's commits, which is a test of its own, and sqlite3's does not close")
    orders, service, runs = queue("orders"), billing(), list[int]()
    inbox = Inbox(database.make())

    async def meddle(n: int, ctx: Context) -> None:
        runs.append(n)
        await database.effect(ctx, n)
        if n != 1:
            return
        if form == "with":
            async with ctx.tx:
                pass
        else:
            done = ctx.tx.close()
            if hasattr(done, "__await__"):
                await done
        if then == "raises":
            raise ValueError("not now")
        if then == "goes on":
            await database.effect(ctx, 100)

    if form == "sync":

        @service.consumer(orders, idempotency=inbox, retry=["50ms"])
        def one_sync(order: Order, ctx: Context) -> None:
            runs.append(order.n)
            database.execute_sync(ctx, database.insert, (order.n,))
            if order.n == 1:
                ctx.tx.close()
                if then == "raises":
                    raise ValueError("not now")
                if then == "goes on":
                    database.execute_sync(ctx, database.insert, (100,))

    elif form == "batch":

        @service.batch_consumer(orders, idempotency=inbox, retry=["50ms"], max_messages=1)
        async def many(batch: list[Order], contexts: list[Context]) -> None:
            for order, ctx in zip(batch, contexts, strict=True):
                await meddle(order.n, ctx)

    else:

        @service.consumer(orders, idempotency=inbox, retry=["50ms"])
        async def one(order: Order, ctx: Context) -> None:
            await meddle(order.n, ctx)

    async with service:
        for n in range(3):
            await service.broker.publish(orders, Order(n), id=f"o{n}")
        await until(lambda: counts(service)["done"] == 2, service)
        await ended(service, "o1")
        assert not counts(service)["held"]
    assert sorted(runs) == [0, 1, 2]
    assert database.effects() == Counter([0, 2])


async def test_a_handler_that_is_cut_off_after_its_own_commit(queue: MakeQueue, database: Database) -> None:
    orders, service = queue("orders"), billing()
    policy = FailurePolicy(timeout="300ms", in_place=None)

    @service.consumer(orders, idempotency=Inbox(database.make()), failure=policy)
    async def handle(order: Order, ctx: Context) -> None:
        await database.effect(ctx, order.n)
        await database.execute(ctx, "COMMIT")
        await asyncio.Event().wait()

    async with service:
        await service.broker.publish(orders, Order(1), id="o1")
        await ended(service, "o1")
    assert database.effects() == Counter([1])


@pytest.mark.parametrize("form", ["async", "sync", "batch", "sqlalchemy"])
@pytest.mark.parametrize("kind", ["postgres", "mysql"])
async def test_a_lost_connection_that_is_swallowed_is_the_store_being_away(
    queue: MakeQueue, request: pytest.FixtureRequest, kind: str, form: str
) -> None:
    """Neither effect nor row are in the database: to settle it would lose it."""
    database: Database = request.getfixturevalue(f"{kind}_database")
    orders, service = queue("orders"), billing()
    runs: list[int] = []
    inbox, policy = Inbox(database.make()), FailurePolicy(in_place=None, chain=None)
    pid = "pg_backend_pid()" if kind == "postgres" else "connection_id()"
    lost = (psycopg.OperationalError, pymysql.err.MySQLError)
    engine: Any = None

    def kill(pid: int) -> None:
        database.query(f"SELECT pg_terminate_backend({pid})" if kind == "postgres" else f"KILL {pid}")

    async def answered(ctx: Context) -> int:
        if kind == "postgres":
            return int((await (await ctx.tx.execute(f"SELECT {pid}")).fetchone())[0])
        async with ctx.tx.cursor() as cursor:
            await cursor.execute(f"SELECT {pid}")
            return int((await cursor.fetchone())[0])

    async def meddle(n: int, ctx: Context) -> Exception | None:
        runs.append(n)
        await database.effect(ctx, n)
        if len(runs) == 1:
            await asyncio.to_thread(kill, await answered(ctx))
            try:
                await database.effect(ctx, 100)
            except lost as error:
                return error
        return None

    if form == "async":

        @service.consumer(orders, idempotency=inbox, failure=policy)
        async def one(order: Order, ctx: Context) -> None:
            await meddle(order.n, ctx)

    elif form == "batch":

        @service.batch_consumer(orders, idempotency=inbox, failure=policy, max_messages=1)
        async def many(batch: list[Order], contexts: list[Context]) -> list[Exception | None]:
            return [await meddle(order.n, ctx) for order, ctx in zip(batch, contexts, strict=True)]

    elif form == "sync":

        @service.consumer(orders, idempotency=inbox, failure=policy)
        def one_sync(order: Order, ctx: Context) -> None:
            runs.append(order.n)
            database.execute_sync(ctx, database.insert, (order.n,))
            if len(runs) == 1:
                kill(ctx.tx.info.backend_pid if kind == "postgres" else ctx.tx.thread_id())
                with contextlib.suppress(*lost):
                    database.execute_sync(ctx, database.insert, (100,))

    else:
        pytest.importorskip("sqlalchemy", reason=ORM)
        from sqlalchemy import text
        from sqlalchemy.exc import DBAPIError
        from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

        engine = create_async_engine(sqlalchemy_url(database, blocking=False))
        insert = text(f"INSERT INTO {database.table} VALUES (:n)")

        @service.consumer(
            orders, idempotency=Inbox(database.make(), session=async_sessionmaker(engine).begin), failure=policy
        )
        async def one_orm(order: Order, ctx: Context) -> None:
            runs.append(order.n)
            await ctx.tx.execute(insert, {"n": order.n})
            if len(runs) == 1:
                await asyncio.to_thread(kill, (await ctx.tx.execute(text(f"SELECT {pid}"))).scalar_one())
                with contextlib.suppress(DBAPIError):
                    await ctx.tx.execute(insert, {"n": 100})

    async with service:
        await service.broker.publish(orders, Order(1), id="o1")
        await until(lambda: counts(service)["done"] + counts(service)["dead"] == 1, service)
        assert counts(service)["done"] == counts(service)["held"] == 1
    assert runs == [1, 1]
    assert database.effects() == Counter([1])
    if engine is not None:
        await engine.dispose()


async def test_an_error_of_another_connection_is_the_handlers_own(queue: MakeQueue, database: Database) -> None:
    """It says nothing of the store, which goes on."""
    orders, service = queue("orders"), billing()

    @service.consumer(orders, idempotency=Inbox(database.make()), failure=FailurePolicy(in_place=None))
    async def handle(order: Order, ctx: Context) -> None:
        await database.effect(ctx, order.n)
        raise ConnectionResetError("the card gateway")

    async with service:
        await service.broker.publish(orders, Order(1), id="o1")
        await until(lambda: counts(service)["dead"] == 1, service)
        assert not counts(service)["held"]
    assert not database.effects()
