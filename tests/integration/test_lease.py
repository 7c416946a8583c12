"""Consumers with a lease, on every backend and over every store: effects are lines of a list in the test."""

from __future__ import annotations

import asyncio
import sys
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from once_kit import Order, counts, dead_letters, settled, until

from atleastonce import (
    Backoff,
    Context,
    DynamoDBStore,
    FailurePolicy,
    Lease,
    MemoryStore,
    MySQLStore,
    PostgresStore,
    Queue,
    RedisStore,
    RetryChain,
    Service,
    SQLiteStore,
    connect,
    wire,
)
from atleastonce.stores import LeaseStore

MakeQueue = Callable[[str], Queue[Any]]
MakeStore = Callable[[], LeaseStore]


@pytest.fixture(params=["memory", "sqlite", "postgres", "mysql", "redis", "dynamodb"])
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> MakeStore:
    """Each call another store object over the same records (in memory: the same object)."""
    prefix = f"alo_{uuid.uuid4().hex[:8]}"
    if request.param == "memory":
        store = MemoryStore()
        return lambda: store
    if request.param == "sqlite":
        return lambda: SQLiteStore(tmp_path / "leases.db")
    if request.param == "postgres":
        dsn = request.getfixturevalue("shop_dsn")
        return lambda: PostgresStore(dsn, prefix=prefix, create=True)
    if request.param == "mysql":
        dsn = request.getfixturevalue("mysql_url")
        return lambda: MySQLStore(dsn, prefix=prefix, create=True)
    if request.param == "dynamodb":  # on an emulator
        table = request.getfixturevalue("sqs_url").replace("sqs://", "dynamodb://test:test@") + f"/{prefix}"
        return lambda: DynamoDBStore(table, create=True)
    url = request.getfixturevalue("redis_url")
    return lambda: RedisStore(url, prefix=prefix)


async def test_duplicates_do_not_run(backend_url: str, queue: MakeQueue, make_store: MakeStore) -> None:
    orders = queue("orders")
    service = Service("billing", broker=backend_url)
    runs: list[int] = []

    @service.consumer(orders, idempotency=Lease(make_store()))
    async def charge(order: Order, ctx: Context) -> dict[str, int]:
        assert ctx.fence > 0
        assert len(ctx.idempotency_key) == 32
        runs.append(order.n)
        await asyncio.sleep(0.01)
        return {"receipt": order.n}

    async with service:
        for _ in range(3):
            await asyncio.gather(*(service.broker.publish(orders, Order(n), id=f"order-{n}") for n in range(30)))
        await until(lambda: counts(service)["done"] == 30 and settled(service), service)
        await until(lambda: counts(service)["duplicates"] == counts(service)["received"] - 30, service)
        assert not counts(service)["dead"]
    assert Counter(runs) == Counter(range(30))


async def test_two_services_share_the_work_and_no_effect(queue: MakeQueue, make_store: MakeStore) -> None:
    broker = f"memory://{uuid.uuid4().hex}"
    runs: list[int] = []
    services = []
    orders = queue("orders")
    for _ in range(2):
        service = Service("billing", broker=broker)

        @service.consumer(orders, idempotency=Lease(make_store(), key="n"))
        async def charge(order: Order) -> None:
            runs.append(order.n)
            await asyncio.sleep(0.05)

        services.append(service)
    async with services[0], services[1]:
        for _ in range(4):
            await asyncio.gather(*(services[0].broker.publish(orders, Order(n)) for n in range(20)))
        total = lambda name: sum(counts(service)[name] for service in services)  # noqa: E731
        await until(lambda: total("done") + total("duplicates") == 80, *services)
    assert Counter(runs) == Counter(range(20))


async def test_a_lease_is_kept_for_as_long_as_its_handler_runs(queue: MakeQueue, make_store: MakeStore) -> None:
    """And its duplicates, in another process or this one, wait for that long and do not run."""
    broker, orders = f"memory://{uuid.uuid4().hex}", queue("orders")
    runs: list[bool] = []
    services = []
    for _ in range(2):
        service = Service("billing", broker=broker)

        @service.consumer(orders, idempotency=Lease(make_store(), lease="1s", key="n"))
        async def charge(order: Order, ctx: Context) -> None:
            runs.append(ctx.in_doubt)
            await asyncio.sleep(3.2)  # the work: three leases

        services.append(service)
    total = lambda name: sum(counts(service)[name] for service in services)  # noqa: E731
    async with services[0], services[1]:
        for _ in range(6):
            await services[0].broker.publish(orders, Order(1))
        await until(lambda: total("done") == 1 and total("duplicates") == 5, *services)
        assert not total("overtaken") + total("dead") + total("retried")
    assert runs == [False]


async def test_a_failed_run_gives_its_claim_back(queue: MakeQueue, make_store: MakeStore) -> None:
    service = Service("billing", broker=f"memory://{uuid.uuid4().hex}")
    runs: list[tuple[int, int]] = []

    @service.consumer(
        orders := queue("orders"),
        idempotency=Lease(make_store()),
        failure=FailurePolicy(in_place=None, chain=RetryChain("100ms")),
    )
    async def charge(order: Order, ctx: Context) -> None:
        runs.append((order.n, ctx.attempt))
        if order.n == 2 or (order.n == 1 and ctx.attempt == 1):
            raise ValueError("not now")

    async with service:
        for n in range(3):
            await service.broker.publish(orders, Order(n), id=f"order-{n}")
        await until(lambda: counts(service)["done"] == 2 and counts(service)["dead"] == 1, service)
    assert sorted(runs) == [(0, 1), (1, 1), (1, 2), (2, 1), (2, 2)]


async def test_a_lone_message_that_fails_runs_again_in_place() -> None:
    """Nothing else comes that could wake its handler."""
    service = Service("billing", broker=f"memory://{uuid.uuid4().hex}")
    orders: Queue[Any] = Queue("orders")
    runs: list[int] = []

    @service.consumer(orders, idempotency=Lease(MemoryStore()))
    async def charge(order: Order, ctx: Context) -> None:
        runs.append(order.n)
        if len(runs) == 1:
            raise ValueError("not yet")

    async with service:
        await service.broker.publish(orders, Order(1))
        await until(lambda: counts(service)["done"] == 1 and settled(service), service)
    assert runs == [1, 1]


@pytest.mark.parametrize("then", ["in place", "chain", "fails in between"])
async def test_a_run_after_one_that_was_cut_off_is_in_doubt(
    queue: MakeQueue, then: str, caplog: pytest.LogCaptureFixture
) -> None:
    """By its timeout: nobody knows how far it had come."""
    service, orders = Service("billing", broker=f"memory://{uuid.uuid4().hex}"), queue("orders")
    runs: list[bool] = []
    tries = None if then == "chain" else Backoff("10ms", max_attempts=2)
    policy = FailurePolicy(in_place=tries, chain=RetryChain("100ms"), timeout="300ms")

    @service.consumer(orders, idempotency=Lease(MemoryStore(), lease="1s"), failure=policy)
    async def charge(order: Order, ctx: Context) -> None:
        runs.append(ctx.in_doubt)
        if len(runs) == 1:
            await asyncio.sleep(60)
        if len(runs) == 2 and then == "fails in between":
            raise ValueError("not now")

    async with service:
        await service.broker.publish(orders, Order(1), id="o1")
        await until(lambda: counts(service)["done"] == 1 and settled(service), service)
    assert runs == [False, *(True for _ in runs[1:])]
    assert any("o1: in doubt" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("form", ["async", "sync"])
async def test_a_batch_that_runs_one_by_one_is_in_no_doubt(queue: MakeQueue, form: str) -> None:
    """Its run had ended by itself."""
    service, orders = Service("billing", broker=f"memory://{uuid.uuid4().hex}"), queue("orders")
    doubts: list[bool] = []

    def look(batch: list[Order], contexts: list[Context]) -> None:
        doubts.extend(ctx.in_doubt for ctx in contexts)
        if len(batch) > 1:
            raise ValueError("too many")

    if form == "async":

        @service.batch_consumer(orders, idempotency=Lease(MemoryStore()), max_messages=5)
        async def many(batch: list[Order], contexts: list[Context]) -> None:
            look(batch, contexts)

    else:
        service.batch_consumer(orders, idempotency=Lease(MemoryStore()), max_messages=5)(look)

    async with service:
        await service.broker.publish_many(orders, [Order(n) for n in range(5)])
        await until(lambda: counts(service)["done"] == 5, service)
    assert not any(doubts)


async def test_what_the_broker_refuses_of_a_run_is_published_by_its_redrive(
    queue: MakeQueue, make_store: MakeStore
) -> None:
    """The message is a dead letter, and so it is not done: as a duplicate it would lose what it had to publish."""
    service = Service("billing", broker=f"memory://{uuid.uuid4().hex}")
    orders, invoices = queue("orders"), queue("invoices")
    runs: list[bool] = []
    arrived: list[int] = []
    size = 17 << 20  # the broker takes 16 MiB

    @service.consumer(orders, idempotency=Lease(make_store()), failure=FailurePolicy(in_place=None))
    async def charge(order: Order, ctx: Context) -> None:
        runs.append(ctx.in_doubt)
        await ctx.publish(invoices, bytes(size))

    @service.consumer(invoices)
    async def take(body: bytes) -> None:
        arrived.append(len(body))

    async with service:
        await service.broker.publish(orders, Order(1), id="o1")
        await until(lambda: counts(service)["dead"] == 1 and settled(service), service)
        size = 10
        await service.broker.dead_letters(orders).redrive()
        await until(lambda: bool(arrived), service)
        assert not counts(service)["duplicates"]
    assert arrived == [10]
    assert runs == [False, True]  # the first one's own effect has happened


async def test_a_run_whose_messages_were_not_confirmed_is_in_doubt(
    queue: MakeQueue, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has succeeded: given back as if it had failed, its effect would happen twice without a word."""
    from atleastonce.adapters.memory import MemoryAdapter
    from atleastonce.contract import Code, unknown

    broker, orders, invoices = f"memory://{uuid.uuid4().hex}", queue("orders"), queue("invoices")
    runs: list[bool] = []
    send = MemoryAdapter.send

    async def unconfirmed(self: Any, batch: Any) -> Any:
        kept = iter(await send(self, [each for each in batch if each.destination.name != invoices.name]))
        silence = unknown(Code.UNAVAILABLE, "no confirmation")
        return [silence if each.destination.name == invoices.name else next(kept) for each in batch]

    def make() -> Service:
        service = Service("billing", broker=broker)

        @service.consumer(orders, idempotency=Lease(make_store()))
        async def charge(order: Order, ctx: Context) -> None:
            runs.append(ctx.in_doubt)
            await ctx.publish(invoices, order)

        return service

    async with connect(broker) as keep:  # a memory broker lasts as long as somebody is connected
        await keep.declare(orders, invoices)
        with monkeypatch.context() as patch:
            patch.setattr(MemoryAdapter, "send", unconfirmed)
            async with make() as first:
                await keep.publish(orders, Order(1), id="o1")
                await until(lambda: bool(runs), first)
                await first.stop(0)
        async with make() as second:
            await until(lambda: counts(second)["done"] == 1, second)
    assert runs == [False, True]


async def test_same_key_with_another_body_is_parked(queue: MakeQueue, make_store: MakeStore) -> None:
    service = Service("billing", broker=f"memory://{uuid.uuid4().hex}")
    runs: list[str | None] = []

    @service.consumer(orders := queue("orders"), idempotency=Lease(make_store(), key="n"))
    def charge(order: Order) -> None:
        runs.append(order.note)

    async with service:
        await service.broker.publish(orders, Order(1, "first"))
        await until(lambda: counts(service)["done"] == 1, service)
        await service.broker.publish(orders, Order(1, "second"))
        await until(lambda: counts(service)["dead"] == 1, service)
        (letter,) = await dead_letters(service, 1)
    assert letter.message.headers.get(wire.ERROR_STAGE) == "mismatch"
    assert runs == ["first"]


async def test_a_batch_handler_under_leases(queue: MakeQueue, make_store: MakeStore) -> None:
    service = Service("billing", broker=f"memory://{uuid.uuid4().hex}")
    runs: list[int] = []

    @service.batch_consumer(orders := queue("orders"), idempotency=Lease(make_store()), max_messages=10)
    async def charge(batch: list[Order], contexts: list[Context]) -> None:
        assert all(ctx.fence for ctx in contexts)
        if len(batch) > 1 and any(order.n == 13 for order in batch):
            raise ValueError("one by one, then")
        runs.extend(order.n for order in batch)

    async with service:
        for _ in range(2):
            await asyncio.gather(*(service.broker.publish(orders, Order(n), id=f"o{n}") for n in range(30)))
        await until(lambda: counts(service)["done"] == 30 and counts(service)["duplicates"] == 30, service)
    assert Counter(runs) == Counter(range(30))


async def test_ten_thousand_duplicates_of_one_id(queue: MakeQueue, make_store: MakeStore) -> None:
    service = Service("billing", broker=f"memory://{uuid.uuid4().hex}")
    runs: list[int] = []

    @service.consumer(orders := queue("orders"), idempotency=Lease(make_store(), key="n"))
    async def charge(order: Order) -> None:
        runs.append(order.n)
        await asyncio.sleep(0.3)

    async with service:
        await service.broker.publish_many(orders, [Order(7)] * 10_000)
        await until(lambda: counts(service)["duplicates"] == 9_999 and counts(service)["done"] == 1, service)
    assert runs == [7]


async def test_a_result_that_cannot_be_kept_is_logged_and_runs_once(
    queue: MakeQueue, make_store: MakeStore, caplog: pytest.LogCaptureFixture
) -> None:
    service = Service("billing", broker=f"memory://{uuid.uuid4().hex}")
    runs: list[int] = []

    @service.consumer(orders := queue("orders"), idempotency=Lease(make_store()))
    async def charge(order: Order) -> object:
        runs.append(order.n)
        return object() if order.n else "x" * 100_000

    async with service:
        for _ in range(2):
            for n in range(2):
                await service.broker.publish(orders, Order(n), id=f"o{n}")
        await until(lambda: counts(service)["duplicates"] == 2 and counts(service)["done"] == 2, service)
    assert sorted(runs) == [0, 1]
    assert "its handler's result is not kept" in caplog.text
