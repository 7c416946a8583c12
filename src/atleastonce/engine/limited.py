"""Lanes of which only so many start at once as a `Limit` says, whatever pool takes from them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from itertools import islice

from atleastonce.contract import Delivery
from atleastonce.engine.decision import AsyncProcess, Decision, SyncProcess
from atleastonce.engine.lanes import Lanes
from atleastonce.engine.limit import Limit


class LimitedLanes:
    """``lanes`` behind ``limit``. The runs themselves go through `around` or `around_sync`, which time them."""

    ordered = (
        True  # `finish` is to be told of everything: also what was handed to a thread and taken back leaves its place
    )

    def __init__(self, lanes: Lanes, limit: Limit) -> None:
        self.limit = limit
        self._lanes = lanes
        self._running: set[Delivery] = set()

    @property
    def closed(self) -> bool:
        return self._lanes.closed

    @closed.setter
    def closed(self, closed: bool) -> None:
        self._lanes.closed = closed

    def offer(self, batch: Iterable[Delivery]) -> None:
        self._lanes.offer(batch)

    def take(self) -> Delivery | None:
        if len(self._running) >= self.limit.value:
            return None
        delivery = self._lanes.take()
        if delivery is not None:
            self._running.add(delivery)
        return delivery

    def take_some(self, most: int) -> list[Delivery]:
        return list(islice(iter(self.take, None), most))

    def again(self, batch: Iterable[Delivery]) -> None:
        self._lanes.again(batch)

    def finish(self, delivery: Delivery) -> None:
        self._running.discard(delivery)
        if self._lanes.ordered:
            self._lanes.finish(delivery)

    def holds(self, delivery: Delivery) -> bool:
        return self._lanes.holds(delivery)

    def purge(self, unwanted: Callable[[Delivery], bool], *, in_order: bool = False) -> list[Delivery]:
        return self._lanes.purge(unwanted, in_order=in_order)

    def freed(self) -> list[Delivery]:
        return self._lanes.freed()

    @property
    def ready(self) -> bool:
        return len(self._running) < self.limit.value and self._lanes.ready

    def __len__(self) -> int:
        return len(self._lanes)

    def around(self, process: AsyncProcess) -> AsyncProcess:
        """``process``, timed."""

        async def timed(delivery: Delivery) -> Decision:
            begin = time.monotonic()
            try:
                decision = await process(delivery)
                self._ran(decision, time.monotonic() - begin)
            finally:
                self._running.discard(delivery)
            return decision

        return timed

    def around_sync(self, process: SyncProcess) -> SyncProcess:
        """``process`` on a thread, timed."""

        def timed(delivery: Delivery) -> Decision:
            begin = time.monotonic()
            try:
                decision = process(delivery)
                self._ran(decision, time.monotonic() - begin)
            finally:
                self._running.discard(delivery)
            return decision

        return timed

    def _ran(self, decision: Decision, took: float) -> None:
        if decision.name != "held":  # that was no run
            self.limit.ran(took, len(self._running))
