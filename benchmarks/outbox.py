"""A relay beside a publisher that has no outbox, in one run: the client by hand, `Broker.send`, and the relay out of a database,
beside a relay written by hand.

    python benchmarks/outbox.py [--brokers kafka rabbitmq] [--stores sqlite postgres] [--messages 20000] [--turns 3] [--save]

*Raw* is the client's fastest loop that loses nothing (``benchmarks/loops``): many publishes under way, each confirmed. All
send the same bodies with three headers to the same channel. The relay's time goes from its start to the removal of the last
row; the rows were committed before. A relay by hand (``benchmarks/loops/relaying.py``) reads with ``FOR UPDATE SKIP LOCKED``,
publishes, waits for the confirmations, deletes and commits, in lists of the same size: what of the distance to raw is the
database's. Brokers and PostgreSQL come from `atleastonce.brokers`, private to the run.
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
from pathlib import Path
from typing import Any

import loops.kafka
import loops.rabbitmq
import loops.relaying
from loops.common import Job, body

from atleastonce import Outbox, Queue, RelayOptions, connect
from atleastonce.brokers import session
from atleastonce.compose import compose_row
from atleastonce.patterns.outbox import Relay
from atleastonce.stores import OutboxStore, open_store

RESULT = Path(__file__).with_name("results") / "outbox.json"
RAW = {"kafka": loops.kafka.raw, "rabbitmq": loops.rabbitmq.raw}


def address_of(broker: str, url: str) -> str:
    """For other clients than ours."""
    return url.removeprefix("kafka://") if broker == "kafka" else url.replace("rabbitmq://", "amqp://")


async def send(url: str, channel: Queue[Any], count: int) -> float:
    async with connect(url) as broker:
        items = [compose_row(channel, body(n), headers={"tenant": "blue"}, key=f"{n}") for n in range(count)]
        await broker.declare(channel)
        begin = time.perf_counter()
        for start in range(0, count, 500):
            outcomes = await broker.send(items[start : start + 500])
            if not all(each.ok for each in outcomes):
                raise SystemExit("a publish was not confirmed: the figures would mean nothing")
        return time.perf_counter() - begin


async def relay(url: str, store_url: str, channel: Queue[Any], count: int, size: int) -> float:
    store = open_store(store_url, {"prefix": f"b{uuid.uuid4().hex[:10]}", "create": True})
    if not isinstance(store, OutboxStore):
        raise SystemExit(f"{store!r} has no outbox")
    async with Outbox(store) as outbox, connect(url) as broker:
        await broker.declare(channel)
        for start in range(0, count, 1000):
            async with outbox.transaction() as tx:
                await outbox.publish_many(
                    tx, channel, [body(n) for n in range(start, min(start + 1000, count))],
                    key=lambda _: uuid.uuid4().hex, headers={"tenant": "blue"},
                )  # fmt: skip
        running = Relay(store, broker.send, options=RelayOptions(batch=size))
        begin = time.perf_counter()
        running.start()
        while running.counts["published"] < count:  # noqa: ASYNC110 - the relay tells nobody when it is empty
            await asyncio.sleep(0.002)
        took = time.perf_counter() - begin
        await running.stop(5)
        return took


def measure(broker: str, url: str, stores: dict[str, str], count: int, turns: int, size: int) -> dict[str, Any]:
    """Alternating turns; the medians."""
    rates: dict[str, list[float]] = defaultdict(list)
    for _ in range(turns):
        channel: Queue[Any] = Queue(f"bench.{uuid.uuid4().hex[:8]}", partitions=4)

        async def make(channel: Queue[Any] = channel) -> None:
            async with connect(url) as made:
                await made.declare(channel)

        asyncio.run(make())
        job = Job(
            scenario="publish_many", contender="raw", broker=broker, url=url, address=address_of(broker, url),
            channel=channel.name, messages=count,
        )  # fmt: skip
        rates["raw"].append(count / RAW[broker](job).seconds)
        rates["send"].append(count / asyncio.run(send(url, channel, count)))
        for name, store_url in stores.items():
            by_hand = loops.relaying.relay(broker, job.address, channel.name, name, store_url, count)
            rates[f"{name} by hand"].append(count / asyncio.run(by_hand))
            rates[name].append(count / asyncio.run(relay(url, store_url, channel, count, size)))
    found = {name: round(statistics.median(each)) for name, each in rates.items()}
    return {"broker": broker, "messages": count, "turns": turns, "per_s": found,
            "of_raw": {name: round(found[name] / found["raw"], 2) for name in found if name != "raw"},
            "of_by_hand": {name: round(found[name] / found[f"{name} by hand"], 2) for name in stores}}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--brokers", nargs="+", default=["rabbitmq", "kafka"], choices=sorted(RAW))
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
