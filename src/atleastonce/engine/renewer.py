"""Keeps leases alive as long as their handlers run, in batches, and not beyond."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence

from atleastonce.contract import Delivery, Outcome
from atleastonce.engine.leases import LeaseTable
from atleastonce.engine.wake import Bell

log = logging.getLogger("atleastonce.engine")

Extend = Callable[[Sequence[Delivery], float], Awaitable[Sequence[Outcome]]]


class Renewer:
    """One task that renews everything one worker has out. On its own, so that a slow broker delays no timer."""

    def __init__(self, lease: float) -> None:
        self.target: Extend | None = None
        self.table = LeaseTable(lease)
        self._bell = Bell()

    def watch(self, batch: Sequence[Delivery]) -> None:
        """Keep the leases of ``batch``, received just now, until they are settled."""
        self.table.add(batch, time.monotonic())
        self._bell.ring()

    async def run(self) -> None:
        """Renew until cancelled."""
        while True:
            due = self.table.next_due()
            await self._bell.heard(None if due is None else max(0.0, due - time.monotonic()))
            now = time.monotonic()
            batch = self.table.due(now)
            if batch and self.target is not None:
                self.table.add(await self._renew(batch, self.target, now), now)

    async def _renew(self, batch: list[Delivery], extend: Extend, now: float) -> list[Delivery]:
        try:
            outcomes = await extend(batch, self.table.lease)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - tried again at the next third of the lease, until the lease is over
            log.warning("renewing %d leases failed (%s)", len(batch), error)
            return [delivery for delivery in batch if not self._over(delivery, now, str(error))]
        kept: list[Delivery] = []
        for delivery, outcome in zip(batch, outcomes, strict=True):
            passing = outcome.fault is not None and outcome.fault.retryable
            if outcome.ok or (passing and not self._over(delivery, now, str(outcome.fault))):
                kept.append(delivery)
            elif not passing:
                self._lose(delivery, str(outcome.fault))
        return kept

    def _over(self, delivery: Delivery, now: float, why: str) -> bool:
        if delivery.lease_until > now:
            return False
        self._lose(delivery, why)
        return True

    def _lose(self, delivery: Delivery, why: str) -> None:
        if not delivery.settled and not delivery.lost:
            delivery.lost = True
            log.warning(
                "the lease of %s was lost (%s); what its handler does will not be settled", delivery.message.id, why
            )
