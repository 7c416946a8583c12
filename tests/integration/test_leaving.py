"""A process that leaves: its peers have at once what it never began, and wait for nothing that still runs in it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from atleastonce import Queue, Service, connect
from atleastonce.parts import part_number

# Not on Kafka: what one member has not begun of a partition is nobody's until it has let go of the whole partition.
QUICK = ["sqlite", "rabbitmq", "redis", "nats", "pubsub", "sqs"]
IN_PARTS = ["rabbitmq", "redis"]
SOON = 5.0
"""Seconds. A second or so was measured on a calm machine; what was wrong lasted for as long as the slowest handler, and longer."""

MESSAGES = 30


def _url(request: pytest.FixtureRequest, tmp_path: Path, backend: str) -> str:
    return f"sqlite:///{tmp_path}/broker.db" if backend == "sqlite" else request.getfixturevalue(f"{backend}_url")


@pytest.mark.parametrize("backend", QUICK)
async def test_what_was_never_begun_goes_to_a_peer_while_a_handler_still_runs(
    request: pytest.FixtureRequest, tmp_path: Path, backend: str, queue: Callable[[str], Queue[Any]]
) -> None:
    """Also what its adapter had fetched and not handed out, for which a rate limit makes sure here."""
    url, work = _url(request, tmp_path, backend), queue("leaving")
    leaving, staying = Service("leaves", broker=url, drain="60s"), Service("leaves", broker=url)
    began, go, peers = asyncio.Event(), asyncio.Event(), dict[int, float]()

    @leaving.consumer(work, concurrency=1, rate_limit="2/s", max_in_flight=100)
    async def first(number: int) -> None:
        began.set()
        await go.wait()

    @staying.consumer(work)
    async def second(number: int) -> None:
        peers.setdefault(number, time.monotonic())

    async with connect(url) as broker:
        await leaving.start()
        outcomes = await broker.publish_many(work, list(range(MESSAGES)))
        assert all(outcome.ok for outcome in outcomes)
        await asyncio.wait_for(began.wait(), 20)
        await staying.start()
        stopping = asyncio.create_task(leaving.stop())
        await _until(lambda: len(peers) == MESSAGES - 1, SOON)
        assert not stopping.done(), "the first one still runs"
        go.set()
        await asyncio.wait_for(stopping, 20)
        await staying.stop()
    assert len(peers) == MESSAGES - 1, "what ran until its end was done"


@pytest.mark.parametrize("backend", IN_PARTS)
async def test_parts_of_which_nothing_runs_do_not_wait_for_those_that_do(
    request: pytest.FixtureRequest, tmp_path: Path, backend: str, queue: Callable[[str], Queue[Any]]
) -> None:
    url = _url(request, tmp_path, backend)
    work = Queue[Any](queue("parts").name, single_active=True, partitions=8)
    leaving, staying = Service("leaves", broker=url, drain="60s"), Service("leaves", broker=url)
    began, go, peers = asyncio.Event(), asyncio.Event(), set[int]()

    @leaving.consumer(work, ordered=True)
    async def first(number: int) -> None:
        if number == 0:
            began.set()
            await go.wait()

    @staying.consumer(work, ordered=True)
    async def second(number: int) -> None:
        peers.add(number)

    def of_other_parts(number: int) -> bool:
        return part_number(_key(number), 8) != part_number(_key(0), 8)

    async with connect(url) as broker:
        await leaving.start()
        await broker.publish(work, 0, key=_key(0))
        await asyncio.wait_for(began.wait(), 20)
        await staying.start()
        stopping = asyncio.create_task(leaving.stop())
        await _until(lambda: leaving.status()[0].state == "draining", SOON)
        numbers = list(range(1, 1 + MESSAGES))
        outcomes = await broker.publish_many(work, numbers, key=_key)
        assert all(outcome.ok for outcome in outcomes)
        await _until(lambda: set(filter(of_other_parts, numbers)) <= peers, SOON)
        assert not stopping.done(), "the first one still runs"
        assert peers == set(filter(of_other_parts, numbers)), "its own part waits for it, for order's sake"
        go.set()
        await asyncio.wait_for(stopping, 20)
        await _until(lambda: set(numbers) == peers, 20)
        await staying.stop()


def _key(number: int) -> bytes:
    return f"key-{number}".encode()


async def _until(condition: Callable[[], bool], within: float) -> None:
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110 - polled, with a deadline
            await asyncio.sleep(0.02)
