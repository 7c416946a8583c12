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
    OK,
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
# What an adapter reports, in the words of a status: whatever lets it read is "running".
_RUNNING = dict.fromkeys(("connected", "assigned", "unblocked"), "running")

Due = Callable[[Delivery], "float | Decision"]


class Worker:
    """One source, one window, one pool. A `Supervisor` hands it one subscription after another.

    Args:
        adapter: for its capabilities, and for sending copies.
        source: what is read.
        window: the bound on everything unsettled.
        lanes: which delivery may run next.
        make_pool: builds the pool that runs the handler, given the worker to report to.
        rejection: asked when a copy is refused for good.
        due: when a delivery may run, in seconds since the epoch (0.0: now), or what becomes of it without a run; None
            where nothing is held.
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
        due: Due | None = None,
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
        self._stopped = False
        self._draining: Counter[str] = Counter()  # by stream: drains may overlap
        self._ended = Signal()
        self._room = Bell()
        self._paused: set[str] = set()
        self._pausing = asyncio.Lock()
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
        try:
            if self._paused:
                await self._tell()
            await self._receive(subscription)
        finally:
            self._subscription = None

    async def _receive(self, subscription: Subscription) -> None:
        most = self._capabilities.max_batch
        while not self._stopping:
            room = self.meter.room()
            if self._paused or not room:
                await self._room.heard()
                continue
            self._received(await subscription.receive(min(room, most), _RECEIVE_WAIT))
            # A receive served from a buffer does not suspend: lanes and settler need the loop too.
            await asyncio.sleep(0)

    async def drain_all(self, grace: float) -> bool:
        """Receive nothing more and end everything; whether all of it ended within ``grace`` seconds."""
        self._stopping = True
        self._room.ring()
        return await self._until_ended(lambda _: True, grace)

    async def stop(self) -> None:
        """Cancel what still runs and give it back, settle what can be settled, end the tasks. Idempotent.

        What does not end (a thread, a broker that does not answer) is left unsettled, to be delivered again.
        """
        self._stopping = True
        await self.pool.stop()
        self._release(self._unstarted(lambda _: True))
        deadline = time.monotonic() + _FLUSH_SECONDS
        while self._tasks and not (self.settler.idle and self.mover.idle) and time.monotonic() < deadline:
            await self._ended.wait(0.05)
            self._release(self.timers.purge(lambda _: True))  # a copy that failed again
        self._stopped = True
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.counts["unsettled"] += len(self._out)
        self._leave(list(self._out))

    async def pause(self, reason: str) -> None:
        """Stop receiving for ``reason``, until `resume` with the same one. What is in flight goes on."""
        self._paused.add(reason)
        await self._tell()

    async def resume(self, reason: str) -> None:
        """Take ``reason`` back; receiving goes on once none is left."""
        if reason not in self._paused:
            return
        self._paused.discard(reason)
        if not self._paused:
            await self._tell()
        self._room.ring()

    async def _tell(self) -> None:
        """Tell the subscription whether it is paused. One call at a time, and the last one tells how it is then."""
        async with self._pausing:
            if self._subscription is not None:
                await (self._subscription.pause() if self._paused else self._subscription.resume())

    @property
    def in_flight(self) -> int:
        """How many deliveries are received and not settled."""
        return len(self._out)

    # ---------------------------------------------------------------------------- contract.Listener

    async def drain(self, streams: Collection[str], grace: float) -> None:
        """See `Listener.drain`."""
        names = frozenset(streams)
        self._draining.update(names)
        try:
            await self._until_ended(lambda delivery: delivery.stream in names, grace)
        finally:
            self._draining = self._draining - Counter(names)  # keeps what another drain has counted

    def lost(self, streams: Collection[str] | None) -> None:
        """See `Listener.lost`: what has not started is forgotten, what runs will not be settled."""
        for delivery in self._out:
            if streams is None or delivery.stream in streams:
                delivery.lost = True
        self._forget_lost()

    def _forget_lost(self) -> None:
        # Answered as stale without being sent; they only leave the window.
        self._release(self._unstarted(lambda delivery: delivery.lost))

    def condition(self, state: str, detail: str) -> None:
        """See `Listener.condition`."""
        self.state = (_RUNNING.get(state, state), detail)
        log.info("%s: %s %s", self.source, state, detail)

    # -------------------------------------------------------------------------------------- the flow

    def _received(self, batch: Sequence[Delivery]) -> None:
        if not batch:
            return
        size = 0
        for delivery in batch:
            delivery.size = length = delivery.message.size
            size += length
        self.meter.take(len(batch), size)
        self._out.update(batch)
        self.counts["received"] += len(batch)
        if self._capabilities.lease is Leasing.EXTENDABLE:
            self.renewer.watch(batch)
        if self._stopping:
            self._release(batch)
            return
        if self._draining:
            self._release([delivery for delivery in batch if delivery.stream in self._draining])
            batch = [delivery for delivery in batch if delivery.stream not in self._draining]
        if self._due is not None:
            batch = self._hold(batch, self._due)
        self._start(batch)

    def _hold(self, batch: Sequence[Delivery], due: Due) -> list[Delivery]:
        """Put aside what is not due yet; return the rest."""
        now = time.time()
        ready: list[Delivery] = []
        for delivery in batch:
            when: float | Decision
            try:
                when = due(delivery)
            except Exception as error:  # noqa: BLE001 - it reads what others wrote; one bad message harms no other
                log.warning("%s: when it is due cannot be told (%r); it runs now", delivery.message.id, error)
                when = 0.0
            if isinstance(when, Decision):
                self.ended(delivery, when)
            elif when > now:
                self.timers.hold(delivery, when)
            else:
                ready.append(delivery)
        return ready

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
        if self._stopped:  # a thread that was left behind: its message will come again
            return
        if decision is DONE:
            self.counts["done"] += 1
            if self.lanes.ordered:
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
        failed = len(batch) - outcomes.count(OK)
        if failed:
            self.counts["unsettled"] += failed
        self._leave([delivery for delivery, _ in batch])

    def _leave(self, batch: Sequence[Delivery]) -> None:
        """These have ended, one way or another: take them off every account."""
        size = 0
        for delivery in batch:
            size += delivery.size
        if self.lanes.ordered:
            for delivery in batch:
                self.lanes.finish(delivery)
        if self.mover.failing:
            for delivery in batch:
                self.mover.forget(delivery)
        self._out.difference_update(batch)
        self.meter.give(len(batch), size)
        # A receive is worth its round trip once there is some room, or as soon as there is nothing left to start: what is
        # out may stay so for long (slow handlers, holds, a destination that is away) and must not keep the rest waiting.
        if self.meter.low or not self.lanes.ready:
            self._room.ring()
        self._ended.notify()
        if self.lanes.ready:
            self.pool.wake()

    def _tick(self, now: float) -> None:
        self.pool.cancel_late(now)

    def _ticking(self) -> bool:
        return self.pool.ticks and bool(self._out)

    def _release(self, batch: Sequence[Delivery]) -> None:
        for delivery in batch:
            self.settler.add(delivery, RELEASE)

    def _unstarted(self, unwanted: Callable[[Delivery], bool]) -> list[Delivery]:
        return self.lanes.purge(unwanted) + self.pool.reclaim(unwanted) + self.timers.purge(unwanted)

    async def _until_ended(self, concerned: Callable[[Delivery], bool], grace: float) -> bool:
        deadline = time.monotonic() + grace
        while True:
            self._release(self._unstarted(concerned))
            if not any(concerned(delivery) for delivery in self._out):
                return True
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            await self._ended.wait(min(left, 0.25))
