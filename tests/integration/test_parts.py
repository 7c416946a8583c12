"""Channels in parts on real brokers: where keys go, where failures are kept, what comes back, and what a change of their number
says."""

from __future__ import annotations

# ruff: noqa: ASYNC110 - what a broker counts is asked for, with a deadline
import asyncio
import json
import sys
import uuid
from asyncio.subprocess import PIPE
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from atleastonce import (
    ConfigurationError,
    Context,
    DeadLetter,
    FailurePolicy,
    Queue,
    Service,
    Source,
    Topic,
    connect,
)
from atleastonce.broker import Broker
from atleastonce.contract import Deletes, Topology
from atleastonce.parts import part_number, parts_of

PARTS = 4
DEADLINE = 30.0
Home = Source


class Job(msgspec.Struct):
    key: str
    n: int


@pytest.fixture(params=["rabbitmq", "redis", "nats"])
def url(request: pytest.FixtureRequest) -> str:
    found: str = request.getfixturevalue(f"{request.param}_url")
    return found


@pytest.fixture(params=["queue", "topic"])
def home(request: pytest.FixtureRequest) -> Home:
    name = f"parts.{uuid.uuid4().hex[:8]}"
    if request.param == "queue":
        return Source(Queue(name, Job, partitions=PARTS, single_active=True))
    return Source(Topic(name, Job, partitions=PARTS, single_active=True), "billing")


@pytest.fixture
async def broker(url: str, home: Home) -> AsyncIterator[Broker]:
    async with connect(url) as broker:
        yield broker
        if isinstance(broker.adapter, Deletes):
            dead = (home.dead_letter_channel, home.suspects_channel, home.redrive_channel)
            await broker.adapter.delete(Topology((home.channel, *dead), (home,)))


async def until(condition: Any, what: str) -> None:
    async with asyncio.timeout(DEADLINE):
        while not (await found if asyncio.iscoroutine(found := condition()) else found):
            await asyncio.sleep(0.05)


async def publish(broker: Broker, home: Home, keys: int, each: int) -> None:
    jobs = [Job(f"k{n % keys}", n // keys) for n in range(keys * each)]
    outcomes = await broker.publish_many(home.channel, jobs, key=lambda job: job.key)
    assert all(outcome.ok for outcome in outcomes), outcomes


def reading(url: str, home: Home, handler: Any, **settings: Any) -> Service:
    service = Service("billing", broker=url)
    policy = settings.pop("failure", FailurePolicy(in_place=None))
    service.consumer(home.channel, group=home.group, ordered=True, failure=policy, **settings)(handler)
    return service


async def test_each_key_is_in_its_part_and_the_backlog_is_of_all(broker: Broker, home: Home) -> None:
    await broker.declare(home)
    await publish(broker, home, 10, 3)
    wanted = [0] * PARTS
    for n in range(10):
        wanted[part_number(f"k{n}".encode(), PARTS)] += 3
    assert [(await broker.adapter.backlog(part)).waiting for part in parts_of(home)] == wanted
    assert (await broker.backlog(home.channel, home.group)).waiting == 30


async def test_all_parts_are_read_as_one_and_their_failures_come_back_to_their_parts(
    url: str, broker: Broker, home: Home
) -> None:
    runs: dict[str, list[int]] = defaultdict(list)
    origins: set[str] = set()
    failing = True

    async def handle(job: Job, context: Context) -> None:
        if failing and job.n % 3 == 1:
            raise DeadLetter("not today")
        runs[job.key].append(job.n)
        origins.add(str(context.source))

    service = reading(url, home, handle, concurrency=8)
    dead = broker.dead_letters(home.channel, home.group)
    async with service:
        await publish(broker, home, 12, 6)
        await until(lambda: sum(map(len, runs.values())) == 48, "the others are handled")
        await until(lambda: _counts(dead, 24), "all that fail are kept together")
        assert runs == {f"k{n}": [0, 2, 3, 5] for n in range(12)}
        (status,) = [each for each in service.status() if each.source == str(home)]
        assert status.counts["received"] == 72
        failing = False
        async with asyncio.timeout(DEADLINE):
            account = await dead.redrive()
        assert account.redriven == 24, account
        await until(lambda: sum(map(len, runs.values())) == 72, "what was sent back is handled")
    assert {key: ns[4:] for key, ns in runs.items()} == {f"k{n}": [1, 4] for n in range(12)}
    assert str(home) in origins
    assert (await broker.backlog(home.channel, home.group)).waiting == 0


async def _counts(dead: Any, wanted: int) -> bool:
    return bool(await dead.count() == wanted)


async def test_two_services_never_run_a_key_together_and_keep_its_order(url: str, broker: Broker, home: Home) -> None:
    runs: dict[str, list[int]] = defaultdict(list)
    running: set[str] = set()
    overlaps: list[str] = []

    async def handle(job: Job) -> None:
        if job.key in running:
            overlaps.append(job.key)
        running.add(job.key)
        await asyncio.sleep(0.002)
        running.discard(job.key)
        runs[job.key].append(job.n)

    staying, leaving = (reading(url, home, handle, concurrency=8, max_in_flight=40) for _ in range(2))
    async with staying:
        async with leaving:
            await publish(broker, home, 12, 20)
            await until(lambda: sum(map(len, runs.values())) > 60, "some are handled")
        await publish(broker, home, 12, 1)
        await until(lambda: sum(map(len, runs.values())) == 252, "all are handled")
    assert runs == {f"k{n}": [*range(20), 0] for n in range(12)}
    assert not overlaps


async def test_what_has_no_key_is_spread_over_the_parts(broker: Broker, home: Home) -> None:
    await broker.declare(home)
    outcomes = await broker.publish_many(home.channel, [Job("", n) for n in range(200)])
    assert all(outcome.ok for outcome in outcomes)
    counts = [(await broker.adapter.backlog(part)).waiting or 0 for part in parts_of(home)]
    assert sum(counts) == 200
    assert min(counts) > 20, counts


async def test_the_command_line_is_told_of_how_many_parts_a_channel_is_made(
    url: str, broker: Broker, home: Home
) -> None:
    await broker.declare(home, Topology(dead_letters=(home.dead_letter_channel,)))
    kind = ["--topic"] if home.group else ["--queue"]
    group = ["--group", home.group] if home.group else []
    name, some = home.channel.name, ["--parts", str(PARTS), "--broker", url]
    await command("publish", name, '{"key": "k1", "n": 0}', *kind, "--key", "k1", *some)
    at = part_number(b"k1", PARTS)
    assert [(await broker.adapter.backlog(part)).waiting for part in parts_of(home)] == [
        int(n == at) for n in range(PARTS)
    ]
    (row,) = json.loads(await command("lag", "--channel", name, *kind, *group, *some, "--json"))
    assert (row["channel"], row["waiting"]) == (name, 1)
    if broker.adapter.capabilities.addresses_groups or home.group is None:
        await broker.publish(home.dead_letter_channel, Job("k1", 1), key="k1")
        told = json.loads(await command("dlq", "redrive", "--channel", name, *group, *some, "--json"))
        assert told["redriven"] == 1, told
        assert (await broker.adapter.backlog(parts_of(home)[at])).waiting == 2


async def command(*words: str) -> str:
    """What it prints, if it succeeds."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "atleastonce", *words, stdout=PIPE, stderr=PIPE
    )
    out, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return out.decode()


async def test_another_number_of_parts_is_refused_or_told(url: str, broker: Broker, home: Home) -> None:
    async def handle(job: Job) -> None: ...

    await broker.declare(home)
    fewer = resized(home, PARTS - 1)
    with pytest.raises(ConfigurationError, match=rf"partitions is {PARTS}, wanted {PARTS - 1}"):
        async with reading(url, fewer, handle):
            pass
    alone, more = resized(home, 1), resized(home, PARTS + 2)
    for other in (fewer, alone, more):
        async with connect(url) as stranger:
            with pytest.raises(ConfigurationError, match="declare it as those do who read it"):
                await stranger.publish(other.channel, Job("k", 0), key="k")
    try:
        found = await reading(url, more, handle).check()
        told = [finding for finding in found if finding.setting == "partitions"]
        assert [(each.severity, each.what) for each in told] == [
            ("warn", f"partitions is {PARTS}, wanted {PARTS + 2}")
        ], found
        async with reading(url, more, handle):
            pass
    finally:
        if isinstance(broker.adapter, Deletes):
            await broker.adapter.delete(Topology((more.channel,), (more,)))


def resized(home: Home, parts: int) -> Home:
    """The same source in another number of parts."""
    kind = type(home.channel)
    return Source(kind(home.channel.name, Job, partitions=parts, single_active=True), home.group)  # type: ignore[call-arg]
