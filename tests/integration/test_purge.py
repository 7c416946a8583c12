"""Dead letters that are removed for good: those that are meant, of this group alone. What could not be taken out is still there."""

from __future__ import annotations

import asyncio
import json
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any
from urllib.parse import urlsplit

import pytest

from atleastonce import Broker, BrokerUnavailable, DeadLetters, Queue, Selection, Source, Topic, connect, wire
from atleastonce.brokers import Running
from atleastonce.contract import ACK, RELEASE, Delivery, Outgoing, Topology, Window
from atleastonce.message import Headers, Message
from atleastonce.patterns.redrive.audit import AuditLine
from atleastonce.patterns.redrive.passage import _Listener
from atleastonce.testing.proxy import FaultProxy

COUNT, OTHERS, ORDERS = 40, 10, 7
DEADLINE = 60.0
AT_ONCE = 15.0
"""Seconds that a look takes at most where nothing is in anybody's hands; the shortest lease is twice as long."""


def letter(number: int) -> Message:
    """Of an odd or an even failure, an hour old where its number is below 10."""
    died = time.time() - (3600 if number < 10 else 0)
    fields = {
        wire.ID: f"m{number}",
        wire.ERROR_STAGE: "handler",
        wire.ERROR_TYPE: "shop.OddError" if number % 2 else "shop.EvenError",
        wire.FINGERPRINT: f"bad{number % 2}",
        wire.FIRST_FAILED: wire.millis(died),
        wire.ERROR_AT: wire.millis(died),
        "tenant": f"t{number % 5}",
    }
    return Message(fields[wire.ID], json.dumps({"n": number}).encode(), None, Headers(fields))


class Yard:
    """A topic with two groups, the dead letters of both, and orders that neither has read."""

    def __init__(self, broker: Broker, topic: Topic[Any]) -> None:
        self.broker = broker
        self.billing, self.shipping = Source(topic, "billing"), Source(topic, "shipping")
        self.topic = topic

    def of(self, home: Source) -> DeadLetters:
        return self.broker.dead_letters(self.topic, home.group)

    async def fill(self) -> None:
        homes = (self.billing, self.shipping)
        dead = tuple(home.dead_letter_channel for home in homes)
        await self.broker.declare(Topology(channels=(self.topic,), sources=homes, dead_letters=dead))
        items = [Outgoing(dead[0], letter(n)) for n in range(COUNT)]
        items += [Outgoing(dead[1], letter(n)) for n in range(OTHERS)]
        items += [
            Outgoing(self.topic, Message(f"order{n}", b"{}", None, Headers({wire.ID: f"order{n}"})))
            for n in range(ORDERS)
        ]
        assert all(outcome.ok for outcome in await self.broker.adapter.send(items))

    async def left(self, home: Source, wanted: int) -> set[str]:
        """The dead letters of ``home``, once they are ``wanted``: what a reader held comes back in its own time."""
        end = time.monotonic() + DEADLINE
        while True:
            async with aclosing(self.of(home).letters()) as letters:
                found = [each.id async for each in letters]
            assert len(found) == len(set(found))
            if len(found) == wanted or time.monotonic() > end:
                return set(found)


@pytest.fixture
async def yard(backend_url: str, topic: Callable[[str], Topic[Any]]) -> AsyncIterator[Yard]:
    async with connect(backend_url) as broker:
        made = Yard(broker, topic("purged"))
        await made.fill()
        yield made


CHOICES: list[tuple[dict[str, Any], Callable[[int], bool]]] = [
    ({"error_type": ["OddError"], "headers": [("tenant", "t1")]}, lambda n: n % 2 == 1 and n % 5 == 1),
    ({"older_than": "30m"}, lambda n: n < 10),
    ({"where": "n >= `36`"}, lambda n: n >= 36),
    ({"id": ["m12", "m13", "nobody"]}, lambda n: n in (12, 13)),
    ({"fingerprint": ["bad1"], "newer_than": "30m"}, lambda n: n % 2 == 1 and n >= 10),
    ({"error_type": ["Error"]}, lambda _: False),
]


async def test_what_is_chosen_is_gone_after_a_rehearsal_that_said_so(yard: Yard) -> None:
    """On Pub/Sub two of the choices: each look there holds all letters for seconds."""
    dead, there = yard.of(yard.billing), set(range(COUNT))
    pubsub = yard.broker.adapter.scheme == "pubsub"
    for fields, fits in CHOICES[:2] if pubsub else CHOICES:
        meant = {n for n in there if fits(n)}
        rehearsed = await dead.purge(Selection(**fields), dry_run=True)
        assert (rehearsed.matched, rehearsed.purged, rehearsed.skipped) == (len(meant), 0, len(there) - len(meant))
        assert rehearsed.dry_run
        assert await yard.left(yard.billing, len(there)) == {f"m{n}" for n in there}
        audit: list[AuditLine] = []
        done = await dead.purge(Selection(**fields), audit=audit.extend)
        assert (done.matched, done.purged, done.skipped) == (len(meant), len(meant), len(there) - len(meant))
        assert (done.dry_run, done.stopped) == (False, "")
        assert sorted((line.id, line.action, line.outcome) for line in audit) == sorted(
            (f"m{n}", "purge", "purged") for n in meant
        )
        there -= meant
        assert await yard.left(yard.billing, len(there)) == {f"m{n}" for n in there}


async def test_only_the_groups_own_are_removed(yard: Yard) -> None:
    some = await yard.of(yard.billing).purge(limit=3)
    assert (some.matched, some.purged) == (3, 3)
    assert len(await yard.left(yard.billing, COUNT - 3)) == COUNT - 3
    whole = await yard.of(yard.billing).purge()
    if yard.broker.adapter.scheme != "sqs":  # its count is an estimate, and it empties a queue without one
        assert (whole.matched, whole.purged) == (COUNT - 3, COUNT - 3)
    assert await yard.left(yard.billing, 0) == set()
    assert await yard.left(yard.shipping, OTHERS) == {f"m{n}" for n in range(OTHERS)}
    for home in (yard.billing, yard.shipping):
        assert await delivered(yard.broker, home) == {f"order{n}" for n in range(ORDERS)}


async def delivered(broker: Broker, source: Source) -> set[str]:
    """The orders that ``source`` hands out."""
    found: set[str] = set()
    end = time.monotonic() + DEADLINE
    subscription = await broker.adapter.subscribe(source, Window(100, 1 << 20), _Listener())
    while len(found) < ORDERS and time.monotonic() < end:
        batch = await subscription.receive(100, 0.5)
        found |= {delivery.message.id for delivery in batch}
        await subscription.settle([(delivery, ACK) for delivery in batch])
    await subscription.close()
    return found


async def test_nothing_is_removed_that_could_not_be_noted_down(yard: Yard) -> None:
    """And all of it is there again at once, not when some lease is over (30 s)."""

    def full(_: object) -> None:
        raise OSError("no space left on the device")

    with pytest.raises(OSError, match="no space"):
        await yard.of(yard.billing).purge(Selection(error_type=["OddError"]), audit=full)
    began = time.monotonic()
    assert await yard.left(yard.billing, COUNT) == {f"m{n}" for n in range(COUNT)}
    assert time.monotonic() - began < AT_ONCE


async def test_what_another_reader_holds_is_neither_counted_nor_removed(yard: Yard) -> None:
    if yard.broker.adapter.scheme in ("kafka", "pubsub"):
        pytest.skip("a log hands nothing out, and Pub/Sub hands out what it likes")
    adapter = yard.broker.adapter
    other = await adapter.subscribe(Source(yard.billing.dead_letter_channel), Window(3, 1 << 20), _Listener())
    held: list[Delivery] = []
    async with asyncio.timeout(DEADLINE):
        while len(held) < 3:
            held += await other.receive(3 - len(held), 1.0)
    ids = {each.message.id for each in held}
    done = await yard.of(yard.billing).purge(Selection(newer_than="10d"))
    assert done.matched == done.purged == COUNT - len(held)
    assert all(outcome.ok for outcome in await other.settle([(each, RELEASE) for each in held]))
    await other.close()
    assert await yard.left(yard.billing, len(held)) == ids


async def cut_off(proxy: FaultProxy) -> None:
    """For good."""
    await proxy._call("POST", f"/proxies/{proxy._name}", {"enabled": False})


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.timeout(240, func_only=True)
@pytest.mark.parametrize(("name", "short"), [("rabbitmq", ""), ("nats", "ack_wait=3s"), ("redis", "lease=3s")])
async def test_what_the_broker_did_not_take_out_is_not_counted_and_there_again(
    name: str, short: str, request: pytest.FixtureRequest, toxiproxy_broker: Running
) -> None:
    """The connection ends between the second list's audit and its settlement."""
    url = urlsplit(str(request.getfixturevalue(f"{name}_url")))
    home, count = Queue[Any](f"purged.{uuid.uuid4().hex[:8]}"), 1000
    dead = Source(home).dead_letter_channel
    async with FaultProxy(toxiproxy_broker.url, f"{url.hostname}:{url.port}") as proxy:
        user = url.netloc.rpartition("@")[0]
        through = url._replace(netloc=f"{user}@{proxy.address}" if user else proxy.address, query=short).geturl()
        purged = 0
        async with connect(through) as broker:
            await broker.declare(Topology(channels=(home,), sources=(Source(home),), dead_letters=(dead,)))
            letters = [Outgoing(dead, letter(n)) for n in range(count)]
            assert all(outcome.ok for outcome in await broker.adapter.send(letters))
            noted: list[AuditLine] = []
            told: list[int] = []

            def note(lines: Any) -> None:
                noted.extend(lines)
                if len(noted) > 500:  # it is called between two awaits: nothing of ours is sent meanwhile
                    cut = threading.Thread(target=asyncio.run, args=(cut_off(proxy),))
                    cut.start()
                    cut.join()

            try:
                account = await asyncio.wait_for(
                    broker.dead_letters(home).purge(
                        Selection(newer_than="10d"),
                        audit=note,
                        progress=lambda account, _seen, _total: told.append(account.purged),  # type: ignore[union-attr]
                    ),
                    120,
                )
            except BrokerUnavailable:
                purged = told[-1]
            else:
                purged = account.purged
                assert account.purged < account.matched
        assert purged < count
    # RabbitMQ confirms no acknowledgement: those of the first list may have been lost with the connection as well.
    most = count if name == "rabbitmq" else count - purged
    async with connect(url.geturl()) as broker:
        end = time.monotonic() + DEADLINE
        while (
            not count - purged
            <= (there := sum(group.count for group in await broker.dead_letters(home).groups()))
            <= most
        ):
            assert time.monotonic() < end, (there, purged)
