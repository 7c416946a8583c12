#!/usr/bin/env python3
"""Redrive beside a loop over the raw client that does the same by hand, and how long a list of dead letters takes.

The raw loop consumes 500, publishes their copies and waits for every confirmation, settles, and goes on: what a script for one
night would do, without filters, counts or a guard against loops. Each measurement is a process of its own, in turns. After each
the destination is counted: a figure for what did not arrive would be a lie.
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

from loops import copying

from atleastonce import Queue, Source, connect, wire
from atleastonce.brokers import up
from atleastonce.contract import Outgoing, Topology
from atleastonce.engine.collector import tuned
from atleastonce.message import Headers, Message

BROKERS = ("kafka", "rabbitmq", "redis", "nats")
COMPARED = ("kafka", "rabbitmq")


def letter(number: int) -> Message:
    """As a service of ours leaves it behind, with a short traceback."""
    now = wire.millis(time.time())
    fields = {
        "content-type": "application/json",
        wire.ID: f"m{number:08d}",
        wire.GROUP: "billing",
        wire.ORIGIN: "orders.created/0/17",
        wire.ATTEMPT: "4",
        wire.FIRST_FAILED: now,
        wire.ERROR_AT: now,
        wire.ERROR_TYPE: f"Error{number % 5}",
        wire.ERROR_MESSAGE: "the payment gateway answered 503",
        wire.ERROR_STAGE: "handler",
        wire.FINGERPRINT: f"{number % 5:012x}",
        wire.SERVICE: "billing",
        wire.HOST: "node-7",
        wire.TRACEBACK: "Traceback (most recent call last): | " + 'File "app.py", line 12, in charge | ' * 12,
    }
    return Message(fields[wire.ID], b'{"order_id":%d,"customer_id":"c-1"}' % number, None, Headers(fields))


async def fill(url: str, name: str, count: int) -> None:
    home, dead = Queue[Any](name, partitions=4), Queue[Any](f"{name}.dlq", partitions=4)
    async with connect(url) as broker:
        await broker.declare(Topology(channels=(home,), sources=(Source(home),), dead_letters=(dead,)))
        for start in range(0, count, 5000):
            items = [Outgoing(dead, letter(n)) for n in range(start, min(count, start + 5000))]
            assert all(outcome.ok for outcome in await broker.adapter.send(items))


async def remove(url: str, name: str) -> None:
    home = Queue[Any](name)
    async with connect(url) as broker:
        delete: Any = broker.adapter
        await delete.delete(Topology(channels=(home,), dead_letters=(Source(home).dead_letter_channel,)))


async def arrived(url: str, name: str) -> int:
    async with connect(url) as broker:
        return (await broker.backlog(Queue[Any](name))).waiting or 0


# ------------------------------------------------------------------------------------------------- contenders


def brought_back(fields: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """The header of a copy: without what was the failure's, and counted."""
    gone = (wire.TRACEBACK, wire.FINGERPRINT, wire.HOST, wire.SERVICE)
    kept = [field for field in fields if not field[0].startswith("alo-error") and field[0] not in gone]
    return [*kept, (wire.REDRIVES, "1")]


async def ours(url: str, name: str, count: int) -> float:
    async with connect(url) as broker:
        begun = time.perf_counter()
        with tuned():  # as `atleastonce dlq redrive` does
            account = await broker.dead_letters(Queue[Any](name)).redrive()
        took = time.perf_counter() - begun
    assert account.redriven == count, account
    return took


async def listed(url: str, name: str, count: int) -> float:
    async with connect(url) as broker:
        begun = time.perf_counter()
        rows = await broker.dead_letters(Queue[Any](name)).groups()
        took = time.perf_counter() - begun
    assert sum(row.count for row in rows) == count, rows
    assert len(rows) == 5
    return took


# ------------------------------------------------------------------------------------------------------- runs


def measure(contender: str, url: str, name: str, count: int) -> float:
    """In this process."""
    if contender == "ours":
        return asyncio.run(ours(url, name, count))
    if contender == "list":
        return asyncio.run(listed(url, name, count))
    return copying.run(url, f"{name}.dlq", name, count, brought_back).whole


def child(contender: str, url: str, name: str, count: int) -> float:
    command = [sys.executable, __file__, "--measure", contender, url, name, str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise RuntimeError(done.stderr.strip())
    return float(done.stdout.strip().splitlines()[-1])


def compare(url: str, count: int, rounds: int) -> dict[str, Any]:
    taken: dict[str, list[float]] = {"raw": [], "ours": []}
    for _ in range(rounds):
        for contender, results in taken.items():
            name = f"bench-redrive-{uuid.uuid4().hex[:8]}"
            asyncio.run(fill(url, name, count))
            took = child(contender, url, name, count)
            found = asyncio.run(arrived(url, name))
            assert found == count, f"{contender}: {found} of {count} arrived"
            asyncio.run(remove(url, name))
            results.append(took)
    ratios = [raw / mine for raw, mine in zip(taken["raw"], taken["ours"], strict=True)]
    return {
        "messages": count,
        "rounds": rounds,
        "raw_per_second": round(count / statistics.median(taken["raw"])),
        "ours_per_second": round(count / statistics.median(taken["ours"])),
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
    }


def main() -> None:
    if sys.argv[1:2] == ["--measure"]:
        contender, url, name, count = sys.argv[2:]
        print(measure(contender, url, name, int(count)))
        return
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--broker", help=f"one or several of {','.join(BROKERS)} (default: all)")
    options.add_argument("--messages", type=int, default=40_000, help="redriven in each round")
    options.add_argument("--listed", type=int, default=100_000, help="dead letters that are listed")
    options.add_argument("--rounds", type=int, default=5)
    given = options.parse_args()
    names = given.broker.split(",") if given.broker else list(BROKERS)
    report: dict[str, Any] = {}
    for broker, running in up(names).items():
        report[broker] = {"version": running.version}
        if broker in COMPARED:
            report[broker]["redrive"] = compare(running.url, given.messages, given.rounds)
        name = f"bench-list-{uuid.uuid4().hex[:8]}"
        asyncio.run(fill(running.url, name, given.listed))
        times = [child("list", running.url, name, given.listed) for _ in range(3)]
        asyncio.run(remove(running.url, name))
        report[broker]["list"] = {"letters": given.listed, "seconds": [round(each, 2) for each in times]}
        print(json.dumps({broker: report[broker]}), flush=True)


if __name__ == "__main__":
    main()
