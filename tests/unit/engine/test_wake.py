"""Bells are not missed and not heard twice; signals wake who waits and nobody later."""

import asyncio
import time

import pytest
from engine_kit import until

from atleastonce.wake import Bell, Signal


async def waits(task: "asyncio.Task[None]") -> bool:
    """Whether ``task`` is still waiting after the loop has gone round a few times."""
    for _ in range(5):
        await asyncio.sleep(0)
    return not task.done()


async def test_a_bell_rung_before_is_heard_at_once_and_once() -> None:
    bell = Bell()
    bell.ring()
    bell.ring()
    await asyncio.wait_for(bell.heard(), 1)
    task = asyncio.create_task(bell.heard())
    assert await waits(task)
    bell.ring()
    await asyncio.wait_for(task, 1)


async def test_a_bell_rung_while_awaited_wakes() -> None:
    bell = Bell()
    task = asyncio.create_task(bell.heard())
    assert await waits(task)
    bell.ring()
    bell.ring()
    await asyncio.wait_for(task, 1)
    assert await waits(asyncio.create_task(bell.heard(5)))


async def test_a_bell_gives_up_after_its_time() -> None:
    bell = Bell()
    begin = time.monotonic()
    await bell.heard(0.02)
    assert time.monotonic() - begin >= 0.019


@pytest.mark.parametrize("within", [0, 0.0, -1.0])
async def test_a_bell_without_time_does_not_wait(within: float) -> None:
    bell = Bell()
    await asyncio.wait_for(bell.heard(within), 1)
    bell.ring()
    await asyncio.wait_for(bell.heard(within), 1)
    assert await waits(asyncio.create_task(bell.heard(5)))


async def test_a_ring_is_not_lost_when_its_hearer_is_cancelled() -> None:
    bell = Bell()
    task = asyncio.create_task(bell.heard(5))
    assert await waits(task)
    bell.ring()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(bell.heard(), 1)


async def test_a_cancelled_hearer_leaves_no_timer_behind() -> None:
    bell = Bell()
    task = asyncio.create_task(bell.heard(0.02))
    assert await waits(task)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    later = asyncio.create_task(bell.heard())
    await asyncio.sleep(0.03)  # past the time of the first one
    assert not later.done()
    bell.ring()
    await asyncio.wait_for(later, 1)


async def test_a_signal_wakes_all_who_wait_and_nobody_later() -> None:
    signal = Signal()
    tasks = [asyncio.create_task(signal.wait(5)) for _ in range(3)]
    assert await waits(tasks[0])
    signal.notify()
    await asyncio.wait_for(asyncio.gather(*tasks), 1)
    late = asyncio.create_task(signal.wait(5))
    assert await waits(late)
    signal.notify()
    await asyncio.wait_for(late, 1)


async def test_a_signal_ends_by_itself_and_forgets_the_cancelled() -> None:
    signal = Signal()
    begin = time.monotonic()
    await signal.wait(0.02)
    assert time.monotonic() - begin >= 0.019
    gone = asyncio.create_task(signal.wait(5))
    assert await waits(gone)
    gone.cancel()
    await until(gone.done)
    signal.notify()
    assert not signal._waiters
