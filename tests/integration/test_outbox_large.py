"""Messages in an outbox that are larger than what a database takes or gives at once."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from once_kit import Database, Order, counts, dead_letters, until

from atleastonce import Context, Inbox, MessageTooLarge, Outbox, Queue, Service, SQLiteStore, wire
from atleastonce.stores.outbox import SLOTS, OutboxStore

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


async def test_a_look_at_large_rows_of_sqlite_brings_some_and_the_next_one_the_others(tmp_path: Path) -> None:
    """As one text they would have been longer than a text of SQLite can be."""
    outbox, out = Outbox(store := SQLiteStore(tmp_path / "shop.db")), Queue("out")
    relay, found = b"r" * 16, []
    async with store:
        for n in range(4):
            async with outbox.transaction() as tx:
                await outbox.publish(tx, out, b"%d" % n + b"x" * (20 * MIB), key=str(n))
        await store.outbox_hold(relay, "relay", 60)
        while rows := await store.outbox_fetch(relay, range(SLOTS), 100, held=[], paused=[]):
            found.append([row.outgoing.message.body[:1] for row in rows if row.outgoing is not None])
            await store.outbox_remove(rows)
    assert found == [[b"0", b"1"], [b"2", b"3"]]
