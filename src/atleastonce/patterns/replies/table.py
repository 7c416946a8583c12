"""Which answers are waited for. Pure: no IO, no clock of its own.

Each request has a correlation of 128 random bits, which is good for one answer. What comes under any other name is dropped and
counted: late (its asker has gone), a duplicate (it was answered), or unknown (nobody here asked: forged, or of an earlier life of
this inbox).
"""

from __future__ import annotations

import secrets
from collections import Counter, OrderedDict
from typing import Generic, TypeVar

W = TypeVar("W")

# Of how many requests that are over it is known how they ended. Only the counters of strays depend on it.
_REMEMBERED = 10_000


def new_correlation() -> str:
    """32 hexadecimal digits that nobody guesses."""
    return secrets.token_hex(16)


class Table(Generic[W]):
    """Requests without an answer, by their correlation.

    Args:
        limit: how many may wait at once.

    Attributes:
        counts: ``answered`` and ``expired`` requests; ``late``, ``duplicate`` and ``unknown`` answers.
    """

    def __init__(self, limit: int) -> None:
        self.counts: Counter[str] = Counter()
        self._limit = limit
        self._waiting: dict[str, W] = {}
        self._over: OrderedDict[str, str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def full(self) -> bool:
        """Whether no more may wait."""
        return len(self._waiting) >= self._limit

    def add(self, waiter: W) -> str:
        """``waiter`` waits from now on, under the correlation that is returned. Only while the table is not `full`."""
        correlation = new_correlation()
        self._waiting[correlation] = waiter
        return correlation

    def get(self, correlation: str) -> W | None:
        """Who waits for this answer; None, counted, if nobody does. Goes on waiting until `answered`."""
        waiter = self._waiting.get(correlation)
        if waiter is None:
            self.counts[self._over.get(correlation, "unknown")] += 1
        return waiter

    def answered(self, correlation: str) -> W | None:
        """As `get`, and it is the last answer: another one is a duplicate."""
        waiter = self.get(correlation)
        if waiter is not None:
            self._end(correlation, "duplicate")
            self.counts["answered"] += 1
        return waiter

    def gone(self, correlation: str, *, satisfied: bool = False) -> None:
        """Nobody waits under ``correlation`` any more; an answer is late. Nothing if it was answered. ``satisfied``: its time was
        meant to end, and what came in it is what was asked for."""
        if correlation in self._waiting:
            self._end(correlation, "late")
            self.counts["answered" if satisfied else "expired"] += 1

    def waiting(self) -> list[W]:
        """All who wait."""
        return list(self._waiting.values())

    def _end(self, correlation: str, stray: str) -> None:
        del self._waiting[correlation]
        self._over[correlation] = stray
        if len(self._over) > _REMEMBERED:
            self._over.popitem(last=False)
