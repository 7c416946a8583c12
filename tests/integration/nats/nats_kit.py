"""What the NATS tests share: a listener, nats-py as it is, servers with settings of their own, and a proxy that cuts, holds
and speaks for the server."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nats
from nats.aio.client import Client

from atleastonce.adapters import open_adapter
from atleastonce.adapters.nats import NatsAdapter
from atleastonce.adapters.nats.delivery import NatsDelivery
from atleastonce.brokers.nats import install
from atleastonce.brokers.ports import free_port
from atleastonce.brokers.process import MARK
from atleastonce.brokers.progress import Silent
from atleastonce.channels import Channel, Queue, Source
from atleastonce.contract import ACK, Outgoing, Subscription, Topology, Window
from atleastonce.message import Headers, HeaderValue, Message, new_id
from atleastonce.testing.brokers import marked

PATIENCE = 15.0
"""Seconds after which something that should happen at once has failed."""


class Listening:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.conditions: list[tuple[str, str]] = []
        self.losses: list[Collection[str] | None] = []

    async def drain(self, streams: Collection[str], grace: float) -> None:
        raise AssertionError("NATS takes no streams away")

    def lost(self, streams: Collection[str] | None) -> None:
        self.losses.append(streams)

    def condition(self, state: str, detail: str) -> None:
        self.conditions.append((state, detail))

    @property
    def states(self) -> list[str]:
        return [state for state, _ in self.conditions]


@asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncIterator[NatsAdapter]:
    """A connected adapter, closed at the end."""
    adapter = open_adapter(url, options)
    assert isinstance(adapter, NatsAdapter)
    await adapter.open()
    try:
        yield adapter
    finally:
        await asyncio.wait_for(adapter.close(), PATIENCE)


@asynccontextmanager
async def raw(url: str, **options: Any) -> AsyncIterator[Client]:
    """nats-py, without a line of ours."""
    client = await nats.connect(url, **options)
    try:
        yield client
    finally:
        await client.close()


def message(
    body: bytes = b"{}",
    *,
    key: bytes | None = None,
    headers: Sequence[tuple[str, HeaderValue]] = (),
    id: str | None = None,
) -> Message:
    id = id or new_id()
    return Message(id, body, key, Headers([*headers, ("alo-id", id)]))


def outgoing(destination: Channel[Any] | Source, count: int = 1, **fields: Any) -> list[Outgoing]:
    return [Outgoing(destination, message(**fields)) for _ in range(count)]


async def send(adapter: NatsAdapter, items: Sequence[Outgoing]) -> None:
    """Send; all must be confirmed."""
    outcomes = await adapter.send(items)
    assert all(outcome.ok for outcome in outcomes), [each for each in outcomes if not each.ok][:3]


async def prepared(adapter: NatsAdapter, *items: Channel[Any] | Source, **more: Any) -> None:
    """Declare queues (as their own source too), topics and sources; nothing may drift."""
    channels = tuple(item for item in items if not isinstance(item, Source))
    sources = tuple(
        Source(item) if isinstance(item, Queue) else item for item in items if isinstance(item, Source | Queue)
    )
    assert list(await adapter.declare(Topology(channels=channels, sources=sources, **more))) == []


async def reading(
    adapter: NatsAdapter,
    what: Source | Queue[Any],
    messages: int = 100,
    listener: Listening | None = None,
) -> Subscription:
    source = Source(what) if isinstance(what, Queue) else what
    return await adapter.subscribe(source, Window(messages, 2**26), listener or Listening())


async def take(
    subscription: Subscription, count: int, *, ack: bool = False, within: float = PATIENCE
) -> list[NatsDelivery]:
    """``count`` deliveries, in the order in which they came."""
    got: list[NatsDelivery] = []
    async with asyncio.timeout(within):
        while len(got) < count:
            some = await subscription.receive(count - len(got), 5.0)
            got += [delivery for delivery in some if isinstance(delivery, NatsDelivery)]
    if ack:
        assert all(outcome.ok for outcome in await subscription.settle([(delivery, ACK) for delivery in got]))
    return got


async def all_of(adapter: NatsAdapter, what: Source | Queue[Any]) -> list[NatsDelivery]:
    """Everything that waits, acknowledged. A probe that is sent last tells the end."""
    source = Source(what) if isinstance(what, Queue) else what
    subscription = await reading(adapter, source, 1000)
    (last,) = outgoing(source)
    await send(adapter, [last])
    got: list[NatsDelivery] = []
    while not any(delivery.message.id == last.message.id for delivery in got):
        got += await take(subscription, 1, ack=True)
    await subscription.close()
    return [delivery for delivery in got if delivery.message.id != last.message.id]


async def eventually(condition: Callable[[], Any], what: str, within: float = PATIENCE) -> None:
    """Wait for ``condition``, which may be a coroutine function."""
    try:
        async with asyncio.timeout(within):
            while True:
                found = condition()
                if await found if asyncio.iscoroutine(found) else found:
                    return
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"it never happened that {what}") from None


@asynccontextmanager
async def server(folder: Path, settings: str, *, jetstream: bool = True, port: int | None = None) -> AsyncIterator[str]:
    """A nats-server with ``settings`` of one's own; its address without a user. At a given ``port``: where one was before,
    with what it had stored."""
    port = port or free_port()
    with marked("nats") as mark:
        process = await _start(folder, port, settings, mark, jetstream=jetstream)
        try:
            await listens(port)
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            await process.wait()


@asynccontextmanager
async def cluster(folder: Path) -> AsyncIterator[dict[str, tuple[str, asyncio.subprocess.Process]]]:
    """Three servers that replicate: addresses and processes by name."""
    names = ("one", "two", "three")
    ports, routes = {name: free_port() for name in names}, {name: free_port() for name in names}
    every = ", ".join(f"nats-route://127.0.0.1:{port}" for port in routes.values())
    processes = {}
    with marked("nats") as mark:
        try:
            for name in names:
                (folder / name).mkdir()
                settings = (
                    f"server_name: {name}\n"
                    f"cluster {{ name: c, host: 127.0.0.1, port: {routes[name]}, routes: [{every}], no_advertise: true }}"
                )
                processes[name] = await _start(folder / name, ports[name], settings, mark, jetstream=True)
            for port in ports.values():
                await listens(port)
            yield {name: (f"127.0.0.1:{ports[name]}", processes[name]) for name in names}
        finally:
            for process in processes.values():
                if process.returncode is None:
                    process.kill()
                await process.wait()


async def _start(folder: Path, port: int, settings: str, mark: Path, *, jetstream: bool) -> asyncio.subprocess.Process:
    binary = (await asyncio.to_thread(install, Silent())) / "bin" / "nats-server"
    store = f'jetstream {{ store_dir: "{folder / "store"}", max_file_store: 1GB, max_memory_store: 64MB }}\n'
    config = folder / "nats.conf"
    config.write_text(f"host: 127.0.0.1\nport: {port}\n{store if jetstream else ''}{settings}\n")
    quiet = asyncio.subprocess.DEVNULL
    env = {**os.environ, MARK: str(mark)}
    return await asyncio.create_subprocess_exec(str(binary), "-c", str(config), stdout=quiet, stderr=quiet, env=env)


async def listens(port: int) -> None:
    """Until somebody accepts there."""

    async def answers() -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return False
        writer.close()
        return True

    await eventually(answers, "the server listens")


class Proxy:
    """Between a client and a real server."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._target = (parts.hostname, parts.port)
        self._writers: list[asyncio.StreamWriter] = []
        self._clients: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._to_client = asyncio.Event()
        self._to_server = asyncio.Event()
        self.release()
        self._server: asyncio.Server | None = None
        self.connections = 0
        self.refusing = False

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"nats://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

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

    def hold(self, *, both: bool = False) -> None:
        """Keep what the server says from the client; with ``both`` a black hole."""
        self._to_client.clear()
        if both:
            self._to_server.clear()

    def release(self) -> None:
        self._to_client.set()
        self._to_server.set()

    def say(self, line: bytes) -> None:
        """Let the server seem to say ``line``, to every client."""
        for client in self._clients:
            client.write(line)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self.refusing:
            writer.transport.abort()
            return
        up_reader, up_writer = await asyncio.open_connection(*self._target)
        self._writers += (writer, up_writer)
        self._clients.append(writer)
        for task in (
            asyncio.create_task(self._pump(reader, up_writer, self._to_server)),
            asyncio.create_task(self._pump(up_reader, writer, self._to_client)),
        ):
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                await gate.wait()
                writer.write(data)
                await writer.drain()
        writer.close()
