"""A consumer with an inbox or a lease whose process has one fault. Run by `once_faults`, which also runs the sound ones.

Usage: python once_worker.py SCENE FAULT

``SCENE`` is a JSON object, see `Scene`; ``FAULT`` one of `FAULTS`. What was received is a line of the file ``deliveries``. An
effect is a row of the store's own database (inbox), or a line of the file ``effects`` (lease). What the library logs of an effect
that may have happened twice is a line of ``doubts``; what was about to be settled by a process that ended itself then, of
``settling``; a run that was not a message's first attempt, of ``attempts``; a process that was frozen, and of which all that it had
begun has ended since, of ``thawed``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from atleastonce import Broker, Context, FailurePolicy, Inbox, Lease, Queue, Service
from atleastonce.contract import Delivery, Outcome, Settlement
from atleastonce.stores import open_store

CRASHED = 9
FAULTS = ("none", "before the effect", "after the effect", "before the settlement", "reply lost", "frozen")
VICTIM = 7
"""The order at which a fault strikes."""
CONCURRENCY = 4
TIMEOUT = 3
"""Seconds that a call of the store may take."""


class Order(msgspec.Struct):
    n: int


class Scene(msgspec.Struct):
    """One queue, and the store of its consumer.

    Attributes:
        broker, store: URLs.
        mode: ``inbox`` or ``lease``.
        name: of the queue, and what the names of the tables begin with.
        directory: for the files.
        idle: seconds after which a server ends a transaction that says nothing, where it can.
        lease: of the store's claims.
    """

    broker: str
    store: str
    mode: str
    name: str
    directory: str
    idle: float = 2.0
    lease: str = "1s"

    @property
    def kind(self) -> str:
        return self.store.partition(":")[0]

    @property
    def queue(self) -> Queue[Order]:
        return Queue(self.name, Order)

    @property
    def insert(self) -> str:
        return f"INSERT INTO {self.name}_effect VALUES ({'?' if self.kind == 'sqlite' else '%s'})"

    def write(self, file: str, line: str) -> None:
        """Append a line, whole, whoever else writes."""
        number = os.open(Path(self.directory) / file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(number, f"{line}\n".encode())
        finally:
            os.close(number)

    def read(self, file: str) -> list[str]:
        path = Path(self.directory) / file
        return path.read_text().split("\n")[:-1] if path.exists() else []

    def open_store(self) -> Any:
        options: dict[str, Any] = {} if self.kind == "redis" else {"create": True}
        if self.kind in ("postgresql", "mysql"):
            options |= {"idle_in_transaction": self.idle}
        if self.kind != "sqlite":
            options |= {"timeout": TIMEOUT}
        if self.kind not in ("sqlite", "dynamodb"):
            options |= {"connect_timeout": TIMEOUT}
        if self.kind == "dynamodb":
            options |= {"margin": 1.5}
        else:
            options["prefix"] = self.name
        return open_store(self.store, options)


class _Doubts(logging.Handler):
    """Writes down of which messages the library says that their effect may have happened twice."""

    scene: Scene | None = None

    def emit(self, record: logging.LogRecord) -> None:
        id, _, text = record.getMessage().partition(": ")
        if self.scene is not None and any(words in text for words in ("in doubt", "took over", "taken over")):
            self.scene.write("doubts", f"{id} {text}")


_doubts = _Doubts()


def make(scene: Scene, fault: str = "none") -> Service:
    """The service, with its fault."""
    _doubts.scene = scene
    logging.getLogger("atleastonce").addHandler(_doubts)
    service, store = Service("worker", broker=scene.broker), scene.open_store()
    struck = False

    def strike(at: str, order: Order) -> None:
        nonlocal struck
        if fault == at and order.n == VICTIM and not struck:
            struck = True
            if at == "frozen":
                scene.write("frozen", str(os.getpid()))
                os.kill(os.getpid(), signal.SIGSTOP)
            else:
                os._exit(CRASHED)

    async def handle(order: Order, ctx: Context) -> None:
        if ctx.attempt > 1:
            scene.write("attempts", f"{order.n} {ctx.attempt}")
        strike("before the effect", order)
        if scene.mode == "lease":
            scene.write("effects", f"{order.n}")
        elif scene.kind == "mysql":
            async with ctx.tx.cursor() as cursor:
                await cursor.execute(scene.insert, (order.n,))
        else:
            done = ctx.tx.execute(scene.insert, (order.n,))
            if hasattr(done, "__await__"):
                await done
        strike("after the effect", order)
        strike("frozen", order)

    idempotency: Any = Inbox(store) if scene.mode == "inbox" else Lease(store, lease=scene.lease)
    service.consumer(
        scene.queue, idempotency=idempotency, concurrency=CONCURRENCY, failure=FailurePolicy(in_place=None, chain=None)
    )(handle)
    if fault == "reply lost":
        _lose_replies(store, scene.mode, scene.kind)
    broker: Broker = service.make_broker()
    service.make_broker = lambda *_, **__: broker  # type: ignore[method-assign]
    subscribe = broker.adapter.subscribe

    async def watched(*arguments: Any) -> Any:
        return _Watched(await subscribe(*arguments), scene, fault)

    broker.adapter.subscribe = watched  # type: ignore[method-assign]
    return service


def _lose_replies(store: Any, mode: str, kind: str) -> None:
    """The first, fourth and seventh commit is done, and its reply does not arrive."""
    count = 0

    def lost() -> None:
        nonlocal count
        count += 1
        if count in (1, 4, 7):
            error: Exception = ConnectionResetError("the reply was lost")
            if kind == "sqlite":  # which has no replies, and a disk
                error = sqlite3.OperationalError("disk I/O error")
                error.sqlite_errorcode = sqlite3.SQLITE_IOERR  # type: ignore[attr-defined]
            raise error

    if mode == "lease":
        complete = store._complete

        async def completed(items: Any) -> Any:
            answer = await complete(items)
            lost()
            return answer

        store._complete = completed
        return
    transaction = store.transaction

    @contextlib.asynccontextmanager
    async def committed() -> Any:
        async with transaction() as tx:
            yield tx
        lost()

    store.transaction = committed


class _Watched:
    """A subscription that writes down what it gives, and ends its process before a settlement."""

    def __init__(self, subscription: Any, scene: Scene, fault: str) -> None:
        self._subscription, self._scene, self._fault = subscription, scene, fault

    def __getattr__(self, name: str) -> Any:
        return getattr(self._subscription, name)

    async def receive(self, *arguments: Any) -> list[Delivery]:
        batch: list[Delivery] = await self._subscription.receive(*arguments)
        for delivery in batch:
            self._scene.write("deliveries", delivery.message.id)
        return batch

    async def settle(self, batch: Sequence[Settlement]) -> Sequence[Outcome]:
        if self._fault == "before the settlement" and batch:
            for delivery, _ in batch:
                self._scene.write("settling", delivery.message.id)
            os._exit(CRASHED)
        outcomes: Sequence[Outcome] = await self._subscription.settle(batch)
        return outcomes


async def _thawed(scene: Scene, service: Service) -> None:
    """Return when the process has been frozen, and nothing that it had then is under way any more."""
    while True:
        if scene.read("frozen") and not any(status.in_flight for status in service.status()):
            return
        await asyncio.sleep(0.05)  # polling a condition; whoever started the process has the deadline


async def main(scene: Scene, fault: str) -> None:
    async with make(scene, fault) as service:
        if fault == "frozen":
            await _thawed(scene, service)
            scene.write("thawed", str(os.getpid()))
        await asyncio.sleep(120)  # ends long before, or is ended


if __name__ == "__main__":
    asyncio.run(main(msgspec.json.decode(sys.argv[1], type=Scene), sys.argv[2]))
