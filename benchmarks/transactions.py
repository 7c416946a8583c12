#!/usr/bin/env python3
"""Exactly-once hand-off beside a raw loop: consume a list, decode, produce a result for each, send the offsets, commit.

Both read the same topic of 100-byte JSON orders in six partitions, each with a group of its own, and write to one topic. The raw
loop takes lists as large as the library's transactions mostly are: half of ``max_in_flight``. The time runs from the first record
that comes to the last commit. Rounds alternate; the ratio is that of the medians.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
import uuid
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import msgspec
from confluent_kafka import Consumer, Producer, TopicPartition
from loops.common import Order, body

from atleastonce import Context, Queue, Service, Topic, connect
from atleastonce.adapters.kafka.transactions import Transactions
from atleastonce.brokers import up

PARTITIONS = 6
_LIMIT_SECONDS = 120.0


def raw(url: str, source: str, onward: str, count: int, size: int) -> dict[str, float]:
    """The fastest correct loop that one would write by hand."""
    servers = url.removeprefix("kafka://")
    run = uuid.uuid4().hex[:8]
    consumer = Consumer(
        {
            "bootstrap.servers": servers,
            "group.id": f"raw-{run}",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "partition.assignment.strategy": "cooperative-sticky",
        }
    )
    producer = Producer({"bootstrap.servers": servers, "transactional.id": f"raw-{run}", "linger.ms": 1})
    producer.init_transactions(30)
    consumer.subscribe([source])
    decode, encode = msgspec.json.Decoder(Order).decode, msgspec.json.encode
    done = transactions = 0
    begun = 0.0
    while done < count:
        records = consumer.consume(size, 0.2)
        if not records:
            continue
        begun = begun or time.perf_counter()
        producer.begin_transaction()
        positions: dict[int, int] = {}
        for record in records:
            order = decode(record.value() or b"")
            producer.produce(onward, encode(order), record.key(), headers=[("alo-id", f"r{order.order_id}")])
            positions[record.partition() or 0] = (record.offset() or 0) + 1
        producer.poll(0)
        offsets = [TopicPartition(source, number, offset) for number, offset in positions.items()]
        producer.send_offsets_to_transaction(offsets, consumer.consumer_group_metadata(), 30)
        producer.commit_transaction(30)
        done += len(records)
        transactions += 1
    took = time.perf_counter() - begun
    consumer.close()
    producer.close()
    return {"per_second": count / took, "per_transaction": count / transactions}


async def ours(url: str, source: str, onward: str, count: int, size: int, kind: str) -> dict[str, float]:
    service = Service(f"ours-{uuid.uuid4().hex[:8]}", broker=url)
    results = Queue[Order](onward, Order, partitions=PARTITIONS)
    begun = 0.0
    handled = transactions = 0
    commit = Transactions.commit
    finished = asyncio.Event()
    loop = asyncio.get_running_loop()

    def counted(self: Transactions, records: Any, *rest: Any) -> Any:
        nonlocal handled, transactions
        failed = commit(self, records, *rest)
        if not failed and records:
            handled += len(records)
            transactions += 1
            if handled >= count:
                loop.call_soon_threadsafe(finished.set)
        return failed

    def begin() -> None:
        nonlocal begun
        begun = begun or time.perf_counter()

    orders = Topic(source, Order, partitions=PARTITIONS)
    options: dict[str, Any] = {"transactions": True, "max_in_flight": 2 * size}
    if kind == "batch":

        @service.batch_consumer(orders, max_messages=size, max_wait="5ms", **options)
        async def handle_many(batch: list[Order], contexts: list[Context]) -> None:
            begin()
            for order, ctx in zip(batch, contexts, strict=True):
                ctx.publish(results, order, id=f"r{order.order_id}")

    else:

        @service.consumer(orders, **options)
        async def handle(order: Order, ctx: Context) -> None:
            begin()
            await ctx.publish(results, order, id=f"r{order.order_id}")

    Transactions.commit = counted  # type: ignore[method-assign]
    try:
        async with service, asyncio.timeout(_LIMIT_SECONDS):
            await finished.wait()
            took = time.perf_counter() - begun
    finally:
        Transactions.commit = commit  # type: ignore[method-assign]
    return {"per_second": count / took, "per_transaction": count / transactions}


async def prepare(url: str, source: str, onward: str, count: int) -> None:
    """The orders, and a topic for the results."""
    async with connect(url) as broker:
        topic = Topic(source, Order, partitions=PARTITIONS)
        await broker.declare(topic)
        for start in range(0, count, 5000):
            orders = [
                msgspec.json.decode(body(number), type=Order) for number in range(start, min(count, start + 5000))
            ]
            assert all(outcome.ok for outcome in await broker.publish_many(topic, orders))
        await broker.declare(Queue(onward, partitions=PARTITIONS))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--messages", type=int, default=50_000)
    options.add_argument("--size", type=int, default=500, help="records of one transaction")
    options.add_argument("--rounds", type=int, default=3)
    given = options.parse_args()
    running = up(["kafka"])["kafka"]
    source = f"bench-tx-{uuid.uuid4().hex[:8]}"
    onward = f"{source}.out"
    asyncio.run(prepare(running.url, source, onward, given.messages))
    results: dict[str, list[dict[str, float]]] = {"raw": [], "batch": [], "single": []}
    for _ in range(given.rounds):
        results["raw"].append(raw(running.url, source, onward, given.messages, given.size))
        for kind in ("batch", "single"):
            results[kind].append(asyncio.run(ours(running.url, source, onward, given.messages, given.size, kind)))
    medians = {
        kind: {name: round(statistics.median(each[name] for each in rounds)) for name in rounds[0]}
        for kind, rounds in results.items()
    }
    base = medians["raw"]["per_second"]
    report = {
        "version": running.version,
        "messages": given.messages,
        "size": given.size,
        **medians,
        "ratio": {kind: round(medians[kind]["per_second"] / base, 2) for kind in ("batch", "single")},
        "rounds": {kind: [round(each["per_second"]) for each in rounds] for kind, rounds in results.items()},
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
