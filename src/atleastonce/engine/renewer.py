"""Keeps leases alive as long as their handlers run, in batches, and not beyond."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Sequence

from atleastonce.contract import Ack, Delivery, Outcome, Settlement
from atleastonce.engine.answers import ask
from atleastonce.engine.leases import LeaseTable
from atleastonce.wake import Bell, Signal

log = logging.getLogger("atleastonce.engine")

Extend = Callable[[Sequence[Delivery], float], Awaitable[Sequence[Outcome]]]
Settle = Callable[[Sequence[Settlement]], Awaitable[Sequence[Outcome]]]


class Renewer:
    """One task that renews everything one worker has out. On its own, so that a slow broker delays no timer.

    Args:
        lease: seconds that a lease, and each renewal of it, lasts.
        lost: called after deliveries were marked as lost.
        refused: shown what failed for good.
    """

    def __init__(
        self,
        lease: float,
        lost: Callable[[], None],
        refused: Callable[[Delivery, str, Outcome], None] = lambda *_: None,
    ) -> None:
        self.target: Extend | None = None
        self.table = LeaseTable(lease)
        self._lost = lost
        self._extending: set[Delivery] = set()
        self._extended = Signal()
        self._refused = refused
        self._bell = Bell()

    def watch(self, batch: Sequence[Delivery]) -> None:
        """Keep the leases of ``batch``, received just now, until they are settled. What has none needs nothing."""
        leased = [delivery for delivery in batch if delivery.lease_until]
        if not leased:
            return
        # An adapter may hand out what it fetched earlier: what counts is when the first of these leases ends.
        ends = min([delivery.lease_until for delivery in leased])
        soonest = self.table.next_due()
        self.table.add(leased, min(time.monotonic(), ends - self.table.lease))
        if self.table.next_due() != soonest:  # else it sleeps until then already
            self._bell.ring()

    def after(self, settle: Settle) -> Settle:
        """``settle``, for what comes again not before its extension that is under way has ended: brokers may hear of the two in
        either order, and what is extended after it was given back, or delayed, is kept from everybody for a lease."""

        async def settled(batch: Sequence[Settlement]) -> Sequence[Outcome]:
            while self._extending and any(
                delivery in self._extending and not isinstance(verdict, Ack) for delivery, verdict in batch
            ):
                await self._extended.wait(self.table.lease)
            return await settle(batch)

        return settled

    async def run(self) -> None:
        """Renew until cancelled."""
        while True:
            due = self.table.next_due()
            await self._bell.heard(None if due is None else max(0.0, due - time.monotonic()))
            batch = self.table.due(time.monotonic())
            if batch and self.target is not None:
                await self._renew(batch, self.target)

    async def _renew(self, batch: list[Delivery], extend: Extend) -> None:
        asked = time.monotonic()
        self._extending.update(batch)
        try:
            outcomes = await ask(lambda deliveries: extend(deliveries, self.table.lease), batch)
        finally:
            self._extending.clear()
            self._extended.notify()
        now = time.monotonic()
        kept: list[Delivery] = []
        lost: list[Delivery] = []
        for delivery, outcome in zip(batch, outcomes, strict=True):
            if delivery.settled:
                continue
            passing = outcome.fault is not None and outcome.fault.retryable
            if not delivery.lost and (outcome.ok or (passing and delivery.lease_until > now)):
                kept.append(delivery)
                continue
            self._refused(delivery, "renew", outcome)
            delivery.lost = True  # unless the adapter has marked it already
            lost.append(delivery)
            log.warning(
                "the lease of %s was lost (%s); what its handler does will not be settled",
                delivery.message.id,
                outcome.fault,
            )
        self.table.add(kept, asked)
        if lost:
            self._lost()
