"""What may have ended a process does not start where it was received: it is moved to where it runs alone.

A process that dies of one message while it moves another leaves that in two places, and each of the two would be judged by a count
of its own. So they are moved while everything stands still, and it goes on when no crash can undo the moves any more.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from operator import attrgetter
from typing import NamedTuple

from atleastonce.contract import Delivery
from atleastonce.engine.decision import Decision
from atleastonce.engine.turnstile import BRIEF, Turnstile
from atleastonce.wake import Bell, Signal

# How long everything stands still until they are moved and settled. Shorter: a slow broker has them moved beside what runs. Longer:
# one that takes no copies stops the whole process for so long.
_MOVE_SECONDS = 3.0
# How often it is looked whether a copy has failed, which nobody waits for.
_LOOK_SECONDS = 0.05

# Asked of every delivery of a list without a step of Python's for each.
_COUNT = attrgetter("count")


class Suspicion(NamedTuple):
    """Which deliveries do not start where they were received, because they may be what ended a process.

    Attributes:
        hand_outs: from how many on one is suspected; `Delivery.count`.
        move: what becomes of it instead.
        turnstile: of the service, all of which stands still meanwhile.
    """

    hand_outs: int
    move: Callable[[Delivery], Decision]
    turnstile: Turnstile


class Aside:
    """The suspects among what one worker has received.

    Args:
        suspicion: which they are.
        decided: told what becomes of one.
        failing: how many moves are to be repeated.
        out: what was received and is not settled.
        ended: notified when some of it is.
        recorded: seconds from a settlement until no crash can undo it.
    """

    def __init__(
        self,
        suspicion: Suspicion,
        decided: Callable[[Delivery, Decision], None],
        failing: Callable[[], int],
        *,
        out: Collection[Delivery],
        ended: Signal,
        recorded: float,
    ) -> None:
        self._suspicion = suspicion
        self._decided = decided
        self._failing = failing
        self._out = out
        self._ended = ended
        self._recorded = recorded
        self._waiting: list[Delivery] = []
        self._bell = Bell()

    def unsuspected(self, batch: Sequence[Delivery]) -> Sequence[Delivery]:
        """Take the suspects out of ``batch``, to be moved soon; return the rest."""
        least = self._suspicion.hand_outs
        if not batch or max(map(_COUNT, batch)) < least:
            return batch
        self._waiting += [delivery for delivery in batch if delivery.count >= least]
        self._bell.ring()
        return [delivery for delivery in batch if delivery.count < least]

    def purge(self, unwanted: Callable[[Delivery], bool]) -> list[Delivery]:
        """Remove and return what waits and is ``unwanted``."""
        removed = [delivery for delivery in self._waiting if unwanted(delivery)]
        if removed:
            self._waiting = [delivery for delivery in self._waiting if not unwanted(delivery)]
        return removed

    async def run(self) -> None:
        """Move until cancelled."""
        while True:
            await self._bell.heard()
            if not self._waiting:
                continue
            began = time.monotonic()
            async with self._suspicion.turnstile.still():
                await self._move_all()
            # There may be a window's worth after the other: as long as the others stood still, they have for themselves now.
            await asyncio.sleep(min(time.monotonic() - began, BRIEF + _MOVE_SECONDS))

    async def _move_all(self) -> None:
        batch, self._waiting = self._waiting, []
        for delivery in batch:
            self._decided(delivery, self._suspicion.move(delivery))
        deadline = time.monotonic() + _MOVE_SECONDS
        while any(delivery in self._out for delivery in batch):
            if self._failing() or time.monotonic() >= deadline:
                return
            await self._ended.wait(_LOOK_SECONDS)
        if batch and self._recorded:
            await asyncio.sleep(self._recorded)
