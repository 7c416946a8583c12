"""What the RabbitMQ tests share: a listener, a raw client, and a proxy that cuts, holds and speaks for the broker."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import pika

from atleastonce.adapters import open_adapter
from atleastonce.adapters.rabbitmq import RabbitMQAdapter
from atleastonce.channels import Channel, Source
from atleastonce.contract import ACK, Delivery, Outgoing, Subscription, Topology, Window
from atleastonce.message import Headers, HeaderValue, Message, new_id

PATIENCE = 15.0
"""Seconds after which something that should happen at once has failed."""


class Listening:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.conditions: list[tuple[str, str]] = []
        self.losses: list[Collection[str] | None] = []

    async def drain(self, streams: Collection[str], grace: float) -> None:
        raise AssertionError("RabbitMQ takes no streams away")

    def lost(self, streams: Collection[str] | None) -> None:
        self.losses.append(streams)

    def condition(self, state: str, detail: str) -> None:
        self.conditions.append((state, detail))


@asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncIterator[RabbitMQAdapter]:
    """A connected adapter, closed at the end."""
    adapter = open_adapter(url, options)
    assert isinstance(adapter, RabbitMQAdapter)
    await adapter.open()
    try:
        yield adapter
    finally:
        await asyncio.wait_for(adapter.close(), PATIENCE)


def message(
    body: bytes = b"{}",
    *,
    key: bytes | None = None,
    headers: Sequence[tuple[str, HeaderValue]] = (),
    id: str | None = None,
    native: object = None,
) -> Message:
    id = id or new_id()
    return Message(id, body, key, Headers([*headers, ("alo-id", id)]), native=native)


def outgoing(destination: Channel[Any] | Source, count: int = 1, **fields: Any) -> list[Outgoing]:
    return [Outgoing(destination, message(**fields)) for _ in range(count)]


async def prepared(adapter: RabbitMQAdapter, *items: Channel[Any] | Source, **more: Any) -> None:
    """Declare queues (as their own source), topics and sources; nothing may drift."""
    channels = tuple(item for item in items if not isinstance(item, Source))
    sources = tuple(item for item in items if isinstance(item, Source))
    assert list(await adapter.declare(Topology(channels=channels, sources=sources, **more))) == []


async def reading(
    adapter: RabbitMQAdapter, source: Source, messages: int = 100, size: int = 2**26, listener: Listening | None = None
) -> Subscription:
    return await adapter.subscribe(source, Window(messages, size), listener or Listening())


async def take(subscription: Subscription, count: int, *, ack: bool = False) -> list[Delivery]:
    """``count`` deliveries, in the order in which they came."""
    got: list[Delivery] = []
    async with asyncio.timeout(PATIENCE):
        while len(got) < count:
            got += await subscription.receive(count - len(got), 5.0)
    if ack:
        assert all(outcome.ok for outcome in await subscription.settle([(delivery, ACK) for delivery in got]))
    return got


async def all_of(adapter: RabbitMQAdapter, source: Source) -> list[Delivery]:
    """Everything that waits, acknowledged. A probe that is sent last tells the end."""
    subscription = await reading(adapter, source, 1000)
    last = outgoing(source)
    assert (await adapter.send(last))[0].ok
    got: list[Delivery] = []
    while not any(delivery.message.id == last[0].message.id for delivery in got):
        async with asyncio.timeout(PATIENCE):
            some = await subscription.receive(1000, PATIENCE)
        await subscription.settle([(delivery, ACK) for delivery in some])
        got += some
    await subscription.close()
    return [delivery for delivery in got if delivery.message.id != last[0].message.id]


async def eventually(condition: Callable[[], Any], what: str) -> None:
    """Wait for ``condition``, which may be a coroutine function."""
    try:
        async with asyncio.timeout(PATIENCE):
            while True:
                found = condition()
                if await found if asyncio.iscoroutine(found) else found:
                    return
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"it never happened that {what}") from None


async def raw(url: str, work: Callable[[Any], Any]) -> Any:
    """Run ``work`` with a channel of pika's blocking connection."""
    parts = urlsplit(url)
    login = pika.PlainCredentials(parts.username or "guest", parts.password or "guest")

    def run() -> Any:
        with pika.BlockingConnection(
            pika.ConnectionParameters(parts.hostname, parts.port, credentials=login)
        ) as connection:
            return work(connection.channel())

    return await asyncio.to_thread(run)


class Proxy:
    """Between a client and a real broker. Understands frames as far as their length goes."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._target = (parts.hostname, parts.port)
        self._parts = parts
        self._writers: list[asyncio.StreamWriter] = []
        self._clients: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._to_client = asyncio.Event()
        self._to_client.set()
        self._server: asyncio.Server | None = None
        self.connections = 0
        self.refusing = False

    @property
    def url(self) -> str:
        assert self._server is not None
        port = self._server.sockets[0].getsockname()[1]
        return self._parts._replace(netloc=f"guest:guest@127.0.0.1:{port}").geturl()

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cut()
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Reset every connection."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()
        self._clients.clear()

    def hold(self) -> None:
        """Keep what the broker says from the client."""
        self._to_client.clear()

    def release(self) -> None:
        self._to_client.set()

    def say(self, method: bytes) -> None:
        """Let the broker seem to send a method frame on the connection itself, to every client."""
        for client in self._clients:
            client.write(struct.pack(">BHI", 1, 0, len(method)) + method + b"\xce")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self.refusing:
            writer.transport.abort()
            return
        up_reader, up_writer = await asyncio.open_connection(*self._target)
        self._writers += (writer, up_writer)
        self._clients.append(writer)
        for task in (
            asyncio.create_task(self._up(reader, up_writer)),
            asyncio.create_task(self._down(up_reader, writer)),
        ):
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        writer.close()

    async def _down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readexactly(7)
                rest = await reader.readexactly(struct.unpack(">I", head[3:])[0] + 1)
                await self._to_client.wait()
                writer.write(head + rest)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()
