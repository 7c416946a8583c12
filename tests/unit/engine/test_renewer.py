"""Leases live as long as their handlers, in batches; a lost one is told, and nothing ends the renewing."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence

import pytest
from engine_kit import deliveries, delivery, ids, until

from atleastonce.contract import ACK, OK, RELEASE, Code, Delivery, Outcome, Settlement, rejected, unknown
from atleastonce.engine.renewer import Renewer

LEASE = 0.06
STALE = rejected(Code.STALE, "gone")
LATER = unknown(Code.TIMEOUT, "slow")

Answer = Callable[[Sequence[Delivery]], Sequence[Outcome]]


class Broker:
    """Extends leases as its script says, then for ever."""

    def __init__(self, *script: Answer | BaseException) -> None:
        self.script = list(script)
        self.calls: list[list[str]] = []
        self.times: list[float] = []

    async def extend(self, batch: Sequence[Delivery], seconds: float) -> Sequence[Outcome]:
        assert seconds == LEASE
        self.calls.append(ids(batch))
        self.times.append(time.monotonic())
        answer = self.script.pop(0) if self.script else lambda batch: [OK] * len(batch)
        if isinstance(answer, BaseException):
            raise answer
        outcomes = answer(batch)
        for item, outcome in zip(batch, outcomes, strict=False):
            if outcome.ok:
                item.lease_until = time.monotonic() + seconds
        return outcomes


@contextlib.asynccontextmanager
async def renewing(broker: Broker) -> AsyncIterator[tuple[Renewer, list[int]]]:
    told: list[int] = []
    renewer = Renewer(LEASE, lambda: told.append(1))
    renewer.target = broker.extend
    task = asyncio.create_task(renewer.run())
    try:
        yield renewer, told
        assert not task.done(), task
    finally:
        task.cancel()
        await asyncio.wait([task])


def fresh(count: int = 2) -> list[Delivery]:
    batch = deliveries(count)
    for item in batch:
        item.lease_until = time.monotonic() + LEASE
    return batch


async def test_a_batch_is_renewed_as_one_again_and_again_until_it_is_settled() -> None:
    broker = Broker()
    async with renewing(broker) as (renewer, told):
        batch = fresh(3)
        begin = time.monotonic()
        renewer.watch(batch)
        await until(lambda: len(broker.calls) == 3)
        assert broker.calls == [["m0", "m1", "m2"]] * 3
        assert broker.times[0] - begin >= LEASE / 3 - 0.001
        batch[1].settled = True
        seen = len(broker.calls)
        await until(lambda: len(broker.calls) > seen + 1)
        assert broker.calls[-1] == ["m0", "m2"]
        for item in batch:
            item.settled = True
        await until(lambda: renewer.table.next_due() is None)
        assert not told
        assert not any(item.lost for item in batch)


async def test_a_batch_that_was_fetched_earlier_is_renewed_before_its_own_lease_ends() -> None:
    """Adapters hand out from a buffer; the lease began when the broker gave the message."""
    broker = Broker()
    async with renewing(broker) as (renewer, _):
        old = delivery("old", lease_until=time.monotonic() + LEASE / 10)
        renewer.watch([old, delivery("new", lease_until=time.monotonic() + LEASE)])
        await until(lambda: broker.calls)
        assert broker.times[0] < time.monotonic() + LEASE / 10
        assert broker.calls[0] == ["old", "new"]


async def test_only_a_lease_that_ends_sooner_wakes_it() -> None:
    broker = Broker()
    async with renewing(broker) as (renewer, _):
        renewer.watch(fresh())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        renewer.watch(fresh())
        assert not renewer._bell._rung, "it sleeps until the first is due, and looks at all of them then"
        old = delivery("old", lease_until=time.monotonic() + LEASE / 10)
        renewer.watch([old])
        await until(lambda: broker.calls)
        assert "old" in broker.calls[0]
        await until(lambda: sum(call.count("m0") for call in broker.calls) >= 2)


async def test_what_has_no_lease_is_not_watched() -> None:
    broker = Broker()
    async with renewing(broker) as (renewer, told):
        renewer.watch([delivery("question")])
        assert renewer.table.next_due() is None
        renewer.watch([delivery("question"), *fresh(1)])
        await until(lambda: len(broker.calls) >= 2)
        assert broker.calls[0] == ["m0"]
        assert not told


async def test_a_lease_that_is_gone_is_told_and_never_asked_for_again() -> None:
    broker = Broker(lambda _: [STALE, OK])
    async with renewing(broker) as (renewer, told):
        batch = fresh()
        renewer.watch(batch)
        await until(lambda: len(broker.calls) >= 2)
        assert batch[0].lost
        assert not batch[1].lost
        assert told == [1]
        assert broker.calls[1] == ["m1"]


async def test_a_lease_that_the_adapter_itself_marks_as_lost_is_told_too() -> None:
    def gone(batch: Sequence[Delivery]) -> Sequence[Outcome]:
        batch[0].lost = True
        return [STALE, OK]

    broker = Broker(gone)
    async with renewing(broker) as (renewer, told):
        renewer.watch(fresh())
        await until(lambda: len(broker.calls) >= 2)
        assert told == [1]


async def test_a_lease_that_is_not_renewed_for_a_passing_reason_is_tried_again_while_it_lasts() -> None:
    broker = Broker(lambda b: [LATER] * len(b))
    async with renewing(broker) as (renewer, told):
        batch = fresh()
        renewer.watch(batch)
        await until(lambda: len(broker.calls) >= 2)
        assert broker.calls[:2] == [["m0", "m1"]] * 2
        assert not told


@pytest.mark.parametrize(
    "failure",
    [
        lambda b: [LATER] * len(b),
        RuntimeError("broken"),
        lambda b: [OK] * (len(b) - 1),  # an adapter's bug: nobody knows which
        asyncio.CancelledError(),  # some future inside the client was cancelled, and not we
    ],
    ids=["unknown", "raises", "too few answers", "cancelled inside"],
)
async def test_a_lease_is_lost_when_it_ends_unrenewed_and_the_renewer_goes_on(failure: Answer | BaseException) -> None:
    broker = Broker(*[failure] * 20)
    async with renewing(broker) as (renewer, told):
        batch = fresh()
        renewer.watch(batch)
        await until(lambda: all(item.lost for item in batch))
        assert 2 <= len(broker.calls) <= 6
        assert told
        broker.script.clear()
        other = fresh()
        seen = len(broker.calls)
        renewer.watch(other)
        await until(lambda: len(broker.calls) > seen + 1)
        assert not any(item.lost for item in other)


async def test_without_a_subscription_nothing_is_asked() -> None:
    broker = Broker()
    async with renewing(broker) as (renewer, told):
        renewer.target = None
        renewer.watch(fresh())
        await until(lambda: renewer.table.next_due() is None)
        assert not broker.calls
        assert not told


async def test_what_comes_again_is_settled_after_the_extension_that_is_under_way() -> None:
    """The broker might hear of them in the other order, and keep from everybody what was given back."""
    heard: list[str] = []
    answered = asyncio.Event()

    async def extend(batch: Sequence[Delivery], seconds: float) -> Sequence[Outcome]:
        if not answered.is_set():
            heard.append("asked")
            await answered.wait()
            heard.append("extended")
        return [OK] * len(batch)

    async def settle(batch: Sequence[Settlement]) -> Sequence[Outcome]:
        heard.extend(type(verdict).__name__ for _, verdict in batch)
        return [OK] * len(batch)

    async with renewing(Broker()) as (renewer, _):
        renewer.target = extend
        settled = renewer.after(settle)
        extended, other = fresh(2), delivery()
        renewer.watch(extended)
        await until(lambda: heard == ["asked"])
        await settled([(extended[0], ACK), (other, RELEASE)])
        giving_back = asyncio.create_task(settled([(extended[1], RELEASE)]))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        assert heard == ["asked", "Ack", "Release"]
        answered.set()
        await asyncio.wait_for(giving_back, 10)
        assert heard == ["asked", "Ack", "Release", "extended", "Release"]
