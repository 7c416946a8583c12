"""What a database answers is understood or an error: whatever its encoding is, and whatever the session's rows are made of."""

from __future__ import annotations

import contextlib
import sqlite3
import sys
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import aiosqlite
import psycopg
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from once_kit import Database, Order, counts, dead_letters, until

from atleastonce import Context, Inbox, Lease, Outbox, Queue, Service, StoreUnavailable, wire
from atleastonce.stores import ClaimRequest, OutboxStore, Status, scope_key

MakeQueue = Callable[[str], Queue[Any]]
OF = Callable[[str], Database]
SCOPE = scope_key("svc", "g", "h")
ONE = b"\x01" * 32
NOTES = ["a", "b", "c"]
FOREIGN = "żółw-日本"


@pytest.fixture
def of(postgres_url: str) -> Iterator[OF]:
    """A database of an encoding, of the test's own."""
    head, _, query = postgres_url.partition("?")
    made = []

    def make(encoding: str) -> Database:
        name = f"once_{uuid.uuid4().hex[:8]}"
        with psycopg.connect(postgres_url, autocommit=True) as admin:
            locale = "LC_COLLATE 'C' LC_CTYPE 'C'"
            admin.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' {locale}".encode())
        made.append(name)
        return Database("postgres", f"{head.rpartition('/')[0]}/{name}" + (f"?{query}" if query else ""))

    yield make
    for name in made:
        with psycopg.connect(postgres_url, autocommit=True) as admin:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


def plain(connection: sqlite3.Connection) -> None:
    pass


def as_bytes(connection: sqlite3.Connection) -> None:
    connection.text_factory = bytes


def as_dicts(connection: sqlite3.Connection) -> None:
    connection.row_factory = lambda cursor, row: {c[0]: v for c, v in zip(cursor.description, row, strict=True)}


async def run_and_repeat(service: Service, orders: Queue[Any], notes: list[str], database: Database) -> None:
    """Each order runs once, and a second delivery of it not at all."""
    async with service:
        for _ in range(2):
            await service.broker.publish_many(orders, [Order(n, note) for n, note in enumerate(notes)])
        await until(lambda: counts(service)["done"] + counts(service)["duplicates"] == 2 * len(notes), service)
        assert counts(service)["duplicates"] == len(notes)
    assert database.effects() == Counter(range(len(notes)))


async def test_ids_that_come_back_as_bytes_are_known_from_sql_ascii(queue: MakeQueue, of: OF) -> None:
    database = of("SQL_ASCII")
    orders, service = queue("orders"), Service("billing", broker=f"memory://{uuid.uuid4().hex}")

    @service.consumer(orders, idempotency=Inbox(database.make(), key="note", compare=False))
    async def handle(order: Order, ctx: Context) -> None:
        await database.effect(ctx, order.n)

    await run_and_repeat(service, orders, [*NOTES, FOREIGN], database)


async def test_an_outbox_leaves_a_database_that_says_nothing_of_its_encoding(queue: MakeQueue, of: OF) -> None:
    from atleastonce import Outbox

    database = of("SQL_ASCII")
    orders, out = queue("orders"), queue("out")
    store = database.make()
    service = Service("billing", broker=f"memory://{uuid.uuid4().hex}", outbox=Outbox(store))  # type: ignore[arg-type]
    got = []

    @service.consumer(orders, idempotency=Inbox(store))
    async def handle(order: Order, ctx: Context) -> None:
        await ctx.publish(out, order, headers={"note": order.note})

    @service.consumer(out)
    async def take(order: Order, ctx: Context) -> None:
        got.append((order.n, ctx.message.headers.get("note")))

    async with service:
        await service.broker.publish_many(orders, [Order(0, "a"), Order(1, FOREIGN)])
        await until(lambda: len(got) == 2, service)
    assert sorted(got) == [(0, "a"), (1, FOREIGN)]


@pytest.mark.parametrize("rows", [plain, as_bytes, as_dicts])
@pytest.mark.parametrize("blocking", [True, False], ids=["def", "async def"])
async def test_a_sqlite_session_may_make_of_its_rows_what_it_likes(
    queue: MakeQueue, tmp_path: Path, rows: Callable[[Any], None], blocking: bool
) -> None:
    database = Database("sqlite", str(tmp_path / "shop.db"))
    orders, service = queue("orders"), Service("billing", broker=f"memory://{uuid.uuid4().hex}")

    @contextlib.contextmanager
    def session() -> Iterator[sqlite3.Connection]:
        with contextlib.closing(sqlite3.connect(database.where, timeout=30)) as connection, connection:
            rows(connection)
            yield connection

    @contextlib.asynccontextmanager
    async def awaited() -> AsyncIterator[aiosqlite.Connection]:
        async with aiosqlite.connect(database.where, timeout=30) as connection:
            rows(connection)  # type: ignore[arg-type]
            yield connection
            await connection.commit()

    store = database.make()
    if blocking:

        @service.consumer(orders, idempotency=Inbox(store, key="note", compare=False, session=session))
        def handle(order: Order, ctx: Context) -> None:
            database.execute_sync(ctx, database.insert, (order.n,))
    else:

        @service.consumer(orders, idempotency=Inbox(store, key="note", compare=False, session=awaited))
        async def await_(order: Order, ctx: Context) -> None:
            await database.effect(ctx, order.n)

    await run_and_repeat(service, orders, [*NOTES, FOREIGN], database)


async def test_what_is_neither_taken_nor_there_is_no_duplicate(postgres_database: Database) -> None:
    """A trigger that drops what is inserted."""
    store = postgres_database.make()
    async with store:
        inbox = postgres_database.table.replace("effect", "alo") + "_inbox"
        postgres_database.query(
            f"CREATE FUNCTION {inbox}_drop() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'"
        )
        postgres_database.query(
            f"CREATE TRIGGER dropping BEFORE INSERT ON {inbox} FOR EACH ROW EXECUTE FUNCTION {inbox}_drop()"
        )
        async with store.transaction() as tx:
            with pytest.raises(StoreUnavailable, match="neither took 'a' nor has it"):
                await store.claim_in(tx, SCOPE, ["a"], [ONE])


@pytest.mark.parametrize("where", ["client", "server"])
@pytest.mark.parametrize("idempotency", [Inbox, Lease])
async def test_a_key_that_the_database_cannot_hold_costs_only_its_message(
    queue: MakeQueue, of: OF, idempotency: type[Inbox] | type[Lease], where: str
) -> None:
    """The client refuses it where it speaks the database's encoding, and the server where it does not."""
    database = of("LATIN1")
    if where == "server":
        database.where += ("&" if "?" in database.where else "?") + "client_encoding=utf8"
    orders, service = queue("orders"), Service("billing", broker=f"memory://{uuid.uuid4().hex}")
    runs = []

    @service.consumer(orders, idempotency=idempotency(database.make(), key="note"))
    async def handle(order: Order) -> None:
        runs.append(order.n)

    async with service:
        notes = ["a", "b", FOREIGN, "é", "c", FOREIGN + "2", "d"]
        await service.broker.publish_many(orders, [Order(n, note) for n, note in enumerate(notes)])
        await until(lambda: counts(service)["done"] == 5 and counts(service)["dead"] == 2, service)
        letters = await dead_letters(service, 2)
    assert sorted(runs) == [0, 1, 3, 4, 6]
    for letter in letters:
        headers = letter.message.headers
        assert headers.get(wire.ERROR_STAGE) == "key"
        assert headers.get(wire.ERROR_TYPE) == "InvalidIdempotencyKey"
        said = headers.get(wire.ERROR_MESSAGE)
        assert isinstance(said, str)
        assert r'"\u017c\xf3\u0142w-\u65e5\u672c' in said
        assert "the database's encoding cannot hold it" in said


async def test_an_outbox_holds_headers_that_its_database_has_no_characters_for(of: OF) -> None:
    store = of("LATIN1").make()
    assert isinstance(store, OutboxStore)
    outbox, relay = Outbox(store), b"r" * 16
    async with outbox:
        async with outbox.transaction() as tx:
            await outbox.publish(tx, Queue("orders"), {"note": FOREIGN}, id="m1", headers={"who": FOREIGN})
        holding = await store.outbox_hold(relay, "relay", 30.0)
        (row,) = await store.outbox_fetch(relay, holding.slots, 10, held=(), paused=())
        assert row.outgoing is not None
        assert row.outgoing.message.headers.get("who") == FOREIGN


async def test_a_lease_that_cannot_be_held_is_rejected_alone(of: OF) -> None:
    store = of("LATIN1").make()
    async with store:
        asked = [ClaimRequest(SCOPE, id) for id in ("a", FOREIGN, "b", "c")]
        claims = await store.claim(asked)
        assert [claim.status for claim in claims] == [Status.NEW, Status.REJECTED, Status.NEW, Status.NEW]
        held = [claim.lease for claim in claims if claim.lease is not None]
        never = type(held[0])(SCOPE, FOREIGN, asked[1].token)
        assert [outcome.ok for outcome in await store.extend([held[0], never, *held[1:]], 30)] == [
            True,
            False,
            True,
            True,
        ]


@pytest.mark.parametrize("idempotency", [Inbox, Lease])
async def test_a_number_and_the_text_of_its_digits_are_two_messages(
    queue: MakeQueue, tmp_path: Path, idempotency: type[Inbox] | type[Lease]
) -> None:
    database = Database("sqlite", str(tmp_path / "shop.db"))
    orders: Queue[Any] = Queue(queue("orders").name)
    service = Service("billing", broker=f"memory://{uuid.uuid4().hex}")
    runs = []

    @service.consumer(orders, idempotency=idempotency(database.make(), key="id", compare=False))
    async def handle(order: dict[str, Any]) -> None:
        runs.append(order["id"])

    async with service:
        for id in (1, "1", "01", 1, "1"):
            await service.broker.publish(orders, {"id": id})
        for id in (True, 1.0, None):
            await service.broker.publish(orders, {"id": id})
        await until(lambda: counts(service)["duplicates"] == 2 and counts(service)["dead"] == 3, service)
    assert sorted(map(repr, runs)) == ["'01'", "'1'", "1"]


async def test_a_batch_may_report_its_failures_one_at_a_time(queue: MakeQueue, tmp_path: Path) -> None:
    """As a handler does that stops at the first bad member."""
    database, size = Database("sqlite", str(tmp_path / "shop.db")), 550
    orders, service = queue("orders"), Service("billing", broker=f"memory://{uuid.uuid4().hex}")
    largest = 0

    @service.batch_consumer(
        orders,
        idempotency=Inbox(database.make()),
        max_messages=size,
        max_wait="5s",
        max_in_flight=2 * size,
        retry=["10ms"],
    )
    async def handle(batch: list[Order], contexts: list[Context]) -> list[Exception | None]:
        nonlocal largest
        largest = max(largest, len(batch))
        bad = next((place for place, ctx in enumerate(contexts) if ctx.attempt == 1), None)
        return [ValueError("bad") if place == bad else None for place in range(len(batch))]

    async with service:
        await service.broker.publish_many(orders, [Order(n) for n in range(size)])
        await until(lambda: counts(service)["done"] == size, service, within=120)
    assert largest == size
