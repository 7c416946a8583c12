"""How many handlers may run at once, where that changes with how they fare. Pure; the clock is injected.

The number grows by additive steps while it is used up and all is well, and shrinks by a factor on a sign of overload: a handler
that timed out or raised `Overloaded`, or runs that take much longer than they used to (the *gradient* of the latency). Nothing
else shrinks it: an error is no overload.

Models: TCP's congestion control (AIMD) and Netflix' concurrency-limits (the gradient).
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from atleastonce.durations import whole
from atleastonce.errors import ConfigurationError

# A decision is made of the runs of so many seconds, and so many runs at least: fewer, and chance decides.
_WINDOW_SECONDS: Final = 0.1
_WINDOW_RUNS: Final = 10
# How slowly the usual latency follows the latest one: about so many windows. Faster: a slow decline is taken for usual.
_MEMORY: Final = 200


@dataclass(frozen=True, kw_only=True)
class AdaptiveConcurrency:
    """Handlers at once: as many as what they call can bear.

    Args:
        min, max: never fewer, never more. ``min`` too large: an overload goes on; ``max`` too large: the first burst is one.
        initial: where it begins; default ``min``.
        backoff: what it is multiplied by on overload, at most once in a tenth of a second. Too small: one hiccup stops
            everything; too large: an overload lasts.
        tolerance: so many times the usual latency is an overload. Too small: ordinary variation shrinks it; too large: queues
            build up unnoticed.

    Raises:
        ConfigurationError: a value out of range.
    """

    min: int = 4
    max: int = 256
    initial: int | None = None
    backoff: float = 0.8
    tolerance: float = 2.0

    def __post_init__(self) -> None:
        whole(self.min, name="AdaptiveConcurrency min", high=10_000)
        whole(self.max, name="AdaptiveConcurrency max", low=self.min, high=10_000)
        if self.initial is not None:
            whole(self.initial, name="AdaptiveConcurrency initial", low=self.min, high=self.max)
        for name, value, low, high in (
            ("backoff", self.backoff, 0.1, 0.99),
            ("tolerance", self.tolerance, 1.1, 100.0),
        ):
            given: object = value
            if isinstance(given, bool) or not isinstance(given, int | float) or not low <= given <= high:
                raise ConfigurationError(
                    f"AdaptiveConcurrency {name}={value!r} is out of range; give a number from {low:g} to {high:g}"
                )

    def at_most(self, places: int) -> AdaptiveConcurrency:
        """The same for a share of the work that has so many places."""
        low = min(self.min, places)
        start = None if self.initial is None else min(max(self.initial, low), places)
        return replace(self, min=low, max=places, initial=start)


class Limit:
    """The number, as it is now. Thread-safe.

    Args:
        policy: its bounds.
        clock: monotonic seconds.

    Attributes:
        value: handlers at once.
        overloads: how often it shrank.
    """

    def __init__(self, policy: AdaptiveConcurrency, clock: Callable[[], float] = time.monotonic) -> None:
        self.value = policy.initial or policy.min
        self.overloads = 0
        self._policy = policy
        self._clock = clock
        self._lock = threading.Lock()
        self._usual = 0.0
        self._begin(clock())

    def _begin(self, now: float) -> None:
        self._since = now
        self._runs = 0
        self._sum = 0.0
        self._used_up = False
        self._overloaded = False

    def overload(self) -> None:
        """A run has ended with a sign of overload."""
        with self._lock:
            self._overloaded = True

    def ran(self, took: float, running: int) -> None:
        """A run took ``took`` seconds, and so many ran when it ended, itself included."""
        with self._lock:
            self._runs += 1
            self._sum += took
            self._used_up = self._used_up or running >= self.value
            now = self._clock()
            if now - self._since < _WINDOW_SECONDS or (self._runs < _WINDOW_RUNS and not self._overloaded):
                return
            self._decide(self._sum / self._runs)
            self._begin(now)

    def _decide(self, mean: float) -> None:
        policy = self._policy
        slow = self._usual > 0 and mean > policy.tolerance * self._usual
        if not self._usual:
            self._usual = mean
        elif not slow or self.value == policy.min:  # with nothing left to shrink, that is how long it takes
            self._usual += (mean - self._usual) * (1 / 10 if mean < self._usual else 1 / _MEMORY)
        if self._overloaded or slow:
            self.overloads += 1
            self.value = max(policy.min, math.floor(self.value * policy.backoff))
        elif self._used_up:
            self.value = min(policy.max, self.value + max(1, math.isqrt(self.value)))
