"""Messages copied from one place to another by hand: consume 500, publish their copies, wait for every confirmation, settle.

What a script for one night does, and what a retry costs at least: no filters, no counts, no guard against loops.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, NamedTuple

BATCH = 500

Fields = list[tuple[str, Any]]
Change = Callable[[Fields], Fields]


class Took(NamedTuple):
    """Seconds until the last settlement: from the call of subscribe, from the first message, and of that the processor's, of all
    threads."""

    whole: float
    flowing: float
    cpu: float


def run(url: str, source: str, target: str, count: int, change: Change) -> Took:
    """Copy ``count`` messages, each with the header that ``change`` makes of its own."""
    if url.startswith("kafka"):
        return kafka(url, source, target, count, change)
    return asyncio.run(rabbitmq(url, source, target, count, change))


def kafka(url: str, source: str, target: str, count: int, change: Change) -> Took:
    from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

    address = url.removeprefix("kafka://")
    consumer = Consumer(
        {
            "bootstrap.servers": address,
            "group.id": source,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "fetch.queue.backoff.ms": 5,
        }
    )
    producer = Producer({"bootstrap.servers": address, "enable.idempotence": True, "acks": "all", "linger.ms": 1})
    producer.list_topics(target, timeout=10)
    begun, flowing, cpu = time.perf_counter(), 0.0, 0.0
    consumer.subscribe([source])
    pending = done = 0
    ends: dict[int, int] = {}
    committed = time.monotonic()

    def delivered(error: Any, _: Any) -> None:
        nonlocal pending
        if error is not None:
            raise KafkaException(error)
        pending -= 1

    def offsets() -> list[TopicPartition]:
        return [TopicPartition(source, number, end) for number, end in ends.items()]

    while done < count:
        first = consumer.poll(0.1)
        if first is None:
            continue
        flowing, cpu = flowing or time.perf_counter(), cpu or time.process_time()
        batch: list[Any] = [first, *consumer.consume(BATCH - 1, 0)]
        for record in batch:
            if record.error() is not None:
                raise KafkaException(record.error())
            pending += 1
            producer.produce(
                target, record.value(), key=record.key(), headers=change(record.headers()), on_delivery=delivered
            )
        while pending:
            producer.poll(0.05)
        for record in batch:
            ends[record.partition()] = record.offset() + 1
        done += len(batch)
        if (now := time.monotonic()) - committed > 0.5:
            committed = now
            consumer.commit(offsets=offsets(), asynchronous=True)
    consumer.commit(offsets=offsets(), asynchronous=False)
    consumer.close()
    end = time.perf_counter()
    return Took(end - begun, end - flowing, time.process_time() - cpu)


async def rabbitmq(url: str, source: str, target: str, count: int, change: Change) -> Took:
    from loops import rabbitmq as client

    reading, taking = await client._open(url.replace("rabbitmq://", "amqp://"))
    writing, sending = await client._open(url.replace("rabbitmq://", "amqp://"))
    loop = asyncio.get_running_loop()
    ready: asyncio.Queue[tuple[Any, Any, bytes]] = asyncio.Queue()
    confirmed = 0
    enough: asyncio.Future[None] | None = None
    wanted = 0

    def on_confirm(frame: Any) -> None:
        nonlocal confirmed
        assert frame.method.NAME == "Basic.Ack", "refused"
        confirmed = frame.method.delivery_tag if frame.method.multiple else confirmed + 1
        if enough is not None and confirmed >= wanted and not enough.done():
            enough.set_result(None)

    selected = loop.create_future()
    sending.confirm_delivery(on_confirm, callback=selected.set_result)
    await selected
    begun, flowing, cpu = time.perf_counter(), 0.0, 0.0
    taking.basic_qos(prefetch_count=2 * BATCH)
    taking.basic_consume(source, lambda _, method, properties, body: ready.put_nowait((method, properties, body)))
    done = 0
    while done < count:
        batch = [await ready.get()]
        flowing, cpu = flowing or time.perf_counter(), cpu or time.process_time()
        while len(batch) < BATCH and not ready.empty():
            batch.append(ready.get_nowait())
        enough = loop.create_future()
        wanted += len(batch)
        for _, properties, body in batch:
            properties.headers = dict(change(list(properties.headers.items())))
            sending.basic_publish("", target, body, properties, mandatory=True)
        await enough
        taking.basic_ack(batch[-1][0].delivery_tag, multiple=True)
        done += len(batch)
    end = time.perf_counter()
    took = Took(end - begun, end - flowing, time.process_time() - cpu)
    for connection in (reading, writing):
        await client._close(connection)
    return took
