"""What was published and not yet confirmed. Pure: no IO, no clock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from atleastonce.contract import OK, Code, Outcome, Status, rejected, unknown


class Batch:
    """The outcomes of one call to send, and the one future that its caller waits for."""

    __slots__ = ("failed", "left", "outcomes", "settled")

    def __init__(self, size: int, settled: asyncio.Future[None]) -> None:
        self.outcomes: list[Outcome | None] = [None] * size
        self.left = size
        self.settled = settled
        self.failed = False
        """Whether an item ended unknown: later ones of the list are then not sent, since they would overtake it."""

    def end(self, position: int, outcome: Outcome) -> None:
        if self.outcomes[position] is not None:
            return
        self.outcomes[position] = outcome
        self.left -= 1
        if not self.left and not self.settled.done():
            self.settled.set_result(None)

    def fill(self, outcome: Outcome) -> None:
        """Give ``outcome`` to each item that has none."""
        for position, ended in enumerate(self.outcomes):
            if ended is None:
                self.end(position, outcome)


class Pending(NamedTuple):
    """One publish on its way."""

    batch: Batch
    position: int
    size: int
    exchange: str
    routing_key: str
    id: str


class Ledger:
    """Publishes of one channel in confirm mode, by their sequence number."""

    def __init__(self) -> None:
        self.bytes = 0
        self._next = 1
        self._pending: dict[int, Pending] = {}
        self._returned: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._pending)

    def add(self, item: Pending) -> None:
        """The next publish on the channel is ``item``."""
        self._pending[self._next] = item
        self._next += 1
        self.bytes += item.size

    def returned(self, exchange: str, routing_key: str, id: str | None, text: str) -> None:
        """A publish came back; its confirm follows. Equal ones (same route, same id) share their fate, so the first
        that has not come back yet is as good as any."""
        for number, item in self._pending.items():
            if (
                item.id == id
                and item.routing_key == routing_key
                and item.exchange == exchange
                and number not in self._returned
            ):
                self._returned[number] = text
                return

    def confirmed(self, tag: int, multiple: bool, ok: bool) -> None:
        """The broker's word on ``tag``, or on all up to it."""
        if not multiple:
            item = self._pending.pop(tag, None)
            if item is not None:
                self._end(tag, item, ok)
            return
        done = []
        for number in self._pending:
            if number > tag:
                break
            done.append(number)
        for number in done:
            self._end(number, self._pending.pop(number), ok)

    def _end(self, number: int, item: Pending, ok: bool) -> None:
        self.bytes -= item.size
        if not ok:
            item.batch.failed = True
            text = f"{item.routing_key or item.exchange}: full, or its leader is away (basic.nack)"
            item.batch.end(item.position, unknown(Code.OVERLOADED, text))
        elif self._returned and (text := self._returned.pop(number, "")):
            item.batch.end(item.position, rejected(Code.UNROUTABLE, text))
        else:
            item.batch.end(item.position, OK)

    def of(self, batch: Batch) -> set[int]:
        """The positions of ``batch`` that are on their way."""
        return {item.position for item in self._pending.values() if item.batch is batch}

    def abandon(self, batch: Batch) -> None:
        """Nobody waits for ``batch`` any more: its publishes no longer take room. Confirms still to come are ignored."""
        for number in [number for number, item in self._pending.items() if item.batch is batch]:
            self.bytes -= self._pending.pop(number).size
            self._returned.pop(number, None)

    def fail(self, outcome: Callable[[Pending], Outcome]) -> None:
        """The channel is gone: every publish on it ends with what ``outcome`` says."""
        pending, self._pending = self._pending, {}
        self._returned.clear()
        self.bytes = 0
        for item in pending.values():
            ended = outcome(item)
            item.batch.failed |= ended.status is Status.UNKNOWN
            item.batch.end(item.position, ended)
