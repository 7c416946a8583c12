"""The window of a consumer whose retries wait in topics that it reads itself."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable

import msgspec

from atleastonce import Context, Queue, Service


class Step(msgspec.Struct):
    n: int


async def until(condition: Callable[[], bool], service: Service, within: float = 60.0) -> None:
    end = time.monotonic() + within
    while not condition():
        assert time.monotonic() < end, f"not within {within:g} s: {service.status()}"
        await asyncio.sleep(0.01)


def in_flight(service: Service) -> tuple[int, int]:
    """Messages and bytes of all readers."""
    status = service.status()
    return sum(each.in_flight for each in status), sum(each.bytes for each in status)


async def test_together_the_readers_never_have_more_than_the_window(kafka_url: str) -> None:
    steps = Queue(f"steps.{uuid.uuid4().hex[:8]}", Step, partitions=2)
    service, most, size = Service("steps", broker=kafka_url), 30, 64 * 1024
    samples: list[tuple[int, int]] = []
    done: set[int] = set()

    @service.consumer(steps, retry=["1s", "2s"], concurrency=4, max_in_flight=most, max_in_flight_bytes=size)
    async def handle(step: Step, ctx: Context) -> None:
        samples.append(in_flight(service))
        if ctx.attempt < 3:
            raise ConnectionError
        await asyncio.sleep(0.001)
        samples.append(in_flight(service))
        done.add(step.n)

    async with service:
        await service.broker.publish_many(steps, [Step(n) for n in range(400)])
        await until(lambda: len(done) == 400 and in_flight(service) == (0, 0), service)
    assert max(messages for messages, _ in samples) <= most
    assert max(messages for messages, _ in samples) > most // 2, "and it is used"
    assert max(held for _, held in samples) <= size


async def test_what_waits_for_long_leaves_room_for_what_is_fresh_and_for_what_is_due(kafka_url: str) -> None:
    steps = Queue(f"steps.{uuid.uuid4().hex[:8]}", Step, partitions=2)
    service = Service("steps", broker=kafka_url)
    gate, done = asyncio.Semaphore(0), []

    @service.consumer(steps, retry=["500ms", "10m"], concurrency=2, max_in_flight=12)
    async def handle(step: Step, ctx: Context) -> None:
        if step.n < 100 or (step.n == 500 and ctx.attempt < 2):  # those wait ten minutes in the end
            raise ConnectionError
        if step.n >= 1000:
            await gate.acquire()
        done.append(step.n)

    async with service:
        await service.broker.publish_many(steps, [Step(n) for n in range(100)], key=lambda step: str(step.n))
        # All that it may have of the window: a third, of which each partition has its share.
        await until(lambda: service.status()[2].in_flight >= 2, service)
        await service.broker.publish(steps, Step(500))
        await until(lambda: done == [500], service)
        # A backlog takes what nobody needs, and what is due in a retry topic has room all the same.
        await service.broker.publish_many(steps, [Step(n) for n in range(1000, 1100)])
        await until(lambda: service.status()[0].in_flight >= 6, service)
        assert in_flight(service)[0] <= 12
        for _ in range(100):
            gate.release()
        await until(lambda: len(done) == 101 and service.status()[0].in_flight == 0, service)
        assert 2 <= in_flight(service)[0] <= 4
