"""Three servers that replicate: what two of them have confirmed survives ``kill -9`` of one, whichever leads."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from kafka_kit import eventually
from kafka_servers import cluster

from atleastonce import Service, Topic, connect
from atleastonce.brokers import Unavailable
from atleastonce.testing.brokers import required

pytestmark = pytest.mark.timeout(240)

ORDERS = Topic[dict[str, int]]("orders", partitions=3)
PATIENT = 60.0


async def test_one_of_three_is_killed_and_nothing_confirmed_is_lost(tmp_path: Path) -> None:
    try:
        async with cluster(tmp_path) as servers:
            await under_traffic([server.address for server in servers], servers[0].kill)
    except Unavailable as missing:
        pytest.fail(str(missing)) if required(["kafka"]) else pytest.skip(str(missing))


async def under_traffic(addresses: list[str], kill: Callable[[], None]) -> None:
    url = f"kafka://{','.join(addresses)}"
    handled: Counter[int] = Counter()
    confirmed: set[int] = set()
    stop = asyncio.Event()
    service = Service("billing", broker=url)

    @service.consumer(ORDERS)
    async def note(order: dict[str, int]) -> None:
        handled[order["n"]] += 1

    async def publish() -> None:
        number = 0
        while not stop.is_set():
            orders = [{"n": number + n} for n in range(20)]
            number += len(orders)
            outcomes = await broker.publish_many(ORDERS, orders)
            confirmed.update(order["n"] for order, outcome in zip(orders, outcomes, strict=True) if outcome.ok)
            await asyncio.sleep(0.01)  # a producer's own pace

    async with service, connect(url) as broker:
        publishing = asyncio.create_task(publish())
        try:
            await eventually(lambda: len(handled) > 100, "messages flow", PATIENT)
            await asyncio.to_thread(kill)
            before, seen = len(confirmed), len(handled)
            await eventually(lambda: len(confirmed) > before + 200, "messages are confirmed again", PATIENT)
            await eventually(lambda: len(handled) > seen + 200, "messages are handled again", PATIENT)
        finally:
            stop.set()
            await publishing
        await eventually(lambda: confirmed <= handled.keys(), "all that was confirmed is handled", PATIENT)
