"""The circuit breaker on every broker: one probe at a time, probes that never end, and messages that are larger than the window."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from once_kit import Order, counts, settled, until

from atleastonce import AdaptiveConcurrency, CircuitBreaker, FailurePolicy, Queue, Service

MakeQueue = Callable[[str], Queue[Any]]
ONCE = FailurePolicy(in_place=None)  # a failure that counts as an attempt is the end


def states(service: Service) -> set[str]:
    return {status.state for status in service.status()}


async def test_one_message_probes_and_one_that_hangs_keeps_nobody_from_the_next(
    backend_url: str, queue: MakeQueue
) -> None:
    work, service = queue("work"), Service("worker", broker=backend_url, drain="1s")
    down, running, most = True, 0, 0
    begun: Counter[int] = Counter()
    hangs: set[int] = set()
    gate = asyncio.Event()

    @service.consumer(
        work,
        failure=ONCE,
        circuit=CircuitBreaker(failures=3, within="30s", open_for="500ms"),
        concurrency=8,
        max_in_flight=50,
    )
    async def handle(order: Order) -> None:
        nonlocal running, most
        begun[order.n] += 1
        running += 1
        most = max(most, running)
        try:
            if states(service) == {"paused"} and not hangs and down:
                hangs.add(order.n)
                await gate.wait()
            await asyncio.sleep(0.01)
            if down:
                raise ConnectionError("away")
        finally:
            running -= 1

    async with service:
        await service.broker.publish_many(work, [Order(n) for n in range(100)])
        await until(lambda: states(service) == {"paused"}, service)
        await until(lambda: bool(hangs), service)
        assert running == 1, "it is the probe, alone"
        most, before, at = 0, sum(begun.values()), time.monotonic()
        await until(lambda: sum(begun.values()) >= before + 2, service)
        assert time.monotonic() - at >= 0.5, "each probe has its time"
        assert most <= 2, "one probe, beside the one that hangs"
        assert states(service) == {"paused"}
        down = False
        await until(lambda: counts(service)["done"] >= 90 and states(service) == {"running"}, service)
        gate.set()
        await until(lambda: counts(service)["done"] + counts(service)["dead"] == 100 and settled(service), service)
        assert counts(service)["dead"] <= 2 + 8, "only what ran when it opened"
    assert len(begun) == 100


async def test_messages_larger_than_the_window_are_alone_with_adaptive_concurrency(
    backend_url: str, queue: MakeQueue, caplog: pytest.LogCaptureFixture
) -> None:
    work, service = queue("work"), Service("worker", broker=backend_url)
    running = most = 0
    seen: Counter[bytes] = Counter()

    @service.consumer(work, concurrency=AdaptiveConcurrency(min=2, max=16), max_in_flight_bytes=1000)
    async def handle(body: bytes) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.002)
        seen[body] += 1
        running -= 1

    async with service:
        await service.broker.publish(work, b"%04d" % 0 + bytes(5000))
        await until(lambda: len(seen) == 1 and settled(service), service)
        most = 0
        for n in range(1, 41):
            await service.broker.publish(work, b"%04d" % n + bytes(5000))
        await until(lambda: len(seen) == 41 and settled(service), service)
    assert most == 1
    assert set(seen.values()) == {1}
    assert sum("such messages run one at a time" in record.getMessage() for record in caplog.records) == 1
