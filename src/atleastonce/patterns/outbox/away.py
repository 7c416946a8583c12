"""Destinations that do not take messages now. Pure: the time is given."""

from __future__ import annotations

from atleastonce.engine.backoff import Backoff

# Short at first, because most failures are hiccups; ten seconds at most, because a person may be watching the recovery.
_PAUSES = Backoff("100ms", factor=2, maximum="10s")


class Away:
    """Each destination by itself: one that is gone holds up no other."""

    def __init__(self) -> None:
        self._failures: dict[str, int] = {}
        self._until: dict[str, float] = {}
        self._reasons: dict[str, str] = {}

    def failed(self, destination: str, reason: str, now: float, *, some: bool = False) -> float | None:
        """It is left alone for a while: longer each time, and as short as at first when it took ``some`` of the same list.

        Returns:
            For how long; None if that is nothing new: the list had left before the pause began, or again it took only some.
        """
        until = self._until.get(destination, now)
        new = until <= now and not (some and destination in self._failures)
        self._reasons[destination] = reason
        if until > now and not some:
            return None
        failures = self._failures[destination] = 1 if some else self._failures.get(destination, 0) + 1
        pause = _PAUSES.wait(failures) or 0.0
        self._until[destination] = now + pause if until <= now else min(until, now + pause)
        return pause if new else None

    def worked(self, destination: str) -> bool:
        """It took a message. Returns whether it had not before."""
        self._until.pop(destination, None)
        self._reasons.pop(destination, None)
        return self._failures.pop(destination, None) is not None

    def paused(self, now: float) -> list[str]:
        """What is left alone now."""
        return [destination for destination, until in self._until.items() if until > now]

    def wait(self, now: float) -> float | None:
        """Seconds until the first of them is tried again; None if none is left alone."""
        return min((until - now for until in self._until.values() if until > now), default=None)

    @property
    def detail(self) -> str:
        """What is away, and why; "" if nothing."""
        return "; ".join(f"{name}: {reason}" for name, reason in self._reasons.items())
