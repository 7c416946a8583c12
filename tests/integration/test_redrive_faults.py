"""A redrive whose broker goes away, or whose destination is full: what was not moved is still dead."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Any
from urllib.parse import urlsplit

import pytest
from redrive_kit import taken

from atleastonce import Broker, BrokerUnavailable, Queue, Source, connect, wire
from atleastonce.brokers import Running
from atleastonce.contract import Outgoing, Topology
from atleastonce.message import Headers, Message
from atleastonce.patterns.redrive import Purged, Redriven
from atleastonce.testing.brokers import own_broker
from atleastonce.testing.proxy import FaultProxy

COUNT = 3000


def entries(dead: Queue[Any], count: int) -> list[Outgoing]:
    return [
        Outgoing(dead, Message(f"m{n}", b"{}", None, Headers({wire.ID: f"m{n}", wire.ERROR_STAGE: "handler"})))
        for n in range(count)
    ]


async def bury(broker: Broker, home: Queue[Any], count: int) -> None:
    dead = Source(home).dead_letter_channel
    await broker.declare(Topology(channels=(home,), sources=(Source(home),), dead_letters=(dead,)))
    assert all(outcome.ok for outcome in await broker.adapter.send(entries(dead, count)))


async def registered(server: Running, home: Queue[Any]) -> None:
    """RabbitMQ 3.10 saves the register of its quorum queues half a second after the last change. Killed before, it forgets
    which log belongs to a new queue."""
    assert server.log
    registers = list((server.log.parent / "data").rglob("quorum/*/names.dets"))
    name, longer = home.name.encode(), Source(home).dead_letter_channel.name.encode()
    end = time.monotonic() + 20
    while not any((found := file.read_bytes()).count(name) > found.count(longer) > 0 for file in registers):
        assert time.monotonic() < end, registers
        await asyncio.sleep(0.05)


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.timeout(240, func_only=True)
@pytest.mark.parametrize("name", ["kafka", "rabbitmq", "nats", "redis"])
async def test_a_broker_that_dies_in_the_middle_costs_nothing(name: str) -> None:
    home = Queue[Any](f"faults.{uuid.uuid4().hex[:8]}", partitions=2)
    timeouts = {"kafka": {"message.timeout.ms": 5000}, "rabbitmq": {"send_timeout": 5}}
    with own_broker(name) as server:
        moved = asyncio.Event()
        seen: list[Redriven | Purged] = []

        def told(account: Redriven | Purged, _seen: int, _total: int | None) -> None:
            seen.append(account)
            if isinstance(account, Redriven) and account.redriven > 500:
                moved.set()

        async with connect(server.url, timeouts.get(name, {})) as broker:
            await bury(broker, home, COUNT)
            if name == "rabbitmq":
                await registered(server, home)
            run = asyncio.create_task(broker.dead_letters(home).redrive(rate="1500/s", progress=told))
            await moved.wait()
            await asyncio.to_thread(server.kill)
            try:
                account: Redriven | Purged = await asyncio.wait_for(run, 120)
            except BrokerUnavailable:
                account = seen[-1]
            else:
                assert account.stopped, "it went on without a broker"
            assert isinstance(account, Redriven)
            assert 500 < account.redriven < COUNT
        await asyncio.to_thread(server.start)
        async with connect(server.url) as broker:
            again = Redriven(failed=1)
            for _ in range(5):  # a queue that is electing its leader takes nothing: the run says so, and is run again
                again = await broker.dead_letters(home).redrive()
                if not again.failed:
                    break
            assert not again.failed
            arrived = await taken(broker, Source(home), COUNT)
            assert set(arrived) == {f"m{n}" for n in range(COUNT)}
            assert await broker.dead_letters(home).groups() == []


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.timeout(240, func_only=True)
@pytest.mark.parametrize("name", ["sqs", "pubsub", "nats", "redis"])
async def test_a_way_that_fails_in_the_middle_costs_nothing(name: str, toxiproxy_broker: Running) -> None:
    """Connections end and none is made: the run must end, too, and say how far it came. A killed emulator forgets all."""
    home = Queue[Any](f"faults.{uuid.uuid4().hex[:8]}")
    short = {"sqs": "lease=6s", "pubsub": "lease=10s", "redis": "lease=3s", "nats": "ack_wait=3s"}[name]
    with own_broker(name) as server:
        parts = urlsplit(server.url)
        query = "&".join(filter(None, (parts.query, short)))
        direct = parts._replace(query=query).geturl()
        async with FaultProxy(toxiproxy_broker.url, f"{parts.hostname}:{parts.port}") as proxy:
            user = parts.netloc.rpartition("@")[0]
            netloc = f"{user}@{proxy.address}" if user else proxy.address
            moved = asyncio.Event()
            seen: list[Redriven | Purged] = []

            def told(account: Redriven | Purged, _seen: int, _total: int | None) -> None:
                seen.append(account)
                if isinstance(account, Redriven) and account.redriven > 100:
                    moved.set()

            async with connect(parts._replace(netloc=netloc, query=query).geturl()) as broker:
                await bury(broker, home, 1000)
                run = asyncio.create_task(broker.dead_letters(home).redrive(rate="200/s", progress=told))
                await moved.wait()
                async with proxy.refusing():
                    try:
                        account: Redriven | Purged = await asyncio.wait_for(run, 120)
                    except BrokerUnavailable:
                        account = seen[-1]
                    else:
                        assert account.stopped, "it went on without a broker"
            assert isinstance(account, Redriven)
            assert 100 < account.redriven < 1000
        async with connect(direct) as broker:
            end = time.monotonic() + 90
            while True:  # what the broken run held comes back when its leases end
                again = await broker.dead_letters(home).redrive()
                left = await broker.dead_letters(home).groups()
                if not left and not again.stopped and not again.failed:
                    break
                assert time.monotonic() < end, (again, left)
            arrived = await taken(broker, Source(home), 1000)
        assert set(arrived) == {f"m{n}" for n in range(1000)}


async def test_a_full_destination_leaves_the_rest_dead(rabbitmq_url: str) -> None:
    """A queue that refuses publishes beyond its length, as a quorum queue does, within a few of its limit."""
    options = {"rabbitmq": {"x-max-length": 100, "x-overflow": "reject-publish"}}
    home = Queue[Any](f"full.{uuid.uuid4().hex[:8]}", options=options)
    async with connect(rabbitmq_url) as broker:
        await bury(broker, home, 2000)
        account = await broker.dead_letters(home).redrive()
        assert account.failed > 0
        assert account.stopped == f"{home.name} takes nothing at present"
        assert 100 <= account.redriven < 2000
        dead = {letter.id async for letter in broker.dead_letters(home).letters()}
        arrived = await taken(broker, Source(home), account.redriven)
        assert len(arrived) == account.redriven
        assert dead | set(arrived) == {f"m{n}" for n in range(2000)}
        assert not dead & set(arrived)
        await broker.adapter.delete(  # type: ignore[attr-defined]
            Topology(channels=(home,), dead_letters=(Source(home).dead_letter_channel,))
        )
