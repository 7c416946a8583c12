"""Messages in an outbox that are larger than what a database takes or gives at once."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from once_kit import Database, Order, counts, dead_letters, until

from atleastonce import Context, Inbox, MessageTooLarge, Outbox, Queue, Service, SQLiteStore, wire
from atleastonce.stores.outbox import FETCHED_BYTES, SLOTS, OutboxStore

MakeQueue = Callable[[str], Queue[Any]]
MIB = 1 << 20


async def test_mysql_refuses_what_is_no_packet_and_the_transaction_goes_on(mysql_database: Database) -> None:
    """A byte is two digits: of 16 MiB almost 8."""
    store, out = mysql_database.make(), Queue("out")
    assert isinstance(store, OutboxStore)
    outbox = Outbox(store)
    ((_, allowed),) = mysql_database.query("SHOW VARIABLES LIKE 'max_allowed_packet'")
    most = int(allowed) // 2
    async with store:
        async with outbox.transaction() as tx:
            with pytest.raises(MessageTooLarge, match="raise max_allowed_packet"):
                await outbox.publish_many(tx, out, [b"small", b"x" * most, b"small"])
            await outbox.publish_many(tx, out, [b"1", b"x" * (most - 4096), b"2", b"3"])
        assert (await store.outbox_stats()).waiting == 4


async def test_one_message_too_large_for_mysql_is_its_handlers_failure(
    queue: MakeQueue, mysql_database: Database
) -> None:
    orders, out, service = queue("orders"), queue("out"), Service("billing", broker=f"memory://{uuid.uuid4().hex}")
    paused = set[str]()

    @service.consumer(orders, idempotency=Inbox(mysql_database.make()), retry=["50ms"])
    async def handle(order: Order, ctx: Context) -> None:
        paused.update(status.detail for status in service.status() if status.state == "paused")
        await mysql_database.effect(ctx, order.n)
        if order.n == 0:
            await ctx.publish(out, b"x" * (9 * MIB))

    async with service:
        await service.broker.publish_many(orders, [Order(n) for n in range(6)])
        await until(lambda: counts(service)["done"] == 5 and counts(service)["dead"] == 1, service)
        (letter,) = await dead_letters(service, 1)
    assert letter.message.headers.get(wire.ERROR_TYPE) == "MessageTooLarge"
    assert sorted(mysql_database.effects()) == [1, 2, 3, 4, 5]
    assert paused == set()


async def test_a_look_at_large_rows_brings_some_and_the_next_one_the_others(inbox_database: Database) -> None:
    """All at once they would lie in memory together; on SQLite they would have been longer than a text can be."""
    store, out, relay, found = inbox_database.make(), Queue("out"), b"r" * 16, []
    assert isinstance(store, OutboxStore)
    outbox = Outbox(store)
    size = FETCHED_BYTES // 6
    async with store:
        for n in range(9):
            async with outbox.transaction() as tx:
                await outbox.publish(tx, out, b"%d" % n + b"x" * size, key=str(n))
        await store.outbox_hold(relay, "relay", 60)
        while rows := await store.outbox_fetch(relay, range(SLOTS), 100, held=[], paused=[]):
            found.append([row.outgoing.message.body[:1] for row in rows if row.outgoing is not None])
            await store.outbox_remove(rows)
    assert found == [[b"%d" % n for n in range(6)], [b"6", b"7", b"8"]]


async def test_a_look_that_is_given_up_at_any_time_leaves_the_store_as_it_was(inbox_database: Database) -> None:
    """Its answer has many pieces, and may be half read then."""
    store, out, relay = inbox_database.make(), Queue("out"), b"r" * 16
    assert isinstance(store, OutboxStore)
    outbox = Outbox(store)
    async with store:
        async with outbox.transaction() as tx:
            await outbox.publish_many(tx, out, [b"x" * 2000] * 3000)
        await store.outbox_hold(relay, "relay", 60)

        async def look() -> int:
            return len(await store.outbox_fetch(relay, range(SLOTS), 5000, held=[], paused=[]))

        for turn in range(24):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.002 * turn):
                    assert await look() == 3000
            assert (await store.outbox_stats()).waiting == 3000
        assert await look() == 3000


@pytest.mark.parametrize("encoding", ["UTF-8", "UTF-16le", "UTF-16be"])
async def test_any_bytes_come_out_of_sqlite_whatever_its_encoding_of_text_is(tmp_path: Path, encoding: str) -> None:
    """They are read as text that is joined, which is converted where text is not UTF-8."""
    with contextlib.closing(sqlite3.connect(tmp_path / "shop.db")) as file:
        file.execute(f"PRAGMA encoding = '{encoding}'")
        file.execute("CREATE TABLE first (n)")
    outbox, out, relay = Outbox(store := SQLiteStore(tmp_path / "shop.db")), Queue("out"), b"r" * 16
    bodies = [b"", b"\0", b"a\0b", bytes(range(256)), "späť".encode(), b"ab" * 500, b"\xff\xfe\xd8", b"\xd8\x00"]
    async with store:
        async with outbox.transaction() as tx:
            for n, body in enumerate(bodies):
                await outbox.publish(tx, out, body, key=body[:9] or None, id=f"m{n}", headers={"name": "späť"})
        await store.outbox_hold(relay, "relay", 60)
        rows = await store.outbox_fetch(relay, range(SLOTS), 100, held=[], paused=[])
    messages = [row.outgoing.message for row in rows if row.outgoing is not None]
    assert [message.body for message in messages] == bodies
    assert [message.key for message in messages] == [body[:9] or None for body in bodies]
    assert [(message.id, message.headers.get("name")) for message in messages] == [
        (f"m{n}", "späť") for n in range(len(bodies))
    ]
