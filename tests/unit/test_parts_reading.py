"""All parts of a source read as one: what is handed on, where verdicts go, and what is let go of."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Collection, Sequence
from typing import Any

import pytest
from front_kit import until

from atleastonce import ConnectionLost, Queue, Source
from atleastonce.contract import (
    ACK,
    OK,
    RELEASE,
    Code,
    Delivery,
    Listener,
    Outcome,
    Settlement,
    Subscription,
    Window,
    rejected,
)
from atleastonce.message import Message
from atleastonce.parts import parts_of, sharing, subscribe

HOME = Source(Queue[Any]("orders", partitions=4, single_active=True))
PARTS = [part.name for part in parts_of(HOME)]


class Stub(Subscription):
    """A part whose messages the test brings."""

    def __init__(self, source: Source, window: Window) -> None:
        self.source, self.window = source, window
        self.brought: deque[Delivery] = deque()
        self.settled: list[tuple[str, object]] = []
        self.ends: Exception | None = None
        self.refuses: Outcome = OK
        self.paused = self.left = self.closed = False
        self._come = asyncio.Event()

    def bring(self, *ids: str, lease: float = 0.0, ends: Exception | None = None) -> None:
        until = time.monotonic() + lease if lease else 0.0
        self.brought += [Delivery(Message(id, b""), self.source, "its own", "", 1, id, 1, until) for id in ids]
        self.ends = ends
        self._come.set()

    async def receive(self, max_messages: int, max_wait: float) -> Sequence[Delivery]:
        await self._come.wait()
        if self.ends is not None:
            raise self.ends
        found = [self.brought.popleft() for _ in range(min(max_messages, len(self.brought)))]
        if not self.brought:
            self._come.clear()
        return found

    async def settle(self, batch: Sequence[Settlement]) -> Sequence[Outcome]:
        self.settled += [(delivery.message.id, verdict) for delivery, verdict in batch]
        return [self.refuses] * len(batch)

    async def pause(self) -> None:
        self.paused = True

    async def resume(self) -> None:
        self.paused = False

    async def leave(self) -> None:
        assert not self.settled, "nothing is given back while more may be asked for"
        self.left = True

    async def close(self) -> None:
        self.closed = True


class Broker:
    """Hands out stubs, and counts readers as the test says."""

    def __init__(self) -> None:
        self.parts: dict[str, Stub] = {}
        self.opened: list[str] = []
        self.drained: list[str] = []
        self.lost_streams: list[object] = []
        self.runs = asyncio.Event()  # set: what runs has ended
        self.runs.set()
        self.readers: int | None = 1

    async def one(self, source: Source, window: Window, listener: Listener) -> Subscription:
        self.opened.append(source.name)
        self.parts[source.name] = stub = Stub(source, window)
        return stub

    async def count(self, source: Source, me: str, *, here: bool) -> int | None:
        assert source == HOME
        return self.readers

    async def drain(self, streams: Collection[str], grace: float) -> None:
        self.drained += streams
        await self.runs.wait()

    def lost(self, streams: Collection[str] | None) -> None:
        self.lost_streams.append(streams)

    def condition(self, state: str, detail: str) -> None: ...

    async def read(self, window: int = 40) -> Subscription:
        return await subscribe(HOME, Window(window, 4000), self, self.one, self.count)


@pytest.fixture
async def broker() -> Broker:
    return Broker()


def ids(deliveries: Sequence[Delivery]) -> list[str]:
    return sorted(delivery.message.id for delivery in deliveries)


async def take(subscription: Subscription, count: int, most: int = 100) -> list[Delivery]:
    found: list[Delivery] = []
    async with asyncio.timeout(10):
        while len(found) < count:
            some = await subscription.receive(most, 1.0)
            assert len(some) <= most
            found += some
    return found


async def look_on(subscription: Subscription) -> None:
    """Take nothing, until it ends."""
    async with asyncio.timeout(10):
        while True:
            await subscription.receive(0, 1.0)
            await asyncio.sleep(0)


async def test_what_comes_of_any_part_is_of_the_whole_and_its_verdict_goes_back_to_its_part(broker: Broker) -> None:
    subscription = await broker.read()
    assert [(stub.window.messages, stub.window.bytes) for stub in broker.parts.values()] == [(10, 1000)] * 4
    for number, name in enumerate(PARTS):
        broker.parts[name].bring(f"a{number}", f"b{number}")
    broker.parts[PARTS[2]].refuses = rejected(Code.STALE, "too late")
    found = await take(subscription, 8, most=3)
    assert ids(found) == sorted(f"{letter}{number}" for letter in "ab" for number in range(4))
    assert {delivery.source for delivery in found} == {HOME}
    assert {delivery.stream for delivery in found} == set(PARTS)
    outcomes = await subscription.settle([(delivery, ACK) for delivery in found])
    for delivery, outcome in zip(found, outcomes, strict=True):
        assert (delivery.message.id, ACK) in broker.parts[delivery.stream].settled
        assert (outcome is OK) == (delivery.stream != PARTS[2])
    await subscription.close()
    assert all(stub.closed for stub in broker.parts.values())


async def test_what_lay_until_its_lease_was_over_is_not_handed_on(broker: Broker) -> None:
    subscription = await broker.read()
    broker.parts[PARTS[0]].bring("late", lease=-1.0)
    broker.parts[PARTS[1]].bring("good", lease=60.0)
    await until(lambda: not broker.parts[PARTS[0]].brought and not broker.parts[PARTS[1]].brought)
    assert ids(await take(subscription, 1)) == ["good"]
    broker.parts[PARTS[0]].bring("next", lease=60.0)
    assert ids(await take(subscription, 1)) == ["next"]
    await subscription.close()


async def test_a_part_that_ends_ends_all_and_what_was_not_handed_on_is_released(broker: Broker) -> None:
    subscription = await broker.read()
    broker.parts[PARTS[1]].bring("kept")
    await until(lambda: not broker.parts[PARTS[1]].brought)
    broker.parts[PARTS[0]].bring(ends=ConnectionLost("gone"))
    with pytest.raises(ConnectionLost, match="gone"):
        await look_on(subscription)
    await subscription.close()
    assert broker.parts[PARTS[1]].settled == [("kept", RELEASE)]


async def test_nothing_is_asked_for_while_it_is_paused(broker: Broker) -> None:
    subscription = await broker.read()
    broker.parts[PARTS[0]].bring("one")
    first = await take(subscription, 1)
    await subscription.pause()
    assert all(stub.paused for stub in broker.parts.values())
    await subscription.resume()
    assert not any(stub.paused for stub in broker.parts.values())
    broker.parts[PARTS[0]].bring("two")
    assert ids([*first, *await take(subscription, 1)]) == ["one", "two"]
    await subscription.close()


async def test_who_leaves_lets_go_of_each_part_once_nothing_of_it_is_out(broker: Broker) -> None:
    """Whoever stands by does not wait for what runs in other parts."""
    subscription = await broker.read()
    running, kept, idle = (broker.parts[name] for name in PARTS[:3])
    running.bring("slow", "quick")
    found = await take(subscription, 2)
    kept.bring("kept")
    await until(lambda: not kept.brought)
    await subscription.leave()
    assert all(stub.left for stub in broker.parts.values())
    assert kept.settled == [("kept", RELEASE)]
    assert (running.closed, kept.closed, idle.closed) == (False, True, True)
    (slow,) = (each for each in found if each.message.id == "slow")
    (quick,) = (each for each in found if each.message.id == "quick")
    assert await subscription.settle([(quick, RELEASE)]) == [OK]
    assert not running.closed, "something of it still runs"
    assert await subscription.settle([(slow, ACK)]) == [OK]
    assert running.closed
    await subscription.close()


async def test_busy_parts_beyond_its_share_are_drained_let_go_and_stood_by_for_again(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "EVERY", 0.01)
    monkeypatch.setattr(sharing, "ASIDE", 0.01)
    subscription = await broker.read()
    first = dict(broker.parts)
    for name in PARTS:
        broker.parts[name].bring(f"run-{name}", *(f"wait-{name}-{n}" for n in range(3)))
    found = await take(subscription, 16, most=4)
    assert not broker.drained, "one reader has all"
    broker.runs.clear()
    broker.readers = 2
    await until(lambda: len(broker.drained) == 2)
    gone = set(broker.drained)
    assert not any(stub.closed for stub in first.values()), "something of it runs"
    outcomes = await subscription.settle([(delivery, ACK) for delivery in found])
    assert outcomes == [OK] * 16
    broker.runs.set()
    await until(lambda: len(broker.opened) == 6)
    assert set(broker.opened[4:]) == gone
    assert {name for name, stub in first.items() if stub.closed} == gone
    await subscription.close()


async def test_where_readers_cannot_be_counted_nothing_is_given_up(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "EVERY", 0.001)
    looks = 0

    async def unknown(source: Source, me: str, *, here: bool) -> int | None:
        nonlocal looks
        looks += 1
        return None

    subscription = await subscribe(HOME, Window(40, 4000), broker, broker.one, unknown)
    for name in PARTS:
        broker.parts[name].bring(f"run-{name}")
    assert len(await take(subscription, 4)) == 4
    seen = looks
    await until(lambda: looks > seen + 10)
    assert not broker.drained
    await subscription.close()
