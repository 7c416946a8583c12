"""The slots of a relay, which are its own for a lease."""

from __future__ import annotations

import asyncio
import time

from atleastonce.patterns.outbox.work import Work
from atleastonce.stores.outbox import Holding

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
    """

    def __init__(self, work: Work, name: str, lease: float) -> None:
        self.started = asyncio.Event()
        self._work = work
        self._name = name
        self._lease = lease
        self._share = 0
        self._safe_until = 0.0

    @property
    def safe(self) -> bool:
        """Whether the slots are the relay's own for long enough to begin something."""
        return time.monotonic() < self._safe_until

    async def run(self) -> None:
        """Hold, until cancelled."""
        work = self._work
        while True:
            await work.asking("holding slots", self._hold)
            # Who has less than its share looks for what others give back.
            wait = self._lease / 3
            await work.keeping.heard(wait if len(work.slots) >= self._share else min(wait, _SHARE_SECONDS))

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
