"""FastStream on an equal guarantee: acknowledged after the handler, publishes confirmed. msgspec decodes, as for all others.

Runs in an environment of its own (see `peers.py`), so that its pins are none of ours.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from fast_depends.msgspec import MsgSpecSerializer
from faststream import AckPolicy

from loops.common import ID_HEADER, Job, Meter, Order, Result, body

_PREFETCH = 1000
_BATCH = 500


def run(job: Job) -> Result:
    return asyncio.run(_publish(job) if job.scenario.startswith("publish") else _consume(job))


def _broker(job: Job) -> Any:
    # Its access log writes one line per message; nobody who measures leaves it on.
    if job.broker == "rabbitmq":
        from faststream.rabbit import Channel, RabbitBroker

        channel = Channel(prefetch_count=_PREFETCH)
        return RabbitBroker(job.address, default_channel=channel, serializer=MsgSpecSerializer(), logger=None)
    if job.broker == "redis":
        from faststream.redis import RedisBroker

        # Its pool raises beyond 100 connections instead of waiting, and each publish takes one.
        return RedisBroker(job.address, serializer=MsgSpecSerializer(), logger=None, max_connections=1000)
    if job.broker == "nats":
        from faststream.nats import NatsBroker

        return NatsBroker(job.address, serializer=MsgSpecSerializer(), logger=None)
    if job.contender == "faststream-aiokafka":
        from faststream.kafka import KafkaBroker as AiokafkaBroker

        return AiokafkaBroker(job.address, serializer=MsgSpecSerializer(), logger=None)
    from faststream.confluent import KafkaBroker

    return KafkaBroker(job.address, serializer=MsgSpecSerializer(), logger=None)


def _subscriber(job: Job, broker: Any) -> Callable[[Any], Any]:
    if job.broker == "rabbitmq":
        from faststream.rabbit import RabbitQueue

        queue = RabbitQueue(job.channel, declare=False)
        return broker.subscriber(queue, ack_policy=AckPolicy.NACK_ON_ERROR)
    if job.broker == "nats":
        from faststream.nats import JStream, PullSub

        name = job.channel.replace(".", "~")
        return broker.subscriber(
            job.channel,
            stream=JStream(name, declare=False),
            durable=name,
            pull_sub=PullSub(batch_size=_BATCH, timeout=5.0, batch=job.scenario == "batch"),
            ack_policy=AckPolicy.NACK_ON_ERROR,
        )
    if job.broker == "redis":
        from faststream.redis import StreamSub

        many = job.scenario == "batch"
        stream = StreamSub(
            job.channel, group=job.channel, consumer="faststream", last_id=">", batch=many, max_records=_BATCH
        )
        return broker.subscriber(stream=stream, ack_policy=AckPolicy.ACK)
    options: dict[str, Any] = {"batch": True, "max_records": _BATCH} if job.scenario == "batch" else {}
    return broker.subscriber(
        job.channel, group_id=job.group, auto_offset_reset="earliest", ack_policy=AckPolicy.ACK, **options
    )


async def _consume(job: Job) -> Result:
    finished = asyncio.Event()
    meter = Meter(job, finished.set)
    handled = meter.handled
    broker = _broker(job)

    async def one(order: Order) -> None:
        handled(order)

    async def many(orders: list[Order]) -> None:
        for order in orders:
            handled(order)

    def sync(order: Order) -> None:
        handled(order)

    # On a thread it calls loop-bound events; the count itself needs no lock, for it runs one message at a time.
    if job.scenario == "sync":
        loop = asyncio.get_running_loop()
        meter.on_done = lambda: loop.call_soon_threadsafe(finished.set)
    handler: Any = {"batch": many, "sync": sync}.get(job.scenario, one)
    _subscriber(job, broker)(handler)
    if job.broker == "redis":
        await broker.connect()
        await _load(job, broker)
    await broker.start()
    await finished.wait()
    result = meter.result()
    await asyncio.sleep(0.1)  # not timed: the last acknowledgement leaves after the handler has returned
    await broker.stop()
    return result


async def _load(job: Job, broker: Any) -> None:
    """Fill the stream: FastStream for Redis reads what is in its own envelope."""
    send = _sender(job, broker)
    for begin in range(0, job.messages, 100):
        orders = [msgspec.json.decode(body(n), type=Order) for n in range(begin, min(begin + 100, job.messages))]
        await asyncio.gather(*map(send, orders))


async def _publish(job: Job) -> Result:
    broker, meter = _broker(job), Meter(job)
    await broker.start()
    orders = [msgspec.json.decode(body(n), type=Order) for n in range(job.messages)]
    send = _sender(job, broker)
    await send(orders[0])  # not timed: connections and metadata
    meter.begin()
    if job.scenario == "publish_many" and job.broker == "kafka":
        for begin in range(0, len(orders), _BATCH):
            fields = {ID_HEADER: uuid.uuid4().hex, "tenant": "blue"}
            await broker.publish_batch(*orders[begin : begin + _BATCH], topic=job.channel, headers=fields)
    else:
        rest = iter(orders)

        async def caller() -> None:
            for order in rest:
                begin = time.perf_counter()
                await send(order)
                meter.delays.append(time.perf_counter() - begin)

        await asyncio.gather(*(caller() for _ in range(job.concurrency)))
    result = meter.result()
    await broker.stop()
    return result


def _sender(job: Job, broker: Any) -> Callable[[Order], Awaitable[Any]]:
    if job.broker == "rabbitmq":
        # confirms are on by default in its channels
        return lambda order: broker.publish(
            order,
            routing_key=job.channel,
            persist=True,
            mandatory=True,
            headers={ID_HEADER: uuid.uuid4().hex, "tenant": "blue"},
        )
    if job.broker == "nats":  # naming the stream makes it wait for the confirm
        stream = job.channel.replace(".", "~")
        return lambda order: broker.publish(
            order,
            subject=job.channel,
            stream=stream,
            headers={ID_HEADER: (identity := uuid.uuid4().hex), "tenant": "blue", "Nats-Msg-Id": identity},
        )
    if job.broker == "redis":
        return lambda order: broker.publish(
            order, stream=job.channel, headers={ID_HEADER: uuid.uuid4().hex, "tenant": "blue"}
        )
    return lambda order: broker.publish(
        order, topic=job.channel, headers={ID_HEADER: uuid.uuid4().hex, "tenant": "blue"}
    )
