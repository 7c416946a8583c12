"""A message where it lies in its stream."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from atleastonce.adapters.nats.envelope import read_message
from atleastonce.channels import Source
from atleastonce.contract import Delivery
from atleastonce.message import Message


def seconds_of(stored_at: str) -> float:
    """Since the epoch."""
    # Nanoseconds, which datetime refuses before Python 3.11 and cuts since.
    return datetime.fromisoformat(stored_at.replace("Z", "+00:00")).timestamp()


class Stored(Delivery):
    """A message that nobody was handed. It is made when somebody looks at it.

    Args:
        stored_at: when, as JetStream writes times.
        raw: what it was told in, if that says more.
    """

    __slots__ = ("block", "payload", "stored_at")

    def __init__(
        self, source: Source, position: int, block: bytes, payload: bytes, stored_at: str, raw: Any = None
    ) -> None:
        self.block = block
        self.payload = payload
        self.stored_at = stored_at
        self.source = source
        self.stream = source.channel.name
        self.position = position
        self.epoch = 0
        self.token = None
        self.count = 0
        self.lease_until = 0.0
        self.lost = False
        self.raw = raw
        self.returned = False
        self.size = len(block) + len(payload)
        self.tries = 0
        self.settled = False
        self._message = self.unreadable = None

    def read(self) -> Message:
        """See `Delivery.read`."""
        return read_message(self.block, self.payload, f"{self.stream}-{self.position}", seconds_of(self.stored_at))

    @property
    def body(self) -> bytes:
        """See `Delivery.body`."""
        return self.payload
