"""A request as it came over core NATS: its message is made when somebody looks at it."""

from __future__ import annotations

import re
import time
from typing import Final

import msgspec

from atleastonce.adapters.nats.envelope import plain_headers, read_unkept
from atleastonce.channels import Source
from atleastonce.contract import Delivery
from atleastonce.message import Headers, Message
from atleastonce.wire import REPLY_TO

_FOR_A_STREAM: Final = b"\r\nNats-Msg-Id:"

# Fields that are nobody's but the user's, and then those that we write into a question: no other of ours can be among them.
_USUAL: Final = re.compile(
    rb"NATS/1\.0\r\n(?:(?![Aa][Ll][Oo]-|[Nn][Aa][Tt][Ss]-)[!-9;-~]+: [ -~]*\r\n)*"
    rb"alo-deadline: ([0-9]{1,17})\r\nalo-id: [ -~]{1,256}\r\n\r\n"
)


class Question(Delivery):
    """One hand-out. ``raw`` is the subject that an answer goes to; None where nobody waits for one. It has no lease: nobody else
    has it, however long it takes.

    Args:
        series, number: make its id, unless it says one.
    """

    __slots__ = ("arrived", "block", "number", "payload", "reply", "series")

    def __init__(self, source: Source, series: str, number: int, reply: bytes, block: bytes, body: bytes) -> None:
        self.source = source
        self.stream = source.name
        self.position = ""
        self.epoch = 0
        self.token = None
        self.count = 1
        self.lease_until = 0.0
        self.lost = False
        self.returned = False
        self.size = len(block) + len(body)
        self.tries = 0
        self.settled = False
        self._message = self.unreadable = None
        self.series = series
        self.number = number
        self.arrived = time.time()
        self.reply = reply
        self.block = block
        self.payload = body
        # What has an id for a stream is no question: its reply subject waits for the stream's confirm.
        asks = reply and _FOR_A_STREAM not in block
        self.raw = reply.decode("ascii", "replace") if asks else None

    def read(self) -> Message:
        """See `Delivery.read`."""
        message = read_unkept(self.block, self.payload, f"{self.series}{self.number:012x}", self.arrived)
        if self.raw is None:
            return message
        return msgspec.structs.replace(message, headers=message.headers.set({REPLY_TO: self.raw}))  # as on every broker

    @property
    def body(self) -> bytes:
        """See `Delivery.body`."""
        return self.payload

    @property
    def headers(self) -> Headers:
        """See `Delivery.headers`."""
        found = plain_headers(self.block)
        return self.message.headers if found is None else found

    @property
    def waited_until(self) -> float | None:
        """See `Delivery.waited_until`."""
        usual = _USUAL.fullmatch(self.block)
        return super().waited_until if usual is None else int(usual[1]) / 1000

    def once_more(self) -> Question:
        """Another hand-out of the same."""
        again = Question(self.source, self.series, self.number, self.reply, self.block, self.payload)
        again.arrived, again.count = self.arrived, self.count + 1
        return again

    def published(self, subject: str) -> bytes:
        """What brings it to somebody else who reads ``subject``."""
        to = b"%b %b" % (subject.encode(), self.reply + b" " if self.reply else b"")
        block, body = self.block, self.payload
        if not block:
            return b"PUB %b%d\r\n%b\r\n" % (to, len(body), body)
        return b"HPUB %b%d %d\r\n%b%b\r\n" % (to, len(block), len(block) + len(body), block, body)
