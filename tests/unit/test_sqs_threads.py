"""Threads for calls that block: every call is answered, also one that comes when they were told to end."""

from __future__ import annotations

import asyncio
import threading

import pytest

pytest.importorskip("boto3", reason="boto3 is not installed")

from atleastonce.adapters.sqs.threads import Threads


async def test_calls_beyond_the_limit_wait_for_a_thread() -> None:
    threads = Threads("t", 2)
    gate, running = threading.Event(), threading.Semaphore(0)

    def wait() -> str:
        running.release()
        gate.wait(20)
        return threading.current_thread().name

    calls = [threads.submit(wait) for _ in range(6)]
    for _ in range(2):
        assert await asyncio.to_thread(running.acquire, timeout=20)
    assert not running.acquire(blocking=False)
    gate.set()
    async with asyncio.timeout(20):
        assert set(await asyncio.gather(*calls)) == {"t"}
    threads.close()


async def test_a_call_after_the_end_is_answered() -> None:
    """Whoever cleans up last must not wait for threads that have gone."""
    ended = threading.Event()
    threads = Threads("t", 2, ended.set)
    async with asyncio.timeout(20):
        assert await threads.submit(lambda: 1) == 1
        threads.close()
        late = [threads.submit(lambda n=n: n) for n in range(5)]  # type: ignore[misc]
        assert await asyncio.gather(*late) == [0, 1, 2, 3, 4]
        assert await asyncio.to_thread(ended.wait, 20)
        assert await threads.submit(lambda: 7) == 7


async def test_an_error_is_told_to_who_waits() -> None:
    threads = Threads("t", 1)

    def fail() -> None:
        raise StopIteration("odd")

    with pytest.raises(RuntimeError, match="odd"):
        await threads.submit(fail)
    threads.close()
