"""Dead-letter queues that others made: looking at them must not use up their delivery limit."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from typing import Any

import pytest

from atleastonce import Broker, Queue, Selection, connect
from atleastonce.adapters.rabbitmq.adapter import RabbitMQAdapter
from atleastonce.adapters.rabbitmq.topology import is_unlimited
from atleastonce.contract import Outgoing, Topology
from atleastonce.message import Headers, Message

LIMIT = 20  # the default since RabbitMQ 4.0


def entries(queue: Queue[Any], count: int) -> list[Outgoing]:
    return [Outgoing(queue, Message(f"m{n}", b"{}", b"k", Headers({"alo-id": f"m{n}"}))) for n in range(count)]


async def back(broker: Broker, queue: Queue[Any], count: int) -> None:
    """The broker has taken notice that we gave all back."""
    end = time.monotonic() + 10
    while (found := (await broker.backlog(queue)).waiting) != count:
        assert time.monotonic() < end, found
        await asyncio.sleep(0.01)


async def broken_off(adapter: RabbitMQAdapter, queue: Queue[Any], after: int) -> None:
    """A look that ends once it has seen so many."""
    seen = 0
    async with contextlib.aclosing(adapter.scan(queue)) as lists:
        async for batch in lists:
            seen += len(batch)
            if seen >= after:
                return


async def filled(broker: Broker, queue: Queue[Any], count: int) -> None:
    await broker.declare(Topology(channels=(queue,)))
    assert all(outcome.ok for outcome in await broker.adapter.send(entries(queue, count)))


@pytest.mark.parametrize("limit", [LIMIT, 12])
async def test_a_queue_with_a_delivery_limit_outlives_thirty_looks(rabbitmq_url: str, limit: int) -> None:
    queue = Queue[Any](f"theirs.{uuid.uuid4().hex[:8]}", options={"rabbitmq": {"x-delivery-limit": limit}})
    async with connect(rabbitmq_url) as broker:
        adapter = broker.adapter
        assert isinstance(adapter, RabbitMQAdapter)
        await filled(broker, queue, 300)
        highest = 0
        for _ in range(30):
            found = [delivery async for batch in adapter.scan(queue) for delivery in batch]
            assert sorted(each.message.id for each in found) == sorted(f"m{n}" for n in range(300))
            assert {(each.body, each.message.key) for each in found} == {(b"{}", b"k")}
            highest = max(highest, *(each.count for each in found))
            await back(broker, queue, 300)
        assert 8 <= highest <= 12, "each look counts on this broker, and none came near the limit"
        await adapter.delete(Topology(channels=(queue,)))


async def test_a_limit_outlives_redrives_that_want_others(rabbitmq_url: str) -> None:
    home = Queue[Any](f"home.{uuid.uuid4().hex[:8]}")
    queue = Queue[Any](f"theirs.{uuid.uuid4().hex[:8]}", options={"rabbitmq": {"x-delivery-limit": 12}})
    async with connect(rabbitmq_url) as broker:
        await broker.declare(home)
        await filled(broker, queue, 50)
        dead = broker.dead_letters(home, queue=Queue(queue.name))
        for _ in range(25):
            account = await dead.redrive(Selection(id=["nobody"]))
            assert (account.matched, account.skipped) == (0, 50)
            await back(broker, queue, 50)
        assert {letter.id async for letter in dead.letters()} == {f"m{n}" for n in range(50)}
        await broker.adapter.delete(Topology(channels=(queue, home)))  # type: ignore[attr-defined]


async def test_a_queue_with_one_active_consumer_is_shown_to_its_end(rabbitmq_url: str) -> None:
    """A look has two readers, of which the broker hands out to one at a time."""
    queue = Queue[Any](f"alone.{uuid.uuid4().hex[:8]}.dlq", options={"rabbitmq": {"x-single-active-consumer": True}})
    async with connect(rabbitmq_url) as broker:
        adapter = broker.adapter
        assert isinstance(adapter, RabbitMQAdapter)
        await broker.declare(Topology(dead_letters=(queue,)))
        assert all(outcome.ok for outcome in await adapter.send(entries(queue, 7000)))
        found = [delivery.message.id async for batch in adapter.scan(queue) for delivery in batch]
        assert sorted(found) == sorted(f"m{n}" for n in range(7000))
        await adapter.delete(Topology(dead_letters=(queue,)))


async def test_what_was_out_is_back_when_a_look_that_is_broken_off_has_ended(rabbitmq_url: str) -> None:
    queue = Queue[Any](f"broken.{uuid.uuid4().hex[:8]}.dlq")
    async with connect(rabbitmq_url) as broker:
        adapter = broker.adapter
        assert isinstance(adapter, RabbitMQAdapter)
        await broker.declare(Topology(dead_letters=(queue,)))
        assert all(outcome.ok for outcome in await adapter.send(entries(queue, 9000)))
        for stop_after in (1, 15, 21, 2100, 4500) * 5:  # the broker takes back at once what it can, as often as not
            await broken_off(adapter, queue, stop_after)
            assert (await broker.backlog(queue)).waiting == 9000
        await adapter.delete(Topology(dead_letters=(queue,)))


async def test_what_was_put_back_as_a_copy_is_there_once_when_a_look_is_broken_off(rabbitmq_url: str) -> None:
    queue = Queue[Any](f"worn.{uuid.uuid4().hex[:8]}", options={"rabbitmq": {"x-delivery-limit": LIMIT}})
    async with connect(rabbitmq_url) as broker:
        adapter = broker.adapter
        assert isinstance(adapter, RabbitMQAdapter)
        await filled(broker, queue, 300)
        for _ in range(10):  # from the next look on they are worn
            async with contextlib.aclosing(adapter.scan(queue)) as lists:
                assert sum([len(batch) async for batch in lists]) == 300
            await back(broker, queue, 300)
        for stop_after in (1, 15, 30, 290):
            await broken_off(adapter, queue, stop_after)
            await asyncio.sleep(0.2)
            assert (await broker.backlog(queue)).waiting == 300
        found = [delivery.message.id async for batch in adapter.scan(queue) for delivery in batch]
        assert sorted(found) == sorted(f"m{n}" for n in range(300))
        await adapter.delete(Topology(channels=(queue,)))


async def test_our_own_have_no_limit(rabbitmq_url: str) -> None:
    ours, theirs = Queue[Any](f"a.{uuid.uuid4().hex[:8]}.dlq"), Queue[Any](f"b.{uuid.uuid4().hex[:8]}")
    async with connect(rabbitmq_url) as broker:
        await broker.declare(Topology(dead_letters=(ours,)), theirs)
        adapter = broker.adapter
        assert isinstance(adapter, RabbitMQAdapter)
        connection = await adapter._control.get()
        assert await is_unlimited(connection, ours.name)
        assert not await is_unlimited(connection, theirs.name)
        await adapter.delete(Topology(channels=(theirs,), dead_letters=(ours,)))
