"""What one worker has received and has no room for: it waits here, in its order, outside the account of what is in flight.

What a message weighs is known only once it is there. Here its lease is kept, as that of everything received, and it goes on as soon
as what ends has made room; nothing is received meanwhile, so that nothing overtakes it and no more than one list of it waits.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence

from atleastonce.contract import Delivery
from atleastonce.engine.window import WindowMeter

# How soon what is not due yet is looked at again at the latest: due times are the wall clock's, which may be put forward.
_LOOK_SECONDS = 1.0


class Anteroom:
    """Used on the loop alone.

    Args:
        meter: the account.
        due: when a delivery is due, in seconds since the epoch; 0.0 for now.
        enter: what has been let in goes on there, with its bytes together and those of the largest.
        again: called when something may be let in because time has passed; it calls `let_in`.
    """

    def __init__(
        self,
        meter: WindowMeter,
        due: Callable[[Delivery], float],
        enter: Callable[[Sequence[Delivery], int, int], None],
        again: Callable[[], None],
    ) -> None:
        self._meter = meter
        self._due = due
        self._enter = enter
        self._again = again
        self._waiting: deque[Delivery] = deque()
        self._outside: set[Delivery] = set()  # on no account, and not settled
        self._look: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """How many wait for room."""
        return len(self._waiting)

    @property
    def outside(self) -> int:
        """How many are on no account: those that wait, and those that are given back from here."""
        return len(self._outside)

    def leave_out(self, batch: Collection[Delivery]) -> None:
        """These were received and never come in: they are given back."""
        self._outside.update(batch)

    def add(self, batch: Sequence[Delivery]) -> None:
        """These were received, and there was no room for all of them: let in those that there is room for."""
        self._outside.update(batch)
        self._waiting.extend(batch)
        self.let_in()

    def put_back(self, batch: Sequence[Delivery]) -> None:
        """These were let in, are not due, and leave their room to others. What waits comes in as it is due from now on."""
        if not batch:
            return
        self._outside.update(batch)
        self._waiting = deque(sorted([*batch, *self._waiting], key=self._due))
        self._meter.held_up = True
        asyncio.get_running_loop().call_soon(self._again)  # once who made it leave has come in

    def settled(self, batch: Sequence[Delivery]) -> Sequence[Delivery]:
        """These have ended. Those of them that were on the account."""
        outside = self._outside
        if not outside:
            return batch
        counted = [delivery for delivery in batch if delivery not in outside]
        outside.difference_update(batch)
        return counted

    def purge(self, unwanted: Callable[[Delivery], bool]) -> list[Delivery]:
        """Remove and return what waits and is ``unwanted``."""
        removed = [delivery for delivery in self._waiting if unwanted(delivery)]
        if removed:
            self._waiting = deque(delivery for delivery in self._waiting if not unwanted(delivery))
        return removed

    def let_in(self) -> None:
        """Let in what there is room for, in its order, and stand in line for the first one that there is none for."""
        waiting, meter = self._waiting, self._meter
        while waiting:
            batch = self._fitting()
            if batch:
                for _ in batch:
                    waiting.popleft()
                self._outside.difference_update(batch)
                sizes = [delivery.size for delivery in batch]
                self._enter(batch, sum(sizes), max(sizes))
            elif self._due_in(waiting[0]) > 0 or not meter.line_up(waiting[0].size):
                break
        meter.held_up = bool(waiting)
        self._wait()

    def _due_in(self, delivery: Delivery) -> float:
        return self._due(delivery) - time.time()

    def close(self) -> None:
        """Look no more."""
        if self._look is not None:
            self._look.cancel()
            self._look = None

    def _fitting(self) -> list[Delivery]:
        meter = self._meter
        batch: list[Delivery] = []
        size = 0
        for delivery in self._waiting:
            size += delivery.size
            if not meter.fits(len(batch) + 1, size):
                break
            batch.append(delivery)
        if not batch and meter.fits_alone(self._waiting[0].size):
            batch.append(self._waiting[0])
        return batch

    def _wait(self) -> None:
        self.close()
        due_in = self._due_in(self._waiting[0]) if self._waiting else 0.0
        if due_in > 0:  # it stands in nobody's way until then
            self._look = asyncio.get_running_loop().call_later(min(due_in, _LOOK_SECONDS), self._again)
        if due_in > 0 or not self._waiting:
            self._meter.step_out()
