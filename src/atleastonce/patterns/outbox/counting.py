"""The lag of the outbox, counted beside everything else: of a long backlog that takes time, which the slots' lease has not."""

from __future__ import annotations

import asyncio
import contextlib
import time

from atleastonce.patterns.outbox.standstill import Standstill
from atleastonce.patterns.outbox.work import Work
from atleastonce.stores.outbox import OutboxStats

# How often the lag is counted. Shorter: a count of a long backlog for each. Longer: staler figures.
_COUNT_SECONDS = 10.0
# For how long the first count waits: a relay that starts has a backlog as a rule, and better things to do.
_FIRST_COUNT_SECONDS = 0.5


class Counting:
    """Counts every ten seconds, and at first soon after the start.

    Args:
        work: of the relay.
        started: set once the relay has asked for slots.

    Attributes:
        lag: of the outbox, as last counted; None before.
    """

    def __init__(self, work: Work, started: asyncio.Event) -> None:
        self.lag: OutboxStats | None = None
        self._work = work
        self._started = started
        self._standstill = Standstill()

    async def run(self) -> None:
        """Count, until cancelled."""
        await self._started.wait()
        await asyncio.sleep(_FIRST_COUNT_SECONDS)
        while True:
            now = time.monotonic()
            with contextlib.suppress(Exception):  # whoever needs the store more says so
                lag, work = await self.count(), self._work
                idle = not (len(work.line) or work.line.out or work.sent or work.poison)
                self._standstill.counted(lag, now, read=work.read, idle=idle, slots=len(work.slots))
            await asyncio.sleep(_COUNT_SECONDS)

    async def count(self) -> OutboxStats:
        """The lag, as it is now.

        Raises:
            AtLeastOnceError: as the store's `outbox_stats`.
        """
        self.lag = await self._work.store.outbox_stats()
        return self.lag

    @property
    def detail(self) -> str:
        """Of an outbox that stands still; "" of any other."""
        return self._standstill.detail(self._work.read)
