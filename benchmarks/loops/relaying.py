"""The relay that a team writes: SELECT ... FOR UPDATE SKIP LOCKED, publish, wait for the confirmations, DELETE, COMMIT.

It keeps no order per key once there are two of them, and holds its rows locked while the broker answers.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pika
import psycopg

from loops import kafka, rabbitmq
from loops.common import ID_HEADER, body

Item = tuple[str, dict[str, str], bytes]  # key, header fields, body
Publish = Callable[[Sequence[Item]], Awaitable[None]]

# So many unconfirmed, where lists are not waited for.
_UNDER_WAY = {"kafka": 10_000, "rabbitmq": 2_000}


class ToKafka:
    """Publishes lists, each confirmed when `publish` returns; or one after the other, as `stream`."""

    def __init__(self, address: str, topic: str) -> None:
        self._out = kafka.producer(address)
        self._topic = topic

    async def publish(self, items: Sequence[Item]) -> None:
        failed: list[Any] = []

        def told(error: Any, _: Any) -> None:
            if error is not None:
                failed.append(error)

        for key, fields, text in items:
            self._out.produce(self._topic, text, key, headers=list(fields.items()), on_delivery=told)
        if self._out.flush(60) or failed:
            raise RuntimeError(f"not confirmed: {failed[:1]}")

    async def stream(self, items: Sequence[Item]) -> None:
        failed: list[Any] = []

        def told(error: Any, _: Any) -> None:
            if error is not None:
                failed.append(error)

        for number, (key, fields, text) in enumerate(items):
            self._out.produce(self._topic, text, key, headers=list(fields.items()), on_delivery=told)
            if number % 64 == 0:
                self._out.poll(0)
            while len(self._out) >= _UNDER_WAY["kafka"]:
                self._out.poll(0.05)
        if self._out.flush(60) or failed:
            raise RuntimeError(f"not confirmed: {failed[:1]}")

    async def close(self) -> None: ...


class ToRabbitMQ:
    """As `ToKafka`."""

    def __init__(self, connection: Any, channel: Any, queue: str) -> None:
        self._connection, self._channel, self._queue = connection, channel, queue
        self._unconfirmed: dict[int, None] = {}
        self._enough: asyncio.Future[None] | None = None
        self._left = 0  # unconfirmed ones that are few enough
        self._tag, self._problem = 0, ""

    @classmethod
    async def open(cls, address: str, queue: str) -> ToRabbitMQ:
        connection, channel = await rabbitmq._open(address)
        made = cls(connection, channel, queue)
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        channel.add_on_return_callback(made._on_return)
        channel.confirm_delivery(made._on_confirm, callback=lambda _: ready.set_result(None))
        await ready
        return made

    def _on_return(self, *_: Any) -> None:
        self._problem = "unroutable"

    def _on_confirm(self, frame: Any) -> None:
        method, unconfirmed = frame.method, self._unconfirmed
        if method.NAME == "Basic.Nack":
            self._problem = "refused"
        if method.multiple:
            while unconfirmed and (first := next(iter(unconfirmed))) <= method.delivery_tag:
                del unconfirmed[first]
        else:
            unconfirmed.pop(method.delivery_tag, None)
        if self._enough is not None and len(unconfirmed) <= self._left:
            self._enough.set_result(None)
            self._enough = None

    async def _until(self, left: int) -> None:
        if len(self._unconfirmed) > left:
            self._left, self._enough = left, asyncio.get_running_loop().create_future()
            await self._enough
        if self._problem:
            raise RuntimeError(f"a message was {self._problem}")

    def _send(self, item: Item) -> None:
        key, fields, text = item
        properties = pika.BasicProperties(
            content_type="application/json",
            headers={**fields, "key": key},
            delivery_mode=2,
            message_id=fields[ID_HEADER],
        )
        self._tag += 1
        self._unconfirmed[self._tag] = None
        self._channel.basic_publish("", self._queue, text, properties, mandatory=True)

    async def publish(self, items: Sequence[Item]) -> None:
        for item in items:
            self._send(item)
        await self._until(0)

    async def stream(self, items: Sequence[Item]) -> None:
        for item in items:
            self._send(item)
            if len(self._unconfirmed) >= _UNDER_WAY["rabbitmq"]:
                await self._until(_UNDER_WAY["rabbitmq"] // 2)
        await self._until(0)

    async def close(self) -> None:
        await rabbitmq._close(self._connection)


async def _open(broker: str, address: str, channel: str) -> ToKafka | ToRabbitMQ:
    """Connected and heard: the first message's costs are nobody's."""
    opened = ToKafka(address, channel) if broker == "kafka" else await ToRabbitMQ.open(address, channel)
    await opened.publish(items_of(1))
    return opened


async def raw(broker: str, address: str, channel: str, count: int, size: int | None) -> tuple[float, float]:
    """No database: lists of ``size``, each confirmed before the next; or all, with as many under way as are fastest. Seconds, and
    seconds of the processor."""
    opened = await _open(broker, address, channel)
    items = items_of(count)
    begin, cpu = time.perf_counter(), time.process_time()
    if size is None:
        await opened.stream(items)
    else:
        for start in range(0, count, size):
            await opened.publish(items[start : start + size])
    took = time.perf_counter() - begin, time.process_time() - cpu
    await opened.close()
    return took


def items_of(count: int) -> list[Item]:
    return [
        (
            uuid.uuid4().hex,
            {"content-type": "application/json", ID_HEADER: uuid.uuid4().hex, "tenant": "blue"},
            body(n),
        )
        for n in range(count)
    ]


def _read(rows: Sequence[tuple[int, str, str, bytes]]) -> list[Item]:
    return [(key, json.loads(headers), text) for _, key, headers, text in rows]


def rows_of(count: int) -> list[tuple[str, str, bytes]]:
    return [(key, json.dumps(fields), text) for key, fields, text in items_of(count)]


async def out_of_postgres(url: str, publish: Publish, count: int, size: int) -> tuple[float, float]:
    table = f"hand_{uuid.uuid4().hex[:8]}"
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as tx:
        await tx.execute(
            f"CREATE TABLE {table} (seq bigserial PRIMARY KEY, key text, headers text, body bytea)".encode()
        )
        async with tx.cursor() as cursor:
            await cursor.executemany(
                f"INSERT INTO {table} (key, headers, body) VALUES (%s, %s, %s)".encode(), rows_of(count)
            )
        look = f"SELECT seq, key, headers, body FROM {table} ORDER BY seq LIMIT {size} FOR UPDATE SKIP LOCKED".encode()
        begin, cpu = time.perf_counter(), time.process_time()
        while True:
            async with tx.transaction():
                rows = await (await tx.cursor(binary=True).execute(look)).fetchall()
                if not rows:
                    break
                await publish(_read(rows))
                await tx.execute(f"DELETE FROM {table} WHERE seq = ANY(%s)".encode(), ([row[0] for row in rows],))
        took = time.perf_counter() - begin, time.process_time() - cpu
        await tx.execute(f"DROP TABLE {table}".encode())
    return took


async def out_of_sqlite(path: str, publish: Publish, count: int, size: int) -> tuple[float, float]:
    tx = sqlite3.connect(path, isolation_level=None)
    table = f"hand_{uuid.uuid4().hex[:8]}"
    tx.execute("PRAGMA journal_mode=WAL")
    tx.execute("PRAGMA synchronous=NORMAL")
    tx.execute(f"CREATE TABLE {table} (seq INTEGER PRIMARY KEY, key TEXT, headers TEXT, body BLOB)")
    tx.execute("BEGIN")
    tx.executemany(f"INSERT INTO {table} (key, headers, body) VALUES (?, ?, ?)", rows_of(count))
    tx.execute("COMMIT")
    begin, cpu = time.perf_counter(), time.process_time()
    while rows := tx.execute(f"SELECT seq, key, headers, body FROM {table} ORDER BY seq LIMIT {size}").fetchall():
        await publish(_read(rows))
        tx.execute("BEGIN IMMEDIATE")
        tx.executemany(f"DELETE FROM {table} WHERE seq = ?", [(row[0],) for row in rows])
        tx.execute("COMMIT")
    took = time.perf_counter() - begin, time.process_time() - cpu
    tx.execute(f"DROP TABLE {table}")
    tx.close()
    return took


async def relay(
    broker: str, address: str, channel: str, store: str, url: str, count: int, size: int
) -> tuple[float, float]:
    """``count`` rows in lists of ``size``, from the first look to the last commit: seconds, and seconds of the processor."""
    opened = await _open(broker, address, channel)
    try:
        if store == "postgres":
            return await out_of_postgres(url, opened.publish, count, size)
        return await out_of_sqlite(url.removeprefix("sqlite:///"), opened.publish, count, size)
    finally:
        await opened.close()
