"""How much is in flight: one account of messages and bytes, debited before a message is received and credited at
settlement."""

from __future__ import annotations

from atleastonce.contract import Window


class WindowMeter:
    """Counts what is unsettled, whatever state it is in: queued, held until due, running, or waiting for its copy's
    confirmation.

    Bytes are known only after a receive, so they may be overshot by one batch. To keep that small, the batch asked for shrinks
    with the average size seen and the bytes left.

    Attributes:
        share: of the limit that may be used now, above 0 and up to 1; at least one message always may.
    """

    __slots__ = ("_average", "bytes", "limit", "messages", "peak_bytes", "peak_messages", "share")

    def __init__(self, limit: Window) -> None:
        self.limit = limit
        self.messages = 0
        self.bytes = 0
        self.peak_messages = 0
        self.peak_bytes = 0
        self._average = 0.0
        self.share = 1.0

    def room(self) -> int:
        """How many messages may be received now; 0 when the window is full in either measure."""
        most, room = self._most()
        free, left = most - self.messages, room - self.bytes
        if free <= 0 or left <= 0:
            return 0
        if self._average > 0:
            free = min(free, max(1, int(left / self._average)))
        return free

    def _most(self) -> tuple[int, int]:
        limit, share = self.limit, self.share
        if share == 1.0:
            return limit.messages, limit.bytes
        return max(1, int(limit.messages * share)), max(1, int(limit.bytes * share))

    def take(self, messages: int, size: int) -> None:
        """Account for a received batch of ``messages`` with ``size`` bytes together."""
        if not messages:
            return
        self.messages += messages
        self.bytes += size
        mean = size / messages
        # Up at once, down slowly: one batch of big messages must shrink the very next request.
        self._average = mean if mean > self._average else 0.9 * self._average + 0.1 * mean
        self.peak_messages = max(self.peak_messages, self.messages)
        self.peak_bytes = max(self.peak_bytes, self.bytes)

    def give(self, messages: int, size: int) -> None:
        """Take settled or lost messages off the account."""
        self.messages -= messages
        self.bytes -= size

    @property
    def low(self) -> bool:
        """Whether enough has been given back to make a new receive worth its round trip."""
        messages, size = self._most()
        return self.messages <= messages * 3 // 4 and self.bytes <= size * 3 // 4
