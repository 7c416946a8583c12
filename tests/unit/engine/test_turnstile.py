"""How one handler runs alone, and what that costs the others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from atleastonce.engine import turnstile as module
from atleastonce.engine.turnstile import Turnstile

_SECOND = 1.0


class Place:
    """A pool with one handler."""

    def __init__(self) -> None:
        self.busy = 0


class Reader:
    """Starts a handler of so many seconds whenever the last one has ended and it may."""

    def __init__(self, seconds: float) -> None:
        self.pool = Place()
        self.started: list[float] = []
        self.longest_halt = 0.0
        self._seconds = seconds
        self._open = asyncio.Event()
        self._open.set()
        self._halted_at = 0.0
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            while not self._open.is_set():  # it may have been halted again since it was woken
                await self._open.wait()
            self.pool.busy = 1
            self.started.append(time.monotonic())
            await asyncio.sleep(self._seconds)
            self.pool.busy = 0

    def halt(self) -> None:
        if self._open.is_set():
            self._open.clear()
            self._halted_at = time.monotonic()

    def let_go(self) -> None:
        if not self._open.is_set():
            self._open.set()
            self.longest_halt = max(self.longest_halt, time.monotonic() - self._halted_at)

    def end(self) -> None:
        self._task.cancel()


class Readers:
    def __init__(self) -> None:
        self.turnstile = Turnstile()
        self.made: list[Reader] = []

    def add(self, seconds: float) -> Reader:
        made = Reader(seconds)
        self.made.append(made)
        self.turnstile.add(made)  # type: ignore[arg-type]
        return made


@pytest.fixture
async def readers() -> AsyncIterator[Readers]:
    made = Readers()
    yield made
    for each in made.made:
        each.end()


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> float:
    """A tenth of everything."""
    monkeypatch.setattr(module, "BRIEF", _SECOND / 10)
    return _SECOND / 10


async def test_a_slow_handler_holds_up_its_own_reader_alone_while_it_is_waited_for(
    readers: Readers, brief: float
) -> None:
    slow, quick = readers.add(1.5), readers.add(0.005)
    await asyncio.sleep(0.02)
    began = time.monotonic()
    async with readers.turnstile.alone(5.0) as alone:
        assert alone
        assert (slow.pool.busy, quick.pool.busy) == (0, 0)
        waited = time.monotonic() - began
        assert waited > 1.0
        assert len([at for at in quick.started if at > began]) > 20
        assert quick.longest_halt < brief + 0.5
        assert [at for at in slow.started if at > began] == []


async def test_who_is_not_alone_in_time_lets_all_go_and_nobody_waits_again_for_four_times_as_long(
    readers: Readers, brief: float
) -> None:
    readers.add(3600.0)
    quick = readers.add(0.005)
    await asyncio.sleep(0.02)
    began = time.monotonic()
    async with readers.turnstile.alone(brief) as alone:
        assert not alone
        before = len(quick.started)
        await asyncio.sleep(0.2)
        assert len(quick.started) > before
    async with readers.turnstile.alone(brief) as alone:
        assert not alone
        assert time.monotonic() - began >= 5.5 * brief
    assert quick.longest_halt < brief + 0.5


async def test_whoever_becomes_slow_meanwhile_is_waited_for_as_well(readers: Readers) -> None:
    first, second = readers.add(0.6), readers.add(0.9)
    await asyncio.sleep(0.02)
    async with readers.turnstile.alone(10.0) as alone:
        assert alone
        assert (first.pool.busy, second.pool.busy) == (0, 0)
        started = len(first.started), len(second.started)
        await asyncio.sleep(0.3)
        assert (len(first.started), len(second.started)) == started


async def test_nothing_starts_while_everybody_stands_still(readers: Readers) -> None:
    slow, quick = readers.add(0.05), readers.add(0.005)
    await asyncio.sleep(0.02)
    async with readers.turnstile.still():
        assert (slow.pool.busy, quick.pool.busy) == (0, 0)
        started = len(slow.started), len(quick.started)
        await asyncio.sleep(0.05)
        late = readers.add(0.005)
        await asyncio.sleep(0.05)
        assert (len(slow.started), len(quick.started)) == started
        assert len(late.started) <= 1  # it had begun before it was added
    await asyncio.sleep(0.05)
    assert len(slow.started) > started[0]
    assert len(quick.started) > started[1]


async def test_who_stands_still_waits_for_no_slow_handler(readers: Readers, brief: float) -> None:
    slow, quick = readers.add(3600.0), readers.add(0.005)
    await asyncio.sleep(0.02)
    began = time.monotonic()
    async with readers.turnstile.still():
        assert brief <= time.monotonic() - began < brief + 0.5
        assert (slow.pool.busy, quick.pool.busy) == (1, 0)


async def test_nobody_stands_still_within_a_turn_until_it_is_shared(readers: Readers) -> None:
    """What runs alone may be what ends the process."""
    readers.add(0.005)
    came: list[str] = []

    async def still() -> None:
        async with readers.turnstile.still():
            came.append("still")

    async with readers.turnstile.alone() as alone:
        assert alone
        waiting = asyncio.create_task(still())
        await asyncio.sleep(0.25)  # longer than handlers are waited for
        assert came == []
        readers.turnstile.share()
        await asyncio.sleep(0.05)
        assert came == ["still"]
    await waiting


async def test_nobody_is_alone_while_everybody_stands_still(readers: Readers) -> None:
    quick = readers.add(0.005)
    came: list[bool] = []

    async def turn() -> None:
        async with readers.turnstile.alone(5.0) as alone:
            came.append(alone)
            started = len(quick.started)
            await asyncio.sleep(0.05)
            assert len(quick.started) == started

    async with readers.turnstile.still():
        turning = asyncio.create_task(turn())
        await asyncio.sleep(0.35)  # longer than a turn waits for all
        assert came == []
    await turning
    assert came == [True]
    started = len(quick.started)
    await asyncio.sleep(0.05)
    assert len(quick.started) > started


async def test_whom_a_turn_waits_for_is_not_let_go_by_who_stood_still(readers: Readers, brief: float) -> None:
    slow, quick = readers.add(1.0), readers.add(0.005)
    await asyncio.sleep(0.02)
    began = time.monotonic()

    async def turn() -> None:
        async with readers.turnstile.alone(5.0) as alone:
            assert alone
            assert [at for at in slow.started if at > began] == []
            assert [at for at in quick.started if at > began]

    turning = asyncio.create_task(turn())
    await asyncio.sleep(2 * brief)  # only the slow one is waited for by now
    async with readers.turnstile.still():
        pass
    await turning
