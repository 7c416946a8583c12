"""What the Redis tests share: a listener, short forms, and a proxy that keeps the server's answers to itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

from atleastonce.adapters import open_adapter
from atleastonce.adapters.redis_streams import RedisAdapter
from atleastonce.channels import Channel, Source
from atleastonce.contract import Delivery, Outcome, Outgoing, Subscription, Topology, Window
from atleastonce.message import Headers, HeaderValue, Message, new_id
from atleastonce.wire import ID

PATIENCE = 15.0
"""Seconds after which something that should happen at once has failed."""


class Listening:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.conditions: list[tuple[str, str]] = []

    async def drain(self, streams: Collection[str], grace: float) -> None:
        raise AssertionError("Redis takes no streams away")

    def lost(self, streams: Collection[str] | None) -> None:
        raise AssertionError("leases on Redis do not hang on a connection")

    def condition(self, state: str, detail: str) -> None:
        self.conditions.append((state, detail))


@asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncIterator[RedisAdapter]:
    """A connected adapter, closed at the end."""
    adapter = open_adapter(url, options)
    assert isinstance(adapter, RedisAdapter)
    await asyncio.wait_for(adapter.open(), PATIENCE)
    try:
        yield adapter
    finally:
        await asyncio.wait_for(adapter.close(), PATIENCE)


@asynccontextmanager
async def reading(adapter: RedisAdapter, source: Source, window: int = 100) -> AsyncIterator[Subscription]:
    """A subscription, closed at the end."""
    subscription = await adapter.subscribe(source, Window(window, 1 << 26), Listening())
    try:
        yield subscription
    finally:
        await asyncio.wait_for(subscription.close(), PATIENCE)


async def declared(adapter: RedisAdapter, *sources: Source) -> None:
    """The sources exist."""
    await adapter.declare(Topology(channels=tuple(s.channel for s in sources), sources=sources))


def message(body: bytes = b"{}", *, headers: Sequence[tuple[str, HeaderValue]] = (), id: str | None = None) -> Message:
    identity = id or new_id()
    return Message(identity, body, None, Headers([(ID, identity), *headers]))


async def sent(adapter: RedisAdapter, to: Channel[Any], *messages: Message, delay: float = 0.0) -> Sequence[Outcome]:
    """What became of each."""
    return await asyncio.wait_for(adapter.send([Outgoing(to, each, delay) for each in messages]), PATIENCE)


async def take(subscription: Subscription, count: int, within: float = PATIENCE) -> list[Delivery]:
    """The next ``count`` deliveries, unsettled."""
    deadline = time.monotonic() + within
    found: list[Delivery] = []
    while len(found) < count:
        left = deadline - time.monotonic()
        assert left > 0, f"{len(found)} of {count} came"
        found += await subscription.receive(count - len(found), min(left, 1.0))
    return found


async def eventually(condition: Callable[[], Awaitable[Any]], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not await condition():
        assert time.monotonic() < deadline, f"did not happen: {what}"
        await asyncio.sleep(0.02)


class Proxy:
    """Between a client and the server. While ``deaf``, what the server answers is swallowed."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 6379
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.deaf = False
        self.url = ""

    @classmethod
    @asynccontextmanager
    async def before(cls, url: str) -> AsyncIterator[Proxy]:
        """A proxy before the server at ``url``."""
        self = cls(url)
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            self.cut()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """End all connections as they are now."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        theirs, to_them = await asyncio.open_connection(self._host, self._port)
        self._writers += [writer, to_them]
        for task in (
            asyncio.create_task(self._pump(reader, to_them, False)),
            asyncio.create_task(self._pump(theirs, writer, True)),
        ):
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, answers: bool) -> None:
        try:
            while data := await source.read(65536):
                if not (answers and self.deaf):
                    target.write(data)
                    await target.drain()
        except OSError:
            pass
        finally:
            target.transport.abort()
