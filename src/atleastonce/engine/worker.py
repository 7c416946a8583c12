"""Reads one source: receives within the window, has handlers run, ends every delivery, drains."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence

from atleastonce.channels import Source
from atleastonce.contract import (
    ACK,
    RELEASE,
    Adapter,
    Delivery,
    Fault,
    Leasing,
    Outcome,
    Settlement,
    Subscription,
    Window,
)
from atleastonce.engine.decision import DONE, Decision, Rejection
from atleastonce.engine.lanes import Lanes
from atleastonce.engine.mover import Mover
from atleastonce.engine.pools import Pool
from atleastonce.engine.renewer import Renewer
from atleastonce.engine.settler import Settler
from atleastonce.engine.timers import Timers
from atleastonce.engine.wake import Bell, Signal
from atleastonce.engine.window import WindowMeter

log = logging.getLogger("atleastonce.engine")

# A receive that finds nothing returns after this long. It only bounds how stale a broken adapter can get: stopping
# cancels it.
_RECEIVE_WAIT = 5.0
# How long a stop waits for the last settlements once handlers are cancelled; then they are left to be delivered again.
_FLUSH_SECONDS = 5.0


class Worker:
    """One source, one window, one pool. A `Supervisor` hands it one subscription after another.

    Args:
        adapter: for its capabilities, and for sending copies.
        source: what is read.
        window: the bound on everything unsettled.
        lanes: which delivery may run next.
        make_pool: builds the pool that runs the handler, given the worker to report to.
        rejection: asked when a copy is refused for good.
        due: when a delivery may run, in seconds since the epoch (0.0: now); None where nothing is held.
    """

    def __init__(
        self,
        adapter: Adapter,
        source: Source,
        *,
        window: Window,
        lanes: Lanes,
        make_pool: Callable[[Worker], Pool],
        rejection: Rejection,
        due: Callable[[Delivery], float] | None = None,
    ) -> None:
        self.source = source
        self.window = window
        self.meter = WindowMeter(window)
        self.lanes = lanes
        self.counts: Counter[str] = Counter()
        self.state = ("starting", "")
        self._capabilities = adapter.capabilities
        self._due = due
        self._rejection = rejection
        self._out: set[Delivery] = set()  # received and not settled, whatever they wait for
        self._stopping = False
        self._draining: frozenset[str] = frozenset()
        self._ended = Signal()
        self._room = Bell()
        self._paused: set[str] = set()
        self._subscription: Subscription | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self.settler = Settler(self._settled)
        self.renewer = Renewer(adapter.capabilities.lease_seconds or 1.0, self._forget_lost)
        self.timers = Timers(
            run_again=self._start, publish_again=self._publish_again, tick=self._tick, ticking=self._ticking
        )
        self.mover = Mover(adapter.send, self.settler.add, self.timers.publish_later, self._refused)
        self.pool = make_pool(self)

    # ----------------------------------------------------------------------------------------------- life

    def start(self) -> None:
        """Start the tasks that live as long as the worker, across reconnects."""
        self.pool.start()
        parts = (self.settler, self.mover, self.timers, self.renewer)
        self._tasks = [asyncio.create_task(part.run()) for part in parts]

    async def read(self, subscription: Subscription) -> None:
        """Receive from ``subscription`` until it dies (raises) or the worker stops (returns)."""
        self._subscription = subscription
        self.settler.target = subscription.settle
        self.renewer.target = subscription.extend
        if self._paused:
            await subscription.pause()
        most = self._capabilities.max_batch
        while not self._stopping:
            room = self.meter.room()
            if self._paused or not room:
                await self._room.heard()
                continue
            batch = await subscription.receive(min(room, most), _RECEIVE_WAIT)
            if batch:
                self._received(batch)
                # A receive served from a buffer does not suspend: lanes and settler need the loop too.
                await asyncio.sleep(0)

    async def drain_all(self, grace: float) -> bool:
        """Receive nothing more and end everything; whether all of it ended within ``grace`` seconds."""
        self._stopping = True
        self._room.ring()
        return await self._until_ended(lambda _: True, grace)

    async def stop(self) -> None:
        """Cancel what still runs and give it back, settle what can be settled, end the tasks."""
        self._stopping = True
        await self.pool.stop()
        for delivery in self._unstarted(lambda _: True):
            self.settler.add(delivery, RELEASE)
        deadline = time.monotonic() + _FLUSH_SECONDS
        while not self.settler.idle and time.monotonic() < deadline:
            await self._ended.wait(0.05)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def pause(self, reason: str) -> None:
        """Stop receiving for ``reason``, until `resume` with the same one. What is in flight goes on."""
        self._paused.add(reason)
        if len(self._paused) == 1 and self._subscription is not None:
            await self._subscription.pause()

    async def resume(self, reason: str) -> None:
        """Take ``reason`` back; receiving goes on once none is left."""
        self._paused.discard(reason)
        if not self._paused and self._subscription is not None:
            await self._subscription.resume()
        self._room.ring()

    @property
    def in_flight(self) -> int:
        """How many deliveries are received and not settled."""
        return len(self._out)

    # ---------------------------------------------------------------------------- contract.Listener

    async def drain(self, streams: Collection[str], grace: float) -> None:
        """See `Listener.drain`."""
        names = frozenset(streams)
        self._draining |= names
        try:
            await self._until_ended(lambda delivery: delivery.stream in names, grace)
        finally:
            self._draining -= names

    def lost(self, streams: Collection[str] | None) -> None:
        """See `Listener.lost`: what has not started is forgotten, what runs will not be settled."""
        for delivery in self._out:
            if streams is None or delivery.stream in streams:
                delivery.lost = True
        self._forget_lost()

    def _forget_lost(self) -> None:
        for delivery in self._unstarted(lambda delivery: delivery.lost):
            self.settler.add(delivery, RELEASE)  # answered as stale without being sent; it only leaves the window

    def condition(self, state: str, detail: str) -> None:
        """See `Listener.condition`."""
        self.state = (state, detail)
        log.info("%s: %s %s", self.source, state, detail)

    # -------------------------------------------------------------------------------------- the flow

    def _received(self, batch: Sequence[Delivery]) -> None:
        size = 0
        for delivery in batch:
            delivery.size = delivery.message.size
            size += delivery.size
        self.meter.take(len(batch), size)
        self._out.update(batch)
        self.counts["received"] += len(batch)
        if self._capabilities.lease is Leasing.EXTENDABLE:
            self.renewer.watch(batch)
        if self._draining:
            for delivery in [d for d in batch if d.stream in self._draining]:
                self.settler.add(delivery, RELEASE)
            batch = [d for d in batch if d.stream not in self._draining]
        if self._due is not None:
            now = time.time()
            for delivery in batch:
                if (when := self._due(delivery)) > now:
                    self.timers.hold(delivery, when)
                else:
                    self._start((delivery,))
        else:
            self._start(batch)

    def _start(self, batch: Sequence[Delivery]) -> None:
        if any(delivery.tries for delivery in batch):
            self.lanes.again([delivery for delivery in batch if delivery.tries])
            batch = [delivery for delivery in batch if not delivery.tries]
        self.lanes.offer(batch)
        self.pool.wake()
        if self.pool.ticks:
            self.timers.poke()

    def ended(self, delivery: Delivery, decision: Decision) -> None:
        """A run is over (told by the pool, on the loop): settle, move, or run again."""
        if decision is DONE:
            self.counts["done"] += 1
            self.lanes.finish(delivery)
            self.settler.add(delivery, ACK)
            return
        self.counts[decision.name] += 1
        if delivery.lost:
            self.settler.add(delivery, RELEASE)
        elif decision.again is not None:
            if self._stopping or delivery.stream in self._draining:
                self.settler.add(delivery, RELEASE)
            else:
                self.timers.again(delivery, decision.again)
        elif decision.copies:
            self.mover.add(delivery, decision)
        else:
            self.settler.add(delivery, decision.verdict)

    def _refused(self, delivery: Delivery, decision: Decision, fault: Fault) -> bool:
        other = self._rejection(delivery, decision, fault)
        if other is None:
            return False
        self.counts[decision.name] -= 1  # that is not how it ends after all
        self.ended(delivery, other)
        return True

    def _publish_again(self, delivery: Delivery, decision: Decision) -> None:
        if delivery.lost:
            self.settler.add(delivery, RELEASE)
        else:
            self.mover.add(delivery, decision)

    def _settled(self, batch: Sequence[Settlement], outcomes: Sequence[Outcome]) -> None:
        size = 0
        for delivery, _ in batch:
            size += delivery.size
            self.lanes.finish(delivery)
        if self.mover.failing:
            for delivery, _ in batch:
                self.mover.forget(delivery)
        self._out.difference_update([delivery for delivery, _ in batch])
        self.meter.give(len(batch), size)
        failed = len(batch) - sum(1 for outcome in outcomes if outcome.ok)
        if failed:
            self.counts["unsettled"] += failed
        if self.meter.low:
            self._room.ring()
        self._ended.notify()
        if len(self.lanes):
            self.pool.wake()

    def _tick(self, now: float) -> None:
        self.pool.cancel_late(now)

    def _ticking(self) -> bool:
        return self.pool.ticks and bool(self._out)

    def _unstarted(self, unwanted: Callable[[Delivery], bool]) -> list[Delivery]:
        return self.lanes.purge(unwanted) + self.pool.reclaim(unwanted) + self.timers.purge(unwanted)

    async def _until_ended(self, concerned: Callable[[Delivery], bool], grace: float) -> bool:
        deadline = time.monotonic() + grace
        while True:
            for delivery in self._unstarted(concerned):
                self.settler.add(delivery, RELEASE)
            if not any(concerned(delivery) for delivery in self._out):
                return True
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            await self._ended.wait(min(left, 0.25))
