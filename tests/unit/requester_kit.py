"""A responder that does as the test says."""

from __future__ import annotations

import asyncio

from atleastonce import RemoteError


class Shop:
    """Answers ``n * 10``. ``n`` below 0 fails, and from -100 down for good; each of ``slow`` waits for the gate, once.

    Args:
        takes: seconds for each answer.

    Attributes:
        runs: what was asked, in the order in which it began.
        most: how many ran at once.
    """

    def __init__(self, takes: float = 0.0) -> None:
        self.runs: list[int] = []
        self.slow: set[int] = set()
        self.gate = asyncio.Event()
        self.most = 0
        self._now = 0
        self._takes = takes

    async def quote(self, n: int) -> int:
        self.runs.append(n)
        self._now += 1
        self.most = max(self.most, self._now)
        try:
            if n in self.slow:
                self.slow.discard(n)
                await self.gate.wait()
            await asyncio.sleep(self._takes)
            if n < 0:
                raise RemoteError("Broken", str(n), retryable=n > -100)
            return n * 10
        finally:
            self._now -= 1
