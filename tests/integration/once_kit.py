"""What the tests of idempotent consumers have in common: a database with a store in it, and counting."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
import uuid
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
import psycopg
import pymysql
import pytest

from atleastonce import Context, MySQLStore, PostgresStore, Service, Source, SQLiteStore
from atleastonce.contract import Delivery, Window
from atleastonce.stores import TransactionalStore
from atleastonce.urls import BrokerUrl

DEADLINE = 30.0


class Order(msgspec.Struct):
    n: int
    note: str | None = ""


def billing() -> Service:
    """A service on a broker of its own."""
    return Service("billing", broker=f"memory://{uuid.uuid4().hex}")


class Database:
    """A transactional store, and a table ``effect`` beside it in the same database."""

    def __init__(self, kind: str, where: str) -> None:
        self.kind, self.where = kind, where
        self.table = f"effect_{uuid.uuid4().hex[:8]}"
        self.insert = f"INSERT INTO {self.table} VALUES ({'?' if kind == 'sqlite' else '%s'})"
        self.query(f"CREATE TABLE {self.table} (n int)")

    def make(self) -> TransactionalStore:
        prefix = self.table.replace("effect", "alo")
        if self.kind == "sqlite":
            return SQLiteStore(self.where, prefix=prefix)
        if self.kind == "mysql":
            return MySQLStore(self.where, prefix=prefix, create=True)
        return PostgresStore(self.where, prefix=prefix, create=True)

    def query(self, sql: str) -> list[Any]:
        if self.kind == "sqlite":
            with contextlib.closing(sqlite3.connect(self.where, timeout=30)) as lite, lite:
                return lite.execute(sql).fetchall()
        if self.kind == "mysql":
            with self.mysql() as my, my.cursor() as asked:
                asked.execute(sql)
                return list(asked.fetchall())
        with psycopg.connect(self.where, autocommit=True) as pg:
            cursor = pg.execute(sql.encode())
            return cursor.fetchall() if cursor.description else []

    def effects(self) -> Counter[int]:
        return Counter(n for (n,) in self.query(f"SELECT n FROM {self.table}"))

    def mysql(self) -> Any:
        """A connection of PyMySQL."""
        parts = BrokerUrl.parse(self.where)
        ((host, port),) = parts.hosts
        return pymysql.connect(host=host, port=port or 3306, user=parts.user, database=parts.path, autocommit=True)

    async def effect(self, ctx: Context, n: int) -> None:
        await self.execute(ctx, self.insert, (n,))

    async def execute(self, ctx: Context, sql: str, values: tuple[Any, ...] = ()) -> None:
        """In an ``async def`` handler."""
        if self.kind == "mysql":
            async with ctx.tx.cursor() as cursor:
                await cursor.execute(sql, values)
            return
        done = ctx.tx.execute(sql, values)
        if hasattr(done, "__await__"):
            await done

    def execute_sync(self, ctx: Context, sql: str, values: tuple[Any, ...] = ()) -> None:
        """In a ``def`` handler."""
        if self.kind == "mysql":
            with ctx.tx.cursor() as cursor:
                cursor.execute(sql, values)
        else:
            ctx.tx.execute(sql, values)


async def until(condition: Callable[[], bool], *services: Service, within: float = DEADLINE) -> None:
    end = time.monotonic() + within
    while not condition():
        if time.monotonic() > end:
            readers = "\n".join(str(status) for service in services for status in service.status())
            pytest.fail(f"not true within {within:g} s:\n{readers}")
        await asyncio.sleep(0.02)  # polling a condition with a deadline


def counts(service: Service) -> Counter[str]:
    total: Counter[str] = Counter()
    for status in service.status():
        total.update(status.counts)
    return total


def settled(service: Service) -> bool:
    return all(status.in_flight == 0 for status in service.status())


class Quiet:
    async def drain(self, streams: object, grace: float) -> None: ...

    def lost(self, streams: object) -> None: ...

    def condition(self, state: str, detail: str) -> None: ...


async def dead_letters(service: Service, count: int) -> list[Delivery]:
    source = Source(service.consumers[0].home.dead_letter_channel)
    subscription = await service.broker.adapter.subscribe(source, Window(1000, 1 << 24), Quiet())
    found: list[Delivery] = []
    try:
        end = time.monotonic() + DEADLINE
        while len(found) < count and time.monotonic() < end:
            found += await subscription.receive(100, 0.5)
    finally:
        await subscription.close()
    return found
