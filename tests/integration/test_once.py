"""Idempotent consumers, on every backend and over every store: effects are counted in the store's own database."""

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

from once_kit import Database, Order, counts, dead_letters, settled, until

from atleastonce import Context, Inbox, Queue, Service, wire

MakeQueue = Callable[[str], Queue[Any]]


FORMS = ["async", "sync", "batch", "sync batch"]


def consume(service: Service, channel: Queue[Any], database: Database, form: str, **options: Any) -> None:
    """A handler of one of four forms, whose effect is a row."""
    inbox = Inbox(database.make(), **options)
    if form == "async":

        @service.consumer(channel, idempotency=inbox)
        async def one(order: Order, ctx: Context) -> None:
            await database.effect(ctx, order.n)

    elif form == "sync":

        @service.consumer(channel, idempotency=inbox)
        def one_sync(order: Order, ctx: Context) -> None:
            ctx.tx.execute(database.insert, (order.n,))

    elif form == "batch":

        @service.batch_consumer(channel, idempotency=inbox, max_messages=20, max_wait="50ms")
        async def many(orders: list[Order], contexts: list[Context]) -> None:
            for order, ctx in zip(orders, contexts, strict=True):
                await database.effect(ctx, order.n)

    else:

        @service.batch_consumer(channel, idempotency=inbox, max_messages=20, max_wait="50ms")
        def many_sync(orders: list[Order], contexts: list[Context]) -> None:
            for order, ctx in zip(orders, contexts, strict=True):
                ctx.tx.execute(database.insert, (order.n,))


@pytest.mark.parametrize("form", FORMS)
async def test_duplicates_have_no_second_effect(
    backend_url: str, queue: MakeQueue, database: Database, form: str
) -> None:
    orders = queue("orders")
    service = Service("billing", broker=backend_url)
    consume(service, orders, database, form)
    async with service:
        for _ in range(3):
            batch = [service.broker.publish(orders, Order(n), id=f"order-{n}") for n in range(30)]
            await asyncio.gather(*batch)
        # A broker that drops what comes twice under one id hands out fewer.
        await until(lambda: counts(service)["done"] == 30 and settled(service), service)
        await until(lambda: counts(service)["duplicates"] == counts(service)["received"] - 30, service)
        assert not counts(service)["dead"]
    assert database.effects() == Counter(range(30))


async def test_a_restarted_service_remembers(queue: MakeQueue, tmp_path: Path, database: Database) -> None:
    orders = queue("orders")
    for run in range(2):
        service = Service("billing", broker=f"sqlite:///{tmp_path}/broker.db")
        consume(service, orders, database, "async")
        async with service:
            for n in range(10 * run + 10):
                await service.broker.publish(orders, Order(n), id=f"order-{n}")
            await until(lambda: counts(service)["received"] == 10 * run + 10 and settled(service), service)  # noqa: B023
            assert counts(service)["duplicates"] == 10 * run
    assert database.effects() == Counter(range(20))


async def test_same_id_with_another_body_is_parked_and_never_run(queue: MakeQueue, database: Database) -> None:
    orders = queue("orders")
    service = Service("billing", broker=f"memory://{uuid.uuid4().hex}")
    consume(service, orders, database, "batch")
    async with service:
        await service.broker.publish(orders, Order(1), id="same")
        await until(lambda: counts(service)["done"] == 1, service)
        await service.broker.publish(orders, Order(2), id="same")
        await service.broker.publish(orders, Order(3), id="other")
        await until(lambda: counts(service)["done"] == 2 and counts(service)["dead"] == 1, service)
        (letter,) = await dead_letters(service, 1)
        assert letter.message.headers.get(wire.ERROR_STAGE) == "mismatch"
        assert letter.message.body == b'{"n":2,"note":""}'
    assert database.effects() == Counter([1, 3])
