"""What a reader that leaves gives back: to others at once, and counted once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from sqs_kit import declared, message, opened, reading, sent, take

from atleastonce.channels import Queue
from atleastonce.contract import ACK, RELEASE

MakeQueue = Callable[..., Queue[Any]]


@pytest.fixture(params=["sqs", "elasticmq"])
def place(request: pytest.FixtureRequest) -> str:
    """The URL of each emulator in turn."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.mark.parametrize("fifo", [False, True], ids=["standard", "fifo"])
async def test_what_is_given_back_is_not_brought_by_a_poll_of_ones_own(
    place: str, queue: MakeQueue, fifo: bool
) -> None:
    """A poll of up to 20 s would take it, and it would be counted once more."""
    work = queue(fifo=fifo)
    async with opened(place, wait=20, lease=600) as adapter, declared(adapter, work):
        async with reading(adapter, work) as leaving:
            await sent(adapter, work, *[message(key=b"%d" % n) for n in range(25)])
            held = await take(leaving, 25)
            assert await leaving.receive(10, 1.5) == ()  # polls, and there is nothing
            await leaving.leave()
            begun = time.monotonic()
            assert all(outcome.ok for outcome in await leaving.settle([(each, RELEASE) for each in held]))
        async with reading(adapter, work) as peer:
            came = await take(peer, 25)
            assert time.monotonic() - begun < 2.0
            assert [delivery.count for delivery in came] == [2] * 25
            await peer.settle([(delivery, ACK) for delivery in came])


async def test_who_leaves_keeps_nothing_that_was_fetched(place: str, queue: MakeQueue) -> None:
    """A drain may last for minutes, and nobody renews a lease here."""
    work = queue()
    async with opened(place, lease=600) as adapter, declared(adapter, work):
        await sent(adapter, work, *[message() for _ in range(30)])
        async with reading(adapter, work) as draining:
            (held,) = await take(draining, 1, most=1)
            await draining.leave()
            begun = time.monotonic()
            async with reading(adapter, work) as peer:
                came = await take(peer, 29)
                assert time.monotonic() - begun < 2.0
                assert max(delivery.count for delivery in came) <= 2
                await peer.settle([(delivery, ACK) for delivery in came])
            assert (await draining.settle([(held, ACK)]))[0].ok


async def test_what_the_poll_of_an_idle_reader_brings_later_is_given_back(place: str, queue: MakeQueue) -> None:
    """It goes on during the drain, and is waited for by nobody."""
    work = queue()
    async with (
        opened(place, wait=20, lease=600) as adapter,
        declared(adapter, work),
        reading(adapter, work) as draining,
    ):
        assert await draining.receive(10, 1.1) == ()
        begun = time.monotonic()
        await draining.leave()
        assert time.monotonic() - begun < 1.0
        await sent(adapter, work, late := message())
        async with reading(adapter, work) as peer:
            (came,) = await take(peer, 1)
            assert came.message.id == late.id
            assert came.count <= 2
            await peer.settle([(came, ACK)])


async def test_polls_that_end_soon_give_back_together(place: str, queue: MakeQueue) -> None:
    """One that gave back while another waits would hand it the same."""
    work = queue()
    async with opened(place, wait=20, lease=600) as adapter, declared(adapter, work), reading(adapter, work) as reader:
        await sent(adapter, work, *[message() for _ in range(60)])
        held = await take(reader, 60)
        assert await reader.receive(10, 0.05) == ()  # several polls wait now
        leaving = asyncio.create_task(reader.leave())
        await asyncio.sleep(0)
        for _ in range(5):
            await sent(adapter, work, message())
        await leaving
        async with reading(adapter, work) as peer:
            came = await take(peer, 5)
            assert max(delivery.count for delivery in came) <= 2
            await peer.settle([(delivery, ACK) for delivery in came])
        await reader.settle([(delivery, ACK) for delivery in held])
