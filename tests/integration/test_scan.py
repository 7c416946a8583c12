"""Reading through a queue and leaving everything in it, on every broker that can."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable

import pytest

from atleastonce import Broker, NotFound, Queue, connect
from atleastonce.contract import Outgoing, Scans, Topology
from atleastonce.message import Headers, Message

Counted = tuple[Broker, Queue[object]]
COUNT = 1200


@pytest.fixture
async def dead(backend_url: str, queue: Callable[[str], Queue[object]]) -> AsyncIterator[Counted]:
    """A dead-letter queue with `COUNT` entries: more than one page, and not more than an emulator hands out thirty times within a
    test's time."""
    channel = Queue[object](queue("scanned").name + ".dlq")
    async with connect(backend_url) as broker:
        if not isinstance(broker.adapter, Scans):
            pytest.skip(f"{broker.adapter.scheme} does not scan")
        await broker.declare(Topology(dead_letters=(channel,)))
        await send(broker, channel, 0, COUNT)
        yield broker, channel


async def send(broker: Broker, channel: Queue[object], begin: int, end: int) -> None:
    items = [
        Outgoing(channel, Message(f"m{n}", b"x" * 100, None, Headers({"alo-id": f"m{n}"}))) for n in range(begin, end)
    ]
    assert all(outcome.ok for outcome in await broker.adapter.send(items))


async def scanned(broker: Broker, channel: Queue[object]) -> list[str]:
    """The ids, once all are back from an earlier look: a broker takes them back after it was told."""
    assert isinstance(broker.adapter, Scans)
    end = time.monotonic() + 20
    while True:
        found = [d.message.id async for each in broker.adapter.scan(channel) for d in each]
        if len(found) >= COUNT or time.monotonic() > end:
            return found


async def test_looking_thirty_times_loses_nothing(dead: Counted) -> None:
    broker, channel = dead
    for _ in range(30):
        assert sorted(await scanned(broker, channel)) == sorted(f"m{n}" for n in range(COUNT))


async def test_what_arrives_meanwhile_does_not_prolong_it(dead: Counted) -> None:
    broker, channel = dead
    assert isinstance(broker.adapter, Scans)
    seen: list[str] = []
    async for each in broker.adapter.scan(channel):
        seen += [delivery.message.id for delivery in each]
        if len(seen) < COUNT + 100:
            await send(broker, channel, 10_000 + len(seen), 10_000 + len(seen) + 10)
    assert len(seen) == COUNT


async def test_a_look_that_is_broken_off_gives_everything_back(dead: Counted) -> None:
    broker, channel = dead
    assert isinstance(broker.adapter, Scans)
    async with contextlib.aclosing(broker.adapter.scan(channel)) as lists:
        assert len(await anext(lists)) > 0
    assert len(await scanned(broker, channel)) == COUNT


async def test_a_queue_that_never_had_a_message_shows_none(
    backend_url: str, queue: Callable[[str], Queue[object]]
) -> None:
    channel = Queue[object](queue("scanned").name + ".dlq")
    async with connect(backend_url) as broker:
        if not isinstance(broker.adapter, Scans):
            pytest.skip(f"{broker.adapter.scheme} does not scan")
        await broker.declare(Topology(dead_letters=(channel,)))
        assert [each async for each in broker.adapter.scan(channel)] == []


async def test_a_queue_that_is_missing_is_named(dead: Counted) -> None:
    broker, _ = dead
    assert isinstance(broker.adapter, Scans)
    with pytest.raises(NotFound, match="missing"):
        _ = [each async for each in broker.adapter.scan(Queue("missing.dlq"))]
