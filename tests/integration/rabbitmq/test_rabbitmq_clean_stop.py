"""A service that stops in good order, in the middle of its work: what it has handled is not delivered again."""

from __future__ import annotations

import asyncio
import uuid

import pytest
from rabbitmq_kit import all_of, opened, outgoing, prepared, reading, take

from atleastonce import Context, Queue, Service, connect
from atleastonce.channels import Source
from atleastonce.contract import ACK, RELEASE

MESSAGES = 6000


@pytest.mark.parametrize("stops_after", [1, 37, 700, 2500])
async def test_nothing_handled_is_delivered_to_the_next_service(rabbitmq_url: str, stops_after: int) -> None:
    orders = Queue[int](f"t.stop.{uuid.uuid4().hex[:8]}", int)
    runs: list[list[int]] = []

    async def serve(until: int) -> None:
        """Until so many messages are handled, in all; then a clean stop."""
        handled: list[int] = []
        runs.append(handled)
        enough = asyncio.Event()
        service = Service("billing", broker=rabbitmq_url)

        @service.consumer(orders)
        async def handle(order: int, ctx: Context) -> None:
            handled.append(order)
            if sum(map(len, runs)) >= until:
                enough.set()

        async with service:
            async with asyncio.timeout(60):
                await enough.wait()

    async with connect(rabbitmq_url) as broker:
        await broker.declare(orders)
        outcomes = await broker.publish_many(orders, list(range(MESSAGES)))
        assert all(outcome.ok for outcome in outcomes)
    for turn in range(1, 5):
        if sum(map(len, runs)) < MESSAGES:
            await serve(min(MESSAGES, turn * stops_after))
    if len(set().union(*runs)) < MESSAGES:
        await serve(MESSAGES)
    every = [order for handled in runs for order in handled]
    assert sorted(every) == list(range(MESSAGES))  # none lost, none twice


async def test_what_ends_while_the_service_stops_is_not_delivered_again(rabbitmq_url: str) -> None:
    """Single acknowledgements, hundreds at once, and nothing after them but the end of the channel."""
    orders = Queue[int](f"t.stop.{uuid.uuid4().hex[:8]}", int)
    handled: list[int] = []
    running = asyncio.Event()
    gate = asyncio.Event()
    service = Service("billing", broker=rabbitmq_url)

    @service.consumer(orders, concurrency=1000)
    async def handle(order: int) -> None:
        if order % 2:  # so that no acknowledgement can be for several
            if order == 999:
                running.set()
            await gate.wait()
            handled.append(order)
        else:
            await asyncio.Event().wait()  # cut off by the stop, and given back

    async with connect(rabbitmq_url) as broker:
        await broker.declare(orders)
        outcomes = await broker.publish_many(orders, list(range(1000)))
        assert all(outcome.ok for outcome in outcomes)
        await service.start()
        async with asyncio.timeout(30):
            await running.wait()
        asyncio.get_running_loop().call_later(0.05, gate.set)
        await service.stop(grace=1.0)
        assert sorted(handled) == list(range(1, 1000, 2))
        again: set[int] = set()
        came = asyncio.Event()
        second = Service("billing", broker=rabbitmq_url)

        @second.consumer(orders)
        async def take(order: int) -> None:
            again.add(order)
            if len(again) >= 500:
                came.set()

        async with second, asyncio.timeout(30):
            await came.wait()
        assert again == set(range(0, 1000, 2))
        assert (await broker.backlog(orders)).waiting == 0


async def test_what_was_acknowledged_behind_many_give_backs_does_not_come_again(rabbitmq_url: str) -> None:
    """A quorum queue takes 32 commands of a channel at a time. What is beyond them is kept by the channel, and gone with it."""
    leaving, given_back, handled = 12, 60, 20
    async with opened(rabbitmq_url) as adapter, opened(rabbitmq_url) as sender:
        sources = [Source(Queue(f"t.stop.{uuid.uuid4().hex[:8]}")) for _ in range(leaving)]
        await prepared(adapter, *sources)
        sent = [item for source in sources for item in outgoing(source, given_back + handled)]
        assert all(outcome.ok for outcome in await sender.send(sent))

        async def stop(source: Source) -> set[str]:
            """As a stop does it: nothing more is asked for, what has not begun is given back, what ran is acknowledged."""
            subscription = await reading(adapter, source, given_back + handled)
            got = await take(subscription, given_back + handled)
            await subscription.leave()
            ran = got[1 : 2 * handled : 2]  # so that no acknowledgement can be for several
            rest = [each for each in got if each not in ran]
            batch = [(each, RELEASE) for each in rest] + [(each, ACK) for each in ran]
            assert all(outcome.ok for outcome in await subscription.settle(batch))
            await subscription.close()
            return {each.message.id for each in ran}

        for source in sources:
            done = await stop(source)
            again = {each.message.id for each in await all_of(sender, source)}
            assert len(again | done) == given_back + handled
            assert not again & done, f"{len(again & done)} were acknowledged and came again"
