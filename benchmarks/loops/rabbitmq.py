"""pika by hand: the fastest loop that loses nothing, and the tutorial's."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from typing import Any

import msgspec
import pika
from pika.adapters.asyncio_connection import AsyncioConnection

from loops.common import ID_HEADER, Job, Meter, Order, Result, body, headers, stamped

_PREFETCH = 1000
_ACK_EVERY = 250  # four acks to the prefetch: the broker is never idle, and a crash repeats little
_PERSISTENT = 2


def delete(address: str, queue: str) -> None:
    connection = pika.BlockingConnection(pika.URLParameters(address))
    channel = connection.channel()
    for name in (queue, f"{queue}.dlq"):
        channel.queue_delete(name)
    connection.close()


def remaining(address: str, queue: str) -> int:
    """Ready messages; call it when no consumer is connected, then unsettled ones are ready too."""
    connection = pika.BlockingConnection(pika.URLParameters(address))
    count = connection.channel().queue_declare(queue, passive=True).method.message_count
    connection.close()
    return int(count)


def load(address: str, queue: str, messages: int) -> None:
    """Fill an existing queue."""
    asyncio.run(_publish_pipelined(address, queue, [body(n) for n in range(messages)], 2000, None))


async def _open(address: str) -> tuple[AsyncioConnection, Any]:
    loop = asyncio.get_running_loop()
    opened: asyncio.Future[Any] = loop.create_future()
    connection = AsyncioConnection(
        pika.URLParameters(address),
        on_open_callback=lambda c: c.channel(on_open_callback=opened.set_result),
        on_open_error_callback=lambda _, error: opened.set_exception(error),
    )
    return connection, await opened


def raw(job: Job) -> Result:
    """AsyncioConnection; prefetch 1000, one ack for 250 messages. Publishing: pipelined confirms."""
    if job.scenario.startswith("publish"):
        return asyncio.run(_publish(job))
    return asyncio.run(_consume(job))


async def _consume(job: Job) -> Result:
    connection, channel = await _open(job.address)
    finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    meter = Meter(job)
    decode = msgspec.json.Decoder(Order).decode
    handled = meter.handled
    every = 1 if job.scenario == "latency" else _ACK_EVERY
    waiting: list[Any] = []

    def on_message(channel: Any, method: Any, properties: Any, text: bytes) -> None:
        _ = properties.headers[ID_HEADER]
        handled(decode(text))
        tag = method.delivery_tag
        if tag % every == 0 or meter.done:
            channel.basic_ack(tag, multiple=True)
        if meter.done:
            finished.set_result(None)

    def on_message_batch(channel: Any, method: Any, properties: Any, text: bytes) -> None:
        _ = properties.headers[ID_HEADER]
        waiting.append(decode(text))
        tag = method.delivery_tag
        if tag == 1:
            meter.begin()
        if tag % every == 0 or tag == job.messages:
            for order in waiting:
                handled(order)
            waiting.clear()
            channel.basic_ack(tag, multiple=True)
        if meter.done:
            finished.set_result(None)

    channel.basic_qos(prefetch_count=_PREFETCH)
    channel.basic_consume(job.channel, on_message_batch if job.scenario == "batch" else on_message)
    await finished
    result = meter.result()
    await _close(connection)
    return result


async def _close(connection: Any) -> None:
    closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    connection.add_on_close_callback(lambda *_: closed.set_result(None))
    connection.close()
    await closed


async def _publish(job: Job) -> Result:
    window = 2000 if job.scenario == "publish_many" else job.concurrency
    meter = Meter(job)
    bodies = [body(n) for n in range(job.messages)]
    orders = [msgspec.json.decode(text, type=Order) for text in bodies]
    await _publish_pipelined(job.address, job.channel, orders, window, meter)
    return meter.result()


async def _publish_pipelined(address: str, queue: str, items: list[Any], window: int, meter: Meter | None) -> None:
    """At most ``window`` unconfirmed; a returned or refused message is an error."""
    connection, channel = await _open(address)
    loop = asyncio.get_running_loop()
    unconfirmed: dict[int, None] = {}  # tags in the order sent: confirms come singly, or up to a tag
    low = window // 2
    room: asyncio.Future[None] | None = None
    problem: str | None = None

    def on_confirm(frame: Any) -> None:
        nonlocal room, problem
        method = frame.method
        if method.NAME == "Basic.Nack":
            problem = "refused"
        tag = method.delivery_tag
        if method.multiple:
            while unconfirmed and (first := next(iter(unconfirmed))) <= tag:
                del unconfirmed[first]
        else:
            unconfirmed.pop(tag, None)
        if room is not None and (len(unconfirmed) <= low or problem):
            room.set_result(None)
            room = None

    def on_return(*_: Any) -> None:
        nonlocal problem
        problem = "unroutable"

    ready: asyncio.Future[None] = loop.create_future()
    channel.add_on_return_callback(on_return)
    channel.confirm_delivery(on_confirm, callback=lambda _: ready.set_result(None))
    await ready
    encode = msgspec.json.encode
    if meter is not None:
        meter.begin()
    for tag, item in enumerate(items, 1):
        if meter is None:
            text, fields = item, dict(headers(tag))
        else:
            text = encode(item)
            fields = {"content-type": "application/json", ID_HEADER: uuid.uuid4().hex, "tenant": "blue"}
        properties = pika.BasicProperties(
            content_type="application/json", headers=fields, delivery_mode=_PERSISTENT, message_id=fields[ID_HEADER]
        )
        channel.basic_publish("", queue, text, properties, mandatory=True)
        unconfirmed[tag] = None
        if len(unconfirmed) >= window:
            room = loop.create_future()
            await room
    low = 0
    while unconfirmed and not problem:
        room = loop.create_future()
        await room
    if problem:
        raise RuntimeError(f"a message was {problem}")
    if meter is not None:
        meter.stop()
    await _close(connection)


def naive(job: Job) -> Result:
    """The tutorial's: BlockingConnection, json.loads, an ack for each message; a confirm for each publish."""
    connection = pika.BlockingConnection(pika.URLParameters(job.address))
    channel, meter = connection.channel(), Meter(job)
    if job.scenario.startswith("publish"):
        channel.confirm_delivery()
        orders = [json.loads(body(n)) for n in range(job.messages)]
        meter.begin()
        for n, order in enumerate(orders):
            properties = pika.BasicProperties(delivery_mode=_PERSISTENT, headers=dict(headers(n)))
            channel.basic_publish("", job.channel, json.dumps(order).encode(), properties, mandatory=True)
        result = meter.result()
        connection.close()
        return result
    channel.basic_qos(prefetch_count=1)
    for method, properties, text in channel.consume(job.channel):
        _ = properties.headers[ID_HEADER]
        order = json.loads(text)
        meter.handled(Order(**order) if job.scenario == "latency" else order)
        channel.basic_ack(method.delivery_tag)
        if meter.done:
            break
    connection.process_data_events(0)
    result = meter.result()
    connection.close()
    return result


def feed(job: Job) -> None:
    """Publish at ``job.rate`` per second, each with its time in ``order_id``."""
    connection = pika.BlockingConnection(pika.URLParameters(job.address))
    channel = connection.channel()
    begin = time.perf_counter()
    for n in range(job.messages):
        time.sleep(max(0.0, begin + n / job.rate - time.perf_counter()))
        properties = pika.BasicProperties(delivery_mode=_PERSISTENT, headers=dict(headers(n)))
        channel.basic_publish("", job.channel, stamped(n), properties)
    connection.close()
