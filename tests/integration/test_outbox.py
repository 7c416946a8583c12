"""The outbox: messages leave if, and only if, their transaction commits; over real brokers, from real databases."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from once_kit import Database, Order, counts, until

from atleastonce import (
    Backoff,
    ConfigurationError,
    Context,
    FailurePolicy,
    Inbox,
    Outbox,
    Queue,
    RelayOptions,
    RetryChain,
    Service,
)

MakeQueue = Callable[[str], Queue[Any]]

BROKERS = pytest.mark.parametrize("backend_url", ["memory", "kafka", "rabbitmq"], indirect=True)
QUICK = RelayOptions(poll="50ms", lease="2s")


def memory() -> str:
    return f"memory://{uuid.uuid4().hex}"


def collector(channel: Queue[Any], url: str) -> tuple[Service, list[tuple[str, int]]]:
    """A service that writes down the ids and numbers that reach ``channel``."""
    service, seen = Service("collector", broker=url), list[tuple[str, int]]()

    @service.consumer(channel, concurrency=1)
    async def collect(order: Order, ctx: Context) -> None:
        seen.append((ctx.message.id, order.n))

    return service, seen


@BROKERS
@pytest.mark.parametrize("form", ["async", "sync", "batch"])
async def test_what_a_handler_publishes_is_part_of_its_transaction(
    backend_url: str, queue: MakeQueue, database: Database, form: str
) -> None:
    """Each order once, though each comes twice; and nothing of a run that failed."""
    orders, reserved = queue("orders"), queue("reserved")
    service = Service("stock", broker=backend_url)
    inbox = Inbox(database.make())

    def publish(order: Order, ctx: Context) -> None:
        ctx.publish(reserved, Order(order.n), id=f"r{order.n}.{ctx.attempt}", key=f"{order.n % 3}")
        if order.n == 4 and ctx.attempt == 1:
            raise ValueError("not now")

    if form == "async":

        @service.consumer(orders, idempotency=inbox, retry=["50ms"])
        async def one(order: Order, ctx: Context) -> None:
            await database.effect(ctx, order.n)
            publish(order, ctx)

    elif form == "sync":

        @service.consumer(orders, idempotency=inbox, retry=["50ms"])
        def one_sync(order: Order, ctx: Context) -> None:
            ctx.tx.execute(database.insert, (order.n,))
            publish(order, ctx)

    else:

        @service.batch_consumer(orders, idempotency=inbox, max_messages=20, max_wait="50ms", retry=["50ms"])
        async def many(batch: list[Order], contexts: list[Context]) -> None:
            for order, ctx in zip(batch, contexts, strict=True):
                await database.effect(ctx, order.n)
                publish(order, ctx)

    reader, seen = collector(reserved, backend_url)
    async with service, reader:
        for number in [*range(10), *range(10)]:
            await service.broker.publish(orders, Order(number), id=f"o{number}")
        await until(lambda: counts(service)["duplicates"] == 10 and len(seen) >= 10, service, reader)
        await until(lambda: counts(service)["published"] == 10, service)
    assert sorted(seen) == sorted((f"r{n}.{2 if n == 4 else 1}", n) for n in range(10))
    assert database.effects() == Counter(range(10))


@BROKERS
@pytest.mark.parametrize("form", ["async", "sync", "batch"])
async def test_without_an_inbox_messages_leave_only_after_success(
    backend_url: str, queue: MakeQueue, form: str
) -> None:
    """A run that fails publishes nothing, whether it is tried again in place, after a hop, or given up."""
    orders, reserved = queue("orders"), queue("reserved")
    service = Service("stock", broker=backend_url)
    policy = FailurePolicy(in_place=Backoff("10ms", max_attempts=2), chain=RetryChain("50ms"))

    def work(order: Order, ctx: Context) -> None:
        ctx.publish(reserved, Order(order.n), id=f"r{order.n}.{ctx.attempt}.{ctx.tries}")
        if order.n == 1 and ctx.tries == 1 and ctx.attempt == 1:
            raise ValueError("once")
        if order.n == 2 and ctx.attempt == 1:
            raise ValueError("in place twice")
        if order.n == 3:
            raise ValueError("always")

    if form == "async":

        @service.consumer(orders, failure=policy)
        async def one(order: Order, ctx: Context) -> None:
            await asyncio.sleep(0)
            work(order, ctx)

    elif form == "sync":

        @service.consumer(orders, failure=policy)
        def one_sync(order: Order, ctx: Context) -> None:
            work(order, ctx)

    else:

        @service.batch_consumer(orders, max_messages=10, max_wait="50ms", failure=policy)
        async def many(batch: list[Order], contexts: list[Context]) -> list[Exception | None]:
            results: list[Exception | None] = []
            for order, ctx in zip(batch, contexts, strict=True):
                try:
                    work(order, ctx)
                    results.append(None)
                except ValueError as error:
                    results.append(error)
            return results

    reader, seen = collector(reserved, backend_url)
    async with service, reader:
        for n in range(5):
            await service.broker.publish(orders, Order(n), id=f"o{n}")
        await until(lambda: counts(service)["dead"] == 1 and counts(service)["done"] >= 4, service)
        await until(lambda: len(seen) >= 4, service, reader)
    assert sorted(seen) == [("r0.1.1", 0), ("r1.1.2", 1), ("r2.2.1", 2), ("r4.1.1", 4)]


async def test_ctx_publish_takes_any_delay_with_an_inbox(queue: MakeQueue, database: Database) -> None:
    """The outbox keeps it, whatever the broker can."""
    orders, later = queue("orders"), queue("later")
    url = memory()
    service = Service("stock", broker=url)

    @service.consumer(orders, idempotency=Inbox(database.make()))
    async def handle(order: Order, ctx: Context) -> None:
        await ctx.publish(later, order, delay="1s")

    reader, seen = collector(later, url)
    async with service, reader:
        begun = asyncio.get_running_loop().time()
        await service.broker.publish(orders, Order(1))
        await until(lambda: bool(seen), service)
        assert asyncio.get_running_loop().time() - begun >= 0.9


@BROKERS
async def test_a_service_relays_the_outbox_that_it_is_given(
    backend_url: str, queue: MakeQueue, database: Database
) -> None:
    orders = queue("orders")
    outbox = Outbox(database.make(), relay=QUICK)
    reader, seen = collector(orders, backend_url)
    relaying = Service("relay", broker=backend_url, outbox=outbox)
    async with reader, relaying:
        async with outbox.transaction() as tx:
            done = tx.execute(database.insert, (7,))
            if database.kind == "postgres":
                await done
            one = await outbox.publish(tx, orders, Order(7), key="k", headers={"tenant": "a"})
            many = await outbox.publish_many(tx, orders, [Order(n) for n in range(3)], id=lambda order: f"m{order.n}")
        with contextlib.suppress(ZeroDivisionError):
            async with outbox.transaction() as tx:
                await outbox.publish(tx, orders, Order(99))
                raise ZeroDivisionError
        await until(lambda: len(seen) >= 4, relaying, reader)
        await until(lambda: counts(relaying)["published"] == 4, relaying)
    assert Counter(seen) == Counter([(one, 7), *((f"m{n}", n) for n in range(3))])
    assert many == ["m0", "m1", "m2"]
    assert database.effects() == Counter([7])


async def test_a_service_leaves_the_relay_to_others(queue: MakeQueue, database: Database) -> None:
    orders, reserved = queue("orders"), queue("reserved")
    service = Service("stock", broker=memory(), outbox=False)
    store = database.make()

    @service.consumer(orders, idempotency=Inbox(store))
    async def handle(order: Order, ctx: Context) -> None:
        await ctx.publish(reserved, order)

    async with service:
        await service.broker.publish(orders, Order(1))
        await until(lambda: counts(service)["done"] == 1, service)
        stats = await store.outbox_stats()  # type: ignore[attr-defined]
        assert (stats.waiting, stats.relays) == (1, 0)


async def test_nothing_leaves_without_a_transaction(database: Database) -> None:
    """A connection that commits each statement by itself would be no outbox."""
    import sqlite3

    import psycopg

    store = database.make()
    await store.open()
    outbox = Outbox(store)  # type: ignore[arg-type]
    orders: Queue[Any] = Queue("orders")
    if database.kind == "sqlite":
        lite = sqlite3.connect(database.where, isolation_level=None)
        with pytest.raises(ConfigurationError, match="in no transaction"):
            outbox.publish_sync(lite, orders, Order(1))
        lite.execute("BEGIN")
        outbox.publish_sync(lite, orders, Order(1))
        lite.execute("ROLLBACK")
        implicit = sqlite3.connect(database.where)
        outbox.publish_sync(implicit, orders, Order(2))
        assert implicit.in_transaction
        implicit.commit()
        lite.close()
        implicit.close()
    else:
        with psycopg.connect(database.where, autocommit=True) as pg:
            with pytest.raises(ConfigurationError, match="in no transaction"):
                outbox.publish_sync(pg, orders, Order(1))
            with pg.transaction():
                outbox.publish_sync(pg, orders, Order(2))
        async with await psycopg.AsyncConnection.connect(database.where) as apg:
            await outbox.publish(apg, orders, Order(3))
            await apg.rollback()
    assert (await outbox.store.outbox_stats()).waiting == 1
    with outbox.transaction_sync() as tx:
        outbox.publish_many_sync(tx, orders, [Order(1), Order(2)], key=lambda order: f"{order.n}")
    assert (await outbox.store.outbox_stats()).waiting == 3
    async with outbox.transaction() as tx:
        with pytest.raises(ConfigurationError, match="Queue or Topic"):
            await outbox.publish(tx, "orders", Order(1))  # type: ignore[arg-type]
    await store.close()


async def test_what_is_awaited_cannot_be_published_to_without(database: Database) -> None:
    if database.kind == "sqlite":
        pytest.skip("its connection blocks in either case")
    async with Outbox(database.make()) as outbox, outbox.transaction() as tx:  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match="nothing can be awaited"):
            outbox.publish_sync(tx, Queue("orders"), Order(1))


# ------------------------------------------------------------------------------------------------------ sessions of others


async def check_published(outbox: Outbox, expected: int) -> None:
    async with outbox:
        assert (await outbox.store.outbox_stats()).waiting == expected


@pytest.fixture
async def outbox(database: Database) -> AsyncIterator[Outbox]:
    store = database.make()
    await store.open()
    yield Outbox(store)  # type: ignore[arg-type]
    await store.close()


def sqlalchemy_url(database: Database, *, blocking: bool) -> str:
    if database.kind == "sqlite":
        return f"sqlite{'' if blocking else '+aiosqlite'}:///{database.where}"
    return "postgresql+psycopg://" + database.where.split("://", 1)[1]


async def test_sqlalchemy(database: Database, outbox: Outbox) -> None:
    pytest.importorskip("sqlalchemy", reason="sqlalchemy is not installed")
    from sqlalchemy import create_engine, text
    from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
    from sqlalchemy.orm import sessionmaker

    orders: Queue[Any] = Queue("orders")
    engine = create_engine(sqlalchemy_url(database, blocking=True))
    with sessionmaker(engine).begin() as session:
        session.execute(text(f"INSERT INTO {database.table} VALUES (:n)"), {"n": 1})
        outbox.publish_sync(session, orders, Order(1))
    with contextlib.suppress(ZeroDivisionError), sessionmaker(engine).begin() as session:
        outbox.publish_sync(session, orders, Order(2))
        raise ZeroDivisionError
    with engine.begin() as connection:
        outbox.publish_sync(connection, orders, Order(3))
    engine.dispose()
    waiting = create_async_engine(sqlalchemy_url(database, blocking=False))
    async with async_sessionmaker(waiting).begin() as session_:
        await outbox.publish_many(session_, orders, [Order(4), Order(5)])
    await waiting.dispose()
    assert (await outbox.store.outbox_stats()).waiting == 4
    assert database.effects() == Counter([1])


async def test_django(database: Database, outbox: Outbox) -> None:
    django = pytest.importorskip("django", reason="django is not installed")
    import psycopg
    from django.conf import settings

    if not settings.configured:
        settings.configure(DATABASES={"default": {"ENGINE": "django.db.backends.dummy"}}, USE_TZ=True)
        django.setup()
    from django.db import connections, transaction

    parts = psycopg.conninfo.conninfo_to_dict(database.where) if database.kind == "postgres" else {}
    alias = f"shop_{uuid.uuid4().hex[:6]}"
    connections.settings[alias] = connections.configure_settings(
        {
            "default": {"ENGINE": "django.db.backends.dummy"},
            alias: {
                "ENGINE": f"django.db.backends.{'postgresql' if parts else 'sqlite3'}",
                "NAME": parts.get("dbname", database.where),
                "USER": parts.get("user", ""),
                "PASSWORD": parts.get("password", ""),
                "HOST": parts.get("host", ""),
                "PORT": str(parts.get("port", "")),
            },
        }
    )[alias]

    def web_request() -> None:
        connection = connections[alias]
        with transaction.atomic(using=alias):
            outbox.publish_sync(connection, Queue("orders"), Order(1))
        with contextlib.suppress(ZeroDivisionError), transaction.atomic(using=alias):
            outbox.publish_sync(connection, Queue("orders"), Order(2))
            raise ZeroDivisionError
        with pytest.raises(ConfigurationError, match="in no transaction"):
            outbox.publish_sync(connection, Queue("orders"), Order(3))
        connection.close()

    await asyncio.to_thread(web_request)
    assert (await outbox.store.outbox_stats()).waiting == 1
