"""Reads one source: receives within the window, has handlers run, ends every delivery, drains."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Sequence

from atleastonce.channels import Source
from atleastonce.contract import Adapter, Delivery, Fault, Leasing, Subscription, Transacts, Window
from atleastonce.engine.admission import Admission, Due
from atleastonce.engine.anteroom import Anteroom
from atleastonce.engine.aside import Aside, Suspicion
from atleastonce.engine.decision import Decision, Rejection
from atleastonce.engine.denial import Denial
from atleastonce.engine.drains import Drains
from atleastonce.engine.endings import Endings
from atleastonce.engine.flow import Flow
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


class Worker(Flow):
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
        self._out = set()
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

    def condition(self, state: str, detail: str) -> None:
        """See `Listener.condition`."""
        # A connection that comes back does not make it read again.
        if self.state[0] != "draining" or state not in _RUNNING:
            self.state = (_RUNNING.get(state, state), detail)
        log.info("%s: %s %s", self.source, state, detail)
