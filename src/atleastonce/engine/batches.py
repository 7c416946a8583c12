"""Runs batch handlers: lists of deliveries, closed by size or by time, each member with a decision of its own."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from atleastonce.contract import Delivery
from atleastonce.engine.decision import GIVE_BACK, Decision
from atleastonce.engine.lanes import Lanes
from atleastonce.engine.pools import Ended, Fatal

log = logging.getLogger("atleastonce.engine")

BatchProcess = Callable[[Sequence[Delivery]], Awaitable[Sequence[Decision]]]


class BatchPool:
    """``concurrency`` tasks, each collecting a batch and awaiting its handler.

    Args:
        process: one decision for each delivery, in order.
        max_messages: a batch never has more.
        max_wait: seconds from a batch's first message until it runs with what it has. Too small: small batches; too large: latency.
    """

    ticks = False

    def __init__(
        self,
        process: BatchProcess,
        lanes: Lanes,
        concurrency: int,
        *,
        max_messages: int,
        max_wait: float,
        ended: Ended,
        fatal: Fatal,
    ) -> None:
        self._process = process
        self._lanes = lanes
        self._concurrency = concurrency
        self._max_messages = max_messages
        self._max_wait = max_wait
        self._ended = ended
        self._fatal = fatal
        self._tasks: list[asyncio.Task[None]] = []
        self._idle: deque[asyncio.Future[None]] = deque()
        self._collecting: dict[int, list[Delivery]] = {}
        self._stopping = False

    def start(self) -> None:
        """Begin, on the running loop."""
        self._tasks = [asyncio.create_task(self._lane(slot)) for slot in range(self._concurrency)]

    def wake(self) -> None:
        """See `Pool.wake`."""
        while self._idle:
            waiter = self._idle.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def cancel_late(self, now: float) -> None:
        """Batches have no timeout."""

    def reclaim(self, unwanted: Callable[[Delivery], bool]) -> list[Delivery]:
        """Take ``unwanted`` members out of the batches that are still being collected."""
        back: list[Delivery] = []
        for batch in self._collecting.values():
            gone = [delivery for delivery in batch if unwanted(delivery)]
            batch[:] = [delivery for delivery in batch if not unwanted(delivery)]
            back += gone
        return back

    async def stop(self) -> None:
        """Cancel; what was collected or running is given back."""
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _lane(self, slot: int) -> None:
        while True:
            batch = self._collecting[slot] = []
            try:
                await self._collect(batch)
                del self._collecting[slot]
                if batch:
                    await self._run(batch)
            except asyncio.CancelledError:
                for delivery in batch:
                    if not delivery.settled:
                        self._ended(delivery, GIVE_BACK)
                if self._stopping:
                    raise

    async def _collect(self, batch: list[Delivery]) -> None:
        deadline: float | None = None
        while len(batch) < self._max_messages:
            delivery = self._lanes.take()
            if delivery is not None:
                batch.append(delivery)
                if deadline is None:
                    deadline = time.monotonic() + self._max_wait
                continue
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return
            await self._more(left)

    async def _more(self, within: float | None) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._idle.append(waiter)
        try:
            async with asyncio.timeout(within):
                await waiter
        except TimeoutError:
            pass
        finally:
            if waiter in self._idle:
                self._idle.remove(waiter)

    async def _run(self, batch: list[Delivery]) -> None:
        try:
            decisions = await self._process(batch)
        except (SystemExit, KeyboardInterrupt) as stop:
            self._fatal(stop)
            decisions = [GIVE_BACK] * len(batch)
        for delivery, decision in zip(batch, decisions, strict=True):
            self._ended(delivery, decision)
