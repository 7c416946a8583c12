"""Reads one source: receives within the window, has handlers run, ends every delivery, drains."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Sequence
from operator import attrgetter

from atleastonce.channels import Source
from atleastonce.contract import (
    OK,
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
from atleastonce.engine.admission import Admission, Due
from atleastonce.engine.anteroom import Anteroom
from atleastonce.engine.aside import Aside, Suspicion
from atleastonce.engine.decision import Decision, Rejection
from atleastonce.engine.denial import Denial
from atleastonce.engine.drains import Drains
from atleastonce.engine.endings import Endings
from atleastonce.engine.gate import Gate
from atleastonce.engine.handoff import Handoff
from atleastonce.engine.intake import Intake
from atleastonce.engine.lanes import Lanes
from atleastonce.engine.mover import Mover, Send
from atleastonce.engine.pools import Pool
from atleastonce.engine.rate import TokenBucket
from atleastonce.engine.renewer import Renewer
from atleastonce.engine.settler import Settler
from atleastonce.engine.tally import Tally
from atleastonce.engine.timers import Timers
from atleastonce.engine.vigil import State, Vigil
from atleastonce.engine.window import WindowMeter
from atleastonce.errors import ConfigurationError
from atleastonce.silence import Owed

log = logging.getLogger("atleastonce.engine")

# How long a stop waits for the last settlements once handlers are cancelled; then they are left to be delivered again.
_FLUSH_SECONDS = 5.0
# How many messages a warning names: enough to look for, few enough to read.
_NAMED = 5
# What an adapter reports, in the words of a status: whatever lets it read is "running".
_RUNNING = dict.fromkeys(("connected", "assigned", "unblocked"), "running")

# Asked of every delivery of a list without a step of Python's for each.
_SIZE = attrgetter("size")


class Worker:
    """One source, one window, one pool. A `Supervisor` hands it one subscription after another.

    Args:
        adapter: for its capabilities, and for sending copies.
        source: what is read.
        window: the bound on everything unsettled.
        lanes: which delivery may run next.
        make_pool: builds the pool that runs the handler, given the worker to report to.
        rejection: asked when a copy is refused for good.
        due: see `Admission`.
        suspicion: what may not start here; None where all may.
        give_back, judged, exited: see `Endings`.
        gate: asked before a delivery may run, and told before it is settled; None where nobody is.
        rate: see `Intake`.
        send: publishes copies; None for the adapter's own.
        broken: told when one of the worker's own tasks has died, after which nothing here goes on.
        make_meter: gives its account of a window that it shares with others, which is told what to call when there is room again;
            None where the window is its own.

    Attributes:
        elders, betters: see `Intake`.
        ended, all_ended: see `Endings`; themselves, since they are called for each message or list.
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
        exited: Callable[[Delivery, bool], Decision] | None = None,
        rate: TokenBucket | None = None,
        send: Send | None = None,
        broken: Callable[[BaseException], None] | None = None,
        make_meter: Callable[[Callable[[], None]], WindowMeter] | None = None,
    ) -> None:
        self.source = source
        self._broken = broken
        self.window = window
        self.meter = WindowMeter(window) if make_meter is None else make_meter(self._room_again)
        self.lanes = lanes
        self.counts = Tally()
        self._reading: Subscription | None = None
        self._vigil = Vigil(str(source), self._overdue)
        self._leased = adapter.capabilities.lease is Leasing.EXTENDABLE
        self._out: set[Delivery] = set()  # received and not settled, whatever they wait for
        self._tasks: list[asyncio.Task[None]] = []
        self._drains = Drains(self._out, self._give_back)
        self._intake = Intake(self.meter, adapter.capabilities.max_batch, self._received, self._drains, rate)
        self.elders, self.betters = self._intake.elders, self._intake.betters
        self._denial = Denial(str(source))
        self.settler = Settler(self._settled, self._denial.look)
        self.renewer = Renewer(adapter.capabilities.lease_seconds or 1.0, self._forget_lost, self._denial.look)
        self.timers = Timers(
            run_again=self._woken, publish_again=self._publish_again, tick=self._tick, ticking=self._ticking
        )
        self._gate = gate
        self._settle = self.settler.add if gate is None else gate.settle
        self._settle_all = self.settler.add_all if gate is None else None
        self._endings = Endings(
            lanes,
            self.timers,
            self._drains,
            self.counts,
            settle=self._settle,
            settle_all=self._settle_all,
            make_mover=lambda refused: self._make_mover(send or adapter.send, refused),
            rejection=rejection,
            give_back=give_back,
            judged=judged,
            exited=exited,
        )
        self.ended, self.all_ended = self._endings.ended, self._endings.all_ended
        self._release = self._endings.release
        self.mover = self._endings.mover
        self._aside = None if suspicion is None else self._make_aside(suspicion, adapter.capabilities.settled_within)
        self._admission = Admission(due, hold=self.timers.hold, ended=self.ended)
        self._anteroom = Anteroom(self.meter, self._admission.due_at, self._enter, self._room_again)
        if due is not None:
            self.meter.retreat = self._retreat
        if gate is not None:
            gate.attach(self, self.settler.add)
        self.pool = make_pool(self)

    def _make_mover(self, send: Send, refused: Callable[[Delivery, Decision, Fault], bool]) -> Mover | Handoff:
        waits = (self.timers.publish_later, refused)
        if not self.window.transactional:
            return Mover(send, self._settle, *waits, self._settle_all)
        return Handoff(max(1, self.window.messages // 2), self._settle, self._settled, *waits)

    def _make_aside(self, suspicion: Suspicion, settled_within: float) -> Aside:
        return Aside(
            suspicion,
            self.ended,
            lambda: self.mover.failing,
            out=self._out,
            ended=self._drains.ended,
            recorded=0.0 if self.window.transactional else settled_within,
        )

    # ----------------------------------------------------------------------------------------------- life

    def start(self) -> None:
        """Start the tasks that live as long as the worker, across reconnects."""
        self.pool.start()
        parts = (self.settler, self.mover, self.timers, self.renewer, self._vigil, self._gate, self._aside)
        self._tasks = [asyncio.create_task(part.run()) for part in parts if part is not None]
        for task in self._tasks:
            task.add_done_callback(self._part_ended)

    def _part_ended(self, task: asyncio.Task[None]) -> None:
        # They end by being cancelled. A bug that ends one leaves a worker that receives and settles nothing more: never in silence.
        if task.cancelled() or (error := task.exception()) is None:
            return
        log.error("%s: a part of its reader has failed; nothing of it goes on", self.source, exc_info=error)
        if self._broken is not None:
            self._broken(error)

    async def read(self, subscription: Subscription) -> None:
        """Receive from ``subscription`` until it dies or may not be settled (raises), or the worker stops (returns)."""
        self._attach(subscription)
        await self._denial.until(self._intake.read(subscription))

    def _attach(self, subscription: Subscription) -> None:
        self._reading = subscription
        self.settler.target = self.renewer.after(subscription.settle) if self._leased else subscription.settle
        self.renewer.target = subscription.extend
        if isinstance(self.mover, Handoff):
            if not isinstance(subscription, Transacts):
                raise ConfigurationError(f"{self.source}: this broker has no transactions")
            self.mover.target = subscription.hand_off

    async def read_one(self, subscription: Subscription, max_wait: float) -> bool:
        """Receive one message from ``subscription``, whose window is one, and return when it has ended; False if none came. One
        that there is no room for is given back. No other is handed out meanwhile, nor before the next call. Raises as `read`."""
        self._attach(subscription)
        return await self._denial.until(self._read_one(subscription, max_wait))

    async def _read_one(self, subscription: Subscription, max_wait: float) -> bool:
        with self._intake.of(subscription):
            await subscription.resume()
            batch = await subscription.receive(1, max_wait)
            await subscription.pause()
            if batch and not self.meter.fits(1, batch[0].size):
                self._note(batch)
                self._refuse(batch)
            else:
                self._received(batch)
            while self._out:
                await self._drains.ended.wait(1.0)
            return bool(batch)

    @property
    def state(self) -> State:
        """What it is doing, and why; a broker that has fallen silent included."""
        return self._vigil.state

    @state.setter
    def state(self, told: State) -> None:
        self._vigil.told = told

    def _overdue(self) -> Owed | None:
        return None if self._reading is None else self._reading.overdue

    @property
    def behind(self) -> bool:
        """Whether messages wait here although there is a place to run them: what it lacks is the machine's time."""
        return self.pool.vacant and (self.lanes.ready or self._admission.late)

    @property
    def waiting(self) -> bool:
        """Whether messages wait, for a place or for the machine's time: here, or with the broker."""
        full = self.meter.waits and not self.pool.vacant
        return self.lanes.ready or self._admission.late or self._intake.more or full

    @property
    def returns_copies(self) -> bool:
        """Whether what it gives back is not counted."""
        return self._endings.returns_copies

    def left(self, batch: Sequence[Delivery]) -> None:
        """These were fetched for it and are never to begin: give them back."""
        self._drains.stopping = True
        self._received(batch)

    async def drain_all(self, grace: float) -> bool:
        """Receive nothing more and end everything; whether all of it ended within ``grace`` seconds."""
        self._intake.room.ring()
        return await self._drains.all(grace)

    async def stop(self) -> None:
        """Cancel what still runs and give it back, settle what can be settled, end the tasks. Idempotent.

        What does not end (a thread, a broker that does not answer) is left unsettled, to be delivered again.
        """
        self._drains.stopping = True
        await self.pool.stop()
        self._give_back(lambda _: True)
        deadline = time.monotonic() + _FLUSH_SECONDS
        while self._tasks and not self._idle() and time.monotonic() < deadline:
            await self._drains.ended.wait(0.05)
            self._endings.leave(self.timers.purge_copies(lambda _: True))  # it failed again
        self._endings.closed = True
        self._anteroom.close()
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
        """See `Intake.pause`."""
        await self._intake.pause(reason)

    async def resume(self, reason: str) -> None:
        """See `Intake.resume`."""
        await self._intake.resume(reason)

    @property
    def paused(self) -> str:
        """See `Intake.paused`."""
        return self._intake.paused

    def hasten(self, wanted: Callable[[Delivery], bool]) -> None:
        """Run now what waits to run again in place and is ``wanted``."""
        self.timers.hasten(wanted)

    @property
    def in_flight(self) -> int:
        """How many deliveries are received and not settled, without those that wait for room."""
        return len(self._out) - self._anteroom.outside

    @property
    def held_up(self) -> int:
        """How many deliveries are received and wait for room."""
        return self._anteroom.outside

    # ------------------------------------------------------------------------------- engine.turnstile

    def halt(self) -> None:
        """Start nothing more until `let_go`. What is in flight stays so."""
        self.lanes.closed = True
        self.pool.reclaim(lambda _: False)  # what threads were handed and have not begun waits here, too

    def let_go(self) -> None:
        """Start again, unless the service is about to stop."""
        self.lanes.closed = self._endings.over
        self.pool.wake()

    @property
    def stopping(self) -> bool:
        """Whether it receives nothing more."""
        return self._drains.stopping

    # ---------------------------------------------------------------------------- contract.Listener

    async def drain(self, streams: Collection[str], grace: float) -> None:
        """See `Listener.drain`."""
        await self._drains.of(streams, grace)

    def lost(self, streams: Collection[str] | None) -> None:
        """See `Listener.lost`: what has not started is forgotten, what runs will not be settled."""
        for delivery in self._out:
            if streams is None or delivery.stream in streams:
                delivery.lost = True
        self._forget_lost()

    def _forget_lost(self) -> None:
        # Answered as stale without being sent; they only leave the window.
        self._give_back(lambda delivery: delivery.lost, in_order=False)

    def condition(self, state: str, detail: str) -> None:
        """See `Listener.condition`."""
        # A connection that comes back does not make it read again.
        if self.state[0] != "draining" or state not in _RUNNING:
            self.state = (_RUNNING.get(state, state), detail)
        log.info("%s: %s %s", self.source, state, detail)

    # -------------------------------------------------------------------------------------- the flow

    def _received(self, batch: Sequence[Delivery]) -> None:
        if not batch:
            return
        self._note(batch)
        drains = self._drains
        if drains.stopping:
            self._refuse(batch)
            return
        if drains.streams:
            self._refuse([delivery for delivery in batch if delivery.stream in drains.streams])
            batch = [delivery for delivery in batch if delivery.stream not in drains.streams]
            if not batch:
                return
        sizes = [*map(_SIZE, batch)]
        size = sum(sizes)
        if self._anteroom or not self.meter.fits(len(batch), size):
            self._anteroom.add(batch)
        else:
            self._enter(batch, size, max(sizes))

    def _note(self, batch: Sequence[Delivery]) -> None:
        self._out.update(batch)
        self.counts["received"] += len(batch)
        if self._leased:
            self.renewer.watch(batch)

    def _refuse(self, batch: Sequence[Delivery]) -> None:
        """Give back what has come and never comes in."""
        self._anteroom.leave_out(batch)
        self._release(batch)

    def _enter(self, batch: Sequence[Delivery], size: int, largest: int) -> None:
        """There is room for these."""
        if self.meter.take(len(batch), size, largest):
            log.warning(
                "%s: a message of %d bytes came, and max_in_flight_bytes is %d here: such messages run one at a time; raise it",
                self.source,
                largest,
                self.meter.limit.bytes,
            )
        due = self._admission.due
        self._start(batch if due is None else self._admission.held(batch, due))

    def _retreat(self, size: int) -> tuple[int, int]:
        """Let others have the room of what is held until it is due."""
        batch = self.timers.hold_no_more(
            size,
            lambda delivery: not delivery.tries and not self.lanes.holds(delivery) and not self._drains.takes(delivery),
        )
        self._anteroom.put_back(batch)
        return len(batch), sum(map(_SIZE, batch))

    def _woken(self, batch: Sequence[Delivery]) -> None:
        """A wait is over; whether it was the last one is asked anew."""
        due = self._admission.due
        ready = batch if due is None else self._admission.held(batch, due)
        # What still has its lane goes on in it, whatever it counts as.
        begun = [delivery for delivery in ready if delivery.tries or self.lanes.holds(delivery)]
        if begun:
            self.lanes.again(begun)
            self._look()  # itself: a gate that nothing else enters may never admit anything
            ready = [delivery for delivery in ready if delivery not in begun]
        self._start(ready)

    def _start(self, batch: Sequence[Delivery]) -> None:
        if self._aside is not None:
            batch = self._aside.unsuspected(batch)
        if self._gate is not None:
            self._gate.enter(batch)
        else:
            self._offer(batch)

    def admit(self, batch: Sequence[Delivery]) -> None:
        """What has entered the gate may run; if it still may."""
        drains = self._drains
        out = [d for d in batch if drains.stopping or d.lost or d.stream in drains.streams]
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

    def _publish_again(self, delivery: Delivery, decision: Decision) -> None:
        self._endings.publish_again(delivery, decision)

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
        batch = self._anteroom.settled(batch)
        self.meter.give(len(batch), sum(map(_SIZE, batch)))
        self._room_again()
        self._drains.ended.notify()
        if self.lanes.ready:
            self.pool.wake()

    def _room_again(self) -> None:
        # A receive is worth its round trip once there is some room, or as soon as there is nothing left to start: what is
        # out may stay so for long (slow handlers, holds, a destination that is away) and must not keep the rest waiting.
        if self._anteroom:
            self._anteroom.let_in()
        if self.meter.waits and not self._anteroom and (not self.lanes.ready or self.meter.low):
            self._intake.room.ring()

    def _tick(self, now: float) -> None:
        self.pool.cancel_late(now)

    def _ticking(self) -> bool:
        return self.pool.ticks and bool(self._out)

    def _give_back(self, unwanted: Callable[[Delivery], bool], *, in_order: bool = True) -> None:
        """Give back what has not started and is ``unwanted``, and what cannot be moved."""
        self._endings.leave(self.timers.purge_copies(unwanted))
        if waiting := self._anteroom.purge(unwanted):
            # Behind what is there of their keys: that is the order in which they are given back.
            self.lanes.offer(waiting)
        self._release(self._unstarted(unwanted, in_order=in_order))
        if waiting:
            self._room_again()

    def _unstarted(self, unwanted: Callable[[Delivery], bool], *, in_order: bool) -> list[Delivery]:
        """Of each key in its order: what waits to run again, or was handed to a pool, was received before what is queued."""
        begun = self.timers.purge(unwanted) + self.pool.reclaim(unwanted)
        queued = self.lanes.purge(unwanted, in_order=in_order)
        entering = self._gate.purge(unwanted) if self._gate is not None else []
        return begun + queued + entering + (self._aside.purge(unwanted) if self._aside is not None else [])
