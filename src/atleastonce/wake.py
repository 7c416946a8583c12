"""How tasks of one loop wake each other without a queue: a `Bell` for one waiting task, a `Signal` for any number."""

from __future__ import annotations

import asyncio


class Bell:
    """Rung by producers of work, awaited by the one task that does it.

    Ringing twice before it is heard is ringing once, and costs an attribute check. Loop thread only.
    """

    __slots__ = ("_rung", "_waiter")

    def __init__(self) -> None:
        self._rung = False
        self._waiter: asyncio.Future[None] | None = None

    def ring(self) -> None:
        """There is work."""
        if self._rung:
            return
        self._rung = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def heard(self, within: float | None = None) -> None:
        """Wait until rung, at most ``within`` seconds; returns at once if rung since the last time."""
        if not self._rung and (within is None or within > 0):
            loop = asyncio.get_running_loop()
            self._waiter = waiter = loop.create_future()
            timer = None if within is None else loop.call_later(within, _finish, waiter)
            try:
                await waiter
            finally:
                self._waiter = None
                if timer is not None:
                    timer.cancel()
        self._rung = False


class Signal:
    """Wakes everyone who waits at that moment; not remembered for who comes later. Loop thread only."""

    __slots__ = ("_waiters",)

    def __init__(self) -> None:
        self._waiters: set[asyncio.Future[None]] = set()

    def notify(self) -> None:
        """Wake all who wait."""
        if self._waiters:
            for waiter in self._waiters:
                _finish(waiter)
            self._waiters.clear()

    async def wait(self, within: float) -> None:
        """Return at the next `notify`, after ``within`` seconds at the latest."""
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        self._waiters.add(waiter)
        timer = loop.call_later(within, _finish, waiter)
        try:
            await waiter
        finally:
            timer.cancel()
            self._waiters.discard(waiter)


def _finish(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
