"""The flood guard at work: pauses the readers of one consumer while the guard wants it, and wakes what was held."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

from atleastonce.contract import Delivery
from atleastonce.engine.worker import Worker
from atleastonce.patterns.flood import DeadLetterPolicy, FloodGuard, Gate

log = logging.getLogger("atleastonce")

# How often the guard is looked at while the gate is not open: so late is a probe, and the end of a pause, at most.
_LOOK_SECONDS = 0.05
_REASON = "dead-letter flood"


class Floodgate:
    """One consumer's guard and the readers it stands before. Made on the event loop.

    Args:
        name: of the consumer's source, for logs.
        policy: the limits.

    Attributes:
        failed: see `FloodGuard.failed`; itself, since it is called for each message that fails. From any thread.
    """

    def __init__(self, name: str, policy: DeadLetterPolicy) -> None:
        self._name = name
        self._workers: list[Worker] = []
        self._loop = asyncio.get_running_loop()
        self._watching: asyncio.Task[None] | None = None
        self._held: set[Delivery] = set()
        self._closed = False
        self._guard = FloodGuard(policy, self._done, time.monotonic, self._tripped)
        self.failed = self._guard.failed

    def add(self, worker: Worker) -> None:
        """One more reader, to be counted and paused."""
        self._workers.append(worker)

    def given_up(self, delivery: Delivery, words: str) -> float | None:
        """As `FloodGuard.given_up`; what is held is woken when the flood is over. From any thread."""
        wait = self._guard.given_up(words)
        if wait is not None:
            self._held.add(delivery)
        return wait

    @property
    def detail(self) -> str:
        """See `FloodGuard.detail`."""
        return self._guard.detail

    async def open(self) -> None:
        """Go on by hand: read again, and count from nothing."""
        if self._guard.gate is not Gate.OPEN:
            log.warning("%s: resumed by hand", self._name)
        self._guard.reset()
        watching = self._watching
        if watching is not None:
            await asyncio.wait([watching])

    def close(self) -> None:
        """The readers are stopping: leave them alone."""
        self._closed = True
        if self._watching is not None:
            self._watching.cancel()

    def _done(self) -> int:
        return sum(worker.counts["done"] + worker.counts["discarded"] for worker in self._workers)

    def _tripped(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody reads any more
            self._loop.call_soon_threadsafe(self._watch)

    def _watch(self) -> None:
        if self._closed:
            return
        if self._watching is None or self._watching.done():
            self._watching = self._loop.create_task(self._guarding(), name=f"atleastonce-floodgate-{self._name}")

    async def _guarding(self) -> None:
        was = Gate.OPEN
        while True:
            now = self._guard.look()
            if now is not was:
                await self._follow(now)
                was = now
            if now is Gate.OPEN:
                return
            self._held = {delivery for delivery in list(self._held) if not delivery.settled and not delivery.lost}
            await asyncio.sleep(_LOOK_SECONDS)

    async def _follow(self, gate: Gate) -> None:
        if gate is Gate.SHUT:
            log.error("%s: paused: %s", self._name, self._guard.detail)
        elif gate is Gate.OPEN:
            log.warning("%s: the flood of dead letters is over; reading again", self._name)
        for worker in self._workers:
            await (worker.pause(_REASON) if gate is Gate.SHUT else worker.resume(_REASON))
        if gate is Gate.OPEN:
            held, self._held = self._held, set()
            for worker in self._workers:
                worker.hasten(held.__contains__)
