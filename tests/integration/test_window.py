"""On every backend: what is in flight is never beyond the window, looked at again and again while all kinds of things happen."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from once_kit import counts, settled, until

from atleastonce import FailurePolicy, Queue, RetryChain, Service, Source, connect
from atleastonce.engine import quarantine

MakeQueue = Callable[[str], Queue[Any]]

MESSAGES, BYTES = 12, 160_000
# The large ones late and rare; the last is larger than the window, and its retry with it.
LARGE = {90: 60_000, 130: 120_000, 131: 150_000, 170: 90_000, 200: 155_000, 201: 100_000, 230: 180_000}
COUNT = 260


class Load(msgspec.Struct):
    n: int
    filling: str = ""


class Looks:
    """What was in flight, and what of it was beyond the window."""

    def __init__(self) -> None:
        self.service: Service
        self.taken = 0
        self.most = (0, 0)
        self.beyond: list[tuple[int, int]] = []

    def look(self) -> None:
        readers = self.service.status()
        messages, size = sum(each.in_flight for each in readers), sum(each.bytes for each in readers)
        self.taken += 1
        self.most = (max(self.most[0], messages), max(self.most[1], size))
        if messages > MESSAGES or (size > BYTES and messages != 1):
            self.beyond.append((messages, size))

    async def run(self) -> None:
        while True:
            self.look()
            await asyncio.sleep(0.001)  # how often is looked, besides by each handler


async def test_bytes_and_messages_in_flight_are_never_beyond_the_window(
    backend_url: str, queue: MakeQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    await never_beyond(backend_url, queue, monkeypatch)


async def test_nor_where_a_share_group_reads(kafka_url: str, queue: MakeQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    await never_beyond(f"{kafka_url}?share.groups=true&share.lock=15s", queue, monkeypatch)


async def never_beyond(url: str, queue: MakeQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("_IDLE_SECONDS", 0.3), ("_BUSY_SECONDS", 0.1), ("_BLIND_SECONDS", 1.0)):
        monkeypatch.setattr(quarantine, name, seconds)
    jobs, looks = queue("jobs"), Looks()
    looks.service = service = Service("worker", broker=url)
    done: Counter[int] = Counter()
    failed: set[int] = set()

    @service.consumer(
        jobs,
        failure=FailurePolicy(in_place=None, chain=RetryChain("300ms")),
        concurrency=6,
        max_in_flight=MESSAGES,
        max_in_flight_bytes=BYTES,
    )
    async def handle(job: Load) -> None:
        looks.look()
        await asyncio.sleep(0.002 * (job.n % 4))
        looks.look()
        if (job.n % 9 == 0 or job.n in LARGE) and job.n not in failed:
            failed.add(job.n)
            raise ConnectionError("the first time")
        done[job.n] += 1

    suspects = Queue[Any](Source(jobs).suspects_channel.name)
    wanted = {*range(COUNT), 1000, 1001, 1002}
    async with connect(url) as broker, service:
        looking = asyncio.create_task(looks.run())
        try:
            await broker.publish_many(jobs, [Load(n, "x" * LARGE.get(n, n % 7 * 20)) for n in range(100)])
            await broker.publish(suspects, Load(1000, "x" * 100))
            await until(lambda: len(done) > 50, service)
            await broker.publish_many(jobs, [Load(n, "x" * LARGE.get(n, n % 7 * 20)) for n in range(100, COUNT)])
            await broker.publish(suspects, Load(1001, "x" * 140_000))
            await broker.publish(suspects, Load(1002, "x" * 100))
            await until(lambda: set(done) >= wanted and settled(service), service, within=60.0)
        finally:
            looking.cancel()
        assert looks.beyond == []
        assert looks.taken > 2 * COUNT
        assert looks.most[0] >= MESSAGES // 2, "the window was used"
        assert looks.most[1] >= BYTES // 2
        assert counts(service)["retried"] >= len(LARGE)
