"""What becomes of a delivery after its run: settled, moved, run again in place, or given back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from atleastonce.contract import ACK, RELEASE, Delivery, Fault, Verdict
from atleastonce.engine.decision import AMONG_THEM, DONE, EXITED, Decision, Rejection
from atleastonce.engine.drains import Drains
from atleastonce.engine.handoff import Handoff
from atleastonce.engine.lanes import Lanes
from atleastonce.engine.mover import Mover
from atleastonce.engine.tally import Tally
from atleastonce.engine.timers import Timers

Settle = Callable[[Delivery, Verdict], None]
SettleAll = Callable[[Sequence[Delivery], Verdict], None]
MakeMover = Callable[[Callable[[Delivery, Decision, Fault], bool]], Mover | Handoff]


class Endings:
    """The endings of one worker.

    Args:
        lanes, timers, drains, counts: of the worker.
        settle: tells the broker.
        settle_all: the same for a list; None where each has a way of its own to its settlement.
        make_mover: makes what publishes copies, given whom to ask when one of them is refused.
        rejection: asked when a copy is refused for good.
        give_back: what becomes of a delivery that is given back; None for a `Release`.
        exited: what becomes of a delivery whose handler raised ``SystemExit``, and whether it is known to be this one's doing and
            not another's of its list; None to give it back in its place, counted as a death.
        judged: told how a run ended, by the name of its decision, while it still has its lane; None where nobody is.

    Attributes:
        mover: what publishes copies.
        closed: what ends from now on was left behind, and comes again.
        over: in order nothing starts any more, since one of them has ended the service.
    """

    def __init__(
        self,
        lanes: Lanes,
        timers: Timers,
        drains: Drains,
        counts: Tally,
        *,
        settle: Settle,
        settle_all: SettleAll | None,
        make_mover: MakeMover,
        rejection: Rejection,
        give_back: Callable[[Delivery], Decision] | None,
        judged: Callable[[Delivery, str], None] | None,
        exited: Callable[[Delivery, bool], Decision] | None,
    ) -> None:
        self.closed = False
        self.over = False
        self.mover = make_mover(self._refused)
        self._settle = settle
        if isinstance(self.mover, Handoff):
            self._settle, settle_all = self.mover.settle, None
        self._settle_all = settle_all
        self._lanes = lanes
        self._timers = timers
        self._drains = drains
        self._counts = counts
        self._rejection = rejection
        self._give_back = give_back
        self._judged = judged
        self._exited = exited

    def ended(self, delivery: Delivery, decision: Decision) -> None:
        """A run is over (told by the pool, on the loop): settle, move, or run again."""
        if self.closed:  # a thread that was left behind: its message will come again
            return
        if decision is DONE:
            self._counts["done"] += 1
            if self._lanes.ordered:
                if self._judged is not None:
                    self._judged(delivery, "done")
                self._lanes.finish(delivery)
            self._settle(delivery, ACK)
            return
        self._counts[decision.name] += 1
        if self._judged is not None:
            self._judged(delivery, decision.name)
        if delivery.lost:
            self._settle(delivery, RELEASE)
        elif decision.again is not None:
            if self._drains.takes(delivery):
                self.release([delivery])
            else:
                self._timers.again(delivery, decision.again)
        elif decision.draft is not None or decision.copies:
            self.mover.add(delivery, decision)
        elif decision is EXITED or decision is AMONG_THEM:
            self._ended_the_service(delivery, decision)
        elif decision.verdict is RELEASE:
            self.release([delivery])
        else:
            self._settle(delivery, decision.verdict)

    def _ended_the_service(self, delivery: Delivery, decision: Decision) -> None:
        if self._exited is not None:
            self.mover.add(delivery, self._exited(delivery, decision is EXITED))
            return
        # It comes again in its place: nothing of its key may go by it, between its settlement and the service's stop.
        if self._lanes.ordered:
            self.over = self._lanes.closed = True
        self._settle(delivery, decision.verdict)

    def all_ended(self, batch: Sequence[Delivery], decisions: Sequence[Decision]) -> None:
        """`ended` for each; a list of which all is done, as nearly always, is settled as one, and a run with one draft moves as
        one."""
        if self._settle_all and not self.closed and not self._lanes.ordered and decisions.count(DONE) == len(batch):
            self._counts["done"] += len(batch)
            self._settle_all(batch, ACK)
            return
        drafted: list[Delivery] = []
        for place, (delivery, decision) in enumerate(zip(batch, decisions, strict=True)):
            if decision.draft is None or delivery.lost or self.closed or self._judged is not None:
                self.ended(delivery, decision)
                continue
            drafted.append(delivery)
            if place + 1 == len(batch) or decisions[place + 1] is not decision or batch[place + 1].lost:
                self._counts[decision.name] += len(drafted)
                self.mover.add_all(drafted, decision)
                drafted = []

    def _refused(self, delivery: Delivery, decision: Decision, fault: Fault) -> bool:
        other = self._rejection(delivery, decision, fault)
        if other is None:
            return False
        self._counts[decision.name] -= 1  # that is not how it ends after all
        self.ended(delivery, other)
        return True

    @property
    def returns_copies(self) -> bool:
        """Whether something else than a `Release` becomes of what is given back."""
        return self._give_back is not None

    def publish_again(self, delivery: Delivery, decision: Decision) -> None:
        """The wait of a copy that was not confirmed is over."""
        if delivery.lost:
            self._settle(delivery, RELEASE)
        else:
            self.mover.add(delivery, decision)

    def leave(self, batch: Sequence[Delivery]) -> None:
        """Give back what has ended, and whose copies could not be published: with a `Release`, since a copy of it would go the same
        way, and its end be taken for a good one."""
        for delivery in batch:
            self._settle(delivery, RELEASE)

    def release(self, batch: Sequence[Delivery]) -> None:
        """Give back what has not run, or is to run elsewhere."""
        for delivery in batch:
            if self._give_back is None or delivery.lost:
                self._settle(delivery, RELEASE)
            else:
                self.mover.add(delivery, self._give_back(delivery))
