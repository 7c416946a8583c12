"""Ends deliveries, in batches as large as the broker's round trip makes them: what comes in during one call goes out
in the next."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence

from atleastonce.contract import OK, STALE, Code, Delivery, Outcome, Settlement, Status, Verdict
from atleastonce.engine.answers import ask
from atleastonce.engine.schedule import Schedule
from atleastonce.wake import Bell

log = logging.getLogger("atleastonce.engine")

Settle = Callable[[Sequence[Settlement]], Awaitable[Sequence[Outcome]]]

# A settlement whose reply was lost is repeated after these waits (settling is idempotent); others go on meanwhile. Then the
# delivery is left to come again: repeating for ever would keep the window full behind a connection that is about to be
# replaced anyway.
_REPEATS = (0.05, 0.2, 1.0)


class Settler:
    """One task that settles everything for one worker.

    Args:
        ended: told of every batch that is over, whatever its outcomes; of each delivery once.
        refused: shown what failed for good, by its verdict's name.

    Attributes:
        target: the current subscription's ``settle``; told anew after each reconnect.
    """

    def __init__(
        self,
        ended: Callable[[Sequence[Settlement], Sequence[Outcome]], None],
        refused: Callable[[Delivery, str, Outcome], None] = lambda *_: None,
    ) -> None:
        self.target: Settle | None = None
        self._ended = ended
        self._refused = refused
        self._pending: list[Settlement] = []
        self._repeats: Schedule[Settlement] = Schedule()  # monotonic
        self._failures: dict[Delivery, int] = {}  # of what waits to be repeated
        self._bell = Bell()
        self.busy = False

    def add(self, delivery: Delivery, verdict: Verdict) -> None:
        """Settle ``delivery`` soon. Its first verdict counts."""
        if delivery.settled:
            return
        delivery.settled = True
        if not (pending := self._pending):  # else it was rung for the first of them
            self._bell.ring()
        pending.append((delivery, verdict))

    def add_all(self, deliveries: Sequence[Delivery], verdict: Verdict) -> None:
        """`add` each of ``deliveries``."""
        fresh = [delivery for delivery in deliveries if not delivery.settled]
        if not fresh:
            return
        for delivery in fresh:
            delivery.settled = True
        if not self._pending:
            self._bell.ring()
        self._pending += [(delivery, verdict) for delivery in fresh]

    @property
    def idle(self) -> bool:
        """Whether nothing is waiting to be settled or being settled."""
        return not self.busy and not self._pending and not self._repeats

    async def run(self) -> None:
        """Settle until cancelled."""
        while True:
            due = self._repeats.next_due()
            await self._bell.heard(None if due is None else max(0.0, due - time.monotonic()))
            while batch := self._pending + self._repeats.pop_due(time.monotonic()):
                self._pending = []
                self.busy = True
                try:
                    outcomes = await self._settle(batch)
                finally:
                    self.busy = False
                if self._failures or outcomes.count(OK) < len(outcomes):
                    batch, outcomes = self._over(batch, outcomes)
                if batch:
                    self._ended(batch, outcomes)
                if self._pending:
                    # Adapters whose settling needs no IO return without suspending: let the others have the loop.
                    await asyncio.sleep(0)

    async def _settle(self, batch: list[Settlement]) -> list[Outcome]:
        if self.target is None:
            return [STALE] * len(batch)
        live = [item for item in batch if not item[0].lost]
        if len(live) == len(batch):
            return await ask(self.target, batch)
        given_up = {delivery for delivery, _ in batch if delivery.lost}  # as of now: more may be lost during the call
        answered = iter(await ask(self.target, live)) if live else iter(())
        return [STALE if delivery in given_up else next(answered) for delivery, _ in batch]

    def _over(self, batch: list[Settlement], outcomes: list[Outcome]) -> tuple[list[Settlement], list[Outcome]]:
        """Put aside what is to be repeated; return the rest."""
        over: list[tuple[Settlement, Outcome]] = []
        for item, outcome in zip(batch, outcomes, strict=True):
            delivery, verdict = item
            failures = self._failures.pop(delivery, 0)
            if outcome.status is Status.UNKNOWN and not delivery.lost and failures < len(_REPEATS):
                self._failures[delivery] = failures + 1
                self._repeats.add(time.monotonic() + _REPEATS[failures], item)
                continue
            over.append((item, outcome))
            if outcome.fault is not None and outcome.fault.code is not Code.STALE:
                name = type(verdict).__name__.lower()
                log.warning(
                    "%s of %s failed (%s); it will be delivered again", name, delivery.message.id, outcome.fault
                )
                self._refused(delivery, name, outcome)
        return [item for item, _ in over], [outcome for _, outcome in over]
