"""Deliveries that wait for a time: to run again in place, to be due after a retry hop, or for their copy to be
published again."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Schedule(Generic[T]):
    """A heap of things with a due time, by whatever clock its caller uses. Equal times come out in the order they
    went in."""

    __slots__ = ("_heap", "_sequence")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, T]] = []
        self._sequence = 0

    def add(self, due: float, item: T) -> None:
        """Keep ``item`` until ``due``."""
        self._sequence += 1
        heapq.heappush(self._heap, (due, self._sequence, item))

    def pop_due(self, now: float) -> list[T]:
        """Remove and return what is due at ``now``, earliest first. Never early."""
        items: list[T] = []
        while self._heap and self._heap[0][0] <= now:
            items.append(heapq.heappop(self._heap)[2])
        return items

    def next_due(self) -> float | None:
        """The earliest due time; None if nothing waits."""
        return self._heap[0][0] if self._heap else None

    def purge(self, unwanted: Callable[[T], bool]) -> list[T]:
        """Remove and return what is ``unwanted``, earliest first."""
        removed = [entry for entry in self._heap if unwanted(entry[2])]
        if removed:
            self._heap = [entry for entry in self._heap if not unwanted(entry[2])]
            heapq.heapify(self._heap)
        return [item for _, _, item in sorted(removed, key=lambda entry: entry[:2])]

    def latest_first(self) -> list[T]:
        """All that waits."""
        return [item for _, _, item in sorted(self._heap, key=lambda entry: entry[:2], reverse=True)]

    def __len__(self) -> int:
        return len(self._heap)
