#!/usr/bin/env python3
"""How long after a resume the first message is with its handler.

    python benchmarks/resume.py [--brokers kafka rabbitmq ...] [--rounds 30] [--json]

A service is paused; what was in flight ends; messages are published, which wait with the broker for ``REST`` seconds; the
service is resumed. The clock runs from the call of `Service.resume` to the first line of the handler.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
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

BROKERS = ("kafka", "rabbitmq", "nats", "redis", "sqs", "pubsub", "sqlite")
MESSAGES = 20
REST = 1.0
"""Long enough for every reader to have let go of its last poll."""


async def measure(url: str, rounds: int) -> dict[str, Any]:
    """Milliseconds to the first message, of many resumes of one service."""
    queue = Queue(f"resume.{uuid.uuid4().hex[:8]}", Order)
    service, began, found = Service("resume", broker=url), list[float](), list[float]()
    over = asyncio.Event()

    @service.consumer(queue)
    async def one(order: Order) -> None:  # noqa: ARG001 - a payload that nobody looks at
        began.append(time.perf_counter())
        if len(began) == MESSAGES:
            over.set()

    payloads = [json.loads(body(number)) for number in range(MESSAGES)]
    async with connect(url) as broker, service:
        for _ in range(rounds + 1):  # the first one warms up
            await service.pause(queue)
            await asyncio.sleep(REST)
            began.clear()
            over.clear()
            outcomes = await broker.publish_many(queue, payloads)
            assert all(outcome.ok for outcome in outcomes)
            await asyncio.sleep(REST)
            assert not began, "paused, and still handled"
            called = time.perf_counter()
            await service.resume(queue)
            async with asyncio.timeout(60):
                await over.wait()
            found.append(1000 * (began[0] - called))
    found = sorted(found[1:])
    return {"p50_ms": round(statistics.median(found), 1), "max_ms": round(found[-1], 1), "rounds": len(found)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--brokers", nargs="+", choices=BROKERS, default=BROKERS)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", action="store_true", dest="as_json")
    given = parser.parse_args()
    urls = {name: running.url for name, running in up([each for each in given.brokers if each != "sqlite"]).items()}
    with tempfile.TemporaryDirectory(prefix="resume-") as folder:
        urls["sqlite"] = f"sqlite:///{folder}/queue.db"
        rows = []
        for broker in given.brokers:
            rows.append({"broker": broker, **asyncio.run(measure(urls[broker], given.rounds))})
            if not given.as_json:
                print("  ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    if given.as_json:
        print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
