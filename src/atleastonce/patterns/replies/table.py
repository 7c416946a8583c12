"""Which answers are waited for, and until when. Pure: no IO, no clock of its own.

Each request has a correlation of 128 random bits, which is good for one answer. What comes under any other name is dropped and
counted: late (its asker has gone), a duplicate (it was answered), or unknown (nobody here asked: forged, or of an earlier life of
this inbox).
"""

from __future__ import annotations

import heapq
import secrets
from collections import OrderedDict
from typing import Generic, TypeVar

from atleastonce.engine.tally import Tally

W = TypeVar("W")

# Of how many requests that are over it is known how they ended. Only the counters of strays depend on it.
_REMEMBERED = 10_000
# To ask the system for each correlation costs more than the correlation.
_SPARE = 64
# Ends of what has its answer are let go of when they are as many as the others, and this many besides: the look costs a constant
# for each request. Fewer: it is looked more often. More: they are kept for longer.
_SLACK = 64


class Table(Generic[W]):
    """Requests without an answer, by their correlation.

    Args:
        limit: how many may wait at once.

    Attributes:
        counts: ``answered`` and ``expired`` requests; ``late``, ``duplicate`` and ``unknown`` answers.
    """

    def __init__(self, limit: int) -> None:
        self.counts = Tally()
        self._limit = limit
        self._waiting: dict[str, W] = {}
        self._ends: list[tuple[float, str]] = []  # a heap
        self._spare: list[str] = []
        self._over: OrderedDict[str, str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def full(self) -> bool:
        """Whether no more may wait."""
        return len(self._waiting) >= self._limit

    def add(self, waiter: W, end: float) -> str:
        """``waiter`` waits from now on and until ``end``, by its caller's clock, under the correlation that is returned: 32
        hexadecimal digits that nobody guesses. Only while the table is not `full`."""
        spare = self._spare
        if not spare:
            digits = secrets.token_hex(16 * _SPARE)
            spare.extend(digits[begin : begin + 32] for begin in range(0, 32 * _SPARE, 32))
        correlation = spare.pop()
        waiting, ends = self._waiting, self._ends
        waiting[correlation] = waiter
        heapq.heappush(ends, (end, correlation))
        if len(ends) > 2 * len(waiting) + _SLACK:
            self._ends = [each for each in ends if each[1] in waiting]
            heapq.heapify(self._ends)
        return correlation

    def due(self, now: float) -> list[W]:
        """Who has waited until ``now``, each told once. They go on waiting until they are `gone`."""
        found: list[W] = []
        while (end := self.next_end()) is not None and end <= now:
            found.append(self._waiting[heapq.heappop(self._ends)[1]])
        return found

    def next_end(self) -> float | None:
        """When `due` finds somebody next; None if nobody waits."""
        ends, waiting = self._ends, self._waiting
        while ends and ends[0][1] not in waiting:
            heapq.heappop(ends)
        return ends[0][0] if ends else None

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
            self.end(correlation)
        return waiter

    def end(self, correlation: str) -> None:
        """As `answered`, for who is known to wait."""
        self._end(correlation, "duplicate")
        self.counts["answered"] += 1

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
