"""Suspects are moved while nothing else of the process runs: one that ends it then would leave them in two places."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest
from engine_kit import LEASED, Rig, ScriptedAdapter, copy, delivery, until

from atleastonce.contract import ACK, Code, Delivery, Release, unknown
from atleastonce.engine import aside, turnstile
from atleastonce.engine.aside import Suspicion
from atleastonce.engine.decision import DONE, Decision
from atleastonce.engine.turnstile import Turnstile

HAND_OUTS = 3


class Process:
    """Two readers, and what runs and waits in them. Handlers end when they are told to."""

    def __init__(self, *, settled_within: float = 0.0) -> None:
        self.turnstile = Turnstile()
        self.running: list[str] = []
        self.ended: list[str] = []
        self.may_end = asyncio.Event()
        suspicion = Suspicion(HAND_OUTS, self._move, self.turnstile)
        capabilities = msgspec.structs.replace(LEASED, settled_within=settled_within)
        self.rig = Rig(self._run, adapter=ScriptedAdapter(capabilities), suspicion=suspicion)
        self.other = Rig(self._run, adapter=ScriptedAdapter(capabilities))
        for each in (self.rig, self.other):
            self.turnstile.add(each.worker)

    async def _run(self, item: Delivery) -> Decision:
        self.running.append(item.message.id)
        await self.may_end.wait()
        self.ended.append(item.message.id)
        return DONE

    def _move(self, item: Delivery) -> Decision:
        return Decision(copies=(copy(item.message.id),), name="suspected")

    @property
    def moved(self) -> list[str]:
        return [name for each in self.rig.scripted.sends for name in each]


def suspect(name: str) -> Delivery:
    found = delivery(name, lease_until=1e12)
    found.count = HAND_OUTS
    return found


@pytest.fixture
async def process(request: pytest.FixtureRequest) -> AsyncIterator[Process]:
    made = Process(settled_within=getattr(request, "param", 0.0))
    for each in (made.rig, made.other):
        await each.supervisor.start()
    yield made
    made.may_end.set()
    for each in (made.rig, made.other):
        await each.supervisor.stop(1.0)


async def test_a_suspect_is_moved_when_what_runs_has_ended_and_nothing_starts_before_it_is_settled(
    process: Process,
) -> None:
    rig, other = process.rig, process.other
    other.feed([delivery("before", lease_until=1e12)])
    await until(lambda: process.running == ["before"])
    rig.scripted.sending.clear()
    rig.feed([suspect("suspect"), delivery("neighbour", lease_until=1e12)])
    other.feed([delivery("behind", lease_until=1e12)])
    await asyncio.sleep(0.1)
    assert (process.running, process.moved) == (["before"], [])
    process.may_end.set()
    await until(lambda: process.moved == ["suspect"])
    rig.subscription.settling.clear()
    rig.scripted.sending.set()
    await asyncio.sleep(0.1)
    assert process.running == ["before"]
    rig.subscription.settling.set()
    await until(lambda: set(process.ended) == {"before", "neighbour", "behind"})
    assert rig.subscription.verdicts()["suspect"] == ACK
    assert rig.worker.counts["suspected"] == 1


@pytest.mark.parametrize("process", [0.3], indirect=True)
async def test_where_a_crash_may_undo_a_settlement_nothing_starts_before_it_cannot(process: Process) -> None:
    process.may_end.set()
    process.rig.feed([suspect("suspect"), delivery("neighbour", lease_until=1e12)])
    await until(lambda: "suspect" in process.rig.subscription.verdicts())
    await asyncio.sleep(0.2)
    assert process.running == []
    await until(lambda: process.ended == ["neighbour"])


async def test_a_handler_that_runs_on_holds_up_a_suspect_for_a_moment(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turnstile, "BRIEF", 0.1)
    process.other.feed([delivery("slow", lease_until=1e12)])
    await until(lambda: process.running == ["slow"])
    process.rig.feed([suspect("suspect"), delivery("neighbour", lease_until=1e12)])
    await until(lambda: "suspect" in process.rig.subscription.verdicts())
    await until(lambda: process.running == ["slow", "neighbour"])


async def test_a_channel_that_takes_no_suspects_holds_up_nobody(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aside, "_MOVE_SECONDS", 60.0)
    process.may_end.set()
    process.rig.scripted.answers.extend([lambda batch: [unknown(Code.UNAVAILABLE, "away")] * len(batch)] * 1000)
    process.rig.feed([suspect("suspect"), delivery("neighbour", lease_until=1e12)])
    await until(lambda: process.ended == ["neighbour"])
    assert "suspect" not in process.rig.subscription.verdicts()
    process.rig.scripted.answers.clear()
    await until(lambda: process.rig.subscription.verdicts().get("suspect") == ACK)


async def test_one_that_does_not_answer_holds_them_up_for_a_while(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aside, "_MOVE_SECONDS", 0.2)
    process.may_end.set()
    process.rig.scripted.sending.clear()
    process.rig.feed([suspect("suspect"), delivery("neighbour", lease_until=1e12)])
    await until(lambda: process.ended == ["neighbour"])
    process.rig.scripted.sending.set()
    await until(lambda: process.rig.subscription.verdicts().get("suspect") == ACK)


async def test_what_comes_meanwhile_is_moved_next_and_others_run_in_between(process: Process) -> None:
    process.may_end.set()
    process.rig.scripted.sending.clear()
    process.rig.feed([suspect("first"), delivery("one", lease_until=1e12)])
    await until(lambda: process.moved == ["first"])
    process.rig.feed([suspect("second"), delivery("two", lease_until=1e12)])
    await asyncio.sleep(0.1)
    process.rig.scripted.sending.set()
    await until(lambda: {"one", "two"} <= set(process.ended))
    await until(lambda: process.moved == ["first", "second"])


async def test_a_suspect_that_waits_is_given_back_by_a_stop(process: Process) -> None:
    rig = process.rig
    process.other.feed([delivery("before", lease_until=1e12)])
    await until(lambda: process.running == ["before"])
    rig.feed([suspect("suspect")])
    await until(lambda: rig.worker.in_flight == 1)
    assert await rig.supervisor.stop(1.0)
    assert isinstance(rig.subscription.verdicts()["suspect"], Release)
    assert process.moved == []


async def test_a_suspect_that_is_lost_meanwhile_is_not_moved(process: Process) -> None:
    rig = process.rig
    process.other.feed([delivery("before", lease_until=1e12)])
    await until(lambda: process.running == ["before"])
    rig.feed([suspect("suspect")])
    await until(lambda: rig.worker.in_flight == 1)
    rig.worker.lost(None)
    await until(lambda: rig.worker.in_flight == 0)
    process.may_end.set()
    await until(lambda: process.ended == ["before"])
    await asyncio.sleep(0.1)
    assert process.moved == []
