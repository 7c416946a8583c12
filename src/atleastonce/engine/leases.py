"""When leases are to be renewed: by the batch, since everything in one batch was leased at one moment."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence

from atleastonce.contract import Delivery


class LeaseTable:
    """Renewals for everything that is out, a third of the lease before the middle of it has passed.

    Renewing at a third leaves two more tries before the lease ends. Later would lose messages to a slow broker;
    earlier costs the broker
    round trips. A settled delivery is not removed: it is skipped when its batch comes up.
    """

    __slots__ = ("_batches", "_sequence", "lease")

    def __init__(self, lease: float) -> None:
        self.lease = lease
        self._batches: list[tuple[float, int, Sequence[Delivery]]] = []
        self._sequence = 0

    def add(self, batch: Iterable[Delivery], now: float) -> None:
        """Begin to watch ``batch``, leased at ``now``."""
        deliveries = list(batch)
        if deliveries:
            self._sequence += 1
            heapq.heappush(self._batches, (now + self.lease / 3, self._sequence, deliveries))

    def due(self, now: float) -> list[Delivery]:
        """What is to be renewed at ``now``: still out, and not lost. The caller renews it and `add`s it again."""
        renew: list[Delivery] = []
        while self._batches and self._batches[0][0] <= now:
            renew.extend(d for d in heapq.heappop(self._batches)[2] if not d.settled and not d.lost)
        return renew

    def next_due(self) -> float | None:
        """When `due` has something to look at next, by the same clock; None if nothing is watched."""
        return self._batches[0][0] if self._batches else None


def expired(deliveries: Iterable[Delivery], now: float) -> list[Delivery]:
    """Those whose lease is over at ``now``: another worker may have them."""
    return [d for d in deliveries if d.lease_until and d.lease_until <= now and not d.settled]
