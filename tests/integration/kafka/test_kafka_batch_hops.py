"""Lists whose members fail alike: the copies of each run of them are written and moved as one."""

from __future__ import annotations

import asyncio
import time
import uuid

import msgspec

from atleastonce import FailurePolicy, Queue, RetryChain, Service, Source, connect


class Step(msgspec.Struct):
    n: int


class Refused(Exception):
    pass


async def test_each_member_that_failed_waits_once_and_the_others_are_done(kafka_url: str) -> None:
    steps = Queue(f"steps.{uuid.uuid4().hex[:8]}", Step, partitions=2)
    service = Service("steps", broker=kafka_url)
    done: list[int] = []
    again: list[int] = []

    @service.batch_consumer(
        steps, max_messages=100, failure=FailurePolicy(in_place=None, chain=RetryChain("1s", "10m"))
    )
    async def handle(batch: list[Step]) -> list[Exception | None]:
        found: list[Exception | None] = []
        for step in batch:
            # Runs of different lengths, two classes of errors and two texts among them.
            kind, text = (Refused, "first") if step.n % 7 < 4 else (ValueError, "second")
            failed = step.n % 11 != 0
            found.append(kind(text) if failed else None)
            (again if failed else done).append(step.n)
        return found

    async with service, connect(kafka_url) as broker:
        await broker.publish_many(steps, [Step(n) for n in range(1000)])
        deadline = time.monotonic() + 60
        fails = {n for n in range(1000) if n % 11}
        waiting = Source(steps).retry_channel(600.0)
        while (await broker.backlog(waiting)).waiting != len(fails) or any(
            each.in_flight for each in service.status()[:2]
        ):
            assert time.monotonic() < deadline, service.status()
            await asyncio.sleep(0.1)
        status = service.status()
    assert sorted(done) == [n for n in range(1000) if n % 11 == 0]
    assert sorted(again) == sorted([*fails, *fails])  # once of the queue, once of the first retry topic
    assert [each.counts.get("retried", 0) for each in status[:2]] == [len(fails), len(fails)]
