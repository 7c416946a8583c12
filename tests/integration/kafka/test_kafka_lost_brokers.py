"""What the client does not tell: that it has lost every broker for good, and that an answer does not come."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

pytest.importorskip("confluent_kafka", reason="confluent-kafka is not installed")

from kafka_kit import eventually
from kafka_proxy import METADATA, OFFSET_COMMIT, KafkaProxy, proxied

from atleastonce import AtLeastOnceError, BrokerUnavailable, Queue, Service, connect
from atleastonce.broker import Broker
from atleastonce.brokers import Running
from atleastonce.testing.brokers import own_broker

pytestmark = [pytest.mark.timeout(180)]

# A member that went without a word is missed after its session: as short as brokers allow.
QUICK = "session.timeout.ms=6000&heartbeat.interval.ms=500"


@pytest.fixture(scope="module")
def kafka() -> Iterator[Running]:
    """One of this module's own: a broker has one address for a proxy."""
    with own_broker("kafka") as running:
        yield running


class Work:
    """A service and a publisher on one queue, and what became of each."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.queue: Queue[str] = Queue(f"t.{uuid.uuid4().hex[:12]}", partitions=1)
        self.handled: set[str] = set()
        self.states: list[tuple[str, str]] = []
        self.service = Service("lost", broker=url)

        @self.service.consumer(self.queue)
        async def note(order: str) -> None:
            self.handled.add(order)

    async def publish(self, broker: Broker, within: float) -> None:
        """One that is confirmed, however often it takes, and handled."""
        order, end = uuid.uuid4().hex, time.monotonic() + within
        while not (await broker.publish_many(self.queue, [order]))[0].ok:
            assert time.monotonic() < end, "not confirmed"
        await eventually(lambda: order in self.handled, "handled", end - time.monotonic())

    async def watch(self) -> None:
        while True:
            (status,) = self.service.status()
            if not self.states or self.states[-1][0] != status.state:
                self.states.append((status.state, status.detail))
            await asyncio.sleep(0.02)  # sampling


@asynccontextmanager
async def working(kafka: Running, options: str) -> AsyncIterator[tuple[KafkaProxy, Work, Broker]]:
    async with proxied(kafka.addresses["proxied"], kafka.addresses["proxy"]) as proxy:
        work = Work(f"kafka://{kafka.addresses['proxy']}?{options}")
        async with work.service, connect(work.url) as broker:
            watching = asyncio.create_task(work.watch())
            try:
                yield proxy, work, broker
            finally:
                watching.cancel()


async def test_clients_that_have_lost_every_broker_are_replaced(kafka: Running) -> None:
    """An answer without brokers makes the client throw away those that it knows; told to, it never begins anew, and without
    being told now and then (librdkafka issue 5301)."""
    options = f"{QUICK}&metadata.recovery.strategy=none&topic.metadata.refresh.interval.ms=200"
    async with working(kafka, options) as (proxy, work, broker):
        await work.publish(broker, 30)
        with proxy.brokerless():
            await eventually(lambda: proxy.changed[METADATA] >= 2, "both clients are told of no broker")
            await eventually(lambda: work.states[-1][0] == "disconnected", "the status says so")
        await work.publish(broker, 60)
        assert work.states[-1][0] == "running", work.states


async def test_who_waits_for_answers_gets_a_new_client_too(kafka: Running) -> None:
    options = f"{QUICK}&metadata.recovery.strategy=none&topic.metadata.refresh.interval.ms=200"
    async with proxied(kafka.addresses["proxied"], kafka.addresses["proxy"]) as proxy:
        url, asked = (
            f"kafka://{kafka.addresses['proxy']}?{options}",
            Queue[str](f"t.{uuid.uuid4().hex[:12]}", partitions=1),
        )
        answering = Service("answers", broker=kafka.url)

        @answering.responder(asked)
        async def echo(text: str) -> str:
            return text

        async with answering, connect(url) as broker:
            assert await broker.request(asked, "before", timeout="30s") == "before"
            with proxy.brokerless():
                await eventually(lambda: proxy.changed[METADATA] >= 2, "both clients are told of no broker")
                await asyncio.sleep(1.0)
            end = time.monotonic() + 90
            while True:
                try:
                    assert await broker.request(asked, "after", timeout="5s") == "after"
                    break
                except AtLeastOnceError:  # not yet
                    assert time.monotonic() < end
                    await asyncio.sleep(0.1)


async def test_a_commit_that_is_not_answered_is_told_and_got_over(kafka: Running) -> None:
    """Before the first hand-out a commit is waited for, on the thread that hears what the client has to say."""
    async with working(kafka, QUICK) as (proxy, work, broker):
        with proxy.swallowing(OFFSET_COMMIT):
            order = uuid.uuid4().hex
            assert (await broker.publish_many(work.queue, [order]))[0].ok
            await eventually(lambda: work.states[-1][0] == "disconnected", "the status says so", 10)
            assert "commit" in work.states[-1][1]
            assert not work.handled
        await eventually(lambda: order in work.handled, "handled", 20)
        await eventually(lambda: work.states[-1][0] == "running", "the status says so")


@pytest.mark.parametrize("wait", [0, 2])
async def test_kafka_that_refuses_is_not_waited_for_longer_than_was_said(wait: float) -> None:
    begin = time.monotonic()
    with pytest.raises(BrokerUnavailable, match=r"Kafka at 127\.0\.0\.1:1 does not answer .*refused"):
        await connect("kafka://127.0.0.1:1", wait=wait).open()
    assert time.monotonic() - begin < wait + 4  # a second or so, on a busy machine
