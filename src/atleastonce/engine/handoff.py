"""Ends deliveries together with their copies, in transactions: what a `Mover` and a `Settler` do in two steps, where the broker
does it in one."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Sequence

from atleastonce.contract import (
    ACK,
    RELEASE,
    STALE,
    Ack,
    Code,
    Delivery,
    Fault,
    HandOff,
    Outcome,
    Settlement,
    Status,
    Verdict,
)
from atleastonce.engine.answers import ask
from atleastonce.engine.backoff import Backoff
from atleastonce.engine.copies import FailedCopies
from atleastonce.engine.decision import DONE, Decision
from atleastonce.wake import Bell

log = logging.getLogger("atleastonce.engine")

# The least time from one transaction's beginning to the next one's, unless half of the window waits for it. Shorter: a slow stream
# costs the broker a transaction for each message. Longer: who reads only what is committed sees it later.
_LEAST_SECONDS = 0.05

# A transaction that was not committed is repeated as a whole, so the order stays; the pauses are short, since a broker that is away
# takes its time with each answer.
_BACKOFF = Backoff("50ms", factor=2, maximum="1s")


class Handoff:
    """One task that hands off everything of one worker, a transaction for all that came in during the one before.

    Args:
        enough: with so many deliveries a transaction begins at once.
        settle: gives back what is not to be handed off.
        ended: told of every batch that is over, with its outcomes; of each delivery once.
        wait: gives a delivery and its decision back to `add` after so many seconds.
        refused: told that a copy was refused for good; whether something else was decided. If not, the same is tried
            again later.

    Attributes:
        target: the current subscription's ``hand_off``; told anew after each reconnect.
    """

    def __init__(
        self,
        enough: int,
        settle: Callable[[Delivery, Verdict], None],
        ended: Callable[[Sequence[Settlement], Sequence[Outcome]], None],
        wait: Callable[[float, Delivery, Decision], None],
        refused: Callable[[Delivery, Decision, Fault], bool],
    ) -> None:
        self.target: Callable[[Sequence[HandOff]], Awaitable[Sequence[Outcome]]] | None = None
        self.busy = False
        self.last_fault: Fault | None = None
        self._enough = enough
        self._settle = settle
        self._ended = ended
        self._failed_copies = FailedCopies(wait, refused)
        self._pending: list[tuple[Delivery, Decision]] = []
        self._failures = 0
        self._begun = 0.0
        self._bell = Bell()

    def add(self, delivery: Delivery, decision: Decision) -> None:
        """Hand off soon.

        Raises:
            ValueError: it has a draft, which nothing writes here: its source would be settled without a copy.
        """
        if decision.draft is not None:
            raise ValueError("a copy that leaves with its settlement is no draft")
        if not delivery.settled:
            self._pending.append((delivery, decision))
            self._bell.ring()

    def add_all(self, deliveries: Sequence[Delivery], decision: Decision) -> None:
        """`add` each of ``deliveries``."""
        for delivery in deliveries:
            self.add(delivery, decision)

    def settle(self, delivery: Delivery, verdict: Verdict) -> None:
        """End ``delivery``, without a copy."""
        if isinstance(verdict, Ack):
            self.add(delivery, DONE)
        else:
            self._settle(delivery, verdict)

    @property
    def idle(self) -> bool:
        """Whether nothing is waiting to be handed off or being handed off."""
        return not self.busy and not self._pending

    @property
    def failing(self) -> int:
        """How many deliveries have a copy that was refused and is to be tried again."""
        return len(self._failed_copies)

    def forget(self, delivery: Delivery) -> None:
        """The delivery has ended: stop counting its refusals."""
        self._failed_copies.forget(delivery)

    async def run(self) -> None:
        """Hand off until cancelled."""
        while True:
            await self._bell.heard()
            while self._pending:
                await self._gathered()
                batch, self._pending = self._pending, []
                self.busy = True
                try:
                    await self._hand_off(batch)
                finally:
                    self.busy = False

    async def _gathered(self) -> None:
        """Until it is worth a transaction."""
        pause = _LEAST_SECONDS
        if self._failures:
            pause = _BACKOFF.wait(self._failures) or pause
        until = self._begun + pause
        while self._failures or len(self._pending) < self._enough:
            left = until - time.monotonic()
            if left <= 0:
                return
            await self._bell.heard(left)

    async def _hand_off(self, batch: list[tuple[Delivery, Decision]]) -> None:
        self._begun = time.monotonic()
        live: list[tuple[Delivery, Decision]] = []
        for delivery, decision in batch:
            if delivery.lost or self.target is None:  # it comes again
                self._settle(delivery, RELEASE)
            elif not delivery.settled:
                live.append((delivery, decision))
        if not live or self.target is None:
            return
        outcomes = await ask(self.target, [(delivery, decision.copies) for delivery, decision in live])
        over: list[Settlement] = []
        ends: list[Outcome] = []
        again: list[tuple[Delivery, Decision]] = []
        for (delivery, decision), outcome in zip(live, outcomes, strict=True):
            if outcome.status is Status.UNKNOWN and not delivery.lost:
                self.last_fault = outcome.fault
                again.append((delivery, decision))
            elif outcome.ok or delivery.lost or outcome.fault is None or outcome.fault.code is Code.STALE:
                delivery.settled = True
                over.append((delivery, ACK))
                ends.append(outcome if outcome.ok else STALE)
            else:
                self.last_fault = outcome.fault
                if not self._failed_copies.replaced(delivery, decision, outcome.fault):
                    self._failed_copies.again(delivery, decision, outcome.fault)
        if again:
            self._failures += 1
            self._pending = again + self._pending
            log.warning("%d could not be handed off (%s); trying again", len(again), self.last_fault)
        else:
            self._failures = 0
        if over:
            self._ended(over, ends)
