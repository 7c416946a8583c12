"""Ends what a worker has in hand, of some streams or of all: what has not started is given back, what runs may end."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection

from atleastonce.contract import Delivery
from atleastonce.wake import Signal


class Drains:
    """The drains of one worker; they may overlap.

    Args:
        out: what was received and is not settled.
        give_back: gives back what has not started and is unwanted.

    Attributes:
        stopping: whether all of it ends; nothing more is received then.
        streams: those that end, each as often as it is being drained.
        ended: notified when something has ended.
    """

    def __init__(self, out: Collection[Delivery], give_back: Callable[[Callable[[Delivery], bool]], None]) -> None:
        self.stopping = False
        self.streams: Counter[str] = Counter()
        self.ended = Signal()
        self._out = out
        self._give_back = give_back

    def takes(self, delivery: Delivery) -> bool:
        """Whether it may not start any more. For one; of a list it is asked without a call for each."""
        return self.stopping or delivery.stream in self.streams

    async def of(self, streams: Collection[str], grace: float) -> None:
        """See `Listener.drain`."""
        names = frozenset(streams)
        self.streams.update(names)
        try:
            await self._until_ended(lambda delivery: delivery.stream in names, grace)
        finally:
            self.streams = self.streams - Counter(names)  # keeps what another drain has counted

    async def all(self, grace: float) -> bool:
        """End everything, for good; whether all of it ended within ``grace`` seconds."""
        self.stopping = True
        return await self._until_ended(lambda _: True, grace)

    async def _until_ended(self, concerned: Callable[[Delivery], bool], grace: float) -> bool:
        deadline = time.monotonic() + grace
        while True:
            self._give_back(concerned)
            if not any(concerned(delivery) for delivery in self._out):
                return True
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            await self.ended.wait(min(left, 0.25))
