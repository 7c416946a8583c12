"""An inbox in the user's own session: SQLAlchemy (async and sync), Django, aiosqlite, psycopg, aiomysql, asyncmy."""

from __future__ import annotations

import contextlib
import sys
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import aiomysql
import psycopg
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from once_kit import Database, Order, counts, dead_letters, until

from atleastonce import ConfigurationError, Context, Inbox, Queue, Service, wire
from atleastonce.urls import BrokerUrl

MakeQueue = Callable[[str], Queue[Any]]
ORM = "sqlalchemy is not installed"
ENGINES = {"sqlite": "sqlite3", "postgres": "postgresql", "mysql": "mysql"}


@pytest.fixture
def database(inbox_database: Database) -> Database:
    return inbox_database


def sqlalchemy_url(database: Database, *, blocking: bool) -> str:
    if database.kind == "sqlite":
        return f"sqlite{'' if blocking else '+aiosqlite'}:///{database.where}"
    scheme = "postgresql+psycopg" if database.kind == "postgres" else f"mysql+{'pymysql' if blocking else 'aiomysql'}"
    return f"{scheme}://" + database.where.split("://", 1)[1]


async def run(service: Service, orders: Queue[Any], database: Database) -> None:
    """Six orders, each twice; the third fails once, the fourth always, the fifth ends its transaction."""
    async with service:
        for n in range(6):
            await service.broker.publish(orders, Order(n), id=f"o{n}")
        await until(lambda: counts(service)["done"] == 4 and counts(service)["dead"] == 2, service)
        for n in range(3):
            await service.broker.publish(orders, Order(n), id=f"o{n}")
        await until(lambda: counts(service)["duplicates"] == 3, service)
        letters = {letter.message.id: letter.message.headers for letter in await dead_letters(service, 2)}
        assert letters["o3"].get(wire.ERROR_TYPE) == "ValueError"
        assert letters["o4"].get(wire.ERROR_TYPE) == "TransactionEnded", letters["o4"].get(wire.ERROR_MESSAGE)
    assert database.effects() in (Counter([0, 1, 2, 5]), Counter([0, 1, 2, 4, 5]))


def fail(order: Order, ctx: Context) -> None:
    if order.n == 3 or (order.n == 2 and ctx.attempt == 1):
        raise ValueError("not now")


async def test_sqlalchemy_async(queue: MakeQueue, database: Database) -> None:
    pytest.importorskip("sqlalchemy", reason=ORM)
    from sqlalchemy import text
    from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

    engine = create_async_engine(sqlalchemy_url(database, blocking=False))
    session = async_sessionmaker(engine)
    orders, service = queue("orders"), Service("billing", broker=f"memory://{uuid.uuid4().hex}")

    @service.consumer(orders, idempotency=Inbox(database.make(), session=session.begin), retry=["50ms"])
    async def handle(order: Order, ctx: Context) -> None:
        assert isinstance(ctx.tx, AsyncSession)
        await ctx.tx.execute(text(f"INSERT INTO {database.table} VALUES (:n)"), {"n": order.n})
        if order.n == 4:
            await ctx.tx.commit()
        fail(order, ctx)

    await run(service, orders, database)
    await engine.dispose()


async def test_sqlalchemy_sync(queue: MakeQueue, database: Database) -> None:
    pytest.importorskip("sqlalchemy", reason=ORM)
    from sqlalchemy import create_engine, text
    from sqlalchemy.orm import Session, sessionmaker

    engine = create_engine(sqlalchemy_url(database, blocking=True))
    session = sessionmaker(engine)
    orders, service = queue("orders"), Service("billing", broker=f"memory://{uuid.uuid4().hex}")

    @service.consumer(orders, idempotency=Inbox(database.make(), session=session.begin), retry=["50ms"])
    def handle(order: Order, ctx: Context) -> None:
        assert isinstance(ctx.tx, Session)
        ctx.tx.execute(text(f"INSERT INTO {database.table} VALUES (:n)"), {"n": order.n})
        if order.n == 4:
            ctx.tx.rollback()
        fail(order, ctx)

    await run(service, orders, database)
    engine.dispose()


async def test_django(queue: MakeQueue, database: Database) -> None:
    django = pytest.importorskip("django", reason="django is not installed")
    from django.conf import settings

    where = BrokerUrl.parse(database.where) if database.kind != "sqlite" else None
    if database.kind == "mysql":
        import pymysql

        pymysql.install_as_MySQLdb()  # Django wants mysqlclient, which has to be built; PyMySQL is the same to it
        pymysql.version_info = (2, 2, 1, "final", 0)
    if not settings.configured:
        settings.configure(DATABASES={"default": {"ENGINE": "django.db.backends.dummy"}}, USE_TZ=True)
        django.setup()
    from django.db import connections, transaction

    alias = f"shop_{uuid.uuid4().hex[:6]}"
    connections.settings[alias] = connections.configure_settings(
        {
            "default": {"ENGINE": "django.db.backends.dummy"},
            alias: {
                "ENGINE": f"django.db.backends.{ENGINES[database.kind]}",
                "NAME": where.path if where else database.where,
                "USER": (where.user or "") if where else "",
                "HOST": where.hosts[0][0] if where else "",
                "PORT": str(where.hosts[0][1]) if where else "",
            },
        }
    )[alias]

    @contextlib.contextmanager
    def atomic() -> Iterator[Any]:
        with transaction.atomic(using=alias):
            yield connections[alias]

    orders, service = queue("orders"), Service("billing", broker=f"memory://{uuid.uuid4().hex}")

    @service.consumer(orders, idempotency=Inbox(database.make(), session=atomic), retry=["50ms"], concurrency=1)
    def handle(order: Order, ctx: Context) -> None:
        with ctx.tx.cursor() as cursor:
            cursor.execute(f"INSERT INTO {database.table} VALUES (%s)", [order.n])
        if order.n == 4:
            ctx.tx.connection.rollback()
        fail(order, ctx)

    await run(service, orders, database)


async def test_a_drivers_own_connection(queue: MakeQueue, database: Database) -> None:
    aiosqlite = pytest.importorskip("aiosqlite", reason="aiosqlite is not installed")

    @contextlib.asynccontextmanager
    async def own() -> AsyncIterator[Any]:
        if database.kind == "sqlite":
            async with aiosqlite.connect(database.where, isolation_level=None, timeout=20) as connection:
                await connection.execute("BEGIN IMMEDIATE")
                yield connection
                await connection.commit()
        elif database.kind == "postgres":
            async with await psycopg.AsyncConnection.connect(database.where) as pg:
                yield pg  # commits at its end
        else:
            parts = BrokerUrl.parse(database.where)
            ((host, port),) = parts.hosts
            async with aiomysql.connect(host=host, port=port, user=parts.user, db=parts.path) as my:
                yield my
                await my.commit()

    orders, service = queue("orders"), Service("billing", broker=f"memory://{uuid.uuid4().hex}")

    @service.consumer(orders, idempotency=Inbox(database.make(), session=own), retry=["50ms"])
    async def handle(order: Order, ctx: Context) -> None:
        await database.effect(ctx, order.n)
        if order.n == 4:
            await ctx.tx.rollback()
        fail(order, ctx)

    await run(service, orders, database)


@pytest.mark.parametrize("form", ["async", "sync"])
async def test_a_session_on_another_database_is_refused_at_the_start(
    queue: MakeQueue, database: Database, form: str
) -> None:
    """The store answers, and no transaction of the handler's would."""
    pytest.importorskip("sqlalchemy", reason=ORM)
    from sqlalchemy import create_engine
    from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
    from sqlalchemy.orm import sessionmaker

    other = f"other_{uuid.uuid4().hex[:8]}"
    if database.kind != "sqlite":
        database.query(f"CREATE DATABASE {other}")
    url = f"{sqlalchemy_url(database, blocking=form == 'sync').rpartition('/')[0]}/{other}"
    service = Service("billing", broker=f"memory://{uuid.uuid4().hex}")
    engine: Any
    if form == "async":
        engine = create_async_engine(url)

        @service.consumer(queue("orders"), idempotency=Inbox(database.make(), session=async_sessionmaker(engine).begin))
        async def handle(order: Order) -> None: ...

    else:
        engine = create_engine(url)

        @service.consumer(queue("orders"), idempotency=Inbox(database.make(), session=sessionmaker(engine).begin))
        def handle_sync(order: Order) -> None: ...

    with pytest.raises(ConfigurationError, match="is on a database without the tables of") as caught:
        await service.start()
    assert "\n" not in str(caught.value)
    if form == "async":
        await engine.dispose()
    else:
        engine.dispose()
    if database.kind != "sqlite":
        database.query(f"DROP DATABASE {other}")


async def test_a_session_of_the_wrong_kind_is_refused_at_the_start(queue: MakeQueue, database: Database) -> None:
    @contextlib.contextmanager
    def blocking() -> Iterator[Any]:
        yield None

    service = Service("billing", broker=f"memory://{uuid.uuid4().hex}")

    @service.consumer(queue("orders"), idempotency=Inbox(database.make(), session=blocking))
    async def handle(order: Order) -> None: ...

    with pytest.raises(ConfigurationError, match='async def handlers need one for "async with"'):
        await service.start()
