"""A process that ends, without a word, at one chosen step of a move. Run by `test_crash_points`.

Usage: python crash_points.py URL QUEUE DATABASE STEP POINT

``STEP`` is ``hop``, ``dead`` or ``redrive``; ``POINT`` is ``before the copy``, ``after the copy``, ``before the settlement`` or
``after the settlement``. Each handled order is a row of the table ``effect``, written in the transaction of an inbox in the
SQLite file DATABASE.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from typing import Any

import msgspec

from atleastonce import (
    Broker,
    Context,
    FailurePolicy,
    Inbox,
    Queue,
    RetryChain,
    Service,
    Source,
    SQLiteStore,
    connect,
)
from atleastonce.contract import Outcome, Outgoing, Retry, Settlement

CRASHED = 9
FAILURE = FailurePolicy(in_place=None, chain=RetryChain("300ms"))


class Order(msgspec.Struct):
    n: int


def channel(name: str) -> Queue[Order]:
    return Queue(name, Order, partitions=2)


def make(url: str, name: str, database: str, *, mended: bool = False) -> Service:
    """Odd orders succeed; even ones never do, until it is ``mended``."""
    service = Service("worker", broker=url)

    @service.consumer(channel(name), failure=FAILURE, concurrency=2, idempotency=Inbox(SQLiteStore(database)))
    async def handle(order: Order, ctx: Context) -> None:
        ctx.tx.execute("INSERT INTO effect VALUES (?)", (order.n,))  # undone if it fails
        if order.n % 2 == 0 and not mended:
            raise ValueError("even")

    return service


class Mine:
    """Goes off at one step: in the adapter's own calls, so that nothing above it knows."""

    def __init__(self, adapter: Any, step: str, point: str) -> None:
        self._mark = {"hop": ".retry.", "dead": ".dlq", "redrive": ""}[step]
        self._hop, self._point, self._copied = step == "hop", point, False
        self._send, self._subscribe, self._settle = adapter.send, adapter.subscribe, None
        adapter.send, adapter.subscribe = self.send, self.subscribe

    def _reached(self, point: str) -> None:
        if point == self._point:
            os._exit(CRASHED)

    async def send(self, batch: Sequence[Outgoing]) -> Sequence[Outcome]:
        mine = any(self._mark in item.destination.name for item in batch)
        if mine:
            self._reached("before the copy")
        outcomes: Sequence[Outcome] = await self._send(batch)
        if mine and all(outcome.ok for outcome in outcomes):
            self._copied = True
            self._reached("after the copy")
        return outcomes

    async def subscribe(self, source: Source, *rest: Any) -> Any:
        return Mined(await self._subscribe(source, *rest), self)

    async def settle(self, settle: Any, batch: Sequence[Settlement]) -> Sequence[Outcome]:
        mine = self._copied or (self._hop and any(isinstance(verdict, Retry) for _, verdict in batch))
        if mine:
            self._reached("before the settlement")
        outcomes: Sequence[Outcome] = await settle(batch)
        if mine:
            self._reached("after the settlement")
        return outcomes


class Mined:
    """A subscription whose settlements pass the mine."""

    def __init__(self, subscription: Any, mine: Mine) -> None:
        self._subscription, self._mine = subscription, mine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._subscription, name)

    async def settle(self, batch: Sequence[Settlement]) -> Sequence[Outcome]:
        return await self._mine.settle(self._subscription.settle, batch)


async def main(url: str, name: str, database: str, step: str, point: str) -> None:
    if step == "redrive":
        async with connect(url) as broker:
            Mine(broker.adapter, step, point)
            await broker.dead_letters(channel(name)).redrive()
        return
    service = make(url, name, database)
    broker: Broker = service.make_broker()
    service.make_broker = lambda *_, **__: broker  # type: ignore[method-assign]
    Mine(broker.adapter, step, point)
    async with service:
        await asyncio.sleep(60)  # ends long before, or the test fails


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
