"""Settling: in batches, each delivery once on the account, whatever the adapter answers or raises."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence

import pytest
from engine_kit import ScriptedSubscription, deliveries, delivery, until

from atleastonce.contract import (
    ACK,
    OK,
    RELEASE,
    STALE,
    Code,
    Delivery,
    Outcome,
    Retry,
    Settlement,
    Status,
    rejected,
    unknown,
)
from atleastonce.engine import settler as module
from atleastonce.engine.settler import Settler

LOST_REPLY = unknown(Code.TIMEOUT, "reply lost")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_REPEATS", (0.005, 0.01, 0.015))


class Ledger:
    """What was told to be over."""

    def __init__(self) -> None:
        self.ended: list[tuple[str, Status, Code | None]] = []

    def __call__(self, batch: Sequence[Settlement], outcomes: Sequence[Outcome]) -> None:
        for (item, _), outcome in zip(batch, outcomes, strict=True):
            self.ended.append((item.message.id, outcome.status, outcome.fault.code if outcome.fault else None))

    def of(self, item: Delivery) -> tuple[str, Status, Code | None]:
        (found,) = [entry for entry in self.ended if entry[0] == item.message.id]
        return found


@contextlib.asynccontextmanager
async def settling() -> AsyncIterator[tuple[Settler, ScriptedSubscription, Ledger]]:
    ledger, subscription = Ledger(), ScriptedSubscription()
    settler = Settler(ledger)
    settler.target = subscription.settle
    task = asyncio.create_task(settler.run())
    try:
        yield settler, subscription, ledger
        await until(lambda: settler.idle)
        assert not task.done(), task
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_what_comes_in_during_one_call_goes_out_in_the_next() -> None:
    async with settling() as (settler, subscription, ledger):
        batch = deliveries(10)
        subscription.settling.clear()
        settler.add(batch[0], ACK)
        await until(lambda: settler.busy)
        for item in batch[1:]:
            settler.add(item, ACK)
        assert not settler.idle
        subscription.settling.set()
        await until(lambda: len(ledger.ended) == 10)
        assert subscription.calls == [["m0"], [f"m{n}" for n in range(1, 10)]]


async def test_the_first_verdict_counts() -> None:
    async with settling() as (settler, subscription, ledger):
        item = delivery()
        settler.add(item, Retry(5))
        settler.add(item, ACK)
        await until(lambda: ledger.ended)
        settler.add(item, RELEASE)
        await until(lambda: settler.idle)
        assert subscription.settled == [("m", Retry(5))]
        assert ledger.ended == [("m", Status.OK, None)]


async def test_unknown_then_ok_is_repeated_and_ends_once() -> None:
    async with settling() as (settler, subscription, ledger):
        a, b = deliveries(2)
        subscription.answers.append(lambda _: [OK, LOST_REPLY])
        settler.add(a, ACK)
        settler.add(b, ACK)
        await until(lambda: len(ledger.ended) == 2)
        assert subscription.calls == [["m0", "m1"], ["m1"]]
        assert ledger.of(b) == ("m1", Status.OK, None)


async def test_a_repetition_holds_up_nobody_else() -> None:
    """One partition whose acks time out must not delay the acks of the others."""
    async with settling() as (settler, subscription, ledger):
        slow, quick = delivery("slow"), delivery("quick")
        subscription.answers.append(lambda _: [LOST_REPLY])
        settler.add(slow, ACK)
        await until(lambda: subscription.calls)
        settler.add(quick, ACK)
        await until(lambda: len(ledger.ended) == 2)
        assert [name for name, _, _ in ledger.ended] == ["quick", "slow"]


@pytest.mark.parametrize(
    "answer",
    [
        lambda batch: [LOST_REPLY] * len(batch),
        lambda _: RuntimeError("bug"),
        lambda batch: [OK] * (len(batch) - 1),
        lambda batch: [OK] * (len(batch) + 1),
        lambda _: asyncio.CancelledError(),  # a future of the client, not our task
    ],
    ids=["unknown", "raises", "too few", "too many", "cancelled inside"],
)
async def test_what_stays_unknown_ends_after_four_tries_and_the_next_is_settled(
    answer: Callable[[Sequence[Settlement]], Sequence[Outcome]],
) -> None:
    async with settling() as (settler, subscription, ledger):
        a, b = deliveries(2)
        subscription.answers.extend([answer] * 4)
        settler.add(a, ACK)
        await until(lambda: ledger.ended)
        assert len(subscription.calls) == 4
        assert ledger.of(a)[1] is Status.UNKNOWN
        settler.add(b, ACK)
        await until(lambda: len(ledger.ended) == 2)
        assert ledger.of(b)[1] is Status.OK


@pytest.mark.parametrize("outcome", [STALE, rejected(Code.INVALID, "no such verdict here")])
async def test_rejected_ends_at_once_and_is_told_unless_it_is_stale(
    outcome: Outcome, caplog: pytest.LogCaptureFixture
) -> None:
    async with settling() as (settler, subscription, ledger):
        a, b = deliveries(2)
        subscription.answers.append(lambda _: [outcome, OK])
        settler.add(a, Retry(1))
        settler.add(b, ACK)
        await until(lambda: len(ledger.ended) == 2)
        assert len(subscription.calls) == 1
        assert ledger.of(a)[1:] == (Status.REJECTED, outcome.fault.code if outcome.fault else None)
        warned = [record.getMessage() for record in caplog.records]
        assert (warned == []) is (outcome is STALE)
        if warned:
            assert warned == [f"retry of m0 failed ({outcome.fault}); it will be delivered again"]


async def test_what_is_lost_is_not_sent() -> None:
    async with settling() as (settler, subscription, ledger):
        a, b, c = deliveries(3)
        for item in (a, b, c):
            settler.add(item, ACK)
        b.lost = True
        await until(lambda: len(ledger.ended) == 3)
        assert subscription.settled == [("m0", ACK), ("m2", ACK)]
        assert ledger.of(b)[1:] == (Status.REJECTED, Code.STALE)


async def test_what_is_lost_while_its_reply_is_awaited_is_not_repeated() -> None:
    async with settling() as (settler, subscription, ledger):
        item = delivery()

        def lose(_: Sequence[Settlement]) -> Sequence[Outcome]:
            item.lost = True
            return [LOST_REPLY]

        subscription.answers.append(lose)
        settler.add(item, ACK)
        await until(lambda: ledger.ended)
        assert len(subscription.calls) == 1


async def test_what_waits_for_its_repetition_never_reaches_the_next_subscription() -> None:
    async with settling() as (settler, subscription, ledger):
        item, other = deliveries(2)
        subscription.answers.append(lambda _: [LOST_REPLY])
        settler.add(item, ACK)
        await until(lambda: subscription.calls)
        item.lost = True  # what a lost connection does to everything that is out
        second = ScriptedSubscription()
        settler.target = second.settle
        settler.add(other, ACK)
        await until(lambda: len(ledger.ended) == 2)
        assert second.settled == [("m1", ACK)]
        assert len(subscription.calls) == 1
        assert ledger.of(item)[1:] == (Status.REJECTED, Code.STALE)


async def test_without_a_subscription_everything_is_stale() -> None:
    async with settling() as (settler, _, ledger):
        settler.target = None
        item = delivery()
        settler.add(item, ACK)
        await until(lambda: ledger.ended)
        assert ledger.of(item)[1:] == (Status.REJECTED, Code.STALE)
