"""What the demo sees while it runs: ledgers and backlogs, read from outside the processes that do the work."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

import msgspec

from atleastonce.broker import Broker
from atleastonce.channels import Source
from atleastonce.cli.demo.ledger import Ledger, Totals
from atleastonce.cli.target import Alone
from atleastonce.contract import ACK, Browses, Topology, Window
from atleastonce.patterns.redrive import read_letters


class Part(msgspec.Struct, frozen=True):
    """One service now.

    Attributes:
        name: of the service.
        totals: of its ledger.
        dead: in its dead letters.
        waiting: not handed out yet, its redrive channel included.
        in_flight: handed out and unsettled.
        retrying: waiting for their next attempt.
        known: whether the broker told all of it; what it did not tell counts as 0 above.
    """

    name: str
    totals: Totals
    dead: int
    waiting: int
    in_flight: int
    retrying: int
    known: bool

    @property
    def idle(self) -> bool:
        """Whether nothing moves or waits, as far as is known."""
        return self.waiting + self.in_flight + self.retrying == 0

    @property
    def accounted(self) -> int:
        """Messages with an ending."""
        return self.totals.messages + self.dead


class View(msgspec.Struct, frozen=True):
    """Everything now. ``total`` is how many messages there will be, ``published`` how many the broker has confirmed."""

    total: int
    published: int
    parts: tuple[Part, ...]

    @property
    def progress(self) -> float:
        """Share of all endings that are known, 0 to 1."""
        return sum(part.accounted for part in self.parts) / max(1, self.total * len(self.parts))


class Watched(msgspec.Struct, frozen=True):
    """A service as seen from outside."""

    name: str
    home: Source
    topology: Topology
    ledger: Ledger

    async def look(self, broker: Broker) -> Part:
        """Ask broker and ledger."""
        waits = [Source(delay.channel) for delay in self.topology.delays]
        main, dlq, *others = await asyncio.gather(
            *(broker.adapter.backlog(source) for source in (self.home, Source(self.home.dead_letter_channel), *waits))
        )
        retrying, back = main.delayed or 0, 0
        for source, backlog in zip(waits, others, strict=True):
            held = (backlog.waiting or 0) + (backlog.in_flight or 0) + (backlog.delayed or 0)
            if source.channel == self.home.redrive_channel:
                back += held
            else:
                retrying += held
        return Part(
            name=self.name,
            totals=self.ledger.totals(),
            dead=(dlq.waiting or 0) + (dlq.in_flight or 0),
            waiting=(main.waiting or 0) + back,
            in_flight=main.in_flight or 0,
            retrying=retrying,
            known=None not in (main.waiting, dlq.waiting, *(other.waiting for other in others)),
        )

    async def dead_letters(self, broker: Broker) -> int:
        """How many there are, counted one by one: for brokers that do not say."""
        ids: set[str] = set()
        async with contextlib.aclosing(read_letters(broker.adapter, self.home.dead_letter_channel)) as lists:
            async for letters in lists:
                ids.update(letter.id for letter in letters)
        return len(ids)


# How long a queue must have nothing to offer before it counts as read to its end, where the broker cannot say.
_END_SECONDS = 3.0
_WINDOW = Window(1000, 64 << 20)


async def take_ids(broker: Broker, source: Source) -> Sequence[str]:
    """The ids of all that waits in a queue of the demo's own: looked at where the broker can, else taken out of it."""
    total = (await broker.adapter.backlog(source)).waiting
    if total is not None and isinstance(broker.adapter, Browses):
        return [d.message.id for d in await broker.adapter.browse(source.channel, total)] if total else []
    subscription = await broker.adapter.subscribe(source, _WINDOW, Alone())
    ids: list[str] = []
    try:
        while total is None or len(ids) < total:
            batch = await subscription.receive(_WINDOW.messages, _END_SECONDS)
            if not batch:
                break
            ids += [delivery.message.id for delivery in batch]
            await subscription.settle([(delivery, ACK) for delivery in batch])
    finally:
        await subscription.close()
    return ids
