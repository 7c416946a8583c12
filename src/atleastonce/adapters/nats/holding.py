"""What one subscription holds: handed out or still in its buffer, in messages and in bytes."""

from __future__ import annotations

import time
from collections import deque

from atleastonce.adapters.nats.delivery import OPEN, OVER, NatsDelivery
from atleastonce.contract import Window


class Holding:
    """The deliveries of one subscription, from their arrival to their end.

    Attributes:
        buffer: came and were not handed out.
        bytes: of everything held.
    """

    def __init__(self, window: Window) -> None:
        self.buffer: deque[NatsDelivery] = deque()
        self.bytes = 0
        self._window = window
        self._held: dict[int, NatsDelivery] = {}  # by sequence

    @property
    def room(self) -> int:
        """How many more messages the window takes."""
        return self._window.messages - len(self._held) if self.bytes < self._window.bytes else 0

    def arrived(self, delivery: NatsDelivery) -> None:
        """Into the buffer. An earlier hand-out of the same message is over: the consumer has said so by this one."""
        earlier = self._held.get(delivery.sequence)
        if earlier is not None:
            if earlier.state == OPEN:  # not given back by us
                earlier.lost = True
                earlier.state = OVER
            self.drop(earlier)
        self._held[delivery.sequence] = delivery
        self.bytes += delivery.size
        self.buffer.append(delivery)

    def hand_out(self, most: int) -> list[NatsDelivery]:
        """Up to ``most`` out of the buffer, whose leases live."""
        buffer, now = self.buffer, time.monotonic()
        found: list[NatsDelivery] = []
        while buffer and len(found) < most:
            delivery = buffer.popleft()
            if delivery.lease_until > now and delivery.state == OPEN:
                found.append(delivery)
            else:  # it lay here until its lease was over; it will come again
                self.drop(delivery)
        return found

    def drop(self, delivery: NatsDelivery) -> None:
        """It is not held any more."""
        if self._held.get(delivery.sequence) is delivery:
            del self._held[delivery.sequence]
            self.bytes -= delivery.size

    def drop_ended(self) -> None:
        """An ended lease takes no room any more: others may have the message."""
        now = time.monotonic()
        for delivery in [each for each in self._held.values() if each.lease_until <= now]:
            self.drop(delivery)

    def until_room(self, now: float) -> float:
        """Seconds until a lease ends, where only that makes room."""
        if self.room:
            return 3600.0
        return max(0.01, min((each.lease_until for each in self._held.values()), default=now) - now)

    def take_back(self) -> list[NatsDelivery]:
        """All that was not handed out, out of the buffer."""
        kept = [each for each in self.buffer if each.state == OPEN]
        self.buffer.clear()
        for each in kept:
            self.drop(each)
        return kept

    def clear(self) -> None:
        """Nothing is held any more."""
        self.buffer.clear()
        self._held.clear()
        self.bytes = 0
