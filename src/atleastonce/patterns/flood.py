"""The flood guard: when so much is given up that it looks like an outage and not like bad messages, stop reading.

A dead-letter queue full of messages that were never at fault has to be emptied by hand, and their order is lost. So once too
many in a row, or too large a share, would be given up, the source is paused and what would be dead is held instead. Now and then
a few messages are let through as a probe: the first that succeeds opens the source again, the first that fails keeps it shut.

What a handler gives up by its own decision (`DeadLetter`) counts neither way: it is no sign of an outage.
"""

from __future__ import annotations

import enum
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from atleastonce.durations import Duration, format_duration, seconds, whole
from atleastonce.errors import ConfigurationError

# So many of the held messages are tried at each probe: enough to meet a good one, few enough to spare what is down.
_PROBES = 10
# The others wait for the end of the flood, which wakes them; this long at most.
_LONG = 300.0


@dataclass(frozen=True, kw_only=True)
class DeadLetterPolicy:
    """Given-up messages are kept in the dead-letter queue, until there are so many that something else must be wrong.

    Args:
        max_share: of the last ``over`` messages that ended, the share that may be given up; None for no such limit. Too
            small: bad input from one producer stops all; too large: an outage is emptied into the queue.
        over: how many messages the share is taken of. Too small: chance stops the source; too large: the flood is noticed late.
        max_consecutive: how many may be given up with no success in between; None for no such limit.
        probe_after: how long the source rests before a few messages are let through to see whether it is over. None: only
            `Service.resume` ends it. Too small hammers what is down, too large makes the end of an outage go unnoticed.

    Raises:
        ConfigurationError: a value out of range.
    """

    max_share: float | None = 0.5
    over: int = 200
    max_consecutive: int | None = 100
    probe_after: Duration | None = "30s"

    def __post_init__(self) -> None:
        share: object = self.max_share
        if share is not None and not (
            isinstance(share, int | float) and not isinstance(share, bool) and 0 < share <= 1
        ):
            raise ConfigurationError(
                f"DeadLetterPolicy max_share={share!r} is out of range; give a share above 0 and up to 1, or None"
            )
        whole(self.over, name="DeadLetterPolicy over", high=1_000_000)
        if self.max_consecutive is not None:
            whole(self.max_consecutive, name="DeadLetterPolicy max_consecutive")
        if self.probe_after is not None:
            seconds(self.probe_after, name="DeadLetterPolicy probe_after", minimum=0.001)


class Gate(enum.Enum):
    """What the guard wants done with the source."""

    OPEN = "open"
    SHUT = "shut"
    PROBING = "probing"
    """Shut before, open now: the next end of a message decides."""


_PROBING = Gate.PROBING  # by itself: Python finds a member of an enumeration in 90 ns, and each failure asks


class FloodGuard:
    """Counts what one consumer gives up. Told of failures alone, it costs a success nothing. Thread-safe.

    Args:
        policy: the limits.
        done: how many messages have ended well so far; only ever grows.
        clock: monotonic seconds.
        tripped: called when the source is to be paused, from whatever thread noticed.
    """

    def __init__(
        self,
        policy: DeadLetterPolicy,
        done: Callable[[], int],
        clock: Callable[[], float],
        tripped: Callable[[], None],
    ) -> None:
        self._policy = policy
        self._rest = None if policy.probe_after is None else seconds(policy.probe_after)
        self._done = done
        self._clock = clock
        self._tripped = tripped
        self._lock = threading.Lock()
        self.gate = Gate.OPEN
        self.reason = ""
        self._until = 0.0  # shut: when to probe
        self._mark = 0  # probing: what `done` was when it began
        self._held = 0  # since it was shut last
        self._begin()

    def _begin(self) -> None:
        """Count from nothing."""
        self._start = self._seen = self._done()
        self._row = 0
        self._dead = 0
        self._recent: deque[int] = deque()  # how many had ended when each of the dead did

    def given_up(self, words: str) -> float | None:
        """A message is about to be given up, because of ``words``. None: let it go. Else: hold it for so many seconds and run
        it again."""
        with self._lock:
            self._turn()
            if self.gate is Gate.OPEN:
                reason = self._over()
                if not reason:
                    return None
                self._shut(f"{reason}, the last one by {words}")
            elif self.gate is Gate.PROBING:
                self._shut(self.reason)
            self._held += 1
            if self._held > _PROBES or self._rest is None:
                return _LONG
            return max(0.001, self._until - self._clock())

    def failed(self) -> None:
        """A message failed and goes to a retry: no end, but where the gate is being probed, an answer."""
        if self.gate is _PROBING:
            with self._lock:
                self._turn()
                if self.gate is _PROBING:
                    self._shut(self.reason)

    def look(self) -> Gate:
        """What is to be done now. To be asked several times a second while the gate is not open."""
        with self._lock:
            self._turn()
            return self.gate

    def reset(self) -> None:
        """Open the gate and count from nothing: by hand."""
        with self._lock:
            self._open()

    @property
    def detail(self) -> str:
        """For status and logs: why, and what next. "" while the gate is open."""
        if self.gate is Gate.OPEN:
            return ""
        if self._rest is None:
            return f"{self.reason}; service.resume() goes on"
        if self.gate is Gate.PROBING:
            return f"{self.reason}; probing"
        return f"{self.reason}; probing in {format_duration(round(max(0.0, self._until - self._clock()), 1))}"

    def _over(self) -> str:
        """Count one more that is given up; which limit that breaks, if any."""
        done, policy = self._done(), self._policy
        self._row = 1 if done > self._seen else self._row + 1
        self._seen = done
        self._dead += 1
        ended = done - self._start + self._dead
        self._recent.append(ended)
        while self._recent[0] <= ended - policy.over:
            self._recent.popleft()
        if policy.max_consecutive is not None and self._row > policy.max_consecutive:
            return f"more than {policy.max_consecutive} in a row would be dead"
        if policy.max_share is not None and ended >= policy.over and len(self._recent) > policy.max_share * policy.over:
            return f"more than {policy.max_share:.0%} of the last {policy.over} would be dead"
        return ""

    def _turn(self) -> None:
        """What time and successes change. What is held comes back when the probe begins, and may be first to notice."""
        if self.gate is Gate.SHUT and self._rest is not None and self._clock() >= self._until:
            self.gate, self._mark = Gate.PROBING, self._done()
        elif self.gate is Gate.PROBING and self._done() > self._mark:
            self._open()

    def _open(self) -> None:
        self.gate, self.reason = Gate.OPEN, ""
        self._begin()

    def _shut(self, reason: str) -> None:
        first = self.gate is Gate.OPEN
        self.gate, self.reason, self._held = Gate.SHUT, reason, 0
        self._until = self._clock() + (self._rest or 0.0)
        if first:
            self._tripped()
