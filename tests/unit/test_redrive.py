"""Redrive on a real (memory) broker and on one whose copies fail: nothing lost, nothing looked at twice, all given back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
import pytest

from atleastonce import Queue, Source, Topic, wire
from atleastonce.adapters.memory import MemoryAdapter
from atleastonce.contract import Code, Outcome, Outgoing, Topology, Window, rejected, unknown
from atleastonce.errors import NotFound
from atleastonce.message import Headers, HeaderValue, Message
from atleastonce.patterns.redrive import Redriven, Selection, moves, passage, redrive, way_back
from atleastonce.patterns.redrive.letters import Letter
from atleastonce.patterns.redrive.passage import _Listener

HOME = Source(Topic("orders"), "billing")
OTHER = Source(Topic("orders"), "shipping")
DEAD = Source(HOME.dead_letter_channel)


@pytest.fixture
async def adapter(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MemoryAdapter]:
    monkeypatch.setattr(moves, "_BATCH", 7)
    made = MemoryAdapter()
    await made.open()
    topology = Topology(channels=(HOME.channel,), sources=(HOME, OTHER), dead_letters=(HOME.dead_letter_channel,))
    await made.declare(topology)
    yield made
    await made.close()


async def bury(adapter: MemoryAdapter, count: int) -> None:
    headers = Headers({wire.GROUP: "billing", wire.ORIGIN: "orders/1", wire.ERROR_TYPE: "ValueError", "tenant": "a"})
    items = [Outgoing(HOME.dead_letter_channel, Message(f"m{n}", b"body", b"key", headers)) for n in range(count)]
    assert all(outcome.ok for outcome in await adapter.send(items))


def counts(done: Redriven) -> Redriven:
    """Without what differs from run to run."""
    return msgspec.structs.replace(done, seconds=0.0)


async def waiting(adapter: MemoryAdapter, source: Source) -> int | None:
    return (await adapter.backlog(source)).waiting


async def test_all_go_back_to_the_group_that_failed_them_and_to_nobody_else(adapter: MemoryAdapter) -> None:
    await bury(adapter, 20)
    told: list[tuple[int, int | None]] = []
    done = await redrive(adapter, HOME, progress=lambda _, seen, total: told.append((seen, total)))
    assert counts(done) == Redriven(matched=20, redriven=20)
    assert told[-1] == (20, 20)
    assert [await waiting(adapter, source) for source in (HOME, OTHER, DEAD)] == [20, 0, 0]
    subscription = await adapter.subscribe(HOME, Window(100, 1 << 20), _Listener())
    back = [delivery.message for delivery in await subscription.receive(100, 1.0)]
    await subscription.close()
    assert sorted(message.id for message in back) == sorted(f"m{n}" for n in range(20))
    assert all((message.body, message.key) == (b"body", b"key") for message in back)
    assert {message.headers.get(wire.REDRIVES) for message in back} == {"1"}
    assert {message.headers.get(wire.ERROR_TYPE) for message in back} == {None}
    assert {message.headers.get("tenant") for message in back} == {"a"}
    assert counts(await redrive(adapter, HOME)) == Redriven()


@pytest.mark.parametrize("written", ["5", "999", "1000", "32767", "9" * 30, "-1", "many"])
async def test_whatever_a_producer_writes_makes_no_letter_that_no_redrive_takes(
    adapter: MemoryAdapter, written: str
) -> None:
    forged = Headers({wire.GROUP: "billing", wire.ORIGIN: "orders/1", wire.REDRIVES: written})
    await adapter.send([Outgoing(HOME.dead_letter_channel, Message("m", b"body", None, forged))])
    believed = int(written) if written in ("5", "999") else 0
    (letter,) = [Letter(each) for each in await adapter.browse(HOME.dead_letter_channel, 10)]
    assert letter.redrives == (letter.obituary.redrives or 0) == believed
    done = await redrive(adapter, HOME)
    assert (done.redriven, done.looped) == ((0, 1) if believed else (1, 0))
    if believed:
        done = await redrive(adapter, HOME, max_redrives=1000)
        assert (done.redriven, done.looped) == (1, 0)
    (back,) = await adapter.browse(HOME.channel, 10, HOME.group)
    assert back.message.headers.get(wire.REDRIVES) == {"5": "6", "999": "999"}.get(written, "1")


async def test_only_what_is_wanted_goes_and_the_rest_stays(adapter: MemoryAdapter) -> None:
    await bury(adapter, 20)
    done = await redrive(adapter, HOME, wanted=lambda item: int(item.message.id[1:]) % 4 == 0)
    assert counts(done) == Redriven(matched=5, redriven=5, skipped=15)
    assert [await waiting(adapter, source) for source in (HOME, DEAD)] == [5, 15]


@pytest.mark.parametrize("limit", [0, 1, 7, 10, 50])
async def test_a_limit_is_kept(adapter: MemoryAdapter, limit: int) -> None:
    await bury(adapter, 20)
    done = await redrive(adapter, HOME, limit=limit)
    assert (done.matched, done.redriven, done.failed) == (min(limit, 20), min(limit, 20), 0)
    assert [await waiting(adapter, source) for source in (HOME, DEAD)] == [min(limit, 20), 20 - min(limit, 20)]


@pytest.mark.parametrize("outcome", [rejected(Code.TOO_LARGE), unknown(Code.TIMEOUT)])
async def test_a_copy_that_is_not_confirmed_leaves_its_dead_letter(
    adapter: MemoryAdapter, monkeypatch: pytest.MonkeyPatch, outcome: Outcome
) -> None:
    await bury(adapter, 20)
    send = adapter.send

    async def unsure(batch: Sequence[Outgoing]) -> Sequence[Outcome]:
        outcomes = list(await send([item for item in batch if item.message.id != "m3"]))
        return [outcome if item.message.id == "m3" else outcomes.pop(0) for item in batch]

    monkeypatch.setattr(adapter, "send", unsure)
    assert counts(await redrive(adapter, HOME)) == Redriven(matched=20, redriven=19, failed=1)
    assert [await waiting(adapter, source) for source in (HOME, DEAD)] == [19, 1]


@pytest.mark.parametrize("error", [RuntimeError("adapter"), asyncio.CancelledError()])
async def test_an_interrupted_redrive_loses_nothing(
    adapter: MemoryAdapter, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    await bury(adapter, 20)
    send, calls = adapter.send, 0

    async def breaks(batch: Sequence[Outgoing]) -> Sequence[Outcome]:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise error
        return await send(batch)

    monkeypatch.setattr(adapter, "send", breaks)
    ended: Any = None
    try:
        await redrive(adapter, HOME, wanted=lambda item: item.message.id != "m0")
    except BaseException as raised:  # noqa: BLE001
        ended = raised
    assert ended is error
    moved = await waiting(adapter, HOME)
    assert moved == 6
    found = await adapter.backlog(DEAD)
    assert (found.waiting or 0) + (found.in_flight or 0) == 20 - moved
    monkeypatch.setattr(adapter, "send", send)


async def test_the_next_list_is_on_its_way_while_one_is_waited_for(
    adapter: MemoryAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bury(adapter, 20)
    send, calls, second = adapter.send, 0, asyncio.Event()

    async def slow(batch: Sequence[Outgoing]) -> Sequence[Outcome]:
        nonlocal calls
        calls += 1
        if calls == 2:
            second.set()
        elif calls == 1:
            async with asyncio.timeout(5):
                await second.wait()
        return await send(batch)

    monkeypatch.setattr(adapter, "send", slow)
    assert counts(await redrive(adapter, HOME)) == Redriven(matched=20, redriven=20)
    assert [await waiting(adapter, source) for source in (HOME, DEAD)] == [20, 0]


@pytest.mark.parametrize("asked", [False, True])
async def test_what_died_again_meanwhile_waits_for_the_next_run(
    adapter: MemoryAdapter, monkeypatch: pytest.MonkeyPatch, asked: bool
) -> None:
    """Where a choice is asked of each letter, and where the copies are told all that there is to know."""
    monkeypatch.setattr(passage, "_QUIET_SECONDS", 0.1)
    monkeypatch.setattr(passage, "_RETURN_SECONDS", 0.1)
    await bury(adapter, 7)  # the first list
    ours = {wire.GROUP: "billing", wire.ORIGIN: "orders/1"}
    again = Message("m0", b"died again", None, Headers({**ours, wire.REDRIVES: "1"}))
    twin = Message("m1", b"a second letter of it, as old as the first", None, Headers(ours))
    await adapter.send([Outgoing(HOME.dead_letter_channel, message) for message in (again, twin)])
    done = await redrive(adapter, HOME, wanted=(lambda _: True) if asked else Selection())
    assert counts(done) == Redriven(matched=8, redriven=8, refailed=1)
    left = await adapter.browse(HOME.dead_letter_channel, 10)
    assert [each.message.body for each in left] == [again.body]
    assert (await redrive(adapter, HOME)).redriven == 1


@pytest.mark.parametrize("asked", [False, True])
async def test_letters_of_all_kinds_in_one_list(adapter: MemoryAdapter, asked: bool) -> None:
    ours: dict[str, HeaderValue] = {wire.GROUP: "billing", wire.ORIGIN: "orders/1"}
    kinds: dict[str, dict[str, HeaderValue]] = {
        "plain": ours,
        "foreign": {},
        "other": {**ours, wire.GROUP: "shipping"},
        "twice": {**ours, wire.REDRIVES: "2"},
        "looping": {**ours, wire.REDRIVES: "5"},
        "last": ours,
        "too many": ours,
    }
    items = [Message(name, b"", None, Headers(fields)) for name, fields in kinds.items()]
    await adapter.send([Outgoing(HOME.dead_letter_channel, message) for message in items])
    done = await redrive(adapter, HOME, wanted=(lambda _: True) if asked else Selection(), limit=5)
    assert counts(done) == Redriven(matched=5, redriven=5, skipped=2, looped=1)
    back = {each.message.id: each.message for each in await adapter.browse(HOME.channel, 10, HOME.group)}
    assert list(back) == ["plain", "foreign", "other", "twice", "last"]
    assert [message.headers.get(wire.REDRIVES) for message in back.values()] == ["1", "1", "1", "3", "1"]
    assert {message.headers.get(wire.GROUP) for message in back.values()} == {"billing"}
    left = await adapter.browse(HOME.dead_letter_channel, 10)
    assert {each.message.id for each in left} == {"looping", "too many"}


async def test_where_the_destination_takes_nothing_no_more_is_tried_than_is_on_its_way(
    adapter: MemoryAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bury(adapter, 40)

    async def full(batch: Sequence[Outgoing]) -> Sequence[Outcome]:
        return [unknown(Code.OVERLOADED)] * len(batch)

    monkeypatch.setattr(adapter, "send", full)
    done = await redrive(adapter, HOME)
    assert (done.redriven, done.stopped) == (0, f"{HOME.name} takes nothing at present")
    assert done.failed <= 14
    assert done.matched == done.failed
    monkeypatch.undo()
    assert [await waiting(adapter, source) for source in (HOME, DEAD)] == [0, 40]


async def test_without_a_dead_letter_queue_it_says_so(adapter: MemoryAdapter) -> None:
    with pytest.raises(NotFound):
        await redrive(adapter, Source(Queue("nothing")))


def test_the_way_back() -> None:
    class Able:
        capabilities = MemoryAdapter().capabilities

    able: Any = Able()
    assert way_back(HOME, able) == HOME
    assert way_back(Source(Queue("q")), able) == Queue("q")
    able.capabilities = msgspec.structs.replace(able.capabilities, addresses_groups=False)
    assert way_back(HOME, able) == Queue("orders.billing.redrive")


async def test_an_answer_for_fewer_copies_than_were_sent_takes_no_letter_out(
    adapter: MemoryAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bury(adapter, 5)
    send = adapter.send

    async def short(batch: Sequence[Outgoing]) -> Sequence[Outcome]:
        return list(await send(batch))[:-1]

    monkeypatch.setattr(adapter, "send", short)
    with pytest.raises(ValueError, match="zip"):
        await redrive(adapter, HOME)
    found = await adapter.backlog(DEAD)
    assert (found.waiting or 0) + (found.in_flight or 0) == 5
