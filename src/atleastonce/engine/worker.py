"""Reads one source: receives within the window, has handlers run, ends every delivery, drains."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from operator import attrgetter
from typing import NamedTuple

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
    Transacts,
    Window,
)
from atleastonce.engine.decision import DONE, Decision, Rejection
from atleastonce.engine.gate import Gate
from atleastonce.engine.handoff import Handoff
from atleastonce.engine.lanes import Lanes
from atleastonce.engine.mover import Mover, Send
from atleastonce.engine.pools import Pool
from atleastonce.engine.rate import TokenBucket
from atleastonce.engine.renewer import Renewer
from atleastonce.engine.settler import Settler
from atleastonce.engine.tally import Tally
from atleastonce.engine.timers import Timers
from atleastonce.engine.wake import Bell, Signal
from atleastonce.engine.window import WindowMeter
from atleastonce.errors import ConfigurationError

log = logging.getLogger("atleastonce.engine")

# A receive that finds nothing returns after this long. It only bounds how stale a broken adapter can get: stopping
# cancels it.
_RECEIVE_WAIT = 5.0
# How long a stop waits for the last settlements once handlers are cancelled; then they are left to be delivered again.
_FLUSH_SECONDS = 5.0
# How many messages a warning names: enough to look for, few enough to read.
_NAMED = 5
# How late a message begins before its worker is behind, and for how long it stays so after the last one.
_LATE_SECONDS, _BEHIND_SECONDS = 0.05, 0.1
# The longest that a worker whose `elders` are behind receives nothing. Too short: fresh messages take the machine from those that
# are due. Too long: a backlog of due ones keeps fresh ones waiting.
_GIVE_WAY_SECONDS = 1.0
_LOOK_SECONDS = 0.002
# What an adapter reports, in the words of a status: whatever lets it read is "running".
_RUNNING = dict.fromkeys(("connected", "assigned", "unblocked"), "running")

# What is asked of every delivery of a list is asked without a step of Python's for each.
_SIZE, _COUNT = attrgetter("size"), attrgetter("count")

Due = Callable[[Delivery], "float | Decision"]


class Suspicion(NamedTuple):
    """Which deliveries do not start here, because they may be what ended a process.

    Attributes:
        hand_outs: from how many on one is suspected; `Delivery.count`.
        move: what becomes of it instead.
    """

    hand_outs: int
    move: Callable[[Delivery], Decision]


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
        suspicion: which deliveries may not start here; None where all may.
        give_back: what becomes of a delivery that is given back; None for a `Release`.
        gate: asked before a delivery may run, and told before it is settled; None where nobody is.
        judged: told how a run ended, by the name of its decision, while it still has its lane; None where nobody is.
        rate: how fast messages may be received, with whoever shares it; None for no limit.
        send: publishes copies; None for the adapter's own.

    Attributes:
        elders: workers whose messages have waited for their turn already: while one of them has places and not the time to fill
            them, this one receives next to nothing.
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
        suspicion: Suspicion | None = None,
        give_back: Callable[[Delivery], Decision] | None = None,
        gate: Gate | None = None,
        judged: Callable[[Delivery, str], None] | None = None,
        rate: TokenBucket | None = None,
        send: Send | None = None,
    ) -> None:
        self.source = source
        self.window = window
        self.meter = WindowMeter(window)
        self.lanes = lanes
        self.counts = Tally()
        self.state = ("starting", "")
        self.elders: list[Worker] = []
        self._late_at = 0.0
        self._capabilities = adapter.capabilities
        self._due = due
        self._suspicion = suspicion
        self._give_back = give_back
        self._judged = judged
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
            run_again=self._woken, publish_again=self._publish_again, tick=self._tick, ticking=self._ticking
        )
        self._gate = gate
        self._rate = rate
        self._settle = self.settler.add
        if gate is not None:
            gate.attach(self, self.settler.add)
            self._settle = gate.settle
        self._handoff: Handoff | None = None
        self.mover = self._make_mover(send or adapter.send)
        self.pool = make_pool(self)

    def _make_mover(self, send: Send) -> Mover | Handoff:
        waits = (self.timers.publish_later, self._refused)
        if not self.window.transactional:
            return Mover(send, self._settle, *waits)
        self._handoff = Handoff(max(1, self.window.messages // 2), self._settle, self._settled, *waits)
        self._settle = self._handoff.settle
        return self._handoff

    # ----------------------------------------------------------------------------------------------- life

    def start(self) -> None:
        """Start the tasks that live as long as the worker, across reconnects."""
        self.pool.start()
        parts = (self.settler, self.mover, self.timers, self.renewer)
        self._tasks = [asyncio.create_task(part.run()) for part in parts]
        if self._gate is not None:
            self._tasks.append(asyncio.create_task(self._gate.run()))

    async def read(self, subscription: Subscription) -> None:
        """Receive from ``subscription`` until it dies (raises) or the worker stops (returns)."""
        self._attach(subscription)
        try:
            if self._paused:
                await self._tell()
            await self._receive(subscription)
        finally:
            self._subscription = None

    def _attach(self, subscription: Subscription) -> None:
        self._subscription = subscription
        self.settler.target = subscription.settle
        self.renewer.target = subscription.extend
        if self._handoff is not None:
            if not isinstance(subscription, Transacts):
                raise ConfigurationError(f"{self.source}: this broker has no transactions")
            self._handoff.target = subscription.hand_off

    async def read_one(self, subscription: Subscription, max_wait: float) -> bool:
        """Receive one message from ``subscription``, whose window is one, and return when it has ended; False if none came.
        No other is handed out meanwhile, nor before the next call."""
        self._attach(subscription)
        try:
            await subscription.resume()
            batch = await subscription.receive(1, max_wait)
            await subscription.pause()
            self._received(batch)
            while self._out:
                await self._ended.wait(1.0)
            return bool(batch)
        finally:
            self._subscription = None

    async def _receive(self, subscription: Subscription) -> None:
        most = self._capabilities.max_batch
        while not self._stopping:
            room = self.meter.room()
            if self._paused or not room:
                await self._room.heard()
                continue
            if self.elders:
                await self._give_way()
            room = min(room, most)
            if self._rate is None:
                self._received(await subscription.receive(room, _RECEIVE_WAIT))
            elif granted := self._rate.take(room):
                batch: Sequence[Delivery] = ()
                try:
                    batch = await subscription.receive(granted, _RECEIVE_WAIT)
                finally:
                    self._rate.give_back(granted - len(batch))
                self._received(batch)
            else:
                await self._room.heard(self._rate.wait)
            # A receive served from a buffer does not suspend: lanes and settler need the loop too.
            await asyncio.sleep(0)

    async def _give_way(self) -> None:
        deadline = time.monotonic() + _GIVE_WAY_SECONDS
        # Polled: what ends it is the passing of time, or the emptiness of other workers.
        while not self._stopping and any(elder.behind for elder in self.elders) and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_SECONDS)

    @property
    def behind(self) -> bool:
        """Whether messages wait here although there is a place to run them: what it lacks is the machine's time."""
        return self.pool.vacant and (self.lanes.ready or time.monotonic() - self._late_at < _BEHIND_SECONDS)

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
        while self._tasks and not self._idle() and time.monotonic() < deadline:
            await self._ended.wait(0.05)
            self._release(self.timers.purge(lambda _: True))  # a copy that failed again
        self._stopped = True
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._out:
            names = [delivery.message.id for delivery in self._out]
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            log.warning(
                "%s: %d ended unsettled and will be delivered again: %s%s",
                self.source,
                len(names),
                ", ".join(names[:_NAMED]),
                more,
            )
        self.counts["unsettled"] += len(self._out)
        self._leave(list(self._out))

    def _idle(self) -> bool:
        return self.settler.idle and self.mover.idle and (self._gate is None or self._gate.idle)

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

    @property
    def paused(self) -> str:
        """Why nothing is received: the reasons of `pause`; "" if it is not paused."""
        return ", ".join(sorted(self._paused))

    def hasten(self, wanted: Callable[[Delivery], bool]) -> None:
        """Run now what waits to run again in place and is ``wanted``."""
        self.timers.hasten(wanted)

    async def _tell(self) -> None:
        """Tell the subscription whether it is paused. One call at a time, and the last one tells how it is then."""
        async with self._pausing:
            if self._subscription is not None:
                await (self._subscription.pause() if self._paused else self._subscription.resume())

    @property
    def in_flight(self) -> int:
        """How many deliveries are received and not settled."""
        return len(self._out)

    # ------------------------------------------------------------------------------- engine.turnstile

    def halt(self) -> None:
        """Start nothing more until `let_go`. What is in flight stays so."""
        self.lanes.closed = True
        self.pool.reclaim(lambda _: False)  # what threads were handed and have not begun waits here, too

    def let_go(self) -> None:
        """Start again."""
        self.lanes.closed = False
        self.pool.wake()

    @property
    def stopping(self) -> bool:
        """Whether it receives nothing more."""
        return self._stopping

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
        self._release(self._unstarted(lambda delivery: delivery.lost, in_order=False))

    def condition(self, state: str, detail: str) -> None:
        """See `Listener.condition`."""
        self.state = (_RUNNING.get(state, state), detail)
        log.info("%s: %s %s", self.source, state, detail)

    # -------------------------------------------------------------------------------------- the flow

    def _received(self, batch: Sequence[Delivery]) -> None:
        if not batch:
            return
        self.meter.take(len(batch), sum(map(_SIZE, batch)))
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
        latest = 0.0
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
                latest = max(latest, now - when if when else 0.0)
                ready.append(delivery)
        if latest > _LATE_SECONDS:
            self._late_at = time.monotonic()
        return ready

    def _woken(self, batch: Sequence[Delivery]) -> None:
        """A wait is over; whether it was the last one is asked anew."""
        ready = batch if self._due is None else self._hold(batch, self._due)
        # What still has its lane goes on in it, whatever it counts as.
        begun = [delivery for delivery in ready if delivery.tries or self.lanes.holds(delivery)]
        if begun:
            self.lanes.again(begun)
            self._look()  # itself: a gate that nothing else enters may never admit anything
            ready = [delivery for delivery in ready if delivery not in begun]
        self._start(ready)

    def _start(self, batch: Sequence[Delivery]) -> None:
        if self._suspicion is not None:
            batch = self._unsuspected(batch, self._suspicion)
        if self._gate is not None:
            self._gate.enter(batch)
        else:
            self._offer(batch)

    def admit(self, batch: Sequence[Delivery]) -> None:
        """What has entered the gate may run; if it still may."""
        out = [d for d in batch if self._stopping or d.lost or d.stream in self._draining]
        self._release(out)
        self._offer([delivery for delivery in batch if delivery not in out] if out else batch)

    def _offer(self, batch: Sequence[Delivery]) -> None:
        self.lanes.offer(batch)
        self._look()

    def _look(self) -> None:
        """There is something in the lanes that may run."""
        self.pool.wake()
        if self.pool.ticks:
            self.timers.poke()

    def _unsuspected(self, batch: Sequence[Delivery], suspicion: Suspicion) -> Sequence[Delivery]:
        """Move what may have ended a process; return the rest."""
        if not batch or max(map(_COUNT, batch)) < suspicion.hand_outs:
            return batch
        suspects = [delivery for delivery in batch if delivery.count >= suspicion.hand_outs]
        for delivery in suspects:
            self.ended(delivery, suspicion.move(delivery))
        return [delivery for delivery in batch if delivery.count < suspicion.hand_outs]

    def ended(self, delivery: Delivery, decision: Decision) -> None:
        """A run is over (told by the pool, on the loop): settle, move, or run again."""
        if self._stopped:  # a thread that was left behind: its message will come again
            return
        if decision is DONE:
            self.counts["done"] += 1
            if self.lanes.ordered:
                if self._judged is not None:
                    self._judged(delivery, "done")
                self.lanes.finish(delivery)
            self._settle(delivery, ACK)
            return
        self.counts[decision.name] += 1
        if self._judged is not None:
            self._judged(delivery, decision.name)
        if delivery.lost:
            self._settle(delivery, RELEASE)
        elif decision.again is not None:
            if self._stopping or delivery.stream in self._draining:
                self._release([delivery])
            else:
                self.timers.again(delivery, decision.again)
        elif decision.copies:
            self.mover.add(delivery, decision)
        elif decision.verdict is RELEASE:
            self._release([delivery])
        else:
            self._settle(delivery, decision.verdict)

    def _refused(self, delivery: Delivery, decision: Decision, fault: Fault) -> bool:
        other = self._rejection(delivery, decision, fault)
        if other is None:
            return False
        self.counts[decision.name] -= 1  # that is not how it ends after all
        self.ended(delivery, other)
        return True

    def _publish_again(self, delivery: Delivery, decision: Decision) -> None:
        if delivery.lost:
            self._settle(delivery, RELEASE)
        else:
            self.mover.add(delivery, decision)

    def _settled(self, batch: Sequence[Settlement], outcomes: Sequence[Outcome]) -> None:
        failed = len(batch) - outcomes.count(OK)
        if failed:
            self.counts["unsettled"] += failed
        self._leave([delivery for delivery, _ in batch])

    def _leave(self, batch: Sequence[Delivery]) -> None:
        """These have ended, one way or another: take them off every account."""
        if self.lanes.ordered:
            for delivery in batch:
                self.lanes.finish(delivery)
            self._release(self.lanes.freed())
        if self.mover.failing:
            for delivery in batch:
                self.mover.forget(delivery)
        if self._gate is not None:
            self._gate.forget(batch)
        self._out.difference_update(batch)
        self.meter.give(len(batch), sum(map(_SIZE, batch)))
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
            if self._give_back is None or delivery.lost:
                self._settle(delivery, RELEASE)
            else:
                self.mover.add(delivery, self._give_back(delivery))

    def _unstarted(self, unwanted: Callable[[Delivery], bool], *, in_order: bool = True) -> list[Delivery]:
        """Of each key in its order: what waits to run again, or was handed to a pool, was received before what is queued."""
        begun = self.timers.purge(unwanted) + self.pool.reclaim(unwanted)
        queued = self.lanes.purge(unwanted, in_order=in_order)
        return begun + queued + (self._gate.purge(unwanted) if self._gate is not None else [])

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
