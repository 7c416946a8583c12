"""Faults of idempotent consumers and of their stores, with real processes. What came of each is a `Row` of the page
``docs/guarantees.md``."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
import sys
import time
import uuid
from asyncio.subprocess import DEVNULL, PIPE
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

import msgspec
from once_worker import CRASHED, Order, Scene, make

from atleastonce import Outbox, Service, StoreUnavailable, connect
from atleastonce.stores import OutboxStore
from atleastonce.urls import BrokerUrl

CHILD = Path(__file__).parents[1] / "integration" / "relay_child.py"

DEADLINE = 60.0
ORDERS = 20
STORES = {
    "inbox": ("sqlite", "postgres", "mysql"),
    "lease": ("sqlite", "postgres", "mysql", "redis", "dynamodb"),
}
DIED = ("before the effect", "after the effect", "before the settlement")
SERVERS = ("postgres", "mysql", "redis")
LOST = "failover with lost writes"


class Row(msgspec.Struct, frozen=True):
    """One run.

    Attributes:
        store, mode, fault: what it was.
        attempted: publishes, of which some carry the id of another.
        confirmed: of them.
        effects: different ones.
        duplicate_deliveries: beyond the first of each id.
        duplicate_effects: beyond the first of each order.
        in_doubt: how often it was logged that an effect may have happened twice (leases).
        unexplained: second effects of which nothing was logged.
    """

    store: str
    mode: str
    fault: str
    attempted: int
    confirmed: int
    effects: int
    duplicate_deliveries: int
    duplicate_effects: int
    in_doubt: int
    unexplained: int

    @property
    def holds(self) -> bool:
        """Whether it is as promised: no second effect with an inbox; with a lease only those of which it was logged, as far as the
        store was not made to forget."""
        return self.duplicate_effects == 0 if self.mode == "inbox" else self.unexplained == 0 or self.fault == LOST


class Run:
    """One scene, its fault, and its end."""

    def __init__(self, mode: str, store: str, url: str, directory: Path, name: str = "", *, lease: str = "1s") -> None:
        name = name or f"g{uuid.uuid4().hex[:10]}"
        self.store = store
        self.scene = Scene(f"sqlite:///{directory}/{name}.broker?lease={lease}", url, mode, name, str(directory / name))
        if lease != "1s":
            self.scene.lease = "10s"  # the process lives: what it holds need not end soon
        Path(self.scene.directory).mkdir()
        self._broker = directory / f"{name}.broker"
        if mode == "inbox":
            self._query(f"CREATE TABLE {name}_effect (n int)")

    def _query(self, sql: str) -> list[Any]:
        """In the database of the inbox."""
        scene = self.scene
        if scene.kind == "sqlite":
            with contextlib.closing(sqlite3.connect(BrokerUrl.parse(scene.store).path, timeout=30)) as lite, lite:
                return lite.execute(sql).fetchall()
        if scene.kind == "postgresql":
            import psycopg

            with psycopg.connect(scene.store, autocommit=True) as pg:
                done = pg.execute(sql.encode())
                return done.fetchall() if done.description else []
        import pymysql

        parts = BrokerUrl.parse(scene.store)
        ((host, port),) = parts.hosts
        with (
            pymysql.connect(host=host, port=port or 3306, user=parts.user, database=parts.path, autocommit=True) as my,
            my.cursor() as cursor,
        ):
            cursor.execute(sql)
            return list(cursor.fetchall())

    async def publish(self, orders: int, copies: int, first: int = 0) -> tuple[int, int]:
        """Each order ``copies`` times under one id; how many were attempted and confirmed."""
        async with connect(self.scene.broker) as broker:
            channel = self.scene.queue
            outcomes = await asyncio.gather(
                *(
                    broker.publish(channel, Order(n), id=f"o{n}")
                    for n in range(first, first + orders)
                    for _ in range(copies)
                ),
                return_exceptions=True,
            )
        return len(outcomes), sum(not isinstance(each, BaseException) for each in outcomes)

    @contextlib.asynccontextmanager
    async def process(self, fault: str) -> Any:
        script = str(Path(__file__).with_name("once_worker.py"))
        words = (script, msgspec.json.encode(self.scene).decode(), fault)
        child = await asyncio.create_subprocess_exec(sys.executable, *words)
        try:
            yield child
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()

    @contextlib.asynccontextmanager
    async def relay(self, die: int) -> Any:
        """A relay of the store's outbox; kills itself in the n-th removal, 0 for never."""
        scene = self.scene
        options = {"prefix": scene.name}
        orders = {"store": scene.store, "options": options, "broker": scene.broker, "lease": 1.5, "die": die}
        words = (str(CHILD), msgspec.json.encode(orders).decode())
        child = await asyncio.create_subprocess_exec(sys.executable, *words, stdin=PIPE, stdout=DEVNULL)
        try:
            yield child
        finally:
            if child.returncode is None:
                assert child.stdin is not None
                child.stdin.close()
                await asyncio.wait_for(child.wait(), DEADLINE)

    def left(self) -> int:
        """Messages that are not settled."""
        with contextlib.closing(sqlite3.connect(self._broker, timeout=30)) as broker:
            found: int = broker.execute("SELECT count(*) FROM deliveries").fetchone()[0]
            return found

    async def until_settled(self, within: float = DEADLINE) -> None:
        """Sound consumers, until nothing is left."""
        async with make(self.scene):
            await until(lambda: self.left() == 0, within)

    def row(self, fault: str, attempted: int, confirmed: int) -> Row:
        if self.scene.mode == "inbox":
            effects = Counter(n for (n,) in self._query(f"SELECT n FROM {self.scene.name}_effect"))
        else:
            effects = Counter(int(line) for line in self.scene.read("effects"))
        logged = Counter(line.partition(" ")[0] for line in self.scene.read("doubts"))
        delivered = Counter(self.scene.read("deliveries"))
        if len(effects) != len(delivered):  # all that was delivered is settled by now
            raise AssertionError(f"{fault}: {len(delivered)} messages, of which {len(effects)} had their effect")
        return Row(
            self.store, self.scene.mode, fault, attempted, confirmed, len(effects),
            delivered.total() - len(delivered), effects.total() - len(effects), logged.total(),
            sum(max(0, times - 1 - logged[f"o{n}"]) for n, times in effects.items()),
        )  # fmt: skip

    def unburnt(self, fault: str, attempted: int, confirmed: int) -> Row:
        """`row` of a fault of the store's, which is no attempt of any message's."""
        if burnt := self.scene.read("attempts"):
            raise AssertionError(f"{fault}: attempts were burnt: {', '.join(burnt)}")
        return self.row(fault, attempted, confirmed)


async def until(condition: Callable[[], Any], within: float = DEADLINE) -> None:
    end = time.monotonic() + within
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {within:g} s: {condition}")
        await asyncio.sleep(0.05)  # polling a condition with a deadline


# --------------------------------------------------------------------------------------------------------------- faults


async def died(run: Run, fault: str) -> Row:
    """``kill -9`` at a step: the process ends itself there, without a word to anybody. What was being settled, and was therefore
    completed, has no second effect with a lease either."""
    counted = await run.publish(ORDERS, 2)
    async with run.process(fault) as child:
        code = await asyncio.wait_for(child.wait(), DEADLINE)
        if code != CRASHED:
            raise AssertionError(f"the process ended with {code} and not at its step")
    await run.until_settled()
    effects = Counter(run.scene.read("effects"))
    if again := [id for id in run.scene.read("settling") if effects[id.removeprefix("o")] > 1]:
        raise AssertionError(f"these were completed and ran again: {again}")
    return run.row(f"kill -9 {fault}", *counted)


async def reply_lost(run: Run) -> Row:
    """Three commits are done and their replies lost; the process goes on."""
    counted = await run.publish(ORDERS, 2)
    async with run.process("reply lost"):
        await until(lambda: run.left() == 0)
    return run.row("reply lost after commit", *counted)


async def frozen(run: Run) -> Row:
    """SIGSTOP in the handler after the effect, past all leases; another process takes over; SIGCONT."""
    counted = await run.publish(ORDERS, 2)
    async with run.process("frozen") as child:
        await until(lambda: run.scene.read("frozen"))
        try:
            async with make(run.scene):
                with contextlib.suppress(TimeoutError):
                    await until(lambda: run.left() == 0, within=5)
                os.kill(child.pid, signal.SIGCONT)
                await until(lambda: run.left() == 0)
        except StoreUnavailable:  # an SQLite file with its transaction open: nobody can take that from it
            os.kill(child.pid, signal.SIGCONT)
            await run.until_settled()
        await until(lambda: run.scene.read("thawed"))
    return run.row("frozen past its lease", *counted)


async def two_at_once(run: Run) -> Row:
    """The same messages, each five times, in two processes."""
    counted = await run.publish(ORDERS, 5)
    async with run.process("none"):
        await run.until_settled()
    return run.row("two consumers at once", *counted)


async def duplicates(run: Run, copies: int) -> Row:
    """Very many of one id."""
    counted = await run.publish(1, copies)
    await run.until_settled(within=10 * DEADLINE)  # a transaction of its own for each
    return run.row(f"{copies} of one id", *counted)


async def server_fault(run: Run, fault: str, strike: Callable[[], Awaitable[None]]) -> Row:
    """Something happens to the store's server in the middle, and more comes meanwhile."""
    counted = [await run.publish(ORDERS * 5, 2)]
    async with make(run.scene):
        await until(lambda: run.left() < ORDERS * 8)
        more = asyncio.create_task(strike())
        counted.append(await run.publish(ORDERS * 5, 2, ORDERS * 5))
        await more
        await until(lambda: run.left() == 0)
    return run.unburnt(fault, *total(counted))


class Room(Protocol):
    """What a store needs to write, and what can be taken from it."""

    def fill(self) -> None: ...

    def free(self) -> None: ...


async def full(run: Run, room: Room, fault: str = "disk full") -> Row:
    """The store has no room left, until it has: its source pauses, and goes on by itself."""
    counted = [await run.publish(ORDERS, 1)]
    async with make(run.scene) as service:
        await until(lambda: run.left() == 0)
        await asyncio.to_thread(room.fill)
        first = ORDERS
        while not paused(service):
            counted.append(await run.publish(50, 2, first))
            first += 50
            if first > 5000:
                raise AssertionError(f"{fault}: it never ran into the end")
            await asyncio.sleep(0.1)
        await asyncio.to_thread(room.free)
        await until(lambda: run.left() == 0)
    return run.unburnt(fault, *total(counted))


async def network(
    run: Run, fault: str, trouble: Callable[[], contextlib.AbstractAsyncContextManager[None]], *, pauses: bool = True
) -> Row:
    """Something happens to the network between the consumer and its store, and more comes meanwhile; with ``pauses``, more than the
    store's limit bears. It ends when the consumer says so, else when all are settled."""
    counted = [await run.publish(ORDERS * 5, 2)]
    async with make(run.scene) as service:
        await until(lambda: run.left() < ORDERS * 9)
        async with trouble():
            counted.append(await run.publish(ORDERS * 5, 2, ORDERS * 5))
            if pauses:
                await until(lambda: paused(service))
            else:
                await until(lambda: run.left() == 0, 3 * DEADLINE)
        await until(lambda: run.left() == 0, 3 * DEADLINE)
    return run.unburnt(fault, *total(counted))


def total(counted: list[tuple[int, int]]) -> tuple[int, int]:
    """Attempted and confirmed, all together."""
    attempted, confirmed = (sum(each) for each in zip(*counted, strict=True))
    return attempted, confirmed


def paused(service: Service) -> bool:
    """Whether it reads nothing, for want of its store."""
    return any(each.state == "paused" and "store unavailable" in each.detail for each in service.status())


class Replica(Protocol):
    """A copy of the store's database that falls behind."""

    def catch_up(self) -> None: ...

    def take_over(self) -> None: ...


async def failed_over(run: Run, replica: Replica) -> Row:
    """A replica that is behind takes over in the middle, and all that the database has confirmed since is lost; whoever published
    sends again. With an inbox the effects were in that database: they are lost with the memory of them, and are had once more."""
    counted = [await run.publish(ORDERS * 5, 2)]
    async with make(run.scene):
        await until(lambda: run.left() == 0)
        await asyncio.to_thread(replica.catch_up)
        counted.append(await run.publish(ORDERS * 5, 2, ORDERS * 5))
        await until(lambda: run.left() < ORDERS * 6)
        await asyncio.to_thread(replica.take_over)
        await until(lambda: run.left() == 0)
        if run.scene.mode == "inbox":
            had = {n for (n,) in run._query(f"SELECT n FROM {run.scene.name}_effect")}
            if len(had) == ORDERS * 10:
                raise AssertionError(f"{LOST}: nothing was lost")
        counted.append(await run.publish(ORDERS * 10, 1))
        await until(lambda: run.left() == 0)
    return run.unburnt(LOST, *total(counted))


async def relay_died(run: Run) -> Row:
    """``kill -9`` of an outbox's relay when the broker has confirmed a list and the rows are still there; another one goes on,
    and a consumer with an inbox has the effects."""
    store = run.scene.open_store()
    assert isinstance(store, OutboxStore)
    async with Outbox(store) as outbox:
        for first in range(0, ORDERS * 10, ORDERS):
            async with outbox.transaction() as tx:
                orders = [Order(n) for n in range(first, first + ORDERS)]
                await outbox.publish_many(
                    tx, run.scene.queue, orders, id=lambda order: f"o{order.n}", key=lambda _: None
                )
        async with run.relay(die=3) as victim:
            if (code := await asyncio.wait_for(victim.wait(), DEADLINE)) != -signal.SIGKILL:
                raise AssertionError(f"the relay ended with {code} and not at its step")
        async with run.relay(die=0):
            end = time.monotonic() + DEADLINE
            while (await store.outbox_stats()).waiting:
                if time.monotonic() > end:
                    raise TimeoutError("the second relay did not publish what was left")
                await asyncio.sleep(0.05)
    await run.until_settled()
    return run.row("kill -9 of a relay between publish and removal", ORDERS * 10, ORDERS * 10)
