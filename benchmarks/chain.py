#!/usr/bin/env python3
"""How punctual a retry chain is where the library itself holds what waits (Kafka): each message fails on its first three
attempts and is done on the fourth.

``burst`` publishes everything first, so that fresh messages and due ones compete for the same process. ``paced`` publishes at a
rate while it runs. Lateness is the time from the due time in the header, which is the wall clock's of this machine, to the
beginning of the handler; an attempt that begins before its due time is counted as early. The service is a process of its own, whose
resident memory the parent samples.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from loops.common import Order, body

from atleastonce import Context, FailurePolicy, RetryChain, Service, Topic, connect, wire
from atleastonce.brokers import up

DELAYS = ("1s", "2s", "4s")
_LIST = 5000
_SAMPLE_SECONDS = 0.1
_LIMIT_SECONDS = 900.0


def topic(name: str) -> Topic[Order]:
    return Topic(name, Order, partitions=4)


def chained(name: str, url: str, lateness: list[list[float]], done: Any) -> Service:
    """A service that notes how late each attempt begins."""
    service = Service("bench", broker=url)
    policy = FailurePolicy(in_place=None, chain=RetryChain(*DELAYS))

    @service.consumer(topic(name), failure=policy)
    async def handle(order: Order, ctx: Context) -> None:
        now = time.time()
        if ctx.attempt > 1:
            due = int(ctx.message.headers.get(wire.DUE) or 0) / 1000
            lateness[ctx.attempt - 2].append(now - due)
        if ctx.attempt <= len(DELAYS):
            raise RuntimeError("the payment gateway answered 503")
        done(order.order_id)

    return service


async def serve(url: str, name: str, count: int) -> dict[str, Any]:
    """In the child: run until every message is done."""
    lateness: list[list[float]] = [[] for _ in DELAYS]
    finished = asyncio.Event()
    left = set(range(count))
    repeated = 0

    def done(number: int) -> None:
        nonlocal repeated
        repeated += number not in left
        left.discard(number)
        if not left:
            finished.set()

    service = chained(name, url, lateness, done)
    serving = asyncio.create_task(service.serve(tune_gc=True))
    begun = time.perf_counter()
    async with asyncio.timeout(_LIMIT_SECONDS):
        await finished.wait()
    took = time.perf_counter() - begun
    service.request_stop()
    await serving
    every = sorted(value for hop in lateness for value in hop)
    return {
        "seconds": round(took, 1),
        "hops": len(every),
        "repeated": repeated,
        "early": sum(value < 0 for value in every),
        **spread(every),
        "by_hop": {delay: spread(sorted(hop)) for delay, hop in zip(DELAYS, lateness, strict=True)},
    }


def spread(values: list[float]) -> dict[str, float]:
    """Of sorted seconds, in milliseconds."""
    return {
        "p50_ms": round(values[len(values) // 2] * 1e3, 1),
        "p99_ms": round(values[int(len(values) * 0.99)] * 1e3, 1),
        "max_ms": round(values[-1] * 1e3, 1),
    }


# -------------------------------------------------------------------------------------------------- the parent


async def publish(url: str, name: str, count: int, rate: float | None) -> None:
    """All at once, or ``rate`` per second in small lists."""
    size = _LIST if rate is None else max(1, int(rate / 50))
    async with connect(url) as broker:
        begun = time.perf_counter()
        for start in range(0, count, size):
            if rate is not None:
                await asyncio.sleep(max(0.0, begun + start / rate - time.perf_counter()))
            orders = [numbered(number) for number in range(start, min(count, start + size))]
            assert all(outcome.ok for outcome in await broker.publish_many(topic(name), orders))


def numbered(number: int) -> Order:
    import msgspec

    return msgspec.json.decode(body(number), type=Order)


async def declare(url: str, name: str) -> None:
    async with chained(name, url, [], print):
        pass


async def remove(url: str, name: str) -> None:
    service = chained(name, url, [], print)
    async with connect(url) as broker:
        adapter: Any = broker.adapter
        for consumer in service.consumers:
            topology = consumer.topology(adapter.capabilities)
            await adapter.delete(topology)


def resident(pid: int) -> float:
    """MiB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def run(url: str, count: int, rate: float | None) -> dict[str, Any]:
    name = f"bench-chain-{uuid.uuid4().hex[:8]}"
    asyncio.run(declare(url, name))
    if rate is None:
        asyncio.run(publish(url, name, count, None))
    command = [sys.executable, __file__, "--serve", url, name, str(count)]
    samples: list[float] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        feeding = None
        if rate is not None:
            feed = [sys.executable, __file__, "--feed", url, name, str(count), str(rate)]
            feeding = subprocess.Popen(feed)
        while child.poll() is None:
            with contextlib.suppress(OSError):
                samples.append(resident(child.pid))
            time.sleep(_SAMPLE_SECONDS)
        assert child.stdout is not None
        text = child.stdout.read()
    if feeding is not None and feeding.wait():
        raise RuntimeError("the publisher failed")
    if child.returncode:
        raise RuntimeError(f"the service ended with {child.returncode}")
    asyncio.run(remove(url, name))
    third = len(samples) // 3
    return {
        "messages": count,
        "published_per_second": rate or "all first",
        **json.loads(text.strip().splitlines()[-1]),
        "rss_mib": {
            "first_third": round(statistics.median(samples[:third]), 1),
            "last_third": round(statistics.median(samples[-third:]), 1),
            "most": round(max(samples), 1),
        },
    }


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        print(json.dumps(asyncio.run(serve(sys.argv[2], sys.argv[3], int(sys.argv[4])))))
        return
    if sys.argv[1:2] == ["--feed"]:
        asyncio.run(publish(sys.argv[2], sys.argv[3], int(sys.argv[4]), float(sys.argv[5])))
        return
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--messages", type=int, default=100_000)
    options.add_argument("--rates", default="burst,1000", help="burst, or messages per second; several with commas")
    given = options.parse_args()
    running = up(["kafka"])["kafka"]
    for each in given.rates.split(","):
        rate = None if each == "burst" else float(each)
        print(json.dumps({"version": running.version, **run(running.url, given.messages, rate)}, indent=1), flush=True)


if __name__ == "__main__":
    main()
