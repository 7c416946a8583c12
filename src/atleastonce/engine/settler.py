"""Ends deliveries, in batches as large as the broker's round trip makes them: what comes in during one call goes out
in the next."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from atleastonce.contract import OK, STALE, Code, Delivery, Outcome, Settlement, Status, Verdict
from atleastonce.engine.wake import Bell

log = logging.getLogger("atleastonce.engine")

Settle = Callable[[Sequence[Settlement]], Awaitable[Sequence[Outcome]]]

# A settlement whose reply was lost is repeated (settling is idempotent). After these waits the delivery is left to
# come again:
# repeating for ever would keep the window full behind a connection that is about to be replaced anyway.
_REPEATS = (0.05, 0.2, 1.0)


class Settler:
    """One task that settles everything for one worker.

    Args:
        settle: the current subscription's; told anew after each reconnect through `target`.
        ended: told of every batch that is over, whatever its outcomes.
    """

    def __init__(self, ended: Callable[[Sequence[Settlement], Sequence[Outcome]], None]) -> None:
        self.target: Settle | None = None
        self._ended = ended
        self._pending: list[Settlement] = []
        self._bell = Bell()
        self.busy = False

    def add(self, delivery: Delivery, verdict: Verdict) -> None:
        """Settle ``delivery`` soon. Its first verdict counts."""
        if delivery.settled:
            return
        delivery.settled = True
        self._pending.append((delivery, verdict))
        self._bell.ring()

    @property
    def idle(self) -> bool:
        """Whether nothing is waiting to be settled or being settled."""
        return not self.busy and not self._pending

    async def run(self) -> None:
        """Settle until cancelled."""
        while True:
            await self._bell.heard()
            while self._pending:
                batch, self._pending = self._pending, []
                self.busy = True
                try:
                    outcomes = await self._settle(batch)
                finally:
                    self.busy = False
                self._ended(batch, outcomes)
                # Adapters whose settling needs no IO return without suspending: let the others have the loop.
                await asyncio.sleep(0)

    async def _settle(self, batch: list[Settlement]) -> Sequence[Outcome]:
        live = [item for item in batch if not item[0].lost]
        outcomes: list[Outcome] = await self._call(live) if live else []
        if len(live) == len(batch):
            return outcomes
        answered = iter(outcomes)
        return [STALE if delivery.lost else next(answered) for delivery, _ in batch]

    async def _call(self, batch: list[Settlement]) -> list[Outcome]:
        settle = self.target
        if settle is None:
            return [STALE] * len(batch)
        outcomes = list(await settle(batch))
        for pause in _REPEATS:
            if all(outcome is OK for outcome in outcomes):
                break
            again = [i for i, o in enumerate(outcomes) if o.status is Status.UNKNOWN and not batch[i][0].lost]
            if not again or self.target is not settle:
                break
            await asyncio.sleep(pause)
            for i, outcome in zip(again, await settle([batch[i] for i in again]), strict=True):
                outcomes[i] = outcome
        for (delivery, verdict), outcome in zip(batch, outcomes, strict=True):
            if outcome.fault is not None and outcome.fault.code is not Code.STALE:
                name = type(verdict).__name__.lower()
                log.warning(
                    "%s of %s failed (%s); it will be delivered again", name, delivery.message.id, outcome.fault
                )
        return outcomes
