"""Moves deliveries: every copy published and confirmed first, then the original settled. Never the other way round.

A copy that is not confirmed leaves its original unsettled and is published again, with back-off, for as long as it
takes; the handler is
not run again for it. The delivery stays in the window meanwhile, so an unreachable destination becomes backpressure
and not loss.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from atleastonce.contract import Delivery, Fault, Outcome, Outgoing, Status, Verdict
from atleastonce.engine.backoff import Backoff
from atleastonce.engine.decision import Decision, Rejection
from atleastonce.engine.wake import Bell

log = logging.getLogger("atleastonce.engine")

Send = Callable[[Sequence[Outgoing]], Awaitable[Sequence[Outcome]]]

# Short at first, because most failures are hiccups; ten seconds at most, because a person may be watching the recovery.
_BACKOFF = Backoff("100ms", factor=2, maximum="10s")


class Mover:
    """One task that publishes the copies of one worker's decisions."""

    def __init__(
        self,
        send: Send,
        settle: Callable[[Delivery, Verdict], None],
        wait: Callable[[float, Delivery, Decision], None],
        rejection: Rejection,
    ) -> None:
        self._send = send
        self._settle = settle
        self._wait = wait
        self._rejection = rejection
        self._pending: list[tuple[Delivery, Decision]] = []
        self._failures: dict[str, int] = {}
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
        copies = [copy for _, decision in batch for copy in decision.copies]
        try:
            outcomes = iter(await self._send(copies))
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it was, the originals must stay unsettled
            log.warning("moving %d messages failed (%s); they stay where they are", len(batch), error)
            for delivery, decision in batch:
                self._again(delivery, decision)
            return
        for delivery, decision in batch:
            mine = [next(outcomes) for _ in decision.copies]
            bad = next((outcome for outcome in mine if not outcome.ok), None)
            if bad is None:
                self._failures.pop(delivery.message.id, None)
                self._settle(delivery, decision.verdict)
            else:
                self._failed(delivery, decision, bad)

    def _failed(self, delivery: Delivery, decision: Decision, outcome: Outcome) -> None:
        self.last_fault = outcome.fault
        if outcome.status is Status.REJECTED and outcome.fault is not None:
            other = self._rejection(delivery, decision, outcome.fault)
            if other is not None:
                self.add(delivery, other)
                return
        destinations = ", ".join(sorted({str(copy.destination) for copy in decision.copies}))
        log.warning("%s could not be moved to %s (%s); trying again", delivery.message.id, destinations, outcome.fault)
        self._again(delivery, decision)

    def _again(self, delivery: Delivery, decision: Decision) -> None:
        failures = self._failures[delivery.message.id] = self._failures.get(delivery.message.id, 0) + 1
        pause = _BACKOFF.wait(failures)
        assert pause is not None  # noqa: S101 - the back-off has no last attempt
        self._wait(pause, delivery, decision)

    def forget(self, delivery: Delivery) -> None:
        """The delivery is gone (lost or released): stop counting its failures."""
        self._failures.pop(delivery.message.id, None)
