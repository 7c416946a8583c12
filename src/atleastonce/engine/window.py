"""How much is in flight: one account of messages and bytes, debited before a message is received and credited at
settlement."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from atleastonce.contract import Window

ASSUMED_BYTES: Final = 64 * 1024
"""Bytes of a message before any was seen. Smaller: the first batch of large ones overshoots a small window. Larger: the first
request of a usual one is small."""

_RECENT: Final = 1000
"""Messages after which a large one begins to be forgotten. Fewer: large ones that are rare overshoot each time. More: after the
last of them, small ones are asked for in small portions for longer."""


class WindowMeter:
    """Counts what is unsettled, whatever state it is in: queued, held until due, running, or waiting for its copy's
    confirmation.

    What a message weighs is known only after it was received. So no more are asked for than fit if each is as large as the
    largest of late, and what came is taken if it fits: what does not waits outside (`Anteroom`). One that is larger than the whole
    window is taken when nothing else is out.

    Attributes:
        share: of the limit that may be used now, above 0 and up to 1; at least one message always may.
        waits: whether its reader has found no room, and waits for some.
        held_up: whether something that was received waits for room: nothing more is asked for meanwhile.
        retreat: has what is held until it is due leave, until so many bytes have left or all of it; returns its messages and bytes,
            which are still on the account. None where nothing is held.
    """

    __slots__ = (
        "_before",
        "_largest",
        "_oversized",
        "_since",
        "bytes",
        "held_up",
        "limit",
        "messages",
        "peak_bytes",
        "peak_messages",
        "retreat",
        "share",
        "waits",
    )

    def __init__(self, limit: Window) -> None:
        self.limit = limit
        self.messages = 0
        self.bytes = 0
        self.peak_messages = 0
        self.peak_bytes = 0
        self._largest = self._before = 0
        self._since = 0
        self._oversized = False
        self.share = 1.0
        self.waits = self.held_up = False
        self.retreat: Callable[[int], tuple[int, int]] | None = None

    def room(self) -> int:
        """How many messages may be received now; 0 when the window is full in either measure, or something is held up."""
        if self.held_up:
            return 0
        most, room = self._most()
        free, left = most - self.messages, room - self.bytes
        if free <= 0 or left <= 0:
            return 0
        largest = self.largest or (1 if self._since else ASSUMED_BYTES)
        return min(free, max(left // largest, 0 if self.messages else 1))

    def ask(self, messages: int) -> None:
        """So many are about to be asked for; not more than there is room for."""

    def answer(self, messages: int) -> None:
        """So many have come, to be taken at once."""

    def fits(self, messages: int, size: int) -> bool:
        """Whether there is room for ``messages`` that were received, with ``size`` bytes together."""
        return self.messages + messages <= self.limit.messages and self.bytes + size <= self.limit.bytes

    def fits_alone(self, size: int) -> bool:
        """Whether there is room for one message of ``size`` bytes, which are more than its reader may have."""
        return not self.messages and size > self.limit.bytes

    def line_up(self, size: int) -> bool:
        """Stand in line for the room of one message of ``size`` bytes. Whether others have made some at once."""
        return False

    def step_out(self) -> None:
        """Stand in line no longer."""

    @property
    def largest(self) -> int:
        """Bytes of the largest message of late; 0 if none has had any."""
        return max(self._largest, self._before)

    def _most(self) -> tuple[int, int]:
        return self._scaled(self.limit)

    def _scaled(self, limit: Window) -> tuple[int, int]:
        share = self.share
        if share == 1.0:
            return limit.messages, limit.bytes
        return max(1, int(limit.messages * share)), max(1, int(limit.bytes * share))

    def take(self, messages: int, size: int, largest: int) -> bool:
        """Account for a received batch of ``messages`` with ``size`` bytes together, the largest of them with ``largest``. Whether
        that is the first one that is larger than the whole window."""
        if not messages:
            return False
        self.messages += messages
        self.bytes += size
        self._since += messages
        if self._since > _RECENT:  # two spans, so that a large one is remembered for one of them at least
            self._before, self._largest, self._since = self._largest, largest, messages
        else:
            self._largest = max(self._largest, largest)
        self.peak_messages = max(self.peak_messages, self.messages)
        self.peak_bytes = max(self.peak_bytes, self.bytes)
        if largest <= self.limit.bytes or self._oversized:
            return False
        self._oversized = True
        return True

    def give(self, messages: int, size: int) -> None:
        """Take settled or lost messages off the account."""
        self.messages -= messages
        self.bytes -= size

    @property
    def low(self) -> bool:
        """Whether enough has been given back to make a new receive worth its round trip."""
        messages, size = self._most()
        return self.messages <= messages * 3 // 4 and self.bytes <= size * 3 // 4
