"""Everything that waits for a time: never early, whatever the wall clock does; purged where it waits."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest
from engine_kit import copy, deliveries, delivery, ids, until

from atleastonce.contract import Delivery
from atleastonce.engine import timers as module
from atleastonce.engine.decision import Decision
from atleastonce.engine.timers import Timers

MOVE = Decision(copies=(copy(),))


class Woken:
    def __init__(self) -> None:
        self.runs: list[tuple[str, float]] = []
        self.batches: list[list[str]] = []
        self.publishes: list[tuple[str, Decision, float]] = []
        self.ticks: list[float] = []
        self.ticking = False
        self.timers = Timers(
            run_again=self._run,
            publish_again=lambda item, decision: self.publishes.append((item.message.id, decision, time.monotonic())),
            tick=self.ticks.append,
            ticking=lambda: self.ticking,
        )

    def _run(self, batch: list[Delivery]) -> None:
        self.batches.append(ids(batch))
        self.runs.extend((name, time.monotonic()) for name in ids(batch))

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.runs]


@contextlib.asynccontextmanager
async def ticking() -> AsyncIterator[Woken]:
    woken = Woken()
    task = asyncio.create_task(woken.timers.run())
    try:
        yield woken
        assert not task.done(), task
    finally:
        task.cancel()
        await asyncio.wait([task])


class WallClock:
    """`time.time` as the timers see it, moved by the test; the monotonic clock goes on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.offset = 0.0

        class Clocks:
            monotonic = staticmethod(time.monotonic)
            time = staticmethod(lambda: time.time() + self.offset)

        monkeypatch.setattr(module, "time", Clocks)

    def __call__(self) -> float:
        return time.time() + self.offset


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> WallClock:
    monkeypatch.setattr(module, "_WALL_CLOCK_CHECK", 0.01)
    return WallClock(monkeypatch)


async def test_runs_in_place_come_after_their_wait_in_the_order_of_their_time() -> None:
    async with ticking() as woken:
        begin = time.monotonic()
        woken.timers.again(delivery("late"), 0.03)
        woken.timers.again(delivery("early"), 0.01)
        assert woken.timers.holding == 2
        await until(lambda: len(woken.runs) == 2)
        assert woken.names == ["early", "late"]
        assert woken.runs[0][1] - begin >= 0.01
        assert woken.runs[1][1] - begin >= 0.03
        assert woken.timers.holding == 0


async def test_what_is_due_at_once_runs_at_once_and_as_one_batch() -> None:
    async with ticking() as woken:
        for item in deliveries(3):
            woken.timers.again(item, 0.0)
        await until(lambda: len(woken.runs) == 3)
        assert woken.batches == [["m0", "m1", "m2"]]


async def test_copies_are_published_again_after_their_wait() -> None:
    async with ticking() as woken:
        begin = time.monotonic()
        woken.timers.publish_later(0.02, delivery("m"), MOVE)
        await until(lambda: woken.publishes)
        ((name, decision, when),) = woken.publishes
        assert (name, decision) == ("m", MOVE)
        assert when - begin >= 0.02


async def test_what_is_held_runs_when_the_wall_clock_says_so(wall: WallClock) -> None:
    async with ticking() as woken:
        due = wall() + 0.03
        woken.timers.hold(delivery("m"), due)
        await until(lambda: woken.runs)
        assert wall() >= due


async def test_a_wall_clock_that_steps_forward_ends_the_wait_soon(wall: WallClock) -> None:
    async with ticking() as woken:
        woken.timers.hold(delivery("m"), wall() + 3600)
        await asyncio.sleep(0.02)  # several looks at the clock
        assert not woken.runs
        wall.offset = 3601
        await until(lambda: woken.runs, within=1)


async def test_a_wall_clock_that_steps_back_lets_nothing_run_early(wall: WallClock) -> None:
    async with ticking() as woken:
        due = wall() + 0.03
        woken.timers.hold(delivery("m"), due)
        wall.offset = -0.1
        await until(lambda: woken.runs, within=2)
        assert wall() >= due


async def test_a_wall_clock_that_was_put_back_has_what_is_held_looked_at_anew(wall: WallClock) -> None:
    """Else it would be held until the clock is there again: for ten minutes, or for as long as it was wrong."""
    async with ticking() as woken:
        for item in deliveries(2):
            woken.timers.hold(item, wall() + 3600)
        woken.timers.again(delivery("in place"), 3600)
        wall.offset = -600
        await until(lambda: woken.runs, within=1)
        assert woken.batches == [["m0", "m1"]]
        for item in deliveries(2):
            woken.timers.hold(item, wall() + 3600)
        await asyncio.sleep(0.05)  # several looks at a clock that goes on as it should
        assert len(woken.batches) == 1


async def test_steps_of_the_wall_clock_do_not_touch_waits_in_place(wall: WallClock) -> None:
    async with ticking() as woken:
        begin = time.monotonic()
        wall.offset = 3600
        woken.timers.again(delivery("m"), 0.02)
        wall.offset = -3600
        await until(lambda: woken.runs, within=1)
        assert woken.runs[0][1] - begin >= 0.02


async def test_purge_takes_what_is_unwanted_from_every_wait_and_nothing_else() -> None:
    async with ticking() as woken:
        again, held, published = (deliveries(3, prefix=prefix) for prefix in ("again", "held", "copy"))
        for item in again:
            woken.timers.again(item, 60)
        for item in held:
            woken.timers.hold(item, time.time() + 60)
        for item in published:
            woken.timers.publish_later(60, item, MOVE)
        assert woken.timers.holding == 9
        gone = woken.timers.purge(lambda item: item.message.id.endswith("1"))
        assert sorted(ids(gone)) == ["again1", "held1"]
        assert ids(woken.timers.purge_copies(lambda item: item.message.id.endswith("1"))) == ["copy1"]
        assert woken.timers.holding == 6
        assert len(woken.timers.purge(lambda _: True)) == 4
        assert len(woken.timers.purge_copies(lambda _: True)) == 2
        assert not woken.runs
        assert not woken.publishes


async def test_ticks_come_while_asked_for_and_stop_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TIMEOUT_CHECK", 0.002)
    async with ticking() as woken:
        woken.ticking = True
        woken.timers.poke()
        await until(lambda: len(woken.ticks) >= 4)
        assert woken.ticks == sorted(woken.ticks)
        woken.ticking = False
        await asyncio.sleep(0.01)
        count = len(woken.ticks)
        await asyncio.sleep(0.01)
        assert len(woken.ticks) == count
