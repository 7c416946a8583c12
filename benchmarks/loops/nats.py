"""nats-py by hand: the fastest loop that loses nothing, and the tutorial's."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from typing import Any

import msgspec
import nats
from nats.errors import TimeoutError as NothingCame

from loops.common import ID_HEADER, Job, Meter, Order, Result, body, headers, stamped

_FETCH = 500
_WINDOW = 4000


def flat(queue: str) -> str:
    """Streams and durables have no dots; ours are named like this."""
    return queue.replace(".", "~")


def delete(address: str, queue: str) -> None:
    async def run() -> None:
        client = await nats.connect(address)
        for name in (queue, f"{queue}.dlq"):
            await client.jetstream().delete_stream(flat(name))
        await client.close()

    asyncio.run(run())


def remaining(address: str, queue: str) -> int:
    """What the work queue still holds: everything that is not acknowledged."""

    async def run() -> int:
        client = await nats.connect(address)
        info = await client.jetstream().stream_info(flat(queue))
        await client.close()
        return int(info.state.messages)

    return asyncio.run(run())


def load(address: str, queue: str, messages: int) -> None:
    """Fill an existing queue."""

    async def run() -> None:
        client = await nats.connect(address)
        items = [(body(n), {**dict(headers(n)), "Nats-Msg-Id": f"{n:032x}"}) for n in range(messages)]
        await _pipelined(client, queue, items, _WINDOW)
        await client.close()

    asyncio.run(run())


def raw(job: Job) -> Result:
    """fetch(500), an ack for each message, a flush for each list. Publishing: confirms through one inbox."""
    return asyncio.run(_publish(job) if job.scenario.startswith("publish") else _consume(job))


async def _consume(job: Job) -> Result:
    client = await nats.connect(job.address, pending_size=8 * 2**20)
    subscription = await client.jetstream().pull_subscribe_bind(flat(job.channel), flat(job.channel))
    meter = Meter(job)
    decode, handled = msgspec.json.Decoder(Order).decode, meter.handled
    most = 1 if job.scenario == "latency" else _FETCH
    while not meter.done:
        try:
            batch = await subscription.fetch(most, timeout=5)
        except NothingCame:
            continue
        if job.scenario == "batch":
            if meter.left == meter.total:
                meter.begin()
            orders = []
            for message in batch:
                _ = (message.headers or {})[ID_HEADER]
                orders.append(decode(message.data))
            for order in orders:
                handled(order)
        else:
            for message in batch:
                _ = (message.headers or {})[ID_HEADER]
                handled(decode(message.data))
        for message in batch:
            await message.ack()
        if job.scenario != "latency":
            await client.flush()
    await client.flush()
    result = meter.result()
    await client.close()
    return result


async def _publish(job: Job) -> Result:
    client = await nats.connect(job.address, pending_size=8 * 2**20)
    meter = Meter(job)
    orders = [msgspec.json.decode(body(n), type=Order) for n in range(job.messages)]
    encode = msgspec.json.encode
    window = _WINDOW if job.scenario == "publish_many" else job.concurrency

    def items() -> Any:
        for order in orders:
            identity = uuid.uuid4().hex
            fields = {
                "content-type": "application/json",
                ID_HEADER: identity,
                "tenant": "blue",
                "Nats-Msg-Id": identity,
            }
            yield encode(order), fields

    meter.begin()
    await _pipelined(client, job.channel, items(), window)
    result = meter.result()
    await client.close()
    return result


async def _pipelined(client: Any, queue: str, items: Any, window: int) -> None:
    """At most ``window`` unconfirmed; a refusal is an error."""
    inbox = client.new_inbox()
    waiting = 0
    room: asyncio.Future[None] | None = None
    low = window // 2

    async def on_confirm(message: Any) -> None:
        nonlocal waiting, room
        if message.headers or b'"error"' in message.data:
            raise RuntimeError(f"refused: {message.data!r}")
        waiting -= 1
        if room is not None and waiting <= low:
            room.set_result(None)
            room = None

    await client.subscribe(f"{inbox}.*", cb=on_confirm)
    for number, (text, fields) in enumerate(items):
        await client.publish(queue, text, f"{inbox}.{number}", fields)
        waiting += 1
        if waiting >= window:
            room = asyncio.get_running_loop().create_future()
            await room
    low = 0
    if waiting:
        room = asyncio.get_running_loop().create_future()
        async with asyncio.timeout(60):
            await room


def naive(job: Job) -> Result:
    """The tutorial's: fetch(1), json.loads, an ack for each message; a confirm for each publish."""

    async def run() -> Result:
        client = await nats.connect(job.address)
        stream, meter = client.jetstream(), Meter(job)
        if job.scenario.startswith("publish"):
            orders = [json.loads(body(n)) for n in range(job.messages)]
            meter.begin()
            for n, order in enumerate(orders):
                await stream.publish(job.channel, json.dumps(order).encode(), headers=dict(headers(n)))
            result = meter.result()
            await client.close()
            return result
        subscription = await stream.pull_subscribe_bind(flat(job.channel), flat(job.channel))
        while not meter.done:
            (message,) = await subscription.fetch(1, timeout=5)
            _ = (message.headers or {})[ID_HEADER]
            order = json.loads(message.data)
            meter.handled(Order(**order) if job.scenario == "latency" else order)
            await message.ack()
        await client.flush()
        result = meter.result()
        await client.close()
        return result

    return asyncio.run(run())


def feed(job: Job) -> None:
    """Publish at ``job.rate`` per second, each with its time in ``order_id``."""

    async def run() -> None:
        client = await nats.connect(job.address)
        begin = time.perf_counter()
        for n in range(job.messages):
            await asyncio.sleep(max(0.0, begin + n / job.rate - time.perf_counter()))
            await client.publish(job.channel, stamped(n), headers=dict(headers(n)))
        await client.flush()
        await client.close()

    asyncio.run(run())
