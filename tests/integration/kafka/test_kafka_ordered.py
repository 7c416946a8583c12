"""Ordered consumers on Kafka: what one partition holds back is not held back in the others, and what goes on in a partition that
has gone to another process is told here and done there."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Mapping

import msgspec
import pytest

from atleastonce import Context, RetryLater, Service, Topic, connect


class Step(msgspec.Struct):
    key: str
    n: int


async def until(condition: Callable[[], bool], within: float = 30.0) -> None:
    end = time.monotonic() + within
    while not condition():
        assert time.monotonic() < end, f"not within {within:g} s"
        await asyncio.sleep(0.02)


async def test_a_key_that_fails_and_has_all_the_traffic_stops_its_partition_and_no_other(kafka_url: str) -> None:
    steps = Topic(f"steps.{uuid.uuid4().hex[:8]}", Step, partitions=8)
    service, done = Service("lines", broker=kafka_url), []

    @service.consumer(steps, ordered=True, max_in_flight=200)
    async def handle(step: Step, ctx: Context) -> None:
        if step.key == "stuck":
            raise RetryLater("10m")
        done.append((step.key, step.n))

    async with service:
        send = service.broker.publish_many
        outcomes = await send(steps, [Step("stuck", n) for n in range(2000)], key=lambda step: step.key)
        assert all(outcome.ok for outcome in outcomes)
        await until(lambda: service.status()[0].counts.get("retried", 0) == 1)
        # Sixteen keys over eight partitions: all but those of the one partition that is full go on.
        others = [Step(f"k{n % 16}", n // 16) for n in range(320)]
        await send(steps, others, key=lambda step: step.key)
        await until(lambda: len({key for key, n in done if n == 19}) >= 10)
        (status,) = (each for each in service.status() if each.source == f"{steps.name}.lines")
        assert status.in_flight <= 200
    assert not [key for key, _ in done if key == "stuck"]


async def test_a_key_function_that_is_cut_off_costs_its_own_message_and_no_subscription(kafka_url: str) -> None:
    steps = Topic(f"steps.{uuid.uuid4().hex[:8]}", Step, partitions=1)
    service, done = Service("lines", broker=kafka_url), []

    def line(step: Step) -> str:
        if step.n == 3:
            raise asyncio.CancelledError
        return step.key

    @service.consumer(steps, ordered=line)
    async def handle(step: Step) -> None:
        done.append(step.n)

    def counts() -> Mapping[str, int]:
        return service.status()[0].counts

    async with service:
        await service.broker.publish_many(steps, [Step("k", n) for n in range(8)], key=lambda step: step.key)
        await until(lambda: len(done) == 7 and counts().get("dead", 0) == 1)
        assert counts()["received"] == 8, "nothing came again"
    assert done == [0, 1, 2, 4, 5, 6, 7]


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
async def test_a_handler_that_outlasts_its_drain_overlaps_with_its_own_message_alone(
    kafka_url: str, protocol: str
) -> None:
    """Another process joins while all keys are busy. What runs gets its drain; what waits behind it in a key runs over there, and
    nothing more of a partition that has gone begins here."""
    steps = Topic(f"steps.{uuid.uuid4().hex[:8]}", Step, partitions=4)
    url = f"{kafka_url}?drain=1s&group.protocol={protocol}"
    first, second = Service("lines", broker=url, drain="1s"), Service("lines", broker=url, drain="1s")
    runs: list[tuple[str, str, int, float, float]] = []  # where, key, number, begin, end
    gate = asyncio.Event()

    def work(service: Service, where: str) -> None:
        @service.consumer(steps, ordered=True, concurrency=16)
        async def handle(step: Step, ctx: Context) -> None:
            begin = time.monotonic()
            if where == "first" and step.n == 1:
                await gate.wait()
            runs.append((where, step.key, step.n, begin, time.monotonic()))

    work(first, "first")
    work(second, "second")
    keys = [f"k{n}" for n in range(16)]
    async with first, connect(url) as broker:
        sent = [Step(key, n) for n in range(6) for key in keys]
        assert all(each.ok for each in await broker.publish_many(steps, sent, key=lambda step: step.key))
        await until(lambda: len(runs) == 16)  # the first of each key; the second ones wait for the gate
        async with second:
            await until(lambda: len({key for where, key, n, *_ in runs if where == "second" and n == 5}) >= 4)
            gate.set()
            await until(lambda: len({(key, n) for _, key, n, *_ in runs}) == 16 * 6)
            await until(lambda: all(each.in_flight == 0 for service in (first, second) for each in service.status()))
            status = next(each for each in first.status() if each.source == f"{steps.name}.lines")
    moved = {key for where, key, *_ in runs if where == "second"}
    assert moved != set(keys), "some partitions have stayed"
    for key in keys:
        for where in ("first", "second"):
            numbers = [n for there, of, n, *_ in runs if (there, of) == (where, key)]
            assert numbers == sorted(set(numbers)), f"{key} in {where}: {numbers}"
        if key in moved:
            assert [n for there, of, n, *_ in runs if (there, of) == ("first", key)] == [0, 1], (
                "what ran, and nothing more"
            )
            assert [n for there, of, n, *_ in runs if (there, of) == ("second", key)] == [1, 2, 3, 4, 5]
    assert status.counts["unsettled"] == 5 * len(moved), "what ran there and what waited behind it"
