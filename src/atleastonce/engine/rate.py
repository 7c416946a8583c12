"""A token bucket: how many messages may come now, if so many may come in a second. Pure; the clock is injected."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

# What may come at once after a silence, in seconds of the rate. Smaller: a round trip for every few messages. Larger: whoever is
# protected gets that much in one burst.
_BURST_SECONDS: Final = 0.1


class TokenBucket:
    """Grants up to ``rate`` messages in a second, a tenth of a second's worth at once (one at least).

    Args:
        rate: messages per second, above 0.
        clock: monotonic seconds.
    """

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate = rate
        self._most = max(1.0, rate * _BURST_SECONDS)
        self._tokens = self._most
        self._clock = clock
        self._at = clock()

    def take(self, most: int) -> int:
        """How many of ``most`` messages may come now; they count as come."""
        self._refill()
        granted = min(most, max(0, int(self._tokens + 1e-9)))
        self._tokens -= granted
        return granted

    def give_back(self, unused: int) -> None:
        """So many of those granted did not come."""
        self._tokens = min(self._most, self._tokens + unused)

    @property
    def wait(self) -> float:
        """Seconds until the next one may come; 0.0 if one may now."""
        self._refill()
        return max(0.0, (1.0 - self._tokens) / self.rate)

    def _refill(self) -> None:
        now = self._clock()
        self._tokens = min(self._most, self._tokens + max(0.0, now - self._at) * self.rate)
        self._at = now
