"""Opening the inbox for answers: one for all who ask, however little time each of them has; nothing stays of one half made."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from front_kit import until

from atleastonce import BrokerUnavailable, Closed, PermissionDenied, RequestError, RequestTimeout, wire
from atleastonce.adapters.memory import MemoryAdapter
from atleastonce.channels import Queue, Source
from atleastonce.contract import Outcome, Outgoing, Subscription, Topology, Window
from atleastonce.message import Headers, Message
from atleastonce.patterns.replies import Asker
from atleastonce.patterns.replies.queue import QueueReplies

QUESTION = Outgoing(Queue("quotes"), Message("m", b"1", None, Headers([(wire.ID, "m")])))


class SlowBroker(MemoryAdapter):
    """Its queues are made when the gate is open, and whoever stops waiting does not stop it: as calls on a thread go on."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.begun = 0
        self.there: set[str] = set()
        self.refuses: list[Exception] = []
        self._making: set[asyncio.Task[None]] = set()

    async def keep_inbox(self, name: str) -> None:
        self.begun += 1
        task = asyncio.ensure_future(self._make(name))
        self._making.add(task)
        await asyncio.shield(task)

    async def _make(self, name: str) -> None:
        await self.gate.wait()
        await self.declare(Topology(channels=(Queue(name),), sources=(Source(Queue(name)),)))
        self.there.add(name)

    async def remove_inbox(self, name: str) -> None:
        self.there.discard(name)

    async def subscribe(self, source: Source, window: Window, listener: Any) -> Subscription:
        if self.refuses:
            raise self.refuses.pop()
        return await super().subscribe(source, window, listener)


class Posted:
    """Notes how long each request might wait to be sent, and which were withdrawn; nobody answers."""

    def __init__(self) -> None:
        self.within: list[float] = []
        self.withdrawn = 0

    async def __call__(self, item: Outgoing, told: Callable[[Outcome], None], *, within: float) -> Posted:
        self.within.append(within)
        return self

    def withdraw(self) -> None:
        self.withdrawn += 1


@asynccontextmanager
async def asking() -> AsyncIterator[tuple[SlowBroker, Asker, Posted]]:
    broker, posted = SlowBroker(), Posted()
    await broker.open()
    asker = Asker(QueueReplies(broker), posted, lambda _, outcome: RequestError(str(outcome)), 10)
    yield broker, asker, posted
    await asker.close()
    await broker.close()
    assert not broker.there


async def test_requests_that_time_out_meanwhile_open_one_inbox() -> None:
    async with asking() as (broker, asker, posted):
        for _ in range(5):
            with pytest.raises(RequestTimeout, match="could not be opened"):
                await asker.ask(QUESTION, 0.01)
        broker.gate.set()
        await until(lambda: broker.there)
        with pytest.raises(RequestTimeout, match="no answer"):
            await asker.ask(QUESTION, 0.01)
        assert broker.begun == 1
        assert len(broker.there) == 1
        assert len(posted.within) == 1


async def test_an_asker_that_is_cancelled_leaves_the_opening_to_the_others() -> None:
    async with asking() as (broker, asker, posted):
        first, second = (asyncio.create_task(asker.ask(QUESTION, 60)) for _ in range(2))
        await until(lambda: broker.begun)
        first.cancel()
        await asyncio.wait((first,))
        broker.gate.set()
        await until(lambda: posted.within)
        assert broker.begun == 1
        await asker.close()
        with pytest.raises(Closed):
            await second


async def test_closing_while_it_opens_leaves_nothing_behind() -> None:
    async with asking() as (broker, asker, _):
        waiting = asyncio.create_task(asker.ask(QUESTION, 60))
        await until(lambda: broker.begun)
        closing = asyncio.create_task(asker.close())
        await asyncio.sleep(0.01)  # it waits for what cannot be stopped
        broker.gate.set()
        await closing
        with pytest.raises(Closed):
            await waiting
        assert not broker.there
        with pytest.raises(Closed):
            await asker.ask(QUESTION, 60)
        assert broker.begun == 1


async def test_a_silent_broker_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atleastonce.patterns.replies.queue._UNDO_SECONDS", 0.05)
    async with asking() as (broker, asker, _):
        with pytest.raises(RequestTimeout):
            await asker.ask(QUESTION, 0.01)
        async with asyncio.timeout(5):
            await asker.close()
        assert broker.begun == 1


async def test_one_that_could_not_be_opened_in_passing_is_removed_and_tried_again_by_the_same_request() -> None:
    async with asking() as (broker, asker, posted):
        broker.gate.set()
        broker.refuses = [BrokerUnavailable("no leader yet"), BrokerUnavailable("no leader yet")]
        asked = asyncio.create_task(asker.ask(QUESTION, 2.0))
        await until(lambda: posted.within)
        assert broker.begun == 3
        assert len(broker.there) == 1
        with pytest.raises(RequestTimeout, match="no answer"):
            await asked
        assert len(posted.within) == 1


async def test_it_is_tried_again_for_as_long_as_the_request_waits_and_the_last_reason_is_told() -> None:
    async with asking() as (broker, asker, posted):
        broker.gate.set()
        broker.refuses = [BrokerUnavailable("not now")] * 100
        with pytest.raises(RequestTimeout, match=r"could not be opened within 0\.3 s: not now"):
            await asker.ask(QUESTION, 0.3)
        assert broker.begun in (2, 3)
        assert not broker.there
        broker.refuses = [PermissionDenied("never")]
        with pytest.raises(PermissionDenied, match="never"):
            await asker.ask(QUESTION, 60)
        assert posted.within == []


async def test_each_waits_for_its_own_time_whoever_asked_first() -> None:
    over: list[float] = []

    async def ask(asker: Asker, within: float) -> None:
        begin = time.monotonic()
        with pytest.raises(RequestTimeout):
            await asker.ask(QUESTION, within)
        assert within <= time.monotonic() - begin < 10
        over.append(within)

    async with asking() as (broker, asker, posted):
        broker.gate.set()
        long = asyncio.create_task(asker.ask(QUESTION, 60))
        await until(lambda: posted.within)
        await asyncio.gather(*(ask(asker, within) for within in (0.15, 0.05, 0.1)))
        assert over == [0.05, 0.1, 0.15]
        assert not long.done()
        assert asker.table.counts["expired"] == 3
        long.cancel()


async def test_the_time_that_opening_took_is_not_given_twice() -> None:
    async with asking() as (broker, asker, posted):
        begin = time.monotonic()
        waiting = asyncio.create_task(asker.ask(QUESTION, 0.3))
        await until(lambda: broker.begun)
        await asyncio.sleep(0.1)  # what opening takes
        broker.gate.set()
        with pytest.raises(RequestTimeout):
            await waiting
        assert posted.within[0] <= 0.3 - 0.1
        assert time.monotonic() - begin < 5


async def test_a_request_that_nobody_waits_for_any_more_is_withdrawn() -> None:
    async with asking() as (broker, asker, posted):
        broker.gate.set()
        with pytest.raises(RequestTimeout):
            await asker.ask(QUESTION, 0.02)
        assert posted.withdrawn == 1
        given_up = asyncio.create_task(asker.ask(QUESTION, 30))
        await until(lambda: len(posted.within) == 2)
        given_up.cancel()
        await asyncio.wait([given_up])
        assert posted.withdrawn == 2
