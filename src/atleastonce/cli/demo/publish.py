"""The web shop of the demo: publishes orders, some of them twice, some of them broken."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

import msgspec

from atleastonce.broker import Broker
from atleastonce.channels import Topic
from atleastonce.cli.demo.orders import Line, Order, identity
from atleastonce.contract import Outgoing, Status
from atleastonce.wire import CONTENT_TYPE

CHUNK = 500
DUPLICATE_EVERY = 50
POISON_EVERY = 500
_FIRST_POISON = 20

# A publish whose confirmation was lost is repeated under its id. More rounds outlast a longer outage of the broker.
_ROUNDS = 40
_PAUSE_SECONDS = 0.5

_JSON = {CONTENT_TYPE: "application/json"}  # the bodies are bytes here, of which the library assumes nothing


def repeated(lines: Sequence[Line], count: int) -> list[Line]:
    """``count`` orders: the first ones of the file; when it has no more, they come again under new order ids."""
    wanted = list(lines[:count])
    for again in range(1, -(-count // len(lines))):
        for line in lines[: count - len(wanted)]:
            fields = msgspec.json.decode(line.body)
            fields["order_id"] = f"{fields['order_id']}-{again + 1}"
            body = msgspec.json.encode(fields)
            wanted.append(Line(identity(msgspec.json.decode(body, type=Order)), line.key, body))
    return wanted


def broken(lines: Sequence[Line]) -> list[Line]:
    """The same, with some bodies cut in the middle, as by a producer that died while it wrote."""
    return [
        Line(line.message_id, line.key, line.body[: len(line.body) * 3 // 5])
        if number % POISON_EVERY == _FIRST_POISON
        else line
        for number, line in enumerate(lines)
    ]


def chunks(lines: Sequence[Line]) -> Iterator[tuple[list[Line], list[Line]]]:
    """Chunks of orders, each with those of it that are published a second time."""
    for begin in range(0, len(lines), CHUNK):
        chunk = lines[begin : begin + CHUNK]
        yield list(chunk), list(chunk[DUPLICATE_EVERY - 1 :: DUPLICATE_EVERY])


class Shop:
    """Publishes and remembers what the broker confirmed.

    Attributes:
        confirmed: ids that are in the broker.
        unconfirmed: ids of which nobody knows.
        rejected: why messages were refused, by id; they are not in the broker.
    """

    def __init__(self, broker: Broker, topic: Topic[Order]) -> None:
        self._broker = broker
        self._topic = topic
        self.confirmed: set[str] = set()
        self.unconfirmed: set[str] = set()
        self.rejected: dict[str, str] = {}

    async def publish(self, lines: Sequence[Line]) -> None:
        """Publish; repeat what ends unknown, under the same ids, until it is confirmed or patience ends."""
        for _ in range(_ROUNDS):
            outcomes = await self._broker.send([self._compose(line) for line in lines])
            unknown: list[Line] = []
            for line, outcome in zip(lines, outcomes, strict=True):
                if outcome.ok:
                    self.confirmed.add(line.message_id)
                elif outcome.status is Status.UNKNOWN:
                    unknown.append(line)
                else:
                    self.rejected[line.message_id] = str(outcome.fault)
            if not unknown:
                return
            lines = unknown
            await asyncio.sleep(_PAUSE_SECONDS)
        self.unconfirmed.update(line.message_id for line in lines if line.message_id not in self.confirmed)

    def _compose(self, line: Line) -> Outgoing:
        return self._broker.compose(self._topic, line.body, id=line.message_id, key=line.key, headers=_JSON)
