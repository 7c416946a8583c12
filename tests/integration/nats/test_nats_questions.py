"""Requests being read over core NATS: what waits while nothing is to start, and what is off the account when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

from nats_kit import PATIENCE, Listening, eventually, opened, raw

from atleastonce import Queue
from atleastonce.adapters.nats.questions import CoreSubscription
from atleastonce.channels import Source
from atleastonce.contract import ACK, RELEASE, Window

MakeQueue = Callable[..., Queue[object]]


@asynccontextmanager
async def asked(url: str, queue: Queue[object], *bodies: bytes) -> AsyncIterator[CoreSubscription]:
    """Somebody who reads requests, and has got these."""
    async with opened(url) as adapter, raw(url) as client:
        source = Source(replace(queue, requests=True))
        questions = await adapter.subscribe(source, Window(100, 1 << 20), Listening())
        assert isinstance(questions, CoreSubscription)
        try:
            for body in bodies:
                await client.publish(queue.name, body, reply="_INBOX.test.1")
            await eventually(lambda: len(questions._buffer) == len(bodies), "all came")
            yield questions
        finally:
            await questions.close()


async def test_what_waits_while_it_is_paused_is_waited_for_until_it_goes_on(nats_url: str, queue: MakeQueue) -> None:
    """Answering at once, with nothing, would have the reader ask again and again."""
    async with asked(nats_url, queue(), b"1", b"2") as questions:
        await questions.pause()
        received = asyncio.create_task(questions.receive(10, PATIENCE))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not received.done()
        await questions.resume()
        assert [each.body for each in await received] == [b"1", b"2"]


async def test_what_is_settled_twice_is_off_the_account_once(nats_url: str, queue: MakeQueue) -> None:
    async with asked(nats_url, queue(), b"1", b"22", b"333") as questions:
        first, *rest = await questions.receive(10, PATIENCE)
        assert questions._bytes == 6
        await questions.settle([(first, ACK), (first, ACK)])
        assert questions._bytes == 5
        await questions.settle([(first, ACK), (rest[0], RELEASE)])
        assert questions._bytes == 3
        await questions.settle([(each, ACK) for each in (first, *rest)])
        assert questions._bytes == 0
