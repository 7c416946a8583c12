"""Services with ``transactions=True`` on a real broker: every result once for readers of what is committed, through rebalances,
a broker that is killed, refused results and failing handlers."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

pytest.importorskip("confluent_kafka", reason="confluent-kafka is not installed")

from kafka_kit import opened

from atleastonce import ConfigurationError, Context, DeadLetter, FailurePolicy, Queue, RetryChain, Service, connect
from atleastonce.contract import Topology
from atleastonce.testing.brokers import killable

QUICK = {"session.timeout.ms": 6000, "heartbeat.interval.ms": 300}
DEADLINE = 60.0


class Order(msgspec.Struct):
    n: int
    pad: str = ""


def transfer(url: str, run: str, *, slow: float = 0.0, pad: int = 0, **options: Any) -> tuple[Service, Queue[Any]]:
    """A service that passes orders on; threes fail once, sevens are given up."""
    source = Queue[Order](f"in.{run}", Order, partitions=4)
    onward = Queue[Order](f"out.{run}", Order, partitions=4)
    service = Service("transfer", broker=url, options={**QUICK, **options})

    @service.consumer(source, transactions=True, failure=FailurePolicy(in_place=None, chain=RetryChain("200ms")))
    async def handle(order: Order, ctx: Context) -> None:
        if slow:
            await asyncio.sleep(slow)
        if order.n % 10 == 7:
            raise DeadLetter("seven")
        if order.n % 10 == 3 and ctx.attempt == 1:
            raise ValueError("three")
        await ctx.publish(onward, Order(order.n, "x" * pad if order.n % 10 == 5 else ""))

    return service, onward


async def prepared(service: Service, onward: Queue[Any], count: int, url: str) -> None:
    source = service.consumers[0].home.channel
    async with connect(url) as broker:
        await broker.declare(source, onward)
        assert all(each.ok for each in await broker.publish_many(source, [Order(n) for n in range(count)]))


async def committed(url: str, channel: Queue[Any]) -> list[int]:
    async with opened(url) as adapter:
        found = [each async for batch in adapter.scan(channel) for each in batch]
    return [msgspec.json.decode(each.body, type=Order).n for each in found]


async def reached(url: str, channel: Queue[Any], wanted: set[int]) -> None:
    """Until all of ``wanted`` is committed to ``channel``; then each of it is there once, and nothing else."""
    end = time.monotonic() + DEADLINE
    while set(await committed(url, channel)) < wanted and time.monotonic() < end:  # each look takes its time
        pass
    found = await committed(url, channel)
    assert set(found) == wanted
    assert [n for n, count in Counter(found).items() if count > 1] == []


def done(service: Service) -> int:
    return sum(status.counts.get("done", 0) for status in service.status())


async def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "not within the time"
        await asyncio.sleep(0.02)


async def test_a_rebalance_in_the_middle_repeats_nothing(kafka_url: str) -> None:
    run, count = uuid.uuid4().hex[:8], 800
    first, onward = transfer(kafka_url, run, slow=0.1)
    second, _ = transfer(kafka_url, run, slow=0.1)
    await prepared(first, onward, count, kafka_url)
    results = {n for n in range(count) if n % 10 != 7}
    async with first:
        await until(lambda: done(first) > 0)
        async with second:  # takes partitions of which the first has handled a part, and gives them back
            await until(lambda: done(second) > 0)
            assert done(first) + done(second) < count, "it was all over before"
        await reached(kafka_url, onward, results)
        home = first.consumers[0].home
        await reached(kafka_url, home.dead_letter_channel, {n for n in range(count) if n % 10 == 7})


async def test_a_result_that_is_refused_is_a_dead_letter_and_its_neighbours_are_done(kafka_url: str) -> None:
    run = uuid.uuid4().hex[:8]
    service, onward = transfer(kafka_url, run, pad=20_000)
    async with opened(kafka_url) as adapter:
        small = Queue[Any](onward.name, partitions=4, options={"kafka": {"max.message.bytes": 10_000}})
        await adapter.declare(Topology(channels=(small,)))
    await prepared(service, onward, 100, kafka_url)
    async with service:
        home = service.consumers[0].home
        await reached(kafka_url, onward, {n for n in range(100) if n % 10 not in (5, 7)})
        await reached(kafka_url, home.dead_letter_channel, {n for n in range(100) if n % 10 in (5, 7)})
        async with opened(kafka_url) as adapter:
            letters = [each async for batch in adapter.scan(home.dead_letter_channel) for each in batch]
        stages = Counter(each.message.headers.get("alo-error-stage") for each in letters)
        assert stages == {"handler": 10, "rejected": 10}


@pytest.mark.slow
@pytest.mark.timeout(180, func_only=True)
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="as-it-is"),
        # The client forgets its brokers and waits for the old handle of the coordinator, without end: the producer is left behind.
        pytest.param({"metadata.recovery.strategy": "rebootstrap"}, id="stuck-client"),
    ],
)
async def test_a_killed_broker_repeats_nothing(options: dict[str, Any]) -> None:
    run, count = uuid.uuid4().hex[:8], 400
    async with killable("kafka") as broker:
        service, onward = transfer(broker.url, run, slow=0.05, **options)
        await prepared(service, onward, count, broker.url)
        async with service:
            end = time.monotonic() + DEADLINE
            while not await committed(broker.url, onward):
                assert time.monotonic() < end, "nothing is committed"
            await broker.kill()
            await broker.start()
            await reached(broker.url, onward, {n for n in range(count) if n % 10 != 7})
            home = service.consumers[0].home
            await reached(broker.url, home.dead_letter_channel, {n for n in range(count) if n % 10 == 7})


async def test_a_timeout_that_the_broker_does_not_allow_is_told(kafka_url: str) -> None:
    service, onward = transfer(kafka_url, uuid.uuid4().hex[:8], **{"transaction.timeout.ms": 3_600_000})
    await prepared(service, onward, 1, kafka_url)
    with pytest.raises(ConfigurationError, match=r"(?i)transaction.*timeout"):
        await asyncio.wait_for(service.serve(), DEADLINE)


async def test_other_brokers_refuse_in_one_sentence() -> None:
    service, _ = transfer("memory://", uuid.uuid4().hex[:8])
    service._options = None
    with pytest.raises(ConfigurationError, match="this broker has no such transactions"):
        await service.start()
