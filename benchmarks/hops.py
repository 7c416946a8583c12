#!/usr/bin/env python3
"""What a failure costs: the hop to a retry channel, beside a loop over the raw client that consumes 500, publishes their copies
with the same header fields, waits for every confirmation, and settles.

Every message fails at once and waits for an hour. Ours is a service with its defaults and no tries in place, in a process of its
own as `Service.run` and `atleastonce run` make one, garbage collector included; its clock runs from the first message to the last
settlement, as the raw loop's does; "cpu" is the processor's time of the measured process. Each measurement is a process of its own,
in turns; after each the retry channel is counted. *Lists* is the same with a batch handler that gives back an error for each.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import msgspec
from loops import copying
from loops.common import Order, body

from atleastonce import FailurePolicy, Queue, RetryChain, Service, Source, connect, wire
from atleastonce.brokers import up

BROKERS = ("kafka", "rabbitmq")
WAIT = "1h"


class GatewayTimeout(Exception):
    """What every message fails with."""


def home(name: str) -> Queue[Order]:
    return Queue(name, Order, partitions=4)


def room(name: str) -> Queue[Any]:
    return Source(home(name)).retry_channel(3600.0)


def failing(name: str, url: str, begun: list[tuple[float, float]], *, lists: bool = False) -> Service:
    service = Service("bench", broker=url)
    policy = FailurePolicy(in_place=None, chain=RetryChain(WAIT))

    async def handle(_: Order) -> None:
        if not begun:
            begun.append((time.perf_counter(), time.process_time()))
        raise GatewayTimeout("the payment gateway answered 503")

    async def handle_list(orders: list[Order]) -> list[Exception]:
        if not begun:
            begun.append((time.perf_counter(), time.process_time()))
        return [GatewayTimeout("the payment gateway answered 503") for _ in orders]

    if lists:
        service.batch_consumer(home(name), max_messages=500, failure=policy)(handle_list)
    else:
        service.consumer(home(name), failure=policy)(handle)
    return service


async def ours(url: str, name: str, count: int, *, lists: bool = False) -> tuple[float, float]:
    begun: list[tuple[float, float]] = []
    service = failing(name, url, begun, lists=lists)

    def moved() -> bool:
        status = service.status()[0]
        return status.counts.get("retried", 0) >= count and not status.in_flight

    serving = asyncio.create_task(service.serve(tune_gc=True))
    while not serving.done() and not (begun and moved()):  # noqa: ASYNC110 - what is timed is not made to signal
        await asyncio.sleep(0.005)
    end, used = time.perf_counter(), time.process_time()
    service.request_stop()
    await serving
    ((wall, cpu),) = begun
    return end - wall, used - cpu


def waiting(fields: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """The header of a copy that waits, as ours has it."""
    now = str(int(time.time() * 1000))
    return [
        *fields,
        (wire.GROUP, "bench"),
        (wire.FIRST_FAILED, now),
        (wire.ERROR_TYPE, "GatewayTimeout"),
        (wire.ERROR_MESSAGE, "the payment gateway answered 503"),
        (wire.ERROR_AT, now),
        (wire.ORIGIN, "orders/0/17"),
        (wire.ATTEMPT, "2"),
        (wire.DUE, str(int(now) + 3_600_000)),
    ]


def measure(contender: str, url: str, name: str, count: int) -> tuple[float, float]:
    """Seconds, and seconds of the processor, in this process."""
    if contender != "raw":
        return asyncio.run(ours(url, name, count, lists=contender == "lists"))
    took = copying.run(url, name, room(name).name, count, waiting)
    return took.flowing, took.cpu


# -------------------------------------------------------------------------------------------------- the parent


async def fill(url: str, name: str, count: int) -> None:
    async with failing(name, url, []):
        pass
    orders = [msgspec.json.decode(body(number), type=Order) for number in range(count)]
    async with connect(url) as broker:
        for start in range(0, count, 5000):
            assert all(outcome.ok for outcome in await broker.publish_many(home(name), orders[start : start + 5000]))


async def count_and_remove(url: str, name: str) -> int:
    service = failing(name, url, [])
    async with connect(url) as broker:
        adapter: Any = broker.adapter
        found = (await broker.backlog(room(name))).waiting or 0
        for consumer in service.consumers:
            await adapter.delete(consumer.topology(adapter.capabilities))
    return found


def compare(url: str, count: int, rounds: int) -> dict[str, Any]:
    taken: dict[str, list[tuple[float, float]]] = {"raw": [], "ours": [], "lists": []}
    for _ in range(rounds):
        for contender, results in taken.items():
            name = f"bench-hops-{uuid.uuid4().hex[:8]}"
            asyncio.run(fill(url, name, count))
            command = [sys.executable, __file__, "--measure", contender, url, name, str(count)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=300)
            if done.returncode:
                raise RuntimeError(done.stderr.strip())
            found = asyncio.run(count_and_remove(url, name))
            assert found == count, f"{contender}: {found} of {count} wait"
            wall, cpu = json.loads(done.stdout.strip().splitlines()[-1])
            results.append((wall, cpu))
    report: dict[str, Any] = {"messages": count, "rounds": rounds}
    for place, clock in enumerate(("wall", "cpu")):
        raw = [each[place] for each in taken["raw"]]
        report[clock] = {"raw_us": round(statistics.median(raw) / count * 1e6, 1)}
        for contender in ("ours", "lists"):
            mine = [each[place] for each in taken[contender]]
            costs = [slow / fast for fast, slow in zip(raw, mine, strict=True)]
            report[clock][contender] = {
                "us": round(statistics.median(mine) / count * 1e6, 1),
                "cost": round(statistics.median(costs), 2),
                "costs": [round(cost, 2) for cost in costs],
            }
    return report


def main() -> None:
    if sys.argv[1:2] == ["--measure"]:
        contender, url, name, count = sys.argv[2:]
        print(json.dumps(measure(contender, url, name, int(count))))
        return
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--broker", help=f"one or several of {','.join(BROKERS)} (default: all)")
    options.add_argument("--messages", type=int, default=40_000)
    options.add_argument("--rounds", type=int, default=5)
    given = options.parse_args()
    names = given.broker.split(",") if given.broker else list(BROKERS)
    for broker, running in up(names).items():
        report = {"version": running.version, **compare(running.url, given.messages, given.rounds)}
        print(json.dumps({broker: report}), flush=True)


if __name__ == "__main__":
    main()
