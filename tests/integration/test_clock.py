"""A process whose wall clock is put forward or back by ten minutes while it works: nothing is lost, nothing stands still, and
nothing is taken for late that was asked for afterwards."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from once_kit import Order, counts, settled, until

from atleastonce import CircuitBreaker, Context, FailurePolicy, Queue, RetryChain, Service, connect, wire
from atleastonce.adapters.sqlite.adapter import SQLiteAdapter

MakeQueue = Callable[[str], Queue[Any]]
TEN_MINUTES = 600.0


class WallClock:
    """What this library takes the time to be. The machine's stays as it is, and that of the clients: gRPC compares the two, which
    are the same when a clock is really put."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead = 0.0
        real = time.time

        def wall() -> float:
            ours = sys._getframe(1).f_globals.get("__name__", "").startswith("atleastonce.")
            return real() + (self.ahead if ours else 0.0)

        monkeypatch.setattr(time, "time", wall)
        monkeypatch.setitem(SQLiteAdapter.__init__.__kwdefaults__, "clock", wall)


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> WallClock:
    # A due time that is further ahead is not believed. A minute, as a rule: too long for a test.
    monkeypatch.setattr(wire, "CLOCK_SLACK", 2.0)
    return WallClock(monkeypatch)


@pytest.mark.parametrize("jump", [TEN_MINUTES, -TEN_MINUTES], ids=["forward", "back"])
async def test_retries_go_on_when_the_clock_jumps(
    backend_url: str, queue: MakeQueue, wall: WallClock, jump: float
) -> None:
    work, service = queue("work"), Service("worker", broker=backend_url)
    attempts: dict[int, list[int]] = defaultdict(list)
    chain = FailurePolicy(in_place=None, chain=RetryChain("1s", "2s"))

    @service.consumer(work, failure=chain, rate_limit="200/s")
    async def handle(order: Order, ctx: Context) -> None:
        attempts[order.n].append(ctx.attempt)
        if ctx.attempt < 3:
            raise ValueError("not yet")

    async with service:
        await service.broker.publish_many(work, [Order(n) for n in range(20)])
        await until(lambda: len(attempts) == 20 and settled_or_waiting(service), service)
        wall.ahead = jump
        await service.broker.publish_many(work, [Order(n) for n in range(20, 40)])
        await until(lambda: counts(service)["done"] == 40 and settled(service), service)
        assert not counts(service)["dead"]
    assert {n: each for n, each in attempts.items() if each != [1, 2, 3]} == {}


def settled_or_waiting(service: Service) -> bool:
    """All have failed once, and what follows is on its way."""
    return counts(service)["retried"] >= 20


@pytest.mark.parametrize("jump", [TEN_MINUTES, -TEN_MINUTES], ids=["forward", "back"])
async def test_an_open_circuit_closes_when_the_clock_jumps(
    backend_url: str, queue: MakeQueue, wall: WallClock, jump: float
) -> None:
    work, service = queue("work"), Service("worker", broker=backend_url)
    down, done = True, set[int]()
    policy = CircuitBreaker(failures=3, within="30s", open_for="2s")

    @service.consumer(work, failure=FailurePolicy(in_place=None), circuit=policy, concurrency=2)
    async def handle(order: Order) -> None:
        if down:
            raise ConnectionError("away")
        done.add(order.n)

    async with service:
        await service.broker.publish_many(work, [Order(n) for n in range(30)])
        await until(lambda: any(status.state == "paused" for status in service.status()), service)
        opened = time.monotonic()
        wall.ahead, down = jump, False
        await until(lambda: len(done) == 28 and settled(service), service)
        assert time.monotonic() - opened >= 1.5, "it has rested, by a clock that does not jump"
        assert counts(service)["dead"] == 2, "what failed before the circuit opened"


@pytest.mark.parametrize("jump", [TEN_MINUTES, -TEN_MINUTES], ids=["forward", "back"])
async def test_requests_are_answered_when_the_clock_jumps(
    backend_url: str, queue: MakeQueue, wall: WallClock, jump: float
) -> None:
    """One that is being handled gets its answer, and so do those that are asked afterwards."""
    quotes, service = queue("quotes"), Service("shop", broker=backend_url)
    gate, running = asyncio.Event(), asyncio.Event()

    @service.responder(quotes)
    async def quote(n: int) -> int:
        if n == 1:
            running.set()
            await gate.wait()
        return n * 10

    async with service, connect(backend_url) as broker:
        assert await broker.request(quotes, 0, timeout="30s") == 0
        slow = asyncio.create_task(broker.request(quotes, 1, timeout="20s"))
        await running.wait()
        wall.ahead = jump
        gate.set()
        assert await slow == 10
        assert [await broker.request(quotes, n, timeout="20s") for n in range(2, 6)] == [20, 30, 40, 50]
        assert (broker.requests.waiting, broker.requests.expired) == (0, 0)
        # SQLite's leases go by this clock: what was being handled comes again, when nobody waits for it any more.
        assert counts(service)["late"] <= (backend_url.startswith("sqlite") and jump > 0)
