"""confluent-kafka by hand: the fastest loop that loses nothing, and the tutorial's."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

import msgspec
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from loops.common import ID_HEADER, Job, Meter, Order, Result, body, headers, stamped

PARTITIONS = 4
_BATCH = 500
_LINGER = 1  # ms, for few callers: they would mostly wait for the default of 5, which is best for long lists
_COMMIT_EVERY = 0.5  # seconds; what is handled and not committed is handled again after a crash


def create(address: str, topic: str) -> None:
    """Make the topic and wait until it has leaders."""
    admin = AdminClient({"bootstrap.servers": address})
    for future in admin.create_topics([NewTopic(topic, PARTITIONS, 1)]).values():
        try:
            future.result(30)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        found = admin.list_topics(topic, timeout=10).topics[topic]
        if len(found.partitions) == PARTITIONS and all(p.leader >= 0 for p in found.partitions.values()):
            return
        time.sleep(0.1)
    raise TimeoutError(f"{topic} got no leaders within 30 s")


def delete(address: str, topic: str) -> None:
    admin = AdminClient({"bootstrap.servers": address})  # a name, for the futures die with it
    for future in admin.delete_topics([topic]).values():
        future.result(30)


def producer(address: str, linger: float = 5) -> Producer:
    return Producer(
        {
            "bootstrap.servers": address,
            "enable.idempotence": True,
            "acks": "all",
            "linger.ms": linger,
            "queue.buffering.max.messages": 500_000,
        }
    )


def load(address: str, topic: str, messages: int) -> None:
    """Fill a topic evenly."""
    create(address, topic)
    out = producer(address)
    for n in range(messages):
        out.produce(topic, body(n), partition=n % PARTITIONS, headers=headers(n))  # type: ignore[arg-type]
        if n % 1000 == 0:
            out.poll(0)
    if out.flush(60):
        raise TimeoutError(f"loading {topic}: not all was confirmed within 60 s")


def settled(address: str, topic: str, group: str) -> int:
    """How many messages of the topic the group has committed."""
    consumer = Consumer({"bootstrap.servers": address, "group.id": group})
    try:
        found = consumer.committed([TopicPartition(topic, n) for n in range(PARTITIONS)], timeout=10)
        return sum(max(0, partition.offset) for partition in found)
    finally:
        consumer.close()


def _consumer(job: Job) -> Consumer:
    consumer = Consumer(
        {
            "bootstrap.servers": job.address,
            "group.id": job.group,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            # By default the fetcher sleeps a second whenever its queue is full, and a fast reader waits for it.
            "fetch.queue.backoff.ms": 5,
        }
    )
    consumer.subscribe([job.channel])
    return consumer


def raw(job: Job) -> Result:
    """Lists of 500, offsets stored as handled, committed asynchronously every half second and synchronously at the end."""
    if job.scenario.startswith("publish"):
        return _publish(job, 10_000 if job.scenario == "publish_many" else job.concurrency)
    consumer, meter = _consumer(job), Meter(job)
    decode = msgspec.json.Decoder(Order).decode
    handled = meter.handled
    ends: dict[int, int] = {}
    committed = time.monotonic()

    def offsets() -> list[TopicPartition]:
        return [TopicPartition(job.channel, partition, offset) for partition, offset in ends.items()]

    while not meter.done:
        first = consumer.poll(0.05)
        if first is None:
            continue
        batch = [first, *consumer.consume(_BATCH - 1, 0)]
        if job.scenario == "batch":
            orders = []
            for message in batch:
                _check(message)
                _ = dict(message.headers())[ID_HEADER]
                orders.append(decode(message.value()))
            for order in orders:
                handled(order)
        else:
            for message in batch:
                _check(message)
                _ = dict(message.headers())[ID_HEADER]
                handled(decode(message.value()))
        for message in batch:
            ends[message.partition()] = message.offset() + 1
        if (now := time.monotonic()) - committed > _COMMIT_EVERY:
            committed = now
            consumer.commit(offsets=offsets(), asynchronous=True)
    consumer.commit(offsets=offsets(), asynchronous=False)
    result = meter.result()
    consumer.close()
    return result


def naive(job: Job) -> Result:
    """The tutorial's: poll one, json.loads, commit it synchronously."""
    if job.scenario.startswith("publish"):
        return _publish_naive(job)
    consumer, meter = _consumer(job), Meter(job)
    while not meter.done:
        message = consumer.poll(1.0)
        if message is None:
            continue
        _check(message)
        _ = dict(message.headers())[ID_HEADER]
        order = json.loads(message.value())
        meter.handled(Order(**order) if job.scenario == "latency" else order)
        consumer.commit(message=message, asynchronous=False)
    result = meter.result()
    consumer.close()
    return result


def _check(message: Any) -> None:
    if (error := message.error()) is not None:
        raise KafkaException(error)


def _publish(job: Job, window: int) -> Result:
    """At most ``window`` unconfirmed, one callback for each message."""
    linger = 5 if window > 1000 else _LINGER
    out, meter = producer(job.address, linger), Meter(job)
    out.list_topics(job.channel, timeout=10)
    encode = msgspec.json.encode
    orders = [msgspec.json.decode(body(n), type=Order) for n in range(job.messages)]
    pending = 0

    def delivered(error: Any, _: Any) -> None:
        nonlocal pending
        if error is not None:
            raise KafkaException(error)
        pending -= 1

    meter.begin()
    for number, order in enumerate(orders):
        fields = [("content-type", "application/json"), (ID_HEADER, uuid.uuid4().hex), ("tenant", "blue")]
        out.produce(job.channel, encode(order), headers=fields, on_delivery=delivered)  # type: ignore[arg-type]
        pending += 1
        if number % 64 == 0:
            out.poll(0)
        while pending >= window:
            out.poll(0.05)
    while pending:
        out.poll(0.05)
    return meter.result()


def _publish_naive(job: Job) -> Result:
    out, meter = producer(job.address), Meter(job)
    out.list_topics(job.channel, timeout=10)
    orders = [json.loads(body(n)) for n in range(job.messages)]
    meter.begin()
    for n, order in enumerate(orders):
        out.produce(job.channel, json.dumps(order).encode(), headers=headers(n))  # type: ignore[arg-type]
        out.flush()
    return meter.result()


def feed(job: Job) -> None:
    """Publish at ``job.rate`` per second, each with its time in ``order_id``."""
    out = Producer({"bootstrap.servers": job.address, "enable.idempotence": True, "acks": "all", "linger.ms": 0})
    out.list_topics(job.channel, timeout=10)
    begin = time.perf_counter()
    for n in range(job.messages):
        out.poll(max(0.0, begin + n / job.rate - time.perf_counter()))
        time.sleep(max(0.0, begin + n / job.rate - time.perf_counter()))
        out.produce(job.channel, stamped(n), partition=n % PARTITIONS, headers=headers(n))  # type: ignore[arg-type]
    out.flush(10)
