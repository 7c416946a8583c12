"""Moves deliveries: every copy published and confirmed first, then the original settled. Never the other way round.

A copy that is not confirmed leaves its original unsettled and is published again, with back-off, for as long as it
takes; the handler is
not run again for it. The delivery stays in the window meanwhile, so an unreachable destination becomes backpressure
and not loss.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from atleastonce.contract import RELEASE, Delivery, Fault, Outcome, Outgoing, Status, Verdict
from atleastonce.engine.answers import ask
from atleastonce.engine.backoff import Backoff
from atleastonce.engine.decision import Decision
from atleastonce.engine.wake import Bell

log = logging.getLogger("atleastonce.engine")

Send = Callable[[Sequence[Outgoing]], Awaitable[Sequence[Outcome]]]

# Short at first, because most failures are hiccups; ten seconds at most, because a person may be watching the recovery.
_BACKOFF = Backoff("100ms", factor=2, maximum="10s")


class Mover:
    """One task that publishes the copies of one worker's decisions.

    Args:
        send: publishes.
        settle: told of a delivery whose copies are all confirmed.
        wait: gives a delivery and its decision back to `add` after so many seconds.
        refused: told that a copy was refused for good; whether something else was decided. If not, the same copies are
            tried again later.
    """

    def __init__(
        self,
        send: Send,
        settle: Callable[[Delivery, Verdict], None],
        wait: Callable[[float, Delivery, Decision], None],
        refused: Callable[[Delivery, Decision, Fault], bool],
    ) -> None:
        self._send = send
        self._settle = settle
        self._wait = wait
        self._refused = refused
        self._pending: list[tuple[Delivery, Decision]] = []
        self._failures: dict[Delivery, int] = {}
        self._bell = Bell()
        self.busy = False
        self.last_fault: Fault | None = None

    def add(self, delivery: Delivery, decision: Decision) -> None:
        """Publish the decision's copies soon, then settle."""
        self._pending.append((delivery, decision))
        self._bell.ring()

    @property
    def idle(self) -> bool:
        """Whether nothing is waiting to be published or being published."""
        return not self.busy and not self._pending

    @property
    def failing(self) -> int:
        """How many deliveries have a copy whose publishing failed and is to be repeated."""
        return len(self._failures)

    async def run(self) -> None:
        """Publish until cancelled."""
        while True:
            await self._bell.heard()
            while self._pending:
                batch, self._pending = self._pending, []
                self.busy = True
                try:
                    await self._move(batch)
                finally:
                    self.busy = False

    async def _move(self, batch: list[tuple[Delivery, Decision]]) -> None:
        live = []
        for delivery, decision in batch:
            if delivery.lost:  # it comes again, and would be copied twice
                self.forget(delivery)
                self._settle(delivery, RELEASE)
            else:
                live.append((delivery, decision))
        copies = [copy for _, decision in live for copy in decision.copies]
        outcomes = iter(await ask(self._send, copies) if copies else ())
        for delivery, decision in live:
            mine = [(copy, next(outcomes)) for copy in decision.copies]
            missing = [(copy, outcome) for copy, outcome in mine if not outcome.ok]
            if not missing:
                self.forget(delivery)
                self._settle(delivery, decision.verdict)
            else:
                self._failed(delivery, decision, missing)

    def _failed(self, delivery: Delivery, decision: Decision, missing: list[tuple[Outgoing, Outcome]]) -> None:
        # What is confirmed is not published again: one destination that is away must not flood the others.
        rest = msgspec.structs.replace(decision, copies=tuple(copy for copy, _ in missing))
        _, worst = min(missing, key=lambda item: item[1].status is not Status.REJECTED)
        self.last_fault = worst.fault
        if worst.status is Status.REJECTED and worst.fault is not None and self._replaced(delivery, rest, worst.fault):
            self.forget(delivery)
            return
        destinations = ", ".join(sorted({copy.destination.name for copy in rest.copies}))
        log.warning("%s could not be moved to %s (%s); trying again", delivery.message.id, destinations, worst.fault)
        failures = self._failures[delivery] = self._failures.get(delivery, 0) + 1
        pause = _BACKOFF.wait(failures)
        assert pause is not None  # noqa: S101 - the back-off has no last attempt
        self._wait(pause, delivery, rest)

    def _replaced(self, delivery: Delivery, decision: Decision, fault: Fault) -> bool:
        try:
            return self._refused(delivery, decision, fault)
        except Exception:  # the policy's own failure must not cost the message, nor the moves of others
            log.exception("deciding about the refused copy of %s failed", delivery.message.id)
            return False

    def forget(self, delivery: Delivery) -> None:
        """The delivery has ended: stop counting its failures."""
        self._failures.pop(delivery, None)
