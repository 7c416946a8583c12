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
from contextlib import asynccontextmanager
from typing import Any

import pika
import psycopg

from loops import kafka, rabbitmq
from loops.common import ID_HEADER, body

BATCH = 500
Row = tuple[int, str, str, bytes]
Publish = Callable[[Sequence[Row]], Awaitable[None]]


@asynccontextmanager
async def to_kafka(address: str, topic: str) -> Any:
    producer = kafka.producer(address)

    async def publish(rows: Sequence[Row]) -> None:
        failed: list[Any] = []

        def told(error: Any, _: Any) -> None:
            if error is not None:
                failed.append(error)

        for _, key, headers, text in rows:
            producer.produce(topic, text, key, headers=list(json.loads(headers).items()), on_delivery=told)
        if producer.flush(60) or failed:
            raise RuntimeError(f"not confirmed: {failed[:1]}")

    yield publish


@asynccontextmanager
async def to_rabbitmq(address: str, queue: str) -> Any:
    connection, channel = await rabbitmq._open(address)
    unconfirmed: dict[int, None] = {}
    done: asyncio.Future[None] | None = None
    tag, problem = 0, ""

    def on_confirm(frame: Any) -> None:
        nonlocal problem
        method = frame.method
        if method.NAME == "Basic.Nack":
            problem = "refused"
        if method.multiple:
            while unconfirmed and (first := next(iter(unconfirmed))) <= method.delivery_tag:
                del unconfirmed[first]
        else:
            unconfirmed.pop(method.delivery_tag, None)
        if not unconfirmed and done is not None and not done.done():
            done.set_result(None)

    ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    channel.confirm_delivery(on_confirm, callback=lambda _: ready.set_result(None))
    await ready

    async def publish(rows: Sequence[Row]) -> None:
        nonlocal done, tag
        done = asyncio.get_running_loop().create_future()
        for _, _, headers, text in rows:
            fields = json.loads(headers)
            properties = pika.BasicProperties(
                content_type="application/json", headers=fields, delivery_mode=2, message_id=fields[ID_HEADER]
            )
            tag += 1
            unconfirmed[tag] = None
            channel.basic_publish("", queue, text, properties, mandatory=True)
        await done
        if problem:
            raise RuntimeError(f"a message was {problem}")

    yield publish
    await rabbitmq._close(connection)


def rows_of(count: int) -> list[tuple[str, str, bytes]]:
    return [
        (
            uuid.uuid4().hex,
            json.dumps({"content-type": "application/json", ID_HEADER: uuid.uuid4().hex, "tenant": "blue"}),
            body(n),
        )
        for n in range(count)
    ]


async def out_of_postgres(url: str, publish: Publish, count: int) -> float:
    table = f"hand_{uuid.uuid4().hex[:8]}"
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as tx:
        await tx.execute(
            f"CREATE TABLE {table} (seq bigserial PRIMARY KEY, key text, headers text, body bytea)".encode()
        )
        async with tx.cursor() as cursor:
            await cursor.executemany(
                f"INSERT INTO {table} (key, headers, body) VALUES (%s, %s, %s)".encode(), rows_of(count)
            )
        look = f"SELECT seq, key, headers, body FROM {table} ORDER BY seq LIMIT {BATCH} FOR UPDATE SKIP LOCKED".encode()
        begin = time.perf_counter()
        while True:
            async with tx.transaction():
                rows = await (await tx.cursor(binary=True).execute(look)).fetchall()
                if not rows:
                    break
                await publish(rows)
                await tx.execute(f"DELETE FROM {table} WHERE seq = ANY(%s)".encode(), ([row[0] for row in rows],))
        took = time.perf_counter() - begin
        await tx.execute(f"DROP TABLE {table}".encode())
    return took


async def out_of_sqlite(path: str, publish: Publish, count: int) -> float:
    tx = sqlite3.connect(path, isolation_level=None)
    table = f"hand_{uuid.uuid4().hex[:8]}"
    tx.execute("PRAGMA journal_mode=WAL")
    tx.execute("PRAGMA synchronous=NORMAL")
    tx.execute(f"CREATE TABLE {table} (seq INTEGER PRIMARY KEY, key TEXT, headers TEXT, body BLOB)")
    tx.execute("BEGIN")
    tx.executemany(f"INSERT INTO {table} (key, headers, body) VALUES (?, ?, ?)", rows_of(count))
    tx.execute("COMMIT")
    begin = time.perf_counter()
    while rows := tx.execute(f"SELECT seq, key, headers, body FROM {table} ORDER BY seq LIMIT {BATCH}").fetchall():
        await publish(rows)
        tx.execute("BEGIN IMMEDIATE")
        tx.executemany(f"DELETE FROM {table} WHERE seq = ?", [(row[0],) for row in rows])
        tx.execute("COMMIT")
    took = time.perf_counter() - begin
    tx.execute(f"DROP TABLE {table}")
    tx.close()
    return took


async def relay(broker: str, address: str, channel: str, store: str, url: str, count: int) -> float:
    """Seconds for ``count`` rows, from the first look to the last commit."""
    opened = to_kafka(address, channel) if broker == "kafka" else to_rabbitmq(address, channel)
    async with opened as publish:
        if store == "postgres":
            return await out_of_postgres(url, publish, count)
        return await out_of_sqlite(url.removeprefix("sqlite:///"), publish, count)
