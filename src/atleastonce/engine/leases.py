"""When leases are to be renewed: by the batch, since everything in one batch was leased at one moment."""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from atleastonce.contract import Delivery

# Settled deliveries are dropped from the table when it has doubled since it was last looked through, and this many came
# besides: the look costs a constant for each message. Smaller looks more often; larger holds more bodies for nothing.
_SLACK = 64


class LeaseTable:
    """Renewals for everything that is out, each after a third of its lease.

    Renewing at a third leaves two more tries before the lease ends. Later would lose messages to a slow broker;
    earlier costs the broker round trips.
    """

    __slots__ = ("_batches", "_sequence", "_sweep_at", "_watched", "lease")

    def __init__(self, lease: float) -> None:
        self.lease = lease
        self._batches: list[tuple[float, int, list[Delivery]]] = []
        self._sequence = 0
        self._watched = 0
        self._sweep_at = _SLACK

    def add(self, batch: Iterable[Delivery], now: float) -> None:
        """Begin to watch ``batch``, leased at ``now``."""
        deliveries = list(batch)
        if not deliveries:
            return
        self._sequence += 1
        heapq.heappush(self._batches, (now + self.lease / 3, self._sequence, deliveries))
        self._watched += len(deliveries)
        if self._watched > self._sweep_at:
            self._sweep()

    def _sweep(self) -> None:
        """Let go of what has ended: it must not outlive its place in the window until its renewal would be due."""
        live = [(due, sequence, [d for d in batch if _out(d)]) for due, sequence, batch in self._batches]
        self._batches = [entry for entry in live if entry[2]]
        heapq.heapify(self._batches)
        self._watched = sum(len(batch) for _, _, batch in self._batches)
        self._sweep_at = 2 * self._watched + _SLACK

    def due(self, now: float) -> list[Delivery]:
        """What is to be renewed at ``now``: still out, and not lost. The caller renews it and `add`s it again."""
        renew: list[Delivery] = []
        while self._batches and self._batches[0][0] <= now:
            batch = heapq.heappop(self._batches)[2]
            self._watched -= len(batch)
            renew.extend(d for d in batch if _out(d))
        return renew

    def next_due(self) -> float | None:
        """When `due` has something to look at next, by the same clock; None if nothing is watched."""
        return self._batches[0][0] if self._batches else None


def _out(delivery: Delivery) -> bool:
    return not delivery.settled and not delivery.lost
