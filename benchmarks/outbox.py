"""A relay beside a publisher that has no outbox, in one run: the client by hand, `Broker.send`, and the relay out of a database,
beside a relay written by hand.

    python benchmarks/outbox.py [--brokers kafka rabbitmq] [--stores sqlite postgres] [--messages 20000] [--turns 3] [--save]

*Raw* is a batched publish by hand: lists of the relay's size, each confirmed before the next. *Raw, streamed* does not wait for
lists: ten thousand are under way on Kafka and two thousand on RabbitMQ, which is the fastest loop that loses nothing. All send
the same bodies, header fields and keys to the same channel, and their connections have published before. The relay's time goes
from its start to the removal of the last row; the rows were committed before, and Python's garbage collector is tuned as it is
in a service and by the command. A relay by hand (``benchmarks/loops/relaying.py``)
reads with ``FOR UPDATE SKIP LOCKED``, publishes, waits for the confirmations, deletes and commits, in lists of the same size: what
of the distance to raw is the database's. Brokers and PostgreSQL come from `atleastonce.brokers`, private to the run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import loops.relaying
from loops.common import body

from atleastonce import Outbox, Queue, RelayOptions, connect
from atleastonce.brokers import session
from atleastonce.compose import compose_row
from atleastonce.engine import collector
from atleastonce.patterns.outbox import Relay
from atleastonce.stores import OutboxStore, open_store

RESULT = Path(__file__).with_name("results") / "outbox.json"
BROKERS = ("kafka", "rabbitmq")
Took = tuple[float, float]
"""Seconds, and seconds of this process on processors: what a busy machine hardly changes."""


def address_of(broker: str, url: str) -> str:
    """For other clients than ours."""
    return url.removeprefix("kafka://") if broker == "kafka" else url.replace("rabbitmq://", "amqp://")


async def send(url: str, channel: Queue[Any], count: int, size: int) -> Took:
    async with connect(url) as broker:
        items = [compose_row(channel, body(n), headers={"tenant": "blue"}, key=f"{n}") for n in range(count)]
        await broker.declare(channel)
        await broker.send(items[:1])
        begin, cpu = time.perf_counter(), time.process_time()
        for start in range(0, count, size):
            outcomes = await broker.send(items[start : start + size])
            if not all(each.ok for each in outcomes):
                raise SystemExit("a publish was not confirmed: the figures would mean nothing")
        return time.perf_counter() - begin, time.process_time() - cpu


async def relay(url: str, store_url: str, channel: Queue[Any], count: int, size: int) -> Took:
    store = open_store(store_url, {"prefix": f"b{uuid.uuid4().hex[:10]}", "create": True})
    if not isinstance(store, OutboxStore):
        raise SystemExit(f"{store!r} has no outbox")
    async with Outbox(store) as outbox, connect(url) as broker:
        await broker.declare(channel)
        await broker.publish(channel, body(0))
        for start in range(0, count, 1000):
            async with outbox.transaction() as tx:
                await outbox.publish_many(
                    tx, channel, [body(n) for n in range(start, min(start + 1000, count))],
                    key=lambda _: uuid.uuid4().hex, headers={"tenant": "blue"},
                )  # fmt: skip
        running = Relay(store, broker.send, options=RelayOptions(batch=size))
        with collector.tuned():  # as a service and `atleastonce outbox relay` do
            begin, cpu = time.perf_counter(), time.process_time()
            running.start()
            while running.counts["published"] < count:  # noqa: ASYNC110 - the relay tells nobody when it is empty
                await asyncio.sleep(0.002)
            took = time.perf_counter() - begin, time.process_time() - cpu
        await running.stop(5)
        return took


def measure(broker: str, url: str, stores: dict[str, str], count: int, turns: int, size: int) -> dict[str, Any]:
    """Alternating turns; the medians."""
    rates, costs = defaultdict[str, list[float]](list), defaultdict[str, list[float]](list)
    address = address_of(broker, url)

    def note(name: str, run: Coroutine[Any, Any, Took]) -> None:
        took, cpu = asyncio.run(run)
        rates[name].append(count / took)
        costs[name].append(1e6 * cpu / count)

    for _ in range(turns):
        channel: Queue[Any] = Queue(f"bench.{uuid.uuid4().hex[:8]}", partitions=4)

        async def make(channel: Queue[Any] = channel) -> None:
            async with connect(url) as made:
                await made.declare(channel)

        asyncio.run(make())
        # What is sent to a new channel first waits for the broker, which makes its files then: Kafka up to 0.1 s, which were raw's.
        asyncio.run(loops.relaying.raw(broker, address, channel.name, 4 * size, size))
        note("raw", loops.relaying.raw(broker, address, channel.name, count, size))
        note("raw, streamed", loops.relaying.raw(broker, address, channel.name, count, None))
        note("send", send(url, channel, count, size))
        for name, store_url in stores.items():
            by_hand = loops.relaying.relay(broker, address, channel.name, name, store_url, count, size)
            note(f"{name} by hand", by_hand)
            note(name, relay(url, store_url, channel, count, size))
    found = {name: round(statistics.median(each)) for name, each in rates.items()}
    return {"broker": broker, "messages": count, "turns": turns, "per_s": found,
            "cpu_us": {name: round(statistics.median(each), 1) for name, each in costs.items()},
            "of_raw": {name: round(found[name] / found["raw"], 2) for name in found if name != "raw"},
            "of_streamed": {name: round(found[name] / found["raw, streamed"], 2) for name in (*stores, "send")},
            "of_by_hand": {name: round(found[name] / found[f"{name} by hand"], 2) for name in stores}}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--brokers", nargs="+", default=["rabbitmq", "kafka"], choices=BROKERS)
    parser.add_argument("--stores", nargs="+", default=["sqlite", "postgres"])
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--save", action="store_true", help=f"Write {RESULT.name}, from which the docs are made.")
    parser.add_argument("--batch", type=int, default=RelayOptions().batch, help="Of the relay.")
    chosen = parser.parse_args()
    names = [*chosen.brokers, *(["postgres"] if "postgres" in chosen.stores else [])]
    with session(names) as running, tempfile.TemporaryDirectory() as folder:
        stores = {
            name: running[name].url if name == "postgres" else f"sqlite:///{folder}/shop.db" for name in chosen.stores
        }
        found = []
        for broker in chosen.brokers:
            row = measure(broker, running[broker].url, stores, chosen.messages, chosen.turns, chosen.batch)
            found.append(row)
            print(json.dumps(row), flush=True)
    if chosen.save:
        RESULT.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
