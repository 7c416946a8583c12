"""What goes wrong with a redrive on a broker that does not say how many letters wait, as `test_redrive.py` asks all the time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from pubsub_kit import raw
from redrive_kit import taken

from atleastonce import Broker, NotFound, Queue, Source, connect, wire
from atleastonce.adapters.pubsub import channel as api
from atleastonce.contract import Outgoing, Topology, Window
from atleastonce.message import Headers, Message
from atleastonce.patterns.redrive.passage import _Listener

MakeQueue = Callable[..., Queue[object]]


async def bury(broker: Broker, home: Queue[Any], letters: list[Message]) -> None:
    dead = Source(home).dead_letter_channel
    await broker.declare(Topology(channels=(home,), sources=(Source(home),), dead_letters=(dead,)))
    outcomes = await broker.adapter.send([Outgoing(dead, letter) for letter in letters])
    assert all(outcome.ok for outcome in outcomes), outcomes


async def test_two_at_once_lose_nothing(pubsub_url: str, queue: MakeQueue) -> None:
    home = queue("two")
    names = {f"m{n}" for n in range(300)}
    async with connect(pubsub_url) as broker, connect(pubsub_url) as other:
        await bury(broker, home, [Message(name, b"{}", None, Headers({wire.ID: name})) for name in names])
        one, two = await asyncio.gather(broker.dead_letters(home).redrive(), other.dead_letters(home).redrive())
        left = await broker.dead_letters(home).redrive()  # what one of them held while it left
        assert one.redriven + two.redriven + left.redriven >= 300
        assert set(await taken(broker, Source(home), 300)) == names
        assert await broker.dead_letters(home).groups() == []


async def test_letters_of_nobody_we_know_go_back_and_are_counted(pubsub_url: str, queue: MakeQueue) -> None:
    home = queue("bare")
    forged = {"alo-redrives": "99999", "alo-group": "nobody", "alo-error-at": "9" * 20, "alo-fingerprint": "\x1b[2J"}
    letters = [
        Message("bare", b"{}"),
        Message("forged", b"{}", None, Headers({wire.ID: "forged", **forged})),
    ]
    async with connect(pubsub_url) as broker:
        await bury(broker, home, letters)
        found = [letter async for letter in broker.dead_letters(home).letters()]
        assert len(found) == 2
        assert all(letter.obituary.fingerprint.isprintable() for letter in found)
        account = await broker.dead_letters(home).redrive()
        assert (account.matched, account.redriven) == (2, 2)
        subscription = await broker.adapter.subscribe(Source(home), Window(10, 1 << 20), _Listener())
        back: list[str | None] = []
        end = time.monotonic() + 30
        while len(back) < 2 and time.monotonic() < end:
            back += [each.message.headers.get(wire.REDRIVES) for each in await subscription.receive(10, 1.0)]
        await subscription.close()
        assert back == ["1", "1"]


async def test_what_is_missing_is_named_and_nothing_moves(pubsub_url: str, queue: MakeQueue) -> None:
    home = queue("gone")
    async with connect(pubsub_url) as broker:
        await bury(broker, home, [Message(f"m{n}", b"{}", None, Headers({wire.ID: f"m{n}"})) for n in range(3)])
        missing = broker.dead_letters(home, queue=queue("missing"))
        with pytest.raises(NotFound, match="missing"):
            await missing.groups()
        with pytest.raises(NotFound, match="missing"):
            await missing.redrive()
        with pytest.raises(NotFound, match="sandbox"):
            await broker.dead_letters(home).redrive(to=queue("sandbox"))
    async with raw(pubsub_url) as (link, config):
        await link.call(
            "DeleteSubscription", api.DeleteSubscriptionRequest(subscription=config.subscription(home.name)), seconds=5
        )
    async with connect(pubsub_url) as broker:
        with pytest.raises(NotFound, match="start the consumer"):
            await broker.dead_letters(home).redrive()
        sandbox = queue("sandbox")
        await broker.declare(sandbox)
        assert (await broker.dead_letters(home).redrive(to=sandbox)).redriven == 3
        assert set(await taken(broker, Source(sandbox), 3)) == {"m0", "m1", "m2"}
