"""The way of deliveries through a worker: they come in as there is room, go on to be run as they may, and leave every account."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from operator import attrgetter

from atleastonce.channels import Source
from atleastonce.contract import OK, Delivery, Outcome, Settlement
from atleastonce.engine.admission import Admission
from atleastonce.engine.anteroom import Anteroom
from atleastonce.engine.aside import Aside
from atleastonce.engine.decision import Decision
from atleastonce.engine.drains import Drains
from atleastonce.engine.endings import Endings
from atleastonce.engine.gate import Gate
from atleastonce.engine.handoff import Handoff
from atleastonce.engine.intake import Intake
from atleastonce.engine.lanes import Lanes
from atleastonce.engine.mover import Mover
from atleastonce.engine.pools import Pool
from atleastonce.engine.renewer import Renewer
from atleastonce.engine.tally import Tally
from atleastonce.engine.timers import Timers
from atleastonce.engine.window import WindowMeter

log = logging.getLogger("atleastonce.engine")

# Asked of every delivery of a list without a step of Python's for each.
_SIZE = attrgetter("size")


class Flow:
    """What passes between the parts of a `Worker`, which makes them. A base and no part of its own: its steps are taken for every
    list, and one more call in each would show.

    Attributes:
        source: what is read.
        meter: the account of what is in flight.
        lanes: which delivery may run next.
        counts: of what was received, and of how it ended.
        mover, renewer, timers, pool: of the worker.
    """

    source: Source
    meter: WindowMeter
    lanes: Lanes
    counts: Tally
    mover: Mover | Handoff
    renewer: Renewer
    timers: Timers
    pool: Pool
    _leased: bool
    _out: set[Delivery]  # received and not settled, whatever they wait for
    _drains: Drains
    _intake: Intake
    _anteroom: Anteroom
    _admission: Admission
    _aside: Aside | None
    _gate: Gate | None
    _endings: Endings
    _release: Callable[[Sequence[Delivery]], None]

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

    def _forget_lost(self) -> None:
        # Answered as stale without being sent; they only leave the window.
        self._give_back(lambda delivery: delivery.lost, in_order=False)
