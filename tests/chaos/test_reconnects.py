"""A service with traffic on it while its broker, or the way to it, fails: nothing confirmed is lost, and it recovers by itself."""

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

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(240)]

# What each broker is told, so that a silent network is noticed within a few seconds and not within a minute.
ATTENTIVE: dict[str, str] = {
    "rabbitmq": "heartbeat=3",
    "nats": "ping_interval=1",
    "redis": "lease=3s&operation_timeout=3",
}
BROKERS = ["kafka", "rabbitmq", "sqs", "nats", "pubsub", "redis"]
# Emulators keep everything in memory: what a killed one forgets says nothing about the service that it stands for. That ours
# makes its channels again and goes on is shown with them, too.
DURABLE = ["kafka", "rabbitmq", "nats", "redis"]
# RabbitMQ 3.10 that is killed within a second of a quorum queue's declaration never elects a leader for it again: nothing
# that a client could mend.
NEWBORN: dict[str, float] = {"rabbitmq": 3.0}
# A poll that waits, and one whose answer is swallowed, look alike: on SQS for `wait`, on Pub/Sub for `keepalive`, each and some
# seconds. What is settled then tells them apart (`test_silence.py`); here it is chance whether anything is.
UNHURRIED = ["sqs", "pubsub"]
CHUNK = 20
HOLE_SECONDS = 10.0


class Traffic:
    """A publisher that never gives up, a consumer that writes down what it handles, and the account of both."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.queue: Queue[dict[str, str]] = Queue(f"reconnect-{uuid.uuid4().hex[:8]}")
        self.confirmed: set[str] = set()
        self.handled: Counter[str] = Counter()
        self.states: set[str] = set()
        self.refusals: Counter[str] = Counter()
        self.service = Service("reconnects", broker=url)
        self._stop = asyncio.Event()

        @self.service.consumer(self.queue)
        async def note(order: dict[str, str]) -> None:
            self.handled[order["id"]] += 1

    @asynccontextmanager
    async def flowing(self) -> AsyncIterator[None]:
        async with self.service, connect(self.url) as broker:
            watching = asyncio.create_task(self._watch())

            async def publish() -> None:
                while not self._stop.is_set():
                    orders = [{"id": uuid.uuid4().hex} for _ in range(CHUNK)]
                    outcomes = await broker.publish_many(self.queue, orders)
                    self.confirmed |= {o["id"] for o, outcome in zip(orders, outcomes, strict=True) if outcome.ok}
                    self.refusals.update(outcome.fault.detail for outcome in outcomes if outcome.fault is not None)
                    await asyncio.sleep(0.01)  # a producer's own pace, for both cores have other work to do

            publishing = asyncio.create_task(publish())
            try:
                yield
            finally:
                self._stop.set()
                await publishing
                watching.cancel()

    async def _watch(self) -> None:
        while True:
            self.states |= {status.state for status in self.service.status()}
            await asyncio.sleep(0.02)  # sampling

    async def more(self, count: int, within: float = 90.0) -> None:
        """Wait until ``count`` more are confirmed, and as many handled: it works (again)."""
        confirmed, handled = len(self.confirmed), len(self.handled)
        deadline = time.monotonic() + within
        while len(self.confirmed) < confirmed + count or len(self.handled) < handled + count:
            assert time.monotonic() < deadline, (
                f"no recovery: {len(self.confirmed) - confirmed} confirmed and {len(self.handled) - handled} handled in "
                f"{within:g} s; {self.refusals}; {self.service.status()}"
            )
            await asyncio.sleep(0.02)

    async def accounted(self, within: float = 60.0) -> None:
        """Wait until everything that was confirmed is handled."""
        deadline = time.monotonic() + within
        while missing := self.confirmed - self.handled.keys():
            assert time.monotonic() < deadline, f"{len(missing)} of {len(self.confirmed)} confirmed are lost"
            await asyncio.sleep(0.02)


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=pytest.mark.xdist_group(f"reconnects-{name}")) for name in BROKERS]
)
def broker(request: pytest.FixtureRequest) -> Iterator[Running]:
    """A broker of this module's own, for it is killed."""
    with own_broker(request.param) as running:
        yield running


@asynccontextmanager
async def through(broker: Running, control: Running) -> AsyncIterator[tuple[FaultProxy, str]]:
    """A proxy before ``broker``, and the broker's URL through it."""
    parts = urlsplit(broker.url)
    upstream = broker.addresses.get("proxied", f"{parts.hostname}:{parts.port}")
    async with FaultProxy(control.url, upstream, broker.addresses.get("proxy", "127.0.0.1:0")) as proxy:
        user = parts.netloc.rpartition("@")[0]
        query = "&".join(filter(None, (parts.query, ATTENTIVE.get(broker.name, ""))))
        netloc = f"{user}@{proxy.address}" if user else proxy.address
        yield proxy, parts._replace(netloc=netloc, query=query).geturl()


async def test_a_broker_that_restarts(broker: Running) -> None:
    traffic = Traffic(broker.url)
    async with traffic.flowing():
        await traffic.more(100)
        await asyncio.to_thread(broker.stop)
        await asyncio.to_thread(broker.start)
        await traffic.more(100)
        if broker.name in DURABLE:
            await traffic.accounted()
    told(traffic)


async def test_a_broker_that_is_killed(broker: Running) -> None:
    traffic = Traffic(broker.url)
    async with traffic.flowing():
        await traffic.more(100)
        for _ in range(2):
            await asyncio.sleep(NEWBORN.get(broker.name, 0.0))
            await asyncio.to_thread(broker.kill)
            await asyncio.to_thread(broker.start)
            await traffic.more(100)
        if broker.name in DURABLE:
            await traffic.accounted()
    told(traffic)


def told(traffic: Traffic) -> None:
    assert "disconnected" in traffic.states, f"status said {traffic.states} while the broker was away"


async def test_a_broker_that_refuses_connections(broker: Running, toxiproxy_broker: Running) -> None:
    async with through(broker, toxiproxy_broker) as (proxy, url):
        traffic = Traffic(url)
        async with traffic.flowing():
            await traffic.more(100)
            async with proxy.refusing():
                await asyncio.sleep(3.0)
            await traffic.more(100)
            await traffic.accounted()


async def test_connections_that_are_reset(broker: Running, toxiproxy_broker: Running) -> None:
    async with through(broker, toxiproxy_broker) as (proxy, url):
        traffic = Traffic(url)
        async with traffic.flowing():
            for _ in range(3):
                await traffic.more(60)
                await proxy.reset()
            await traffic.more(100)
            await traffic.accounted()


async def test_a_network_that_swallows_everything(broker: Running, toxiproxy_broker: Running) -> None:
    async with through(broker, toxiproxy_broker) as (proxy, url):
        traffic = Traffic(url)
        async with traffic.flowing():
            await traffic.more(100)
            async with proxy.black_hole():
                before = len(traffic.confirmed)
                await asyncio.sleep(HOLE_SECONDS)
                assert len(traffic.confirmed) - before <= CHUNK, "confirmed through a hole"
            await traffic.more(100)
            await traffic.accounted()
    if broker.name not in UNHURRIED:
        told(traffic)


async def test_a_slow_network(broker: Running, toxiproxy_broker: Running) -> None:
    async with through(broker, toxiproxy_broker) as (proxy, url):
        traffic = Traffic(url)
        async with traffic.flowing():
            await traffic.more(100)
            async with proxy.slow(0.3, kilobytes=64):
                await traffic.more(60)
            await traffic.more(100)
            await traffic.accounted()
