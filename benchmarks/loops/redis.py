"""redis-py by hand: the fastest loop that loses nothing, and the tutorial's."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from typing import Any

import msgspec
import redis
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from loops.common import ID_HEADER, Job, Meter, Order, Result, body, headers, stamped

_COUNT = 500
_PIPELINE = 500
_ID = ID_HEADER.encode()


def delete(address: str, queue: str) -> None:
    with redis.Redis.from_url(address) as client:
        for name in (queue, f"{queue}.dlq"):
            client.delete(name, *(f"{{{name}}}:{part}" for part in ("about", "later", "due")))


def remaining(address: str, queue: str) -> int:
    """What the queue's group has not read, and what it has not acknowledged."""
    with redis.Redis.from_url(address) as client:
        (group,) = client.xinfo_groups(queue)
        lag = group["lag"]
        unread = client.xlen(queue) if lag is None else lag
        return int(unread + group["pending"])


def load(address: str, queue: str, messages: int) -> None:
    """Fill an existing queue."""
    with redis.Redis.from_url(address) as client:
        for begin in range(0, messages, 1000):
            with client.pipeline(transaction=False) as pipe:
                for n in range(begin, min(begin + 1000, messages)):
                    pipe.xadd(queue, {"body": body(n), **dict(headers(n))})
                pipe.execute()


def _client(address: str) -> Redis:
    # Its ten repetitions of a failed command would store a message twice.
    return Redis.from_url(address, retry=Retry(NoBackoff(), 0), socket_timeout=10)


def raw(job: Job) -> Result:
    """redis.asyncio with hiredis; XREADGROUP of 500 and one acknowledgement for them, which travels during the next read;
    publishing in pipelines of 500."""
    return asyncio.run(_publish(job) if job.scenario.startswith("publish") else _consume(job))


async def _consume(job: Job) -> Result:
    meter = Meter(job)
    decode = msgspec.json.Decoder(Order).decode
    handled = meter.handled
    async with _client(job.address) as reader, _client(job.address) as acker:
        exact = b"xackdel" in await acker.command_list()
        acknowledging: asyncio.Task[Any] | None = None

        async def acknowledge(ids: list[Any]) -> None:
            # A queue that keeps what was handled grows until the server is full.
            if exact:
                await acker.execute_command("XACKDEL", job.channel, job.channel, "ACKED", "IDS", len(ids), *ids)
            else:
                pipe = acker.pipeline(transaction=False)
                pipe.xack(job.channel, job.channel, *ids)
                pipe.xdel(job.channel, *ids)
                await pipe.execute()

        while not meter.done:
            found = await reader.xreadgroup(job.channel, "raw", {job.channel: ">"}, count=_COUNT, block=5000)
            if not found:
                continue
            ids = []
            orders = []
            for id, fields in found[0][1]:
                _ = fields[_ID]
                orders.append(decode(fields[b"body"]))
                ids.append(id)
            if job.scenario == "batch" and meter.left == meter.total:
                meter.begin()
            for order in orders:
                handled(order)
            if acknowledging is not None:
                await acknowledging
            acknowledging = asyncio.create_task(acknowledge(ids))
        if acknowledging is not None:
            await acknowledging
        return meter.result()


async def _publish(job: Job) -> Result:
    meter = Meter(job)
    orders = [msgspec.json.decode(body(n), type=Order) for n in range(job.messages)]
    encode = msgspec.json.encode
    async with _client(job.address) as client:
        await client.ping()
        meter.begin()
        size = _PIPELINE if job.scenario == "publish_many" else job.concurrency
        for begin in range(0, len(orders), size):
            pipe = client.pipeline(transaction=False)
            for order in orders[begin : begin + size]:
                fields = {"content-type": "application/json", ID_HEADER: uuid.uuid4().hex, "tenant": "blue"}
                pipe.xadd(job.channel, {"body": encode(order), **fields}, nomkstream=True)
            if None in await pipe.execute():
                raise RuntimeError("a message was not stored")
        return meter.result()


def naive(job: Job) -> Result:
    """The tutorial's: the synchronous client, one message at a time, json.loads, an acknowledgement for each."""
    client, meter = redis.Redis.from_url(job.address, socket_timeout=10), Meter(job)
    if job.scenario.startswith("publish"):
        orders = [json.loads(body(n)) for n in range(job.messages)]
        meter.begin()
        for n, order in enumerate(orders):
            client.xadd(job.channel, {"body": json.dumps(order), **dict(headers(n))})
        return meter.result()
    while not meter.done:
        for _, entries in client.xreadgroup(job.channel, "naive", {job.channel: ">"}, count=1, block=5000) or ():
            for id, fields in entries:
                _ = fields[_ID]
                order = json.loads(fields[b"body"])
                meter.handled(Order(**order) if job.scenario == "latency" else order)
                client.xack(job.channel, job.channel, id)
    return meter.result()


def feed(job: Job) -> None:
    """Publish at ``job.rate`` per second, each with its time in ``order_id``."""
    with redis.Redis.from_url(job.address) as client:
        begin = time.perf_counter()
        for n in range(job.messages):
            time.sleep(max(0.0, begin + n / job.rate - time.perf_counter()))
            client.xadd(job.channel, {"body": stamped(n), **dict(headers(n))})
