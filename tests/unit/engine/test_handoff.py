"""Transactions of a worker: all that is pending in one, the order kept over failures, one bad message alone in its trouble."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence

import pytest
from engine_kit import copy, deliveries, delivery, until

from atleastonce.contract import (
    ACK,
    OK,
    RELEASE,
    STALE,
    Code,
    Delivery,
    Fault,
    HandOff,
    Outcome,
    Outgoing,
    Settlement,
    Verdict,
    rejected,
    unknown,
)
from atleastonce.engine import handoff as module
from atleastonce.engine.backoff import Backoff
from atleastonce.engine.decision import DONE, Decision
from atleastonce.engine.handoff import Handoff

TOO_LARGE = rejected(Code.TOO_LARGE, "too large")
AWAY = unknown(Code.UNAVAILABLE, "away")
DEAD = Decision(copies=(copy("dead"),), name="dead")

Script = Callable[[Sequence[str]], Sequence[Outcome] | BaseException]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BACKOFF", Backoff("1ms", maximum="5ms"))


class Handed:
    """A handoff, the broker it talks to, and what it told."""

    def __init__(self, *, enough: int = 10, replaces: bool = False) -> None:
        self.calls: list[list[str]] = []
        self.copies: list[list[str]] = []
        self.answers: deque[Script] = deque()  # one for each call; then everything is OK
        self.ended: list[tuple[str, Outcome]] = []
        self.given_back: list[tuple[str, Verdict]] = []
        self.waits: list[float] = []
        self.refusals: list[str] = []
        self.open = asyncio.Event()  # cleared: calls wait
        self.open.set()
        self._replaces = replaces
        self.handoff = Handoff(enough, self._settle, self._over, self._wait, self._refused)
        self.handoff.target = self._hand_off

    async def _hand_off(self, batch: Sequence[HandOff]) -> Sequence[Outcome]:
        names = [item.message.id for item, _ in batch]
        self.calls.append(names)
        self.copies.append([each.message.id for _, copies in batch for each in copies])
        await self.open.wait()
        answer = self.answers.popleft()(names) if self.answers else [OK] * len(batch)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def _settle(self, item: Delivery, verdict: Verdict) -> None:
        self.given_back.append((item.message.id, verdict))

    def _over(self, batch: Sequence[Settlement], outcomes: Sequence[Outcome]) -> None:
        self.ended += [(item.message.id, outcome) for (item, _), outcome in zip(batch, outcomes, strict=True)]

    def _wait(self, pause: float, item: Delivery, decision: Decision) -> None:
        self.waits.append(pause)
        self.handoff.add(item, decision)

    def _refused(self, item: Delivery, decision: Decision, fault: Fault) -> bool:
        self.refusals.append(item.message.id)
        if self._replaces:
            self.handoff.add(item, DEAD)
        return self._replaces

    @property
    def done(self) -> list[str]:
        return [name for name, outcome in self.ended if outcome is OK]


@contextlib.asynccontextmanager
async def running(made: Handed) -> AsyncIterator[Handed]:
    task = asyncio.create_task(made.handoff.run())
    try:
        yield made
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_what_comes_in_during_one_transaction_goes_into_the_next() -> None:
    async with running(Handed(enough=1)) as made:
        items = deliveries(6)
        made.open.clear()
        made.handoff.add(items[0], Decision(copies=(copy("c0"), copy("c1"))))
        await until(lambda: made.calls)
        for item in items[1:]:
            made.handoff.settle(item, ACK)
        assert not made.handoff.idle
        made.open.set()
        await until(lambda: len(made.ended) == 6)
    assert made.calls == [["m0"], ["m1", "m2", "m3", "m4", "m5"]]
    assert made.copies == [["c0", "c1"], []]
    assert all(item.settled for item in items)
    assert made.handoff.idle


async def test_a_slow_stream_is_gathered_and_half_a_window_is_not_waited_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LEAST_SECONDS", 0.2)
    async with running(Handed(enough=5)) as made:
        began = time.monotonic()
        made.handoff.settle(delivery("first"), ACK)
        await until(lambda: made.calls == [["first"]])
        assert time.monotonic() - began < 0.15  # nothing went before it
        for item in deliveries(4):
            made.handoff.settle(item, ACK)
            await asyncio.sleep(0.01)
        await until(lambda: len(made.calls) == 2)
        assert time.monotonic() - began >= 0.2
        assert made.calls[1] == ["m0", "m1", "m2", "m3"]
        began = time.monotonic()
        for item in deliveries(5, prefix="n"):
            made.handoff.settle(item, ACK)
        await until(lambda: len(made.calls) == 3)
        assert time.monotonic() - began < 0.15


async def test_a_transaction_that_failed_is_repeated_in_its_order_before_what_came_later() -> None:
    async with running(Handed(enough=1)) as made:
        made.answers.extend([lambda names: [AWAY] * len(names), lambda _: RuntimeError("broken")])
        items = deliveries(3)
        for item in items:
            made.handoff.add(item, DONE)
        await until(lambda: made.calls)
        made.handoff.add(late := delivery("late"), DONE)
        await until(lambda: len(made.ended) == 4)
    assert made.calls[-1] == ["m0", "m1", "m2", "late"]
    assert made.done == ["m0", "m1", "m2", "late"]
    assert late.settled


async def test_a_refused_copy_is_decided_anew_and_its_neighbours_are_done() -> None:
    async with running(Handed(enough=1, replaces=True)) as made:
        made.answers.append(lambda names: [TOO_LARGE if name == "m1" else OK for name in names])
        for item in deliveries(3):
            made.handoff.add(item, Decision(copies=(copy("big"),)))
        await until(lambda: len(made.ended) == 3)
    assert made.done == ["m0", "m2", "m1"]
    assert made.refusals == ["m1"]
    assert made.copies[-1] == ["dead"]
    assert not made.waits


async def test_a_refused_copy_that_nobody_replaces_is_tried_again_later() -> None:
    async with running(Handed(enough=1)) as made:
        made.answers.extend([lambda _: [TOO_LARGE], lambda _: [TOO_LARGE]])
        made.handoff.add(item := delivery(), Decision(copies=(copy("big"),)))
        await until(lambda: made.ended)
        assert len(made.waits) == 2
        assert made.waits[0] < made.waits[1]
        assert made.handoff.failing == 1
        made.handoff.forget(item)
        assert made.handoff.failing == 0


async def test_what_is_lost_is_given_back_and_what_was_lost_in_between_is_stale() -> None:
    async with running(Handed(enough=1)) as made:
        gone, kept, lost = delivery("gone"), delivery("kept"), delivery("lost")
        gone.lost = True

        def lose(names: Sequence[str]) -> Sequence[Outcome]:
            lost.lost = True
            return [OK, AWAY]

        made.answers.append(lose)
        for item in (gone, kept, lost):
            made.handoff.add(item, DONE)
        await until(lambda: len(made.ended) == 2)
    assert made.given_back == [("gone", RELEASE)]
    assert made.ended == [("kept", OK), ("lost", STALE)]


async def test_what_is_not_done_goes_to_the_settler() -> None:
    async with running(Handed()) as made:
        made.handoff.settle(delivery("back"), RELEASE)
    assert made.given_back == [("back", RELEASE)]
    assert not made.calls


class _Draft:
    destination = copy("late").destination

    def written(self, _: Sequence[Delivery]) -> tuple[list[Outgoing], list[Delivery]]:
        raise AssertionError("nothing is written here")


async def test_what_has_a_draft_is_never_taken_for_done() -> None:
    """It has no copies yet: handed off, it would be settled without one."""
    made = Handed()
    decision = Decision(name="retried", draft=_Draft())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no draft"):
        made.handoff.add(delivery("m"), decision)
    assert made.handoff.idle
