"""A hand-out whose message is made when somebody looks at it, and the verdicts on it as they travel."""

from __future__ import annotations

import math
from typing import Final

from atleastonce.adapters.nats.envelope import fields_of, read_message
from atleastonce.channels import Source
from atleastonce.contract import Ack, Delivery, Release, Retry, Verdict
from atleastonce.message import Message

OPEN: Final = 0
SETTLED: Final = 1
OVER: Final = 2

EXTEND: Final = b"+WPI"
GIVE_BACK: Final = b"-NAK"
_DONE: Final = b"+ACK"


def words_for(verdict: Verdict) -> bytes | None:
    """What a consumer is told; None for what it cannot do."""
    if isinstance(verdict, Ack):
        return _DONE
    if isinstance(verdict, Release):
        return GIVE_BACK
    if isinstance(verdict, Retry):
        nanos = math.ceil(verdict.delay * 1e9)
        return b'-NAK {"delay": %d}' % nanos if nanos > 0 else GIVE_BACK
    return None


class Raw:
    """What arrived: `Delivery.raw`.

    Attributes:
        subject: that it was published to.
        reply: where verdicts go.
        block: its headers, as on the wire.
        body: the payload.
    """

    __slots__ = ("block", "body", "reply", "subject")

    def __init__(self, subject: bytes, reply: bytes, block: bytes, body: bytes) -> None:
        self.subject = subject
        self.reply = reply
        self.block = block
        self.body = body

    @property
    def fields(self) -> list[tuple[str, bytes]]:
        """All header fields, the server's and ours too."""
        return fields_of(self.block)


class NatsDelivery(Delivery):
    """One hand-out. ``token`` is the subject that verdicts go to, ``state`` what became of it."""

    __slots__ = ("block", "nanos", "payload", "sequence", "state", "subject")

    def __init__(
        self, source: Source, epoch: int, lease_until: float, subject: bytes, reply: bytes, block: bytes, body: bytes
    ) -> None:
        # $JS.ACK.stream.consumer.delivered.sequence.consumer-sequence.nanoseconds.pending, and where accounts ask for it
        # $JS.ACK.domain.account.stream.consumer.(the same).random
        parts = reply.split(b".")
        first = 4 if len(parts) == 9 else 6
        self.source = source
        self.stream = source.name
        self.sequence = int(parts[first + 1])
        self.position = self.sequence
        self.epoch = epoch
        self.token = reply
        self.count = int(parts[first])
        self.lease_until = lease_until
        self.lost = False
        self.returned = False
        self.size = len(block) + len(body)
        self.tries = 0
        self.settled = False
        self._message = self.unreadable = None
        self.nanos = parts[first + 3]
        self.subject = subject
        self.block = block
        self.payload = body
        self.state = OPEN

    @property
    def raw(self) -> Raw:
        """See `Delivery.raw`. Made for whoever looks at it."""
        return Raw(self.subject, self.token, self.block, self.payload)

    def read(self) -> Message:
        """See `Delivery.read`."""
        return read_message(self.block, self.payload, f"{self.stream}-{self.sequence}", int(self.nanos) / 1e9)

    @property
    def body(self) -> bytes:
        """See `Delivery.body`."""
        return self.payload
