"""The heaviest of many keys, in bounded memory. Pure; the clock is injected.

Space-Saving (Metwally, Agrawal, El Abbadi: *Efficient Computation of Frequent and Top-k Elements in Data Streams*, 2005), in its
mergeable form: what a batch adds up to exactly is merged in one pass, so that a key of a message costs no search for the smallest
counter. A key whose true weight is more than ``total / capacity`` is always among those kept, and no estimate is too small.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Hashable, Mapping
from operator import itemgetter
from typing import Final

# After so long a weight counts half: a key is hot now, not since the process began. Shorter: chance makes keys hot; longer:
# what was hot an hour ago still is.
_HALF_LIFE: Final = 60.0
_WEIGHT = itemgetter(1)


class Sketch:
    """Weights by key, of the ``capacity`` heaviest.

    Args:
        capacity: counters. Fewer: lighter keys are missed; more: memory, and time at each merge.
        clock: monotonic seconds.

    Attributes:
        total: of all weights, those that were forgotten included; it fades as they do.
    """

    def __init__(self, capacity: int = 64, clock: Callable[[], float] = time.monotonic) -> None:
        self.total = 0.0
        self._capacity = capacity
        self._clock = clock
        self._faded_at = clock()
        self._weights: dict[Hashable, float] = {}
        self._floor = 0.0  # what a key that is not kept may weigh at most

    def merge(self, more: Mapping[Hashable, float]) -> None:
        """Add what came since the last time."""
        self._fade()
        weights, floor = self._weights, self._floor
        for key, weight in more.items():
            weights[key] = weights.get(key, floor) + weight
            self.total += weight
        if len(weights) > self._capacity:
            kept = heapq.nlargest(self._capacity, weights.items(), key=_WEIGHT)
            self._weights = dict(kept)
            self._floor = kept[-1][1]

    def top(self, count: int) -> list[tuple[Hashable, float]]:
        """The heaviest keys and at most what each weighs, heaviest first."""
        self._fade()
        return heapq.nlargest(count, self._weights.items(), key=_WEIGHT)

    def _fade(self) -> None:
        now = self._clock()
        passed = now - self._faded_at
        if passed < _HALF_LIFE / 20:
            return
        self._faded_at = now
        rest = 0.5 ** (passed / _HALF_LIFE)
        self.total *= rest
        self._floor *= rest
        self._weights = {key: weight * rest for key, weight in self._weights.items()}
