"""Each broker's way of asking for less: whoever publishes is told `Overloaded` in bounded time, whichever it is, and when there is
room again everything goes on and nothing was lost."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
from redis.asyncio import Redis

sys.path.insert(0, str(Path(__file__).parent))

from exhausted import Exhausted
from throttle import SQS, throttled

from atleastonce import Broker, Overloaded, Queue, Service, connect
from atleastonce.brokers import Running
from atleastonce.testing.brokers import killable, own_broker

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(180, func_only=True)]

DEADLINE = 60.0
PENDING = 20
MORE = 60  # published while there is no room


class Scene(NamedTuple):
    """A broker that can be out of room.

    Attributes:
        url: of the broker, with short limits.
        fill: takes its room.
        free: gives it back.
        waits: whether publishes wait for room, and go on if it comes in time; else they are refused at once.
        told: what a reader's status says meanwhile, once its own connection has published: state, and a word of its detail; None
            where only publishers notice.
    """

    url: str
    fill: Callable[[], Awaitable[Any]]
    free: Callable[[], Awaitable[Any]]
    waits: bool
    told: tuple[str, str] | None = None


@asynccontextmanager
async def memory_of_rabbitmq() -> AsyncIterator[Scene]:
    """The memory alarm: ``connection.blocked``."""
    with own_broker("rabbitmq") as running:
        control = Control(running)

        async def set_(share: str) -> None:
            await asyncio.to_thread(control.call, "set_vm_memory_high_watermark", *share.split())

        yield Scene(
            f"{running.url}?send_timeout=8s",
            lambda: set_("absolute 1MB"),
            lambda: set_("absolute 1GB"),
            waits=True,
            told=("blocked", "memory"),
        )


class Control:
    """``rabbitmqctl`` for a node that was started here."""

    def __init__(self, running: Running) -> None:
        command = running._record.command
        if command is None or not Path(command.argv[0]).name.startswith("rabbitmq-server"):
            pytest.skip("this RabbitMQ has no rabbitmqctl at hand")
        self._path = Path(command.argv[0]).with_name("rabbitmqctl")
        self._env = dict(command.env)

    def call(self, *words: str) -> None:
        subprocess.run([str(self._path), *words], env=self._env, check=True, capture_output=True, timeout=60)


@asynccontextmanager
async def memory_of_redis() -> AsyncIterator[Scene]:
    """``maxmemory`` with ``noeviction``: OOM."""
    async with killable("redis") as running:
        admin = Redis.from_url(running.url)
        await admin.config_set("maxmemory-policy", "noeviction")
        yield Scene(
            running.url,
            lambda: admin.config_set("maxmemory", "1"),
            lambda: admin.config_set("maxmemory", "0"),
            waits=False,
        )
        await admin.aclose()


@asynccontextmanager
async def queue_of_librdkafka() -> AsyncIterator[Scene]:
    """A broker that does not answer: the client's own queue fills up, ``BufferError``."""
    async with killable("kafka") as running:
        url = f"{running.url}?queue.buffering.max.messages=15&delivery.timeout.ms=40000&session.timeout.ms=45000"
        yield Scene(url, running.pause, running.resume, waits=True)


@asynccontextmanager
async def quota_of_sqs(url: str) -> AsyncIterator[Scene]:
    """RequestThrottled."""
    parts = urlsplit(url)
    with throttled(f"{parts.hostname}:{parts.port}", SQS) as proxy:
        here = parts._replace(netloc=parts.netloc.replace(f"{parts.hostname}:{parts.port}", proxy.address)).geturl()

        async def fill() -> None:
            proxy.fill()

        async def free() -> None:
            assert proxy.refused
            proxy.free()

        yield Scene(f"{here}{'&' if parts.query else '?'}send_timeout=8s", fill, free, waits=True)


@asynccontextmanager
async def quota_of_pubsub(url: str) -> AsyncIterator[Scene]:
    """RESOURCE_EXHAUSTED."""
    parts = urlsplit(url)
    async with Exhausted(f"{parts.hostname}:{parts.port}") as proxy:
        here = parts._replace(netloc=proxy.address).geturl()

        async def fill() -> None:
            proxy.fill()

        async def free() -> None:
            assert proxy.refused
            proxy.free()

        yield Scene(here, fill, free, waits=False)


def scene(name: str, request: pytest.FixtureRequest) -> AbstractAsyncContextManager[Scene]:
    if name in OWN:
        return OWN[name]()
    return SHARED[name](request.getfixturevalue(f"{name}_url"))


OWN = {"rabbitmq": memory_of_rabbitmq, "redis": memory_of_redis, "kafka": queue_of_librdkafka}
SHARED = {"sqs": quota_of_sqs, "pubsub": quota_of_pubsub}


async def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, f"not within {DEADLINE:g} s: {what}"
        await asyncio.sleep(0.02)  # polling a condition with a deadline


@pytest.mark.parametrize("name", [*OWN, *SHARED])
async def test_a_broker_that_has_no_room_is_overloaded_and_nothing_is_lost(
    name: str, request: pytest.FixtureRequest
) -> None:
    async with scene(name, request) as there:
        work: Queue[int] = Queue(f"overload.{uuid.uuid4().hex[:8]}", int, partitions=1)
        service, seen = Service("overload", broker=there.url), Counter[int]()

        @service.consumer(work)
        async def handle(n: int) -> None:
            seen[n] += 1

        async with service, Broker(there.url, max_pending=PENDING, publish_timeout="2s") as broker:
            for n in range(10):
                await broker.publish(work, n, id=f"m{n}")
            await until(lambda: len(seen) == 10, "what came before")
            await there.fill()
            own: asyncio.Task[str] | None = None
            if there.told:
                state, word = there.told
                own = asyncio.create_task(service.broker.publish(work, 0, id="m0"))
                await until(lambda: service.status()[0].state == state, "the status says so")
                assert word in service.status()[0].detail
            begin = time.monotonic()
            tasks = [asyncio.create_task(broker.publish(work, n, id=f"m{n}")) for n in range(10, 10 + MORE)]
            await until(lambda: any(task.done() for task in tasks), "somebody is told")
            await asyncio.sleep(1.0)
            if there.waits:
                await there.free()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            took = time.monotonic() - begin
            refused = {n: error for n, error in enumerate(done, 10) if isinstance(error, BaseException)}
            print(
                name,
                f"{took:.1f} s",
                Counter(type(error).__name__ for error in refused.values()),
                set(map(str, refused.values())),
            )
            assert refused
            assert {type(error) for error in refused.values()} == {Overloaded}
            assert took < 15.0
            if there.waits:
                assert len(refused) < MORE, "what was pending when there was room again"
            else:
                await there.free()
            for n in refused:
                await broker.publish(work, n, id=f"m{n}")
            await until(lambda: len(seen) == 10 + MORE, "nothing is lost")
            if there.told:
                await until(lambda: service.status()[0].state == "running", "the status is as before")
            if own is not None:
                await asyncio.gather(own, return_exceptions=True)
        assert not [n for n, times in seen.items() if times > 1 and n and n not in refused]


async def test_a_full_stream_of_nats_is_overloaded(nats_url: str) -> None:
    """As many messages wait as it may keep; those that go make room."""
    work: Queue[int] = Queue(f"overload.{uuid.uuid4().hex[:8]}", int, options={"nats": {"max_msgs": 30}})
    service, seen = Service("overload", broker=nats_url), Counter[int]()

    @service.consumer(work)
    async def handle(n: int) -> None:
        seen[n] += 1

    async with connect(nats_url) as broker:
        done = await asyncio.gather(*(broker.publish(work, n) for n in range(50)), return_exceptions=True)
        refused = {n: error for n, error in enumerate(done) if isinstance(error, BaseException)}
        assert len(refused) == 20
        assert {type(error) for error in refused.values()} == {Overloaded}
        async with service:
            await until(lambda: len(seen) == 30, "those that fitted")
            for n in refused:
                await broker.publish(work, n)
            await until(lambda: len(seen) == 50, "the others")


async def test_a_full_file_of_sqlite_is_overloaded(tmp_path: Path) -> None:
    """Up to ``max_size``; what is handled makes room."""
    url = f"sqlite:///{tmp_path}/broker.db?max_size=300KiB"
    work: Queue[Any] = Queue("overload", bytes)
    service, seen = Service("overload", broker=url), Counter[bytes]()

    @service.consumer(work)
    async def handle(body: bytes) -> None:
        seen[body[:4]] += 1

    async with connect(url) as broker:
        done, refused = 0, None
        while refused is None and done < 1000:
            try:
                await broker.publish(work, b"%04d" % done + bytes(4000))
                done += 1
            except Overloaded as error:
                refused = error
        assert "full" in str(refused)
        assert done > 10
        async with service:
            await until(lambda: len(seen) == done, "those that fitted")
            await broker.publish(work, b"%04d" % done + bytes(4000))
            await until(lambda: len(seen) == done + 1, "and one more")


async def test_a_blocked_rabbitmq_is_emptied_by_its_consumers() -> None:
    """Its alarm ends when messages go: who publishes as well must go on settling meanwhile."""
    async with memory_of_rabbitmq() as there:
        work: Queue[int] = Queue("work", int)
        service, seen = Service("overload", broker=there.url), Counter[int]()

        @service.consumer(work, max_in_flight=10)
        async def handle(n: int) -> None:
            seen[n] += 1

        async with service, connect(there.url) as looking:
            await service.pause()
            outcomes = await service.broker.publish_many(work, list(range(300)))
            assert all(outcome.ok for outcome in outcomes)
            await there.fill()
            blocked = asyncio.create_task(service.broker.publish(work, 300))
            await until(lambda: service.status()[0].state == "blocked", "the service's own connection is told")
            await service.resume()
            await until(lambda: len(seen) == 300, "all is handled")
            async with asyncio.timeout(DEADLINE):
                while (await looking.backlog(work)).waiting:  # noqa: ASYNC110 - the broker tells no one
                    await asyncio.sleep(0.1)  # polling a condition with a deadline
            assert service.status()[0].state == "blocked"
            await there.free()
            with contextlib.suppress(Overloaded):
                await blocked
        assert set(seen.values()) == {1}
