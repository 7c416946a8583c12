"""The supervisor: reading begins anew after every loss, ends when told or when it must, and leaves nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Sequence

import pytest
from engine_kit import (
    LEASED,
    Rig,
    ScriptedAdapter,
    ScriptedSubscription,
    copy,
    deliveries,
    delivery,
    running,
    until,
)

from atleastonce.contract import ACK, RELEASE, Code, Delivery, Fault, Outcome, Settlement, rejected, unknown
from atleastonce.engine import settler as settler_module
from atleastonce.engine.backoff import Backoff
from atleastonce.engine.decision import DONE, Decision
from atleastonce.errors import BrokerUnavailable, ConfigurationError, ConnectionLost, NotFound, PermissionDenied

AWAY = unknown(Code.UNAVAILABLE, "away")


async def done(item: Delivery) -> Decision:
    return DONE


async def never(item: Delivery) -> Decision:
    await asyncio.Event().wait()
    return DONE


class Recorded(Backoff):
    """A back-off that notes for which attempts it was asked."""

    asked: list[int]

    def wait(self, attempt: int, rand: object = None) -> float | None:
        self.__dict__.setdefault("asked", []).append(attempt)
        return super().wait(attempt, lambda: 0.0)


@pytest.mark.parametrize(
    "error",
    [
        ConnectionLost("gone"),
        BrokerUnavailable("away"),
        NotFound("deleted"),
        ValueError("an adapter's bug"),
        asyncio.CancelledError(),  # a client's future ended with its connection: nobody cancelled the reading
    ],
    ids=lambda error: type(error).__name__,
)
async def test_whatever_ends_a_subscription_a_new_one_follows(error: BaseException) -> None:
    async with running(Rig(done)) as rig:
        first = rig.subscription
        rig.feed(deliveries(2), error)
        await until(lambda: len(rig.scripted.subscriptions) == 2)
        rig.feed(deliveries(2, prefix="n"))
        await rig.ended()
        assert first.closed == 1
        assert set(rig.subscription.verdicts()) == {"n0", "n1"}
        assert rig.worker.state == ("running", "")


async def test_waits_grow_while_nothing_arrives_and_begin_anew_after_something_did() -> None:
    backoff = Recorded("1ms")
    async with running(Rig(done, backoff=backoff)) as rig:
        rig.scripted.prepared.extend([BrokerUnavailable("a"), BrokerUnavailable("b"), BrokerUnavailable("c")])
        rig.feed(ConnectionLost("gone"))
        await until(lambda: len(rig.scripted.subscriptions) == 2)
        assert backoff.asked == [1, 2, 3, 4]
        rig.feed(deliveries(1), ConnectionLost("gone"))
        await until(lambda: len(rig.scripted.subscriptions) == 3)
        assert backoff.asked == [1, 2, 3, 4, 1]


async def test_a_backoff_that_ends_ends_the_reading_with_its_reason() -> None:
    async with running(Rig(done, backoff=Backoff("1ms", max_attempts=3))) as rig:
        rig.scripted.prepared.extend([BrokerUnavailable("away")] * 10)
        rig.feed(ConnectionLost("gone"))
        with pytest.raises(BrokerUnavailable, match="away"):
            await asyncio.wait_for(rig.supervisor.wait(), 2)
        assert len(rig.scripted.prepared) == 8


async def test_what_was_out_when_the_connection_died_is_never_settled_on_the_next_one() -> None:
    gate = asyncio.Event()
    begun: list[str] = []

    async def process(item: Delivery) -> Decision:
        if item.message.id.startswith("old"):
            begun.append(item.message.id)
            await gate.wait()
        return DONE

    async with running(Rig(process)) as rig:
        first = rig.subscription
        rig.feed(deliveries(6, prefix="old", body=b"12"))
        await until(lambda: len(begun) == 4)
        rig.feed(ConnectionLost("gone"))
        await until(lambda: len(rig.scripted.subscriptions) == 2)
        await until(lambda: rig.worker.in_flight == 4)  # what had not started is forgotten at once
        rig.feed(deliveries(3, prefix="new"))
        gate.set()
        await rig.ended()
        assert first.settled == []
        assert set(rig.subscription.verdicts()) == {"new0", "new1", "new2"}
        assert rig.worker.counts["unsettled"] == 6


async def test_a_settlement_that_waits_for_its_repetition_does_not_reach_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(settler_module, "_REPEATS", (0.03,))
    async with running(Rig(done)) as rig:
        first = rig.subscription

        def away(batch: Sequence[Settlement]) -> Sequence[Outcome]:
            return [AWAY] * len(batch)

        first.answers.append(away)
        rig.feed(deliveries(2))
        await until(lambda: first.calls)
        rig.feed(ConnectionLost("gone"))
        await rig.ended()
        assert len(first.calls) == 1
        assert rig.subscription is not first
        assert rig.subscription.settled == []


@pytest.mark.parametrize("error", [PermissionDenied("revoked"), ConfigurationError("no such option")])
@pytest.mark.parametrize("where", ["receive", "subscribe"])
async def test_what_trying_again_does_not_mend_ends_the_reading_and_is_told(error: Exception, where: str) -> None:
    async with running(Rig(done)) as rig:
        if where == "receive":
            rig.feed(deliveries(2), error)
        else:
            rig.scripted.prepared.append(error)
            rig.feed(deliveries(2), ConnectionLost("gone"))
        with pytest.raises(type(error), match=str(error)):
            await asyncio.wait_for(rig.supervisor.wait(), 2)
        assert rig.worker.state == ("stopped", str(error))
        assert rig.subscription.closed
        assert len(rig.scripted.subscriptions) == 1
    assert rig.worker.state == ("stopped", "")


def refused(batch: Sequence[object]) -> Sequence[Outcome]:
    return [rejected(Code.PERMISSION, "no right to it")] * len(batch)


async def test_who_may_not_settle_reads_no_more_and_is_told_why() -> None:
    """What is not settled comes again: it would run, and be copied, for ever."""
    runs: list[str] = []

    async def process(item: Delivery) -> Decision:
        runs.append(item.message.id)
        return DONE

    async with running(Rig(process)) as rig:
        first = rig.subscription
        first.answers.append(refused)
        rig.feed(deliveries(1))
        with pytest.raises(PermissionDenied, match="orders: may not ack: no right to it"):
            await asyncio.wait_for(rig.supervisor.wait(), 2)
        assert rig.worker.state == ("stopped", "orders: may not ack: no right to it")
        rig.feed(deliveries(1))
        await asyncio.sleep(0.05)  # time in which it would be read
        assert (runs, first.closed, len(rig.scripted.subscriptions)) == (["m0"], 1, 1)


async def test_what_is_out_when_a_settlement_is_refused_is_neither_settled_nor_copied() -> None:
    gate = asyncio.Event()

    async def process(item: Delivery) -> Decision:
        if item.message.id == "m0":
            return DONE
        await gate.wait()
        return Decision(copies=(copy(),), name="suspected")

    async with running(Rig(process)) as rig:
        rig.subscription.answers.append(refused)
        rig.feed(deliveries(3))
        with pytest.raises(PermissionDenied):
            await asyncio.wait_for(rig.supervisor.wait(), 2)
        gate.set()
        await until(lambda: not rig.worker.in_flight)
        assert rig.scripted.sends == []
        assert [name for name, _ in rig.subscription.settled] == ["m0"]


async def test_who_may_not_keep_a_lease_reads_no_more() -> None:
    """Whatever takes longer than the lease would run again and again, beside itself."""
    async with running(Rig(never, adapter=ScriptedAdapter(LEASED)), grace=0.1) as rig:
        rig.subscription.extensions.append(refused)
        rig.feed([delivery(lease_until=time.monotonic() + 0.3)])
        with pytest.raises(PermissionDenied, match="may not renew"):
            await asyncio.wait_for(rig.supervisor.wait(), 2)


@pytest.mark.parametrize("code", [code for code in Code if code is not Code.PERMISSION])
async def test_a_settlement_that_is_refused_for_another_reason_costs_its_message_only(code: Code) -> None:
    async with running(Rig(done)) as rig:
        rig.subscription.answers.append(lambda batch: [rejected(code, "no")] * len(batch))
        rig.feed(deliveries(1), deliveries(1, prefix="n"))
        await rig.ended()
        await until(lambda: "n0" in rig.subscription.verdicts())
        assert len(rig.scripted.subscriptions) == 1


async def test_a_refusal_that_comes_after_its_subscription_ended_does_not_end_the_next_one() -> None:
    async with running(Rig(done)) as rig:
        first = rig.subscription
        first.answers.append(refused)
        first.settling.clear()
        rig.feed(deliveries(1))
        await until(lambda: rig.worker.settler.busy)
        rig.feed(ConnectionLost("gone"))
        await until(lambda: len(rig.scripted.subscriptions) == 2)
        first.settling.set()
        rig.feed(deliveries(1, prefix="n"))
        await rig.ended()
        assert rig.subscription.verdicts() == {"n0": ACK}


@pytest.mark.parametrize("error", [NotFound("no"), BrokerUnavailable("no"), PermissionDenied("no")])
async def test_a_first_subscription_that_fails_is_raised_and_leaves_nothing(error: Exception) -> None:
    before = asyncio.all_tasks()
    rig = Rig(done)
    rig.scripted.prepared.append(error)
    with pytest.raises(type(error)):
        await rig.supervisor.start()
    assert asyncio.all_tasks() == before
    assert await rig.supervisor.stop(1)
    rig.check_empty()


async def test_wait_lets_its_own_cancellation_through_and_reading_goes_on() -> None:
    async with running(Rig(done)) as rig:
        waiting = asyncio.create_task(rig.supervisor.wait())
        await until(lambda: rig.subscription.receiving)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled()
        rig.feed(deliveries(1))
        await rig.ended()
        assert rig.subscription.verdicts() == {"m0": ACK}


async def test_wait_returns_when_the_supervisor_is_stopped() -> None:
    rig = Rig(done)
    async with running(rig):
        waiting = asyncio.create_task(rig.supervisor.wait())
        await until(lambda: rig.subscription.receiving)
    await asyncio.wait_for(waiting, 1)


async def test_a_reading_that_failed_and_was_not_asked_about_is_no_surprise_to_the_loop() -> None:
    async with running(Rig(done)) as rig:
        rig.feed(PermissionDenied("revoked"))
        await until(lambda: rig.worker.state[0] == "stopped")
    reading = rig.supervisor._reading
    assert reading is not None
    assert not reading._log_traceback  # type: ignore[attr-defined]  # what makes it complain when it is collected


async def test_a_subscription_that_fails_to_close_is_replaced_all_the_same() -> None:
    async with running(Rig(done)) as rig:

        async def close() -> None:
            raise RuntimeError("bug")

        rig.subscription.close = close  # type: ignore[method-assign]
        rig.feed(ConnectionLost("gone"))
        await until(lambda: len(rig.scripted.subscriptions) == 2)
        rig.feed(deliveries(1))
        await rig.ended()


async def test_an_adapter_that_fails_to_classify_is_read_on_all_the_same() -> None:
    async with running(Rig(done)) as rig:

        def classify(error: BaseException) -> Fault:
            raise TypeError("bug")

        rig.scripted.classify = classify  # type: ignore[method-assign]
        rig.feed(OSError())
        await until(lambda: len(rig.scripted.subscriptions) == 2)


# ------------------------------------------------------------------------------------------------------- stopping


async def test_stop_drains_and_says_so() -> None:
    rig = Rig(done)
    async with running(rig):
        rig.feed(deliveries(20))
        await until(lambda: rig.worker.counts["received"] == 20)
        assert await rig.supervisor.stop(5)
        assert set(rig.subscription.verdicts().values()) <= {ACK, RELEASE}
        assert len(rig.subscription.settled) == 20
        assert rig.subscription.closed == 1
        assert rig.worker.state == ("stopped", "")


async def test_stop_says_when_it_had_to_cancel() -> None:
    rig = Rig(never)
    async with running(rig):
        rig.feed([delivery("m")])
        await until(lambda: rig.worker.in_flight)
        assert not await rig.supervisor.stop(0.01)
        assert rig.subscription.settled == [("m", RELEASE)]


@pytest.mark.parametrize("when", ["receive", "back-off", "subscribe", "close"])
async def test_stop_comes_through_wherever_reading_stands(when: str) -> None:
    rig = Rig(done, backoff=Backoff("60s" if when == "back-off" else "1ms"))
    hang = asyncio.Event()
    async with running(rig):
        await until(lambda: rig.subscription.receiving)
        first = rig.subscription
        closes = 0
        if when == "subscribe":
            reached = asyncio.Event()

            async def subscribe(*_: object) -> ScriptedSubscription:
                reached.set()
                await hang.wait()
                raise AssertionError

            rig.scripted.subscribe = subscribe  # type: ignore[method-assign, assignment]
            rig.feed(ConnectionLost("gone"))
            await asyncio.wait_for(reached.wait(), 2)
        elif when == "close":

            async def close() -> None:
                nonlocal closes
                closes += 1
                if closes == 1:
                    await hang.wait()

            first.close = close  # type: ignore[method-assign]
            rig.feed(ConnectionLost("gone"))
            await until(lambda: closes)
        elif when == "back-off":
            rig.feed(ConnectionLost("gone"))
            await until(lambda: first.closed)
        begin = time.monotonic()
        assert await rig.supervisor.stop(5)
        assert time.monotonic() - begin < 1
        assert first.closed or closes == 2, "the subscription was left open"


async def test_stop_twice_and_at_once_is_one_stop() -> None:
    rig = Rig(never)
    async with running(rig):
        rig.feed(deliveries(3))
        await until(lambda: rig.worker.in_flight == 3)
        long = asyncio.create_task(rig.supervisor.stop(30))
        await asyncio.sleep(0.01)
        short = asyncio.create_task(rig.supervisor.stop(0.01))  # a second, more hurried signal
        await asyncio.wait_for(asyncio.gather(long, short), 5)
        assert await rig.supervisor.stop(1)
        assert rig.subscription.closed == 1
        assert len(rig.subscription.settled) == 3


async def test_stop_before_start() -> None:
    rig = Rig(done)
    assert await rig.supervisor.stop(1)
    rig.check_empty()


async def test_the_adapter_may_drain_and_lose_while_reading_is_cut_off() -> None:
    """What happens at a revocation: told from within the adapter, at any moment."""
    gate = asyncio.Event()

    async def process(item: Delivery) -> Decision:
        await gate.wait()
        return DONE

    async with running(Rig(process)) as rig:
        rig.feed([delivery("a", stream="a"), delivery("b", stream="b")])
        await until(lambda: rig.worker.in_flight == 2)

        async def revoke(streams: Collection[str]) -> None:
            await rig.worker.drain(streams, 0.02)
            rig.worker.lost(streams)

        revoking = asyncio.create_task(revoke(["a"]))
        await asyncio.sleep(0)
        rig.feed(ConnectionLost("gone"))
        await until(lambda: len(rig.scripted.subscriptions) == 2)
        await revoking
        gate.set()
        await rig.ended()
        assert all(not subscription.settled for subscription in rig.scripted.subscriptions)
