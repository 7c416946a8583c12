"""A network that swallows everything, while the broker owes an answer: status says so long before anything is torn down for it."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest

from atleastonce import Queue, Service, connect
from atleastonce.brokers import Running
from atleastonce.testing.brokers import own_broker
from atleastonce.testing.proxy import FaultProxy

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(180)]

BROKERS = ["kafka", "rabbitmq", "sqs", "nats", "pubsub", "redis"]
MESSAGES = 6
TOLD_WITHIN = 6.0
"""Seconds: three of silence, one and a half between two heartbeats or one until a commit, and a busy machine."""


class Held:
    """A service through a proxy, whose handlers begin and then wait for us. No setting of it is made for silent networks."""

    def __init__(self, url: str) -> None:
        self.queue: Queue[int] = Queue(f"silence-{uuid.uuid4().hex[:8]}", int)
        self.begun: Counter[int] = Counter()
        self.handled: Counter[int] = Counter()
        self.may_end = asyncio.Event()
        self.service = Service("silence", broker=url)

        @self.service.consumer(self.queue, concurrency=MESSAGES)
        async def handle(order: int) -> None:
            self.begun[order] += 1
            await self.may_end.wait()
            self.handled[order] += 1

    @property
    def state(self) -> tuple[str, str]:
        (status, *_) = self.service.status()
        return status.state, status.detail

    @property
    def unsettled(self) -> int:
        """How many were not settled when they had ended."""
        (status, *_) = self.service.status()
        return status.counts.get("unsettled", 0)

    async def until(self, state: str, within: float, *, begun: int = 0, in_flight: int = MESSAGES) -> float:
        """Wait for ``state``, with so many begun at least and in flight at most; returns how long that took."""
        started = time.monotonic()
        while True:
            (status, *_) = self.service.status()
            waited = time.monotonic() - started
            if status.state == state and status.in_flight <= in_flight and len(self.begun) >= begun:
                return waited
            assert waited < within, f"{state} not within {within:g} s: {status}, {len(self.begun)} begun"
            await asyncio.sleep(0.02)


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=pytest.mark.xdist_group(f"silence-{name}")) for name in BROKERS]
)
def broker(request: pytest.FixtureRequest) -> Iterator[Running]:
    if request.param == "kafka":  # the one address at which it may be proxied is not to be shared
        with own_broker("kafka") as running:
            yield running
    else:
        yield request.getfixturevalue(f"{request.param}_broker")


@asynccontextmanager
async def through(broker: Running, control: Running, query: str = "") -> AsyncIterator[tuple[Held, FaultProxy]]:
    """A service that runs, and the proxy before its broker."""
    parts = urlsplit(broker.url)
    upstream = broker.addresses.get("proxied", f"{parts.hostname}:{parts.port}")
    async with FaultProxy(control.url, upstream, broker.addresses.get("proxy", "127.0.0.1:0")) as proxy:
        user = parts.netloc.rpartition("@")[0]
        netloc = f"{user}@{proxy.address}" if user else proxy.address
        query = "&".join(filter(None, (parts.query, query)))
        service = Held(parts._replace(netloc=netloc, query=query).geturl())
        async with service.service:
            yield service, proxy


@asynccontextmanager
async def held(broker: Running, control: Running) -> AsyncIterator[tuple[Held, FaultProxy]]:
    """All messages' handlers have begun."""
    async with through(broker, control) as (service, proxy), connect(broker.url) as direct:
        outcomes = await direct.publish_many(service.queue, list(range(MESSAGES)))
        assert all(outcome.ok for outcome in outcomes)
        await service.until("running", 20.0, begun=MESSAGES)
        yield service, proxy


async def test_silence_is_told_while_something_is_owed_and_forgotten_when_answers_come(
    broker: Running, toxiproxy_broker: Running
) -> None:
    async with held(broker, toxiproxy_broker) as (service, proxy):
        async with proxy.black_hole():
            service.may_end.set()  # what they settle is not answered
            took = await service.until("disconnected", TOLD_WITHIN)
            assert "no answer for" in service.state[1]
            assert took > 2.0, "a slow answer is no silence"
            await asyncio.sleep(0.5)
            assert service.state[0] == "disconnected"
        await service.until("running", 60.0, in_flight=0)
    assert set(service.handled) == set(range(MESSAGES))


@pytest.mark.parametrize("broker", ["nats", "sqs", "redis"], indirect=True)
async def test_an_idle_reader_says_so_where_a_sign_of_life_is_due(broker: Running, toxiproxy_broker: Running) -> None:
    query = "wait=2s" if broker.name == "sqs" else ""  # for so long a poll is allowed to find nothing
    async with through(broker, toxiproxy_broker, query) as (service, proxy):
        await service.until("running", 20.0)
        async with proxy.black_hole():
            assert await service.until("disconnected", TOLD_WITHIN) > 2.0
        await service.until("running", 60.0)


async def test_a_slow_network_costs_no_reader_and_no_message(broker: Running, toxiproxy_broker: Running) -> None:
    async with held(broker, toxiproxy_broker) as (service, proxy):
        async with proxy.slow(2.0):  # four seconds for every answer
            service.may_end.set()
            await service.until("running", 60.0, in_flight=0)
        await service.until("running", 30.0)
        assert service.unsettled == 0
    assert service.handled == Counter(range(MESSAGES)), "some ran twice"
