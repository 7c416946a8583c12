"""A circuit breaker: what fails again and again is left alone for a while, then tried with one probe.

Pure: whoever asks brings the time, by a clock that never goes back::

    closed  --(`failures` within `within`)-->  open  --(`open_for` later)-->  half-open, one probe
       ^                                         ^                                 |
       +------------- the probe succeeds --------+---------- the probe fails ------+
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from atleastonce.durations import Duration, seconds, whole
from atleastonce.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class CircuitBreaker:
    """When to stop calling what fails, and for how long. Immutable; share one among callers as you like: each has a state of
    its own.

    Args:
        failures: this many open it. Too few: a hiccup stops everything. Too many: as many calls wait for nothing.
        within: they must lie within this time, so that one failure a day never adds up.
        share: and be at least this share of all that ended meanwhile; None for no such limit. It keeps a busy consumer, of whose
            thousands of messages twenty are bad, from stopping.
        open_for: how long nothing is tried. Too short: a service that is down is kept busy with probes; too long: it is back
            and nobody asks.
        on: the exception classes that count, causes and groups searched; None for every one.

    Raises:
        ConfigurationError: a value out of range.
    """

    failures: int = 20
    within: Duration = "30s"
    share: float | None = 0.5
    open_for: Duration = "15s"
    on: tuple[type[BaseException], ...] | None = None

    def __post_init__(self) -> None:
        whole(self.failures, name="CircuitBreaker failures", high=100_000)
        seconds(self.within, name="CircuitBreaker within", minimum=0.001)
        seconds(self.open_for, name="CircuitBreaker open_for", minimum=0.001)
        share: object = self.share
        if share is not None and (isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1):
            raise ConfigurationError(
                f"CircuitBreaker share={share!r} is out of range; give a share above 0 and up to 1, or None"
            )
        if self.on is not None and not _are_exceptions(self.on):
            raise ConfigurationError(f"CircuitBreaker on={self.on!r}: give a tuple of exception classes, or None")

    def counts(self, errors: Iterable[BaseException]) -> bool:
        """Whether one of ``errors``, a failure and its causes, is of a kind that counts."""
        return self.on is None or any(isinstance(error, self.on) for error in errors)

    def circuit(self, done: Callable[[], int] | None = None) -> Circuit:
        """A state of one's own, closed. ``done``: see `Circuit`."""
        return Circuit(self.failures, seconds(self.within), seconds(self.open_for), share=self.share, done=done)


def _are_exceptions(kinds: object) -> bool:
    return (
        isinstance(kinds, tuple)
        and bool(kinds)
        and all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds)
    )


class State(enum.Enum):
    """What a circuit lets through."""

    CLOSED = "closed"
    """Everything."""
    OPEN = "open"
    """Nothing."""
    HALF_OPEN = "half-open"
    """One probe, whose end decides."""


class Circuit:
    """The state of one breaker.

    A call asks with `admit`, and tells its end with the ticket that it got. Ends of calls that began before the state changed
    say nothing about now and are ignored: ten calls that time out together open it once, and do not fail the probe.

    Args:
        failures, within, open_for, share: see `CircuitBreaker`; in seconds.
        done: how many calls have worked so far, where somebody counts them anyway; it only ever grows. Else `succeeded` does.

    Attributes:
        state: as of the last call of any method.
        reason: what opened it; "" while it is closed.
        opened: how often it opened.
    """

    def __init__(
        self,
        failures: int,
        within: float,
        open_for: float,
        *,
        share: float | None = None,
        done: Callable[[], int] | None = None,
    ) -> None:
        self.state = State.CLOSED
        self.opened = 0
        self.reason = ""
        self._share = share
        self._worked = 0
        self._done = done or (lambda: self._worked)
        self._within = within
        self._open_for = open_for
        self._recent: deque[tuple[float, int]] = deque(maxlen=failures)  # when, and how many had worked by then
        self._until = 0.0
        self._ticket = 0

    def admit(self, now: float) -> int | None:
        """A ticket for one call; None where it must not be made."""
        if self.state is State.CLOSED:
            return self._ticket
        if now < self._until:
            return None
        # Also where a probe is out that never told its end: it is given up after as long, or nobody would ever call again.
        self.state = State.HALF_OPEN
        self._ticket += 1
        self._until = now + self._open_for
        return self._ticket

    def succeeded(self, ticket: int) -> None:
        """The call of ``ticket`` has worked. To be told of probes alone where ``done`` counts."""
        self._worked += 1
        if ticket == self._ticket and self.state is State.HALF_OPEN:
            self._change(State.CLOSED)
            self.reason = ""

    def failed(self, ticket: int, now: float) -> None:
        """The call of ``ticket`` has failed in a way that tells of the service and not of the call."""
        if ticket != self._ticket:
            return
        if self.state is State.HALF_OPEN:
            self._open(now)
        elif self.state is State.CLOSED:
            self._recent.append((now, self._done()))
            self.reason = self._over(now)
            if self.reason:
                self._open(now)

    def _over(self, now: float) -> str:
        """Which limit the failures break, if any."""
        failed, (since, worked) = len(self._recent), self._recent[0]
        ended = failed + self._recent[-1][1] - worked
        if failed < (self._recent.maxlen or 1) or now - since > self._within:
            return ""
        if self._share is not None and failed < self._share * ended:
            return ""
        return f"{failed} of {ended} failed within {max(now - since, 0.001):.2g} s"

    def abandoned(self, ticket: int, now: float) -> None:
        """The call of ``ticket`` was not made after all, or cut off: it says nothing. A probe's place is free again."""
        if ticket == self._ticket and self.state is State.HALF_OPEN:
            self.state = State.OPEN
            self._until = now

    def wait(self, now: float) -> float:
        """Seconds until `admit` may give a ticket; 0.0 if it may now."""
        return 0.0 if self.state is State.CLOSED else max(0.0, self._until - now)

    def reset(self) -> None:
        """Close it and count from nothing: by hand."""
        self._change(State.CLOSED)
        self.reason = ""

    def _open(self, now: float) -> None:
        self._change(State.OPEN)
        self._until = now + self._open_for
        self.opened += 1

    def _change(self, state: State) -> None:
        self.state = state
        self._ticket += 1
        self._recent.clear()
