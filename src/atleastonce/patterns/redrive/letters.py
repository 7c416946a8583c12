"""A dead letter, and reading through all of them without taking any."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import msgspec

from atleastonce import wire
from atleastonce.channels import Queue, Source
from atleastonce.contract import Adapter, Browses, Delivery, Scans
from atleastonce.message import Message
from atleastonce.patterns.obituary import Brief, Obituary, read_brief, read_obituary
from atleastonce.patterns.redrive.passage import Passage

_NOT_READ: Any = object()
NO_JSON: Any = object()
"""`Letter.json` of a body that is none."""

# Messages of one list, where a broker shows them all at once.
_LIST = 1000
_EVERYTHING = 10_000_000


class Letter:
    """A message in a dead-letter queue, and why it is there.

    Attributes:
        delivery: as it was read.
    """

    __slots__ = ("_json", "_message", "_obituary", "_redrives", "delivery")

    def __init__(self, delivery: Delivery) -> None:
        self.delivery = delivery
        self._message: Message | None = None
        self._obituary: Obituary | None = None
        self._json = _NOT_READ
        self._redrives = -1

    def kept(self) -> Letter:
        """Itself, and it stays what it is when its delivery has been given back, which frees what that held."""
        self._message = self.delivery.message
        self._obituary = self.obituary
        return self

    @property
    def message(self) -> Message:
        return self.delivery.message if self._message is None else self._message

    @property
    def id(self) -> str:
        return self.delivery.message.id

    @property
    def body(self) -> bytes:
        return self.delivery.body if self._message is None else self._message.body

    @property
    def obituary(self) -> Obituary:
        """Why it is dead, as far as anybody wrote it down. Read when it is first asked for."""
        if self._obituary is None:
            self._obituary = read_obituary(self.delivery)
        return self._obituary

    @property
    def brief(self) -> Brief:
        """Of its obituary what groups are made of: far cheaper to read, where it is a letter of ours."""
        found = None if self._obituary is not None else read_brief(self.delivery)
        if found is None:
            found = Brief(self.obituary.fingerprint, self.obituary.first_failed, self.died)
        return found

    @property
    def died(self) -> float | None:
        """Seconds since the epoch: when it failed for the last time, or else when it was published to the dead letters."""
        found = self.obituary.last_failed
        return self.delivery.message.published_at if found is None else found

    @property
    def redrives(self) -> int:
        """How often it came back so far. As in its obituary, which costs far more to read."""
        if self._redrives < 0:
            self._redrives = wire.read_redrives(self.delivery.message.headers)
        return self._redrives

    @property
    def json(self) -> Any:
        """What its body says; `NO_JSON` where that is no JSON."""
        if self._json is _NOT_READ:
            try:
                self._json = msgspec.json.decode(self.body)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                self._json = NO_JSON
        return self._json

    def __repr__(self) -> str:
        return f"<Letter {self.id} {self.obituary.error_type}>"


async def read_letters(adapter: Adapter, queue: Queue[Any]) -> AsyncGenerator[Sequence[Letter]]:
    """All that is in dead-letter queue ``queue`` now, in lists; everything stays in it, and what arrives meanwhile does
    not prolong it. Close it (`contextlib.aclosing`) if you leave early: some brokers keep from others what was read until then.

    Raises:
        NotFound: there is no such queue.
        BrokerUnavailable: the broker went away.
    """
    if isinstance(adapter, Scans):
        async with contextlib.aclosing(adapter.scan(queue)) as lists:
            async for found in lists:
                yield [Letter(delivery) for delivery in found]
    elif isinstance(adapter, Browses):
        everything = await adapter.browse(queue, _EVERYTHING)
        for start in range(0, len(everything), _LIST):
            yield [Letter(delivery) for delivery in everything[start : start + _LIST]]
    else:  # it shows a message only by handing it out: take all, and give them back
        async with Passage(adapter, Source(queue)) as passage:
            while batch := await passage.receive(_LIST):
                yield [Letter(delivery) for delivery in batch]
                await passage.keep(batch)
