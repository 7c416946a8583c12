"""What the SQS tests share: short forms, boto3 by hand, and a proxy that loses answers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from atleastonce.adapters import open_adapter
from atleastonce.adapters.sqs import SQSAdapter, names
from atleastonce.adapters.sqs.clients import Clients
from atleastonce.adapters.sqs.config import Config
from atleastonce.brokers import sqs
from atleastonce.brokers.model import NotReady, Place
from atleastonce.brokers.ports import free_port
from atleastonce.brokers.process import alive, spawn
from atleastonce.brokers.progress import Silent
from atleastonce.channels import Channel, Queue, Source
from atleastonce.contract import Delivery, Outcome, Outgoing, Subscription, Topology, Window
from atleastonce.message import Headers, HeaderValue, Message, new_id
from atleastonce.testing.brokers import marked
from atleastonce.urls import BrokerUrl
from atleastonce.wire import ID

PATIENCE = 15.0
"""Seconds after which something that should happen at once has failed."""


class Listening:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.conditions: list[str] = []

    async def drain(self, streams: Collection[str], grace: float) -> None:
        raise AssertionError("SQS takes no streams away")

    def lost(self, streams: Collection[str] | None) -> None:
        raise AssertionError("leases on SQS do not hang on a connection")

    def condition(self, state: str, detail: str) -> None:
        self.conditions.append(state)


def raw_client(url: str, service: str = "sqs") -> Any:
    """boto3's client for the same place."""
    clients = Clients(Config.build(BrokerUrl.parse(url), {}))
    return clients.sns if service == "sns" else clients.sqs


def raw_url(client: Any, source: Source | Queue[Any]) -> str:
    name = names.queue_name(source if isinstance(source, Source) else Source(source), "")
    return str(client.get_queue_url(QueueName=name)["QueueUrl"])


@asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncIterator[SQSAdapter]:
    """A connected adapter, closed at the end."""
    adapter = open_adapter(url, options)
    assert isinstance(adapter, SQSAdapter)
    await asyncio.wait_for(adapter.open(), PATIENCE)
    try:
        yield adapter
    finally:
        await asyncio.wait_for(adapter.close(), PATIENCE)


@asynccontextmanager
async def reading(
    adapter: SQSAdapter, what: Source | Queue[Any], window: int = 100, listener: Listening | None = None
) -> AsyncIterator[Subscription]:
    """A subscription, closed at the end."""
    source = Source(what) if isinstance(what, Queue) else what
    subscription = await adapter.subscribe(source, Window(window, 1 << 26), listener or Listening())
    try:
        yield subscription
    finally:
        await asyncio.wait_for(subscription.close(), PATIENCE)


@asynccontextmanager
async def declared(adapter: SQSAdapter, *what: Source | Queue[Any], **more: Any) -> AsyncIterator[None]:
    """The sources exist, until the end."""
    sources = tuple(Source(each) if isinstance(each, Queue) else each for each in what)
    topology = Topology(channels=tuple(each.channel for each in sources), sources=sources, **more)
    assert list(await adapter.declare(topology)) == []
    try:
        yield
    finally:
        await adapter.delete(topology)


def message(
    body: bytes = b"{}",
    *,
    key: bytes | None = None,
    headers: Sequence[tuple[str, HeaderValue]] = (),
    id: str | None = None,
) -> Message:
    identity = id or new_id()
    return Message(identity, body, key, Headers([*headers, (ID, identity)]))


async def sent(
    adapter: SQSAdapter, to: Channel[Any] | Source, *messages: Message, delay: float = 0.0
) -> Sequence[Outcome]:
    """What became of each."""
    return await asyncio.wait_for(adapter.send([Outgoing(to, each, delay) for each in messages]), 2 * PATIENCE)


async def take(subscription: Subscription, count: int, within: float = PATIENCE, most: int = 100) -> list[Delivery]:
    """The next ``count`` deliveries, unsettled."""
    deadline = time.monotonic() + within
    found: list[Delivery] = []
    while len(found) < count:
        left = deadline - time.monotonic()
        assert left > 0, f"{len(found)} of {count} came: {found}"
        found += await subscription.receive(min(most, count - len(found)), min(left, 1.0))
    return found


async def until(condition: Callable[[], bool], within: float = PATIENCE) -> None:
    """Wait until ``condition``."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        await asyncio.sleep(0.02)


class Losing:
    """A proxy in front of the service. ``lose`` names an operation: the next time it is asked for, it happens, and the
    connection ends instead of the answer. ``down``: every connection ends at once. ``flowing``: cleared, nothing passes and nothing
    ends."""

    def __init__(self, url: str) -> None:
        upstream = urlsplit(url)
        self._host, self._port = upstream.hostname or "", upstream.port or 0
        self.lose = b""
        self.down = False
        self.flowing = asyncio.Event()
        self.flowing.set()
        self.lost = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"sqs://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aenter__(self) -> Losing:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """End every connection."""
        for writer in self._writers:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if self.down:
            writer.close()
            return
        there_reader, there = await asyncio.open_connection(self._host, self._port)
        self._writers |= {writer, there}
        losing = False

        async def ask() -> None:
            nonlocal losing
            while data := await reader.read(1 << 20):
                if self.lose and self.lose in data:
                    self.lose, losing = b"", True
                await self.flowing.wait()
                there.write(data)
            there.close()

        async def answer() -> None:
            while data := await there_reader.read(1 << 20):
                if losing:
                    self.lost += 1
                    break
                await self.flowing.wait()
                writer.write(data)
            writer.close()

        with contextlib.suppress(OSError):
            await asyncio.gather(ask(), answer())
        self._writers -= {writer, there}


class Guarded:
    """An emulator that knows users and checks signatures and rights (ministack with ``AUTH=true``)."""

    def __init__(self, port: int) -> None:
        self._port = port

    def url_of(self, key: str, secret: str) -> str:
        return f"sqs://{key}:{secret}@127.0.0.1:{self._port}?region=us-east-1"

    def user(self, name: str, *actions: str) -> tuple[str, str]:
        """A user who may do ``actions`` to all queues and nothing else; key and secret."""
        iam = self._iam()
        iam.create_user(UserName=name)
        self.allow(name, *actions)
        key = iam.create_access_key(UserName=name)["AccessKey"]
        return key["AccessKeyId"], key["SecretAccessKey"]

    def allow(self, name: str, *actions: str) -> None:
        """From now on user ``name`` may do ``actions`` and nothing else."""
        statement = {"Effect": "Allow", "Action": list(actions), "Resource": "arn:aws:sqs:*:*:*"}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        self._iam().put_user_policy(UserName=name, PolicyName="these", PolicyDocument=policy)

    def _iam(self) -> Any:
        import boto3

        return boto3.client(
            "iam",
            endpoint_url=f"http://127.0.0.1:{self._port}",
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )

    @property
    def admin_url(self) -> str:
        """For who may do everything."""
        return f"sqs://127.0.0.1:{self._port}"

    def login(self, name: str, *actions: str) -> str:
        """The URL for a new user."""
        return self.url_of(*self.user(name, *actions))

    def queue(self, name: str) -> Queue[Any]:
        """A queue that exists."""
        raw_client(f"sqs://127.0.0.1:{self._port}").create_queue(QueueName=name)
        return Queue(name)


@contextmanager
def guarding(folder: Path) -> Iterator[Guarded]:
    """A `Guarded` that runs in ``folder``, of the installation of the shared broker."""
    port = free_port()
    command = sqs.prepare(sqs.install(Silent()), Place(folder, {"main": port}))
    log = folder / "log"
    with marked("sqs") as mark:
        who = spawn(replace(command, env={**command.env, "AUTH": "true"}, cwd=str(folder)), mark, log)
        deadline = time.monotonic() + 30
        while True:
            try:
                sqs.list_queues("127.0.0.1", port)
                break
            except (NotReady, OSError):
                assert time.monotonic() < deadline, log.read_text()
                assert alive(who), log.read_text()
                time.sleep(0.05)
        yield Guarded(port)
