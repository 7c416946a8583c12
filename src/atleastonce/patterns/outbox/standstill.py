"""An outbox in which rows wait that its relay is never given. Pure: the time is given."""

from __future__ import annotations

from atleastonce.durations import readable
from atleastonce.stores.outbox import SLOTS, OutboxStats

# By how much two readings of one row's age may differ from the time between them.
_TOLERANCE = 1.0


class Standstill:
    """Compares the counts of an outbox. One that does nothing looks like one that is empty to a relay, which only sees what it is
    given; whoever asks whether it runs would hear that it does, while nothing leaves.

    Nothing moves if, from one count to the next, this relay had nothing at all, and the oldest row that waits is the same one. A
    row may wait for good reasons: for a parked one of its key, or with another relay, whose status says why.
    """

    def __init__(self) -> None:
        self._last: OutboxStats | None = None
        self._at = 0.0
        self._read = 0
        self._idle = False
        self._stands = False
        self._slots = 0

    def counted(self, lag: OutboxStats, now: float, *, read: int, idle: bool, slots: int) -> None:
        """One more count.

        Args:
            lag: of the outbox.
            now: when it was asked for.
            read: how many rows this relay has read since it started.
            idle: whether it has none of them any more.
            slots: how many it holds.
        """
        last, between = self._last, now - self._at
        self._stands = (
            last is not None
            and idle
            and self._idle
            and read == self._read
            and slots > 0
            and lag.waiting > lag.blocked
            and last.waiting > last.blocked
            # Where some are blocked the oldest may be one of them; then only who reads all slots knows.
            and (slots == SLOTS if lag.blocked or last.blocked else _is_same(last, lag, between))
        )
        self._last, self._at, self._read, self._idle, self._slots = lag, now, read, idle, slots

    def detail(self, read: int) -> str:
        """What is wrong; "" if nothing, or if the relay, which by now has read so many rows, has been given some since."""
        lag = self._last
        if not self._stands or lag is None or read != self._read:
            return ""
        whose = "the store gives this relay none of them" if self._slots == SLOTS else "none of them is this relay's"
        age = f", the oldest for {readable(round(lag.oldest))}" if lag.oldest is not None else ""
        return f"{lag.waiting - lag.blocked} rows wait{age}, and {whose}"


def _is_same(last: OutboxStats, lag: OutboxStats, between: float) -> bool:
    """Whether the oldest row that waits is the same one."""
    if last.oldest is None or lag.oldest is None:
        return False
    return abs(lag.oldest - last.oldest - between) <= _TOLERANCE
