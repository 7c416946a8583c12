"""What the Pub/Sub tests share: a listener, an open adapter with its raw calls, and messages."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any

from atleastonce.adapters import open_adapter
from atleastonce.adapters.pubsub import PubSubAdapter
from atleastonce.adapters.pubsub.channel import Link
from atleastonce.adapters.pubsub.config import Config
from atleastonce.channels import Channel, Queue, Source, Topic
from atleastonce.contract import Delivery, Outgoing, Subscription, Topology, Window
from atleastonce.message import Headers, HeaderValue, Message, new_id
from atleastonce.urls import BrokerUrl

PATIENCE = 15.0
"""Seconds after which something that should happen at once has failed."""


class Listening:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.conditions: list[str] = []

    async def drain(self, streams: Collection[str], grace: float) -> None:
        raise AssertionError("Pub/Sub takes no streams away")

    def lost(self, streams: Collection[str] | None) -> None:
        raise AssertionError("Pub/Sub's leases survive a connection")

    def condition(self, state: str, detail: str) -> None:
        self.conditions.append(state)


@asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncIterator[PubSubAdapter]:
    """A connected adapter, closed at the end."""
    adapter = open_adapter(url, options)
    assert isinstance(adapter, PubSubAdapter)
    await adapter.open()
    try:
        yield adapter
    finally:
        await asyncio.wait_for(adapter.close(), PATIENCE)


@asynccontextmanager
async def raw(url: str) -> AsyncIterator[tuple[Link, Config]]:
    """A connection for calls of one's own."""
    config = Config.build(BrokerUrl.parse(url), {})
    link = Link(config)
    await link.open()
    try:
        yield link, config
    finally:
        await link.close()


def topology(*sources: Source | Channel[Any]) -> Topology:
    """Of these."""
    found = [Source(each) if isinstance(each, Queue) else each for each in sources]
    return Topology(
        channels=tuple(each for each in found if isinstance(each, Topic)),
        sources=tuple(each for each in found if isinstance(each, Source)),
    )


def message(
    body: bytes = b"{}", *, key: bytes | None = None, headers: Sequence[tuple[str, HeaderValue]] = (), id: str = ""
) -> Message:
    """With an id of its own."""
    name = id or new_id()
    return Message(name, body, key, Headers([("alo-id", name), *headers]))


async def send(adapter: PubSubAdapter, channel: Channel[Any], *messages: Message) -> list[Any]:
    """One `Adapter.send`."""
    return list(await asyncio.wait_for(adapter.send([Outgoing(channel, each) for each in messages]), PATIENCE * 3))


async def publish(adapter: PubSubAdapter, channel: Channel[Any], *messages: Message) -> None:
    """`send`, and all are confirmed."""
    outcomes = await send(adapter, channel, *messages)
    assert all(outcome.ok for outcome in outcomes), outcomes


async def reading(adapter: PubSubAdapter, what: Queue[Any] | Source, listener: Listening | None = None) -> Subscription:
    """Subscribed."""
    source = Source(what) if isinstance(what, Queue) else what
    return await adapter.subscribe(source, Window(1000, 1 << 26), listener or Listening())


async def take(subscription: Subscription, count: int, *, most: int = 1000, wait: float = 1.0) -> list[Delivery]:
    """Exactly ``count``, unsettled; ``wait`` seconds for each receive."""
    found: list[Delivery] = []
    end = time.monotonic() + PATIENCE
    while len(found) < count:
        assert time.monotonic() < end, f"{len(found)} of {count} came"
        found += await subscription.receive(min(most, count - len(found)), wait)
    return found


async def until(condition: Callable[[], bool]) -> None:
    """Wait for ``condition``."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        await asyncio.sleep(0.02)
