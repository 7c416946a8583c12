"""How long to wait before the next try."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from atleastonce.durations import Duration, seconds
from atleastonce.errors import ConfigurationError


@dataclass(frozen=True, init=False)
class Backoff:
    """Growing waits: ``initial``, then times ``factor`` each, up to ``maximum``; ``max_attempts`` tries in all, the first included.

    Args:
        initial: the first wait. Too small hammers what is already down; too large makes a hiccup visible.
        factor: at least 1.
        maximum: the longest wait.
        max_attempts: tries in all; None for no end.
        jitter: each wait is lengthened by up to this share of itself, so that a fleet does not come back in step. It never
            shortens a wait.
    """

    initial: float
    factor: float
    maximum: float
    max_attempts: int | None
    jitter: float

    def __init__(
        self,
        initial: Duration = "100ms",
        *,
        factor: float = 2.0,
        maximum: Duration = "30s",
        max_attempts: int | None = None,
        jitter: float = 0.2,
    ) -> None:
        first = seconds(initial, name="Backoff initial")
        if not 1 <= factor < math.inf:
            raise ConfigurationError(f"Backoff factor={factor} must be at least 1, and finite: waits do not shrink")
        if max_attempts is not None and max_attempts < 1:
            raise ConfigurationError(f"Backoff max_attempts={max_attempts} must be at least 1: the first try counts")
        if not 0 <= jitter <= 1:
            raise ConfigurationError(f"Backoff jitter={jitter} is out of range 0 to 1")
        force = object.__setattr__  # frozen: set once, here
        force(self, "initial", first)
        force(self, "factor", float(factor))
        force(self, "maximum", max(first, seconds(maximum, name="Backoff maximum")))
        force(self, "max_attempts", max_attempts)
        force(self, "jitter", float(jitter))

    def wait(self, attempt: int, rand: Callable[[], float] = random.random) -> float | None:
        """Seconds to wait after ``attempt`` (from 1) failed; None when that was the last one."""
        if self.max_attempts is not None and attempt >= self.max_attempts:
            return None
        try:
            base = min(self.maximum, self.initial * self.factor ** (attempt - 1))
        except OverflowError:
            base = self.maximum if self.initial else 0.0
        return base * (1 + self.jitter * rand())
