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
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
from once_worker import CRASHED, Order, Scene, make

from atleastonce import StoreUnavailable, connect
from atleastonce.urls import BrokerUrl

DEADLINE = 60.0
ORDERS = 20
STORES = {
    "inbox": ("sqlite", "postgres", "mysql"),
    "lease": ("sqlite", "postgres", "mysql", "redis", "dynamodb"),
}
DIED = ("before the effect", "after the effect", "before the settlement")
SERVERS = ("postgres", "mysql", "redis")


class Row(msgspec.Struct, frozen=True):
    """One run.

    Attributes:
        store, mode, fault: what it was.
        attempted: publishes, of which some carry the id of another.
        confirmed: of them.
        effects: different ones.
        duplicate_deliveries: beyond the first of each id.
        duplicate_effects: beyond the first of each order.
        in_doubt: runs that were told that an earlier one may have had the effect (leases).
        unexplained: second effects of runs that were not told.
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
        """Whether it is as promised: no second effect with an inbox; with a lease only of runs that knew of their doubt."""
        return self.duplicate_effects == 0 if self.mode == "inbox" else self.unexplained == 0


class Run:
    """One scene, its fault, and its end."""

    def __init__(self, mode: str, store: str, url: str, directory: Path) -> None:
        name = f"g{uuid.uuid4().hex[:10]}"
        self.store = store
        self.scene = Scene(f"sqlite:///{directory}/{name}.broker?lease=1s", url, mode, name, str(directory / name))
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

    async def publish(self, orders: int, copies: int) -> tuple[int, int]:
        """Each order ``copies`` times under one id; how many were attempted and confirmed."""
        async with connect(self.scene.broker) as broker:
            channel = self.scene.queue
            outcomes = await asyncio.gather(
                *(broker.publish(channel, Order(n), id=f"o{n}") for n in range(orders) for _ in range(copies)),
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

    def left(self) -> int:
        """Messages that are not settled."""
        with contextlib.closing(sqlite3.connect(self._broker, timeout=30)) as broker:
            found: int = broker.execute("SELECT count(*) FROM deliveries").fetchone()[0]
            return found

    async def until_settled(self) -> None:
        """Sound consumers, until nothing is left."""
        async with make(self.scene):
            await until(lambda: self.left() == 0)

    def row(self, fault: str, attempted: int, confirmed: int) -> Row:
        if self.scene.mode == "inbox":
            effects = Counter(n for (n,) in self._query(f"SELECT n FROM {self.scene.name}_effect"))
            doubts, sure = 0, Counter(effects)
        else:
            lines = [line.split() for line in self.scene.read("effects")]
            effects = Counter(int(n) for n, _ in lines)
            doubts = sum(int(doubt) for _, doubt in lines)
            sure = Counter(int(n) for n, doubt in lines if doubt == "0")
        delivered = Counter(self.scene.read("deliveries"))
        return Row(
            self.store, self.scene.mode, fault, attempted, confirmed, len(effects),
            delivered.total() - len(delivered), effects.total() - len(effects), doubts,
            sure.total() - len(sure),
        )  # fmt: skip


async def until(condition: Callable[[], Any], within: float = DEADLINE) -> None:
    end = time.monotonic() + within
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {within:g} s: {condition}")
        await asyncio.sleep(0.05)  # polling a condition with a deadline


# --------------------------------------------------------------------------------------------------------------- faults


async def died(run: Run, fault: str) -> Row:
    """``kill -9`` at a step: the process ends itself there, without a word to anybody."""
    counted = await run.publish(ORDERS, 2)
    async with run.process(fault) as child:
        code = await asyncio.wait_for(child.wait(), DEADLINE)
        if code != CRASHED:
            raise AssertionError(f"the process ended with {code} and not at its step")
    await run.until_settled()
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
        await asyncio.sleep(0.5)  # for the one that was frozen to do whatever it does
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
    await run.until_settled()
    return run.row(f"{copies} of one id", *counted)


async def server_fault(run: Run, fault: str, strike: Callable[[], Awaitable[None]]) -> Row:
    """Something happens to the store's server in the middle."""
    counted = await run.publish(ORDERS * 5, 2)
    async with make(run.scene):
        await until(lambda: run.left() < ORDERS * 8)
        await strike()
        await until(lambda: run.left() == 0)
    return run.row(fault, *counted)
