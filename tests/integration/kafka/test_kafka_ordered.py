"""Ordered consumers on Kafka: what one partition holds back is not held back in the others."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable

import msgspec

from atleastonce import Context, RetryLater, Service, Topic


class Step(msgspec.Struct):
    key: str
    n: int


async def until(condition: Callable[[], bool], within: float = 30.0) -> None:
    end = time.monotonic() + within
    while not condition():
        assert time.monotonic() < end, f"not within {within:g} s"
        await asyncio.sleep(0.02)


async def test_a_key_that_fails_and_has_all_the_traffic_stops_its_partition_and_no_other(kafka_url: str) -> None:
    steps = Topic(f"steps.{uuid.uuid4().hex[:8]}", Step, partitions=8)
    service, done = Service("lines", broker=kafka_url), []

    @service.consumer(steps, ordered=True, max_in_flight=200)
    async def handle(step: Step, ctx: Context) -> None:
        if step.key == "stuck":
            raise RetryLater("10m")
        done.append((step.key, step.n))

    async with service:
        send = service.broker.publish_many
        outcomes = await send(steps, [Step("stuck", n) for n in range(2000)], key=lambda step: step.key)
        assert all(outcome.ok for outcome in outcomes)
        await until(lambda: service.status()[0].counts.get("retried", 0) == 1)
        # Sixteen keys over eight partitions: all but those of the one partition that is full go on.
        others = [Step(f"k{n % 16}", n // 16) for n in range(320)]
        await send(steps, others, key=lambda step: step.key)
        await until(lambda: len({key for key, n in done if n == 19}) >= 10)
        (status,) = (each for each in service.status() if each.source == f"{steps.name}.lines")
        assert status.in_flight <= 200
    assert not [key for key, _ in done if key == "stuck"]
