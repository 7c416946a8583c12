"""Bad input of idempotent consumers: keys that are none, transactions that handlers end, databases that are away or in the way.
Nothing is lost, nothing runs twice, and neighbours notice nothing."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pymysql
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from once_kit import Database, Order, counts, dead_letters, settled, until

from atleastonce import (
    ConfigurationError,
    Context,
    FailurePolicy,
    Inbox,
    Lease,
    MemoryStore,
    Message,
    MySQLStore,
    PostgresStore,
    Queue,
    RedisStore,
    RetryChain,
    Service,
    SQLiteStore,
    StoreUnavailable,
    wire,
)
from atleastonce.stores import LeaseStore
from atleastonce.testing.brokers import Killable, killable

MakeQueue = Callable[[str], Queue[Any]]


@pytest.fixture
def database(inbox_database: Database) -> Database:
    return inbox_database


def memory() -> str:
    return f"memory://{uuid.uuid4().hex}"


# ---------------------------------------------------------------------------------------------------------------- keys


def cut_off(order: Order, error: type[BaseException]) -> str:
    """A key function that ends in what looks like the end of its task."""
    raise error(order.n)


@pytest.mark.parametrize(
    ("key", "body", "words"),
    [
        ("n", b'{"n":1,"note":"x"}', None),
        ("note", b'{"n":1,"note":null}', 'key field "note" is null'),
        ("note", b'{"n":1,"note":""}', "idempotency key is empty"),
        ("note", b'{"n":1,"note":"' + b"x" * 600 + b'"}', "has 600 bytes and may have 512"),
        ("note", b'{"n":1,"note":"a\\u0000b"}', "holds a NUL"),
        (("n", "note"), b'{"n":1,"note":null}', 'key field "note" is null'),
        (lambda order: order.nothing, b'{"n":1}', "key function raised AttributeError"),
        (lambda order: cut_off(order, asyncio.CancelledError), b'{"n":1}', "key function raised CancelledError"),
        (lambda order: cut_off(order, GeneratorExit), b'{"n":1}', "key function raised GeneratorExit"),
        (lambda order: order.n / 2, b'{"n":1}', "is a float"),
        (lambda order, message: message.headers.get(f"absent{order.n}"), b'{"n":1}', "is null"),
    ],
    ids=[
        "good",
        "null",
        "empty",
        "long",
        "nul",
        "null of several",
        "raises",
        "cancelled",
        "generator exit",
        "float",
        "header",
    ],
)
@pytest.mark.parametrize("mode", ["inbox", "lease", "inbox batch"])
async def test_a_bad_key_is_parked_and_harms_no_neighbour(
    queue: MakeQueue, tmp_path: Path, key: Any, body: bytes, words: str | None, mode: str
) -> None:
    orders = queue("orders")
    service = Service("billing", broker=memory())
    runs: list[int] = []

    def key_of(order: Order, message: Message) -> Any:
        if order.n == 2:
            return "neighbour"
        if not callable(key):
            return key
        return key(order, message) if "message" in key.__code__.co_varnames else key(order)

    asked: Any = key if not callable(key) else key_of
    store = SQLiteStore(tmp_path / "s.db")
    if mode == "inbox batch":

        @service.batch_consumer(orders, idempotency=Inbox(store, key=asked))
        async def many(batch: list[Order]) -> None:
            runs.extend(order.n for order in batch)

    else:

        @service.consumer(orders, idempotency=(Inbox if mode == "inbox" else Lease)(store, key=asked))
        async def one(order: Order) -> None:
            runs.append(order.n)

    async with service:
        await asyncio.gather(
            service.broker.publish(orders, body), service.broker.publish(orders, Order(2, "neighbour"))
        )
        await until(lambda: counts(service)["done"] == (1 if words else 2) and settled(service), service)
        if words:
            (letter,) = await dead_letters(service, 1)
            assert letter.message.headers.get(wire.ERROR_STAGE) == "key"
            assert words in (letter.message.headers.get(wire.ERROR_MESSAGE) or "")
            assert letter.message.body == body
    assert sorted(runs) == ([2] if words else [1, 2])


@pytest.mark.parametrize("mode", ["inbox", "lease"])
async def test_a_key_field_that_is_missing_parks_its_message_alone(queue: MakeQueue, tmp_path: Path, mode: str) -> None:
    """In a payload of any shape, of which nothing can be said before it comes."""
    orders, service, store = queue("orders"), Service("billing", broker=memory()), SQLiteStore(tmp_path / "s.db")
    runs: list[Any] = []

    @service.consumer(orders, idempotency=(Inbox if mode == "inbox" else Lease)(store, key=("tenant", "n")))
    async def handle(order: dict[str, Any]) -> None:
        runs.append(order["n"])

    async with service:
        for each in ({"tenant": "a", "n": 1}, {"n": 2}, {"tenant": "a", "n": 3}, {"tenant": "a", "n": 1}):
            await service.broker.publish(orders, each)
        await until(lambda: counts(service)["done"] == 2 and counts(service)["duplicates"] == 1, service)
        (letter,) = await dead_letters(service, 1)
        assert letter.message.headers.get(wire.ERROR_STAGE) == "key"
        assert 'key field "tenant" is missing' in (letter.message.headers.get(wire.ERROR_MESSAGE) or "")
    assert sorted(runs) == [1, 3]


def test_a_key_that_no_message_can_have_is_refused_at_once(tmp_path: Path) -> None:
    service, store = Service("billing"), SQLiteStore(tmp_path / "s.db")

    def handle(order: Order) -> None: ...

    def register(idempotency: Any) -> None:
        service.consumer(Queue("orders"), idempotency=idempotency)(handle)

    with pytest.raises(ConfigurationError, match='key "order_id" is no field of Order; it has n, note'):
        register(Inbox(store, key="order_id"))
    with pytest.raises(ConfigurationError, match="must be a def of the payload"):
        register(Inbox(store, key=lambda: "x"))
    with pytest.raises(ConfigurationError, match="give a field's name"):
        Inbox(store, key=7)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="this store is no database"):
        Inbox(MemoryStore())
    with pytest.raises(ConfigurationError, match="give it a store"):
        Lease("redis://")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="give Inbox"):
        register(store)
    with pytest.raises(ConfigurationError, match="longer than a week, for which it remembers"):
        Lease(store, lease="8d")
    with pytest.raises(ConfigurationError, match="lease='2d' is longer than ttl='1d'"):
        Lease(store, ttl="1d", lease="2d")


async def test_keys_of_two_sources_are_not_one_scope(queue: MakeQueue, tmp_path: Path) -> None:
    service, store = Service("billing", broker=memory()), MemoryStore()
    runs: list[str] = []
    first, second = queue("first"), queue("second")

    def handler(name: str) -> Callable[[Order], None]:
        def handle(order: Order) -> None:
            runs.append(name)

        return handle

    for channel in (first, second):
        service.consumer(channel, idempotency=Lease(store, key="n"))(handler(channel.name))
    async with service:
        await service.broker.publish(first, Order(1))
        await service.broker.publish(second, Order(1))
        await until(lambda: counts(service)["done"] == 2, service)
    assert sorted(runs) == sorted([first.name, second.name])


# -------------------------------------------------------------------------------------------------------- transactions


@pytest.mark.parametrize("how", ["COMMIT", "ROLLBACK"])
@pytest.mark.parametrize("form", ["async", "sync", "batch"])
async def test_a_handler_that_ends_its_transaction_is_told_and_runs_once(
    queue: MakeQueue, database: Database, how: str, form: str
) -> None:
    orders = queue("orders")
    service = Service("billing", broker=memory())
    runs: list[int] = []
    inbox = Inbox(database.make())

    async def meddle(n: int, ctx: Context) -> None:
        runs.append(n)
        await database.effect(ctx, n)
        if n == 1:
            await database.execute(ctx, how)

    if form == "async":

        @service.consumer(orders, idempotency=inbox, retry=["100ms"])
        async def one(order: Order, ctx: Context) -> None:
            await meddle(order.n, ctx)

    elif form == "sync":

        @service.consumer(orders, idempotency=inbox, retry=["100ms"])
        def one_sync(order: Order, ctx: Context) -> None:
            runs.append(order.n)
            database.execute_sync(ctx, database.insert, (order.n,))
            if order.n == 1:
                database.execute_sync(ctx, how)

    else:

        @service.batch_consumer(orders, idempotency=inbox, retry=["100ms"], max_messages=1)
        async def many(batch: list[Order], contexts: list[Context]) -> None:
            for order, ctx in zip(batch, contexts, strict=True):
                await meddle(order.n, ctx)

    async with service:
        for n in range(3):
            await service.broker.publish(orders, Order(n), id=f"o{n}")
        await until(lambda: counts(service)["done"] == 2 and counts(service)["dead"] == 1, service)
        (letter,) = await dead_letters(service, 1)
        assert letter.message.headers.get(wire.ERROR_TYPE) == "TransactionEnded"
        assert "leave that to the inbox" in (letter.message.headers.get(wire.ERROR_MESSAGE) or "")
    assert sorted(runs) == [0, 1, 2]
    assert database.effects() == Counter([0, 1, 2] if how == "COMMIT" else [0, 2])


async def test_a_swallowed_error_of_a_statement_is_no_success(queue: MakeQueue, postgres_database: Database) -> None:
    """PostgreSQL answers COMMIT in a failed transaction with a rollback, and calls that a success."""
    orders = queue("orders")
    service = Service("billing", broker=memory())

    @service.consumer(orders, idempotency=Inbox(postgres_database.make()), failure=FailurePolicy(in_place=None))
    async def handle(order: Order, ctx: Context) -> None:
        await postgres_database.effect(ctx, order.n)
        with contextlib.suppress(psycopg.errors.DivisionByZero):
            await ctx.tx.execute("SELECT 1/0")

    async with service:
        await service.broker.publish(orders, Order(1))
        await until(lambda: counts(service)["dead"] == 1, service)
        (letter,) = await dead_letters(service, 1)
        assert "its error was swallowed" in (letter.message.headers.get(wire.ERROR_MESSAGE) or "")
    assert not postgres_database.effects()


@pytest.mark.parametrize("then", ["nothing", "another effect"])
async def test_a_swallowed_deadlock_is_no_success(queue: MakeQueue, mysql_database: Database, then: str) -> None:
    """MySQL undoes the whole transaction, the inbox's row with it, and answers COMMIT as if nothing had happened: the message
    would be settled, and neither effect nor memory of it be there."""
    orders = queue("orders")
    database = mysql_database
    database.query(f"INSERT INTO {database.table} VALUES (-1), (-2)")
    service = Service("billing", broker=memory())
    runs: list[int] = []
    swallowed: list[int] = []
    both = asyncio.Event()

    @service.consumer(orders, idempotency=Inbox(database.make()), failure=FailurePolicy(in_place=None), concurrency=2)
    async def handle(order: Order, ctx: Context) -> None:
        update = f"UPDATE {database.table} SET n = n WHERE n = %s"
        await database.effect(ctx, order.n)
        await database.execute(ctx, update, (-1 - order.n,))
        runs.append(order.n)  # it holds its row
        if len(runs) == 2:
            both.set()
        await asyncio.wait_for(both.wait(), 10)
        try:
            await database.execute(ctx, update, (-2 + order.n,))
        except pymysql.err.OperationalError:
            swallowed.append(order.n)
            if then == "another effect":
                await database.effect(ctx, 100)

    async with service:
        await asyncio.gather(*(service.broker.publish(orders, Order(n), id=f"o{n}") for n in range(2)))
        await until(lambda: counts(service)["done"] + counts(service)["dead"] == 2, service)
        if counts(service)["dead"]:
            (letter,) = await dead_letters(service, 1)
            assert letter.message.headers.get(wire.ERROR_TYPE) == "TransactionEnded"
            assert letter.message.id == f"o{swallowed[0]}"
            expected = [-1, -2, 1 - swallowed[0]]
        else:  # the look at the row met a conflict of its own, and the message began again
            assert counts(service)["conflicts"]
            expected = [-1, -2, 0, 1]
    assert database.effects() - Counter([100]) == Counter(expected)


async def test_failures_undo_effects_and_follow_the_policy(queue: MakeQueue, database: Database) -> None:
    orders = queue("orders")
    service = Service("billing", broker=memory())
    runs: list[tuple[int, int]] = []

    @service.consumer(
        orders,
        idempotency=Inbox(database.make()),
        failure=FailurePolicy(in_place=None, chain=RetryChain("100ms", "200ms")),
    )
    async def handle(order: Order, ctx: Context) -> None:
        await database.effect(ctx, order.n)
        runs.append((order.n, ctx.attempt))
        if order.n == 2 or (order.n == 1 and ctx.attempt == 1):
            raise ValueError("undo that")

    async with service:
        for n in range(3):
            await service.broker.publish(orders, Order(n), id=f"o{n}")
        await until(lambda: counts(service)["done"] == 2 and counts(service)["dead"] == 1, service)
    assert sorted(runs) == [(0, 1), (1, 1), (1, 2), (2, 1), (2, 2), (2, 3)]
    assert database.effects() == Counter([0, 1])


@pytest.mark.parametrize("answer", ["raises", "results"])
async def test_a_batch_with_a_bad_member_costs_only_that_member(
    queue: MakeQueue, database: Database, answer: str
) -> None:
    orders = queue("orders")
    service = Service("billing", broker=memory())

    @service.batch_consumer(
        orders, idempotency=Inbox(database.make()), max_messages=20, failure=FailurePolicy(in_place=None)
    )
    async def handle(batch: list[Order], contexts: list[Context]) -> list[Exception | None]:
        results: list[Exception | None] = []
        for order, ctx in zip(batch, contexts, strict=True):
            await database.effect(ctx, order.n)
            bad = ValueError("bad") if order.n == 7 else None
            if bad is not None and answer == "raises":
                raise bad
            results.append(bad)
        return results

    async with service:
        for _ in range(2):
            await asyncio.gather(*(service.broker.publish(orders, Order(n), id=f"o{n}") for n in range(20)))
        await until(lambda: counts(service)["done"] == 19 and counts(service)["dead"] == 2, service)
        await until(lambda: counts(service)["duplicates"] == 19 and settled(service), service)
    assert database.effects() == Counter(n for n in range(20) if n != 7)


@pytest.mark.parametrize("kind", ["postgres", "mysql"])
async def test_deadlocks_are_tried_again_in_place_and_burn_no_attempt(
    queue: MakeQueue, request: pytest.FixtureRequest, kind: str
) -> None:
    orders = queue("orders")
    database: Database = request.getfixturevalue(f"{kind}_database")
    database.query(f"INSERT INTO {database.table} VALUES (-1), (-2)")
    attempts: list[int] = []
    service = Service("billing", broker=memory())
    locked: set[int] = set()
    both = asyncio.Event()

    @service.consumer(orders, idempotency=Inbox(database.make()), failure=FailurePolicy(in_place=None), concurrency=2)
    async def handle(order: Order, ctx: Context) -> None:
        attempts.append(ctx.attempt)
        update = f"UPDATE {database.table} SET n = n WHERE n = %s"
        await database.execute(ctx, update, (-1 - order.n % 2,))
        locked.add(order.n)
        if len(locked) == 2:
            both.set()
        await asyncio.wait_for(both.wait(), 10)  # until each holds what the other one wants
        await database.execute(ctx, update, (-2 + order.n % 2,))
        await database.effect(ctx, order.n)

    async with service:
        await asyncio.gather(*(service.broker.publish(orders, Order(n), id=f"o{n}") for n in range(2)))
        await until(lambda: counts(service)["done"] == 2, service)
        assert counts(service)["conflicts"] >= 1
        assert not counts(service)["dead"]
    assert set(attempts) == {1}
    assert database.effects() == Counter([-1, -2, 0, 1])


async def test_serialization_failures_are_tried_again_in_place(queue: MakeQueue, postgres_database: Database) -> None:
    orders = queue("orders")
    database = postgres_database
    service = Service("billing", broker=memory())
    failed: list[int] = []

    @service.consumer(orders, idempotency=Inbox(database.make()), failure=FailurePolicy(in_place=None), concurrency=4)
    async def handle(order: Order, ctx: Context) -> None:
        if order.n == 0 and not failed:
            failed.append(order.n)
            await ctx.tx.execute(
                "DO $$ BEGIN RAISE EXCEPTION 'could not serialize' USING ERRCODE = 'serialization_failure'; END $$"
            )
        await database.effect(ctx, order.n)

    async with service:
        await asyncio.gather(*(service.broker.publish(orders, Order(n), id=f"o{n}") for n in range(4)))
        await until(lambda: counts(service)["done"] == 4, service)
        assert counts(service)["conflicts"] == 1
    assert database.effects() == Counter(range(4))


async def test_the_same_message_on_two_consumers_at_once(queue: MakeQueue, database: Database) -> None:
    orders, broker = queue("orders"), memory()
    services = []
    for _ in range(2):
        service = Service("billing", broker=broker)

        @service.consumer(orders, idempotency=Inbox(database.make()), concurrency=1)
        async def handle(order: Order, ctx: Context) -> None:
            await database.effect(ctx, order.n)
            await asyncio.sleep(0.05)

        services.append(service)
    total = lambda name: sum(counts(service)[name] for service in services)  # noqa: E731
    async with services[0], services[1]:
        for n in range(5):
            await asyncio.gather(*(services[0].broker.publish(orders, Order(n), id=f"o{n}") for _ in range(4)))
        await until(lambda: total("done") == 5 and total("duplicates") == 15, *services)
    assert database.effects() == Counter(range(5))


# -------------------------------------------------------------------------------------------------------------- outages


@pytest.mark.parametrize(
    "store",
    [
        Inbox(PostgresStore("postgresql://u:hunter2@127.0.0.1:1/x", connect_timeout=2)),
        Inbox(MySQLStore("mysql://u:hunter2@127.0.0.1:1/x", connect_timeout=2)),
        Lease(RedisStore("redis://u:hunter2@127.0.0.1:1/0")),
        Inbox(SQLiteStore("/no/such/folder/store.db")),
    ],
    ids=["postgres", "mysql", "redis", "sqlite"],
)
async def test_a_store_that_is_away_at_the_start_is_said_at_once(queue: MakeQueue, store: Inbox | Lease) -> None:
    service = Service("billing", broker=memory())

    @service.consumer(queue("orders"), idempotency=store)
    async def handle(order: Order) -> None: ...

    with pytest.raises(StoreUnavailable) as caught:
        await service.start()
    assert "hunter2" not in str(caught.value)
    assert service.status() == []


async def test_a_schema_of_another_version_keeps_the_service_from_starting(
    queue: MakeQueue, database: Database
) -> None:
    """And nothing that waits is touched."""
    orders = queue("orders")
    service = Service("billing", broker=memory())
    store = database.make()
    await store.init()
    database.query(f"UPDATE {database.table.replace('effect', 'alo')}_store SET version = 99")

    @service.consumer(orders, idempotency=Inbox(store))
    async def handle(order: Order, ctx: Context) -> None:
        await database.effect(ctx, order.n)

    with pytest.raises(ConfigurationError, match="has version 99, this atleastonce needs 1"):
        await service.start()
    assert service.status() == []
    assert not database.effects()


@pytest.mark.chaos
@pytest.mark.parametrize("mode", ["inbox", "inbox batch", "mysql inbox", "mysql inbox batch", "lease", "redis lease"])
async def test_a_store_that_goes_away_pauses_the_source_and_burns_no_attempt(queue: MakeQueue, mode: str) -> None:
    orders = queue("orders")
    service = Service("billing", broker=memory())
    runs: list[tuple[int, int]] = []
    async with killable(mode.split()[0] if mode[:5] in ("redis", "mysql") else "postgres") as server:
        store = _store(server, mode)
        asked = (Inbox if "inbox" in mode else Lease)(store)  # type: ignore[arg-type]
        policy = FailurePolicy(in_place=None, chain=None)

        async def select(ctx: Context) -> None:
            if mode.startswith("mysql"):
                await ctx.tx.query("SELECT 1")
            else:
                await ctx.tx.execute("SELECT 1")

        if mode.endswith("inbox batch"):

            @service.batch_consumer(orders, idempotency=asked, failure=policy, max_messages=5)
            async def many(batch: list[Order], contexts: list[Context]) -> None:
                await asyncio.sleep(0.02)
                await select(contexts[0])
                runs.extend((order.n, ctx.attempt) for order, ctx in zip(batch, contexts, strict=True))

        else:

            @service.consumer(orders, idempotency=asked, failure=policy, concurrency=4)
            async def one(order: Order, ctx: Context) -> None:
                await asyncio.sleep(0.02)
                if mode.endswith("inbox"):
                    await select(ctx)
                runs.append((order.n, ctx.attempt))

        async with service:
            for n in range(60):
                await service.broker.publish(orders, Order(n), id=f"o{n}")
            await until(lambda: counts(service)["done"] >= 5, service)
            await server.kill()
            for n in range(60, 80):
                await service.broker.publish(orders, Order(n), id=f"o{n}")
            await until(lambda: any(s.state == "paused" for s in service.status()), service)
            (status,) = (s for s in service.status() if s.state == "paused")
            assert status.detail.startswith("store unavailable")
            await server.start()
            await until(
                lambda: counts(service)["done"] + counts(service)["duplicates"] == 80 and settled(service),
                service,
                within=60,
            )
            # The outbox's relay looks for itself, a little later.
            await until(lambda: {s.state for s in service.status()} == {"running"}, service)
            assert not counts(service)["dead"]
            assert not counts(service)["retried"]
    assert {attempt for _, attempt in runs} == {1}
    assert {n for n, _ in runs} == set(range(80))
    if "inbox" not in mode:
        assert len(runs) == 80  # with an inbox a run may be undone with its transaction


def _store(server: Killable, mode: str) -> LeaseStore:
    if mode == "redis lease":
        return RedisStore(server.url)
    if mode.startswith("mysql"):
        return MySQLStore(server.url, create=True, timeout="2s", connect_timeout="2s")
    return PostgresStore(server.url, create=True, timeout="2s", connect_timeout="2s")
