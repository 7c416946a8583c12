"""The slots of a relay, which are its own for a lease, and the lag of the outbox."""

from __future__ import annotations

import asyncio
import contextlib
import time

from atleastonce.errors import AtLeastOnceError
from atleastonce.patterns.outbox.work import Work
from atleastonce.stores.outbox import Holding, OutboxStats

# How often the lag is counted. Shorter: a count of a long backlog for each. Longer: staler figures.
_COUNT_SECONDS = 10.0
_SHARE_SECONDS = 1.0
# Of the lease, from when it was asked for: a batch that begins before its end should also end before it.
_SAFE = 0.8


class Holder:
    """Holds the relay's share of the slots, and asks for it again at a third of the lease.

    Args:
        work: of the relay.
        name: for people, in the list of relays.
        lease: seconds.

    Attributes:
        started: set once the store was asked for slots, and has answered.
        lag: of the outbox, as last counted; None before.
    """

    def __init__(self, work: Work, name: str, lease: float) -> None:
        self.started = asyncio.Event()
        self.lag: OutboxStats | None = None
        self._work = work
        self._name = name
        self._lease = lease
        self._share = 0
        self._safe_until = 0.0
        self._counted = 0.0

    @property
    def safe(self) -> bool:
        """Whether the slots are the relay's own for long enough to begin something."""
        return time.monotonic() < self._safe_until

    async def run(self) -> None:
        """Hold, until cancelled."""
        work = self._work
        while True:
            await work.asking("holding slots", self._hold)
            if time.monotonic() - self._counted >= _COUNT_SECONDS:
                self._counted = time.monotonic()
                with contextlib.suppress(AtLeastOnceError):
                    await self.count()
            # Who has less than its share looks for what others give back.
            wait = self._lease / 3
            await work.keeping.heard(wait if len(work.slots) >= self._share else min(wait, _SHARE_SECONDS))

    async def count(self) -> OutboxStats:
        """The lag, as it is now.

        Raises:
            AtLeastOnceError: as the store's `outbox_stats`.
        """
        self.lag = await self._work.store.outbox_stats()
        return self.lag

    async def _hold(self) -> None:
        work, asked = self._work, time.monotonic()
        holding: Holding = await work.store.outbox_hold(work.token, self._name, self._lease)
        self._safe_until = asked + self._lease * _SAFE
        self.started.set()
        self._share = holding.share
        excess = sorted(holding.slots)[holding.share :]
        kept = holding.slots.difference(excess)
        fresh = kept - work.slots
        work.slots = kept
        work.line.drop(lambda row: row.slot not in kept)
        if idle := set(excess) - work.line.slots():
            await work.store.outbox_leave(work.token, idle)
        if len(idle) < len(excess):
            work.keeping.ring()  # what is under way ends soon
            await asyncio.sleep(0.02)
        if fresh:
            work.reading.ring()
