#!/usr/bin/env python3
"""How long an event loop is held up while a consumer works as fast as it can: what everything else on that loop has to wait.

    python benchmarks/loop_lag.py [--brokers kafka rabbitmq nats redis sqlite] [--messages 50000] [--json]

A timer rings every 5 ms, and how late it rings is the lag. The queue is full from the beginning to the end; handlers work for
nothing (``each``), order keys (``ordered``), take lists (``batch``) or wait for another turn of the loop (``turn``). Each
measurement is a process of its own. *Idle* is the same timer on a loop with nothing to do: what the machine does by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from loops.common import Order, body

from atleastonce import Queue, Service, connect
from atleastonce.brokers import up

BROKERS = ("kafka", "rabbitmq", "nats", "redis", "sqlite", "sqs", "pubsub")
MODES = ("each", "turn", "ordered", "batch")
TICK = 0.005
_LIST = 5000
_IDLE_SECONDS = 3.0


async def lateness(until: asyncio.Event) -> list[float]:
    """Milliseconds by which each tick came too late."""
    found, loop = [], asyncio.get_running_loop()
    while not until.is_set():
        due = loop.time() + TICK
        await asyncio.sleep(TICK)
        found.append(1000 * max(0.0, loop.time() - due))
    return found


def _told(found: list[float], seconds: float, messages: int) -> dict[str, Any]:
    found.sort()

    def at(part: float) -> float:
        return round(found[math.ceil(part * len(found)) - 1], 2)

    return {
        "per_s": round(messages / seconds),
        "p50_ms": at(0.5),
        "p99_ms": at(0.99),
        "max_ms": at(1),
        "ticks": len(found),
    }


async def idle() -> dict[str, Any]:
    """The machine's own."""
    over = asyncio.Event()
    asyncio.get_running_loop().call_later(_IDLE_SECONDS, over.set)
    return _told(await lateness(over), _IDLE_SECONDS, 0)


async def measure(url: str, mode: str, messages: int) -> dict[str, Any]:
    """One full queue, read by one service."""
    queue = Queue(
        f"lag.{uuid.uuid4().hex[:8]}", Order, fifo=mode == "ordered", single_active=mode == "ordered", partitions=16
    )
    service, seen, began, over = Service("lag", broker=url), 0, asyncio.Event(), asyncio.Event()

    def count(more: int) -> None:
        nonlocal seen
        began.set()
        seen += more
        if seen >= messages:
            over.set()

    if mode == "batch":

        @service.batch_consumer(queue, max_messages=500)
        async def many(orders: list[Order]) -> None:
            count(len(orders))

    elif mode == "ordered":

        @service.consumer(queue, ordered=True)
        async def ordered(order: Order) -> None:  # noqa: ARG001 - a payload that nobody looks at
            count(1)

    else:

        @service.consumer(queue)
        async def one(order: Order) -> None:  # noqa: ARG001 - a payload that nobody looks at
            if mode == "turn":
                await asyncio.sleep(0)
            count(1)

    async with connect(url) as broker:
        async with service:
            pass  # declares
        for first in range(0, messages, _LIST):
            numbers = range(first, min(first + _LIST, messages))
            payloads = [json.loads(body(number)) for number in numbers]
            await broker.publish_many(queue, payloads, key=lambda each: each["customer"])
    async with service:
        await began.wait()
        begin = time.perf_counter()
        found = await lateness(over)
        return _told(found, time.perf_counter() - begin, messages)


def run(given: argparse.Namespace, folder: str) -> None:
    """Measure and print, one child after the other."""
    rows = []
    urls = {name: running.url for name, running in up([each for each in given.brokers if each != "sqlite"]).items()}
    for broker, mode in [("", "idle"), *((broker, mode) for broker in given.brokers for mode in given.modes)]:
        if broker == "sqlite":  # a file for each, so that none is longer than another's
            urls[broker] = f"sqlite:///{tempfile.mkdtemp(dir=folder)}/queue.db"
        words = [sys.executable, __file__, "--child", urls.get(broker, ""), mode, "--messages", str(given.messages)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{broker} {mode}: {done.stderr[-2000:]}")
        rows.append({"broker": broker or "-", "mode": mode, **json.loads(done.stdout)})
        if not given.as_json:
            print("  ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    if given.as_json:
        print(json.dumps(rows, indent=2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--brokers", nargs="+", choices=BROKERS, default=BROKERS[:5])
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--messages", type=int, default=50_000)
    parser.add_argument("--json", action="store_true", dest="as_json")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        url, mode = given.child
        print(json.dumps(asyncio.run(idle() if mode == "idle" else measure(url, mode, given.messages))))
        return
    with tempfile.TemporaryDirectory(prefix="loop-lag-") as folder:
        run(given, folder)


if __name__ == "__main__":
    main()
