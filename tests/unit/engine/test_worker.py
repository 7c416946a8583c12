"""The worker: every delivery ends once, through every failure that a broker, a handler or a policy can have."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import pytest
from engine_kit import (
    LEASED,
    ByKey,
    Rig,
    ScriptedAdapter,
    ScriptedSubscription,
    copy,
    deliveries,
    delivery,
    running,
    until,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from atleastonce.adapters.memory import MemoryAdapter
from atleastonce.channels import Queue, Source
from atleastonce.contract import (
    ACK,
    DIED,
    OK,
    RELEASE,
    STALE,
    Code,
    Delivery,
    Fault,
    Outcome,
    Outgoing,
    Retry,
    Settlement,
    Topology,
    Window,
    rejected,
    unknown,
)
from atleastonce.engine import copies as copies_module
from atleastonce.engine import pools as pools_module
from atleastonce.engine import settler as settler_module
from atleastonce.engine import worker as worker_module
from atleastonce.engine.backoff import Backoff
from atleastonce.engine.decision import DONE, GIVE_BACK, Decision
from atleastonce.engine.lanes import KeyedLanes
from atleastonce.engine.worker import Worker
from atleastonce.errors import ConnectionLost
from atleastonce.message import Message

AWAY = unknown(Code.UNAVAILABLE, "away")
DEAD = Decision(copies=(copy("dead"),), name="dead")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settler_module, "_REPEATS", (0.002, 0.004, 0.006))
    monkeypatch.setattr(copies_module, "_BACKOFF", Backoff("1ms", maximum="5ms"))
    monkeypatch.setattr(pools_module, "SELF_CANCELLED", Decision(again=0.002, name="released"))


class Broken(Delivery):
    """Its adapter has a bug in reading."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(Message("m", b"body"), Source(Queue("q")), "s", "7", 1, "t")
        self._message = None

    @property
    def body(self) -> bytes:
        return b"body"

    def read(self) -> Message:
        raise OverflowError("cannot fit")


async def test_a_message_that_cannot_be_read_ends_like_any_other(caplog: pytest.LogCaptureFixture) -> None:
    """Names in log lines, keys and due times are looked at all over the engine: none of it may die of that."""
    broken = Broken()
    async with running(Rig(done, due=lambda item: float(bool(item.message.published_at)))) as rig:
        rig.feed([delivery("a"), broken, delivery("b")])
        await rig.ended()
        assert rig.counts["done"] == 3
    assert isinstance(broken.unreadable, OverflowError)
    assert (broken.message.id, broken.message.body) == ("s/7", b"body")
    assert caplog.text.count("q: what lies at s:7 cannot be read") == 1
    assert delivery("a").unreadable is None


async def test_a_part_that_dies_is_told() -> None:
    """Without it nothing more is settled, and nobody would know."""
    rig = Rig(done)

    async def dies() -> None:
        raise OverflowError("a bug")

    rig.worker.settler.run = dies  # type: ignore[method-assign]
    await rig.supervisor.start()
    await until(lambda: rig.fatal)
    assert isinstance(rig.fatal[0], OverflowError)
    await rig.supervisor.stop(0)


async def done(item: Delivery) -> Decision:
    return DONE


class Gate:
    """A handler that waits, told apart by the message's name: what starts with ``slow`` waits until it is let go."""

    def __init__(self) -> None:
        self.event = asyncio.Event()
        self.started: list[str] = []

    async def __call__(self, item: Delivery) -> Decision:
        self.started.append(item.message.id)
        if item.message.id.startswith("slow"):
            await self.event.wait()
        return DONE


# ------------------------------------------------------------------------------------------------- the plain way


async def test_what_is_received_is_handled_and_settled_once() -> None:
    async with running(Rig(done)) as rig:
        rig.feed(deliveries(50, body=b"12345"), deliveries(50, prefix="n"))
        await rig.ended()
        assert sorted(name for name, _ in rig.subscription.settled) == sorted(
            item.message.id for item in deliveries(50) + deliveries(50, prefix="n")
        )
        assert {type(verdict).__name__ for _, verdict in rig.subscription.settled} == {"Ack"}
        assert rig.counts == {"received": 100, "done": 100}


@pytest.mark.parametrize(
    ("decision", "verdict", "name"),
    [
        (DONE, ACK, "done"),
        (GIVE_BACK, RELEASE, "released"),
        (Decision(Retry(5.0), name="retried"), Retry(5.0), "retried"),
        (Decision(name="discarded"), ACK, "discarded"),
    ],
)
async def test_a_decision_without_copies_is_settled_and_counted_under_its_name(
    decision: Decision, verdict: Any, name: str
) -> None:
    async def process(item: Delivery) -> Decision:
        return decision if item.message.id == "m1" else DONE

    async with running(Rig(process)) as rig:
        rig.feed(deliveries(3))
        await rig.ended()
        assert rig.subscription.verdicts()["m1"] == verdict
        assert rig.subscription.verdicts()["m2"] == ACK
        assert rig.worker.counts[name] == (3 if name == "done" else 1)


async def test_the_window_bounds_what_is_out_in_messages_and_bytes() -> None:
    gate = Gate()
    async with running(Rig(gate, concurrency=3, window=Window(5, 1000))) as rig:
        rig.feed(deliveries(20, prefix="slow"))
        await until(lambda: rig.worker.in_flight == 5)
        for _ in range(20):
            await asyncio.sleep(0)
        assert rig.worker.in_flight == 5
        assert len(gate.started) == 3
        gate.event.set()
        await rig.ended()
        assert rig.worker.meter.peak_messages == 5
        rig.feed(deliveries(20, prefix="big", body=b"x" * 300))
        await rig.ended()
        assert rig.worker.meter.peak_bytes <= 5 * 300, "the first of them were not known to be large"
        rig.worker.meter.peak_bytes = 0
        rig.feed(deliveries(20, prefix="more", body=b"x" * 300))
        await rig.ended()
        assert 300 <= rig.worker.meter.peak_bytes <= 1000


async def test_a_mostly_held_window_goes_on_with_the_rest_of_it() -> None:
    """Seven of eight places wait for something long; the eighth must not wait with them."""
    gate = Gate()
    async with running(Rig(gate, concurrency=8, window=Window(8, 2**20))) as rig:
        rig.feed(deliveries(7, prefix="slow"), deliveries(1, prefix="first"))
        await until(lambda: len(gate.started) == 8)
        rig.feed(deliveries(30))
        await until(lambda: len(gate.started) == 38, within=2, what="the free place of the window is not used")
        gate.event.set()
        await rig.ended()


async def test_what_is_held_until_due_leaves_the_rest_of_the_window_to_others() -> None:
    later = time.time() + 3600
    started: list[str] = []

    async def process(item: Delivery) -> Decision:
        started.append(item.message.id)
        return DONE

    rig = Rig(process, window=Window(10, 2**20), due=lambda item: later if item.message.id[0] == "h" else 0.0)
    async with running(rig):
        rig.feed(deliveries(9, prefix="held"), deliveries(40))
        await until(lambda: len(started) == 40 and rig.worker.in_flight == 9, within=2)  # the last one is settled
        assert rig.worker.timers.holding == 9
    # the end of the worker released what was held
    assert Counter(type(v).__name__ for v in rig.subscription.verdicts().values()) == {"Ack": 40, "Release": 9}


async def test_a_subscription_that_answers_nothing_at_once_does_not_hold_the_loop() -> None:
    async with running(Rig(done)) as rig:

        async def nothing(max_messages: int, max_wait: float) -> Sequence[Delivery]:
            rig.subscription.receives += 1
            if rig.subscription.receives > 2000:
                await asyncio.Event().wait()
            return ()

        rig.subscription.receive = nothing  # type: ignore[method-assign]
        rig.feed(deliveries(1))
        turns = 0
        while rig.subscription.receives <= 2000:
            await asyncio.sleep(0)
            turns += 1
            assert turns < 10_000
        assert turns > 500


async def test_a_due_function_that_fails_costs_its_message_the_wait_and_nothing_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def due(item: Delivery) -> float:
        if item.message.id == "m1":
            raise ValueError("a header from elsewhere")
        return 0.0

    async with running(Rig(done, due=due)) as rig:
        rig.feed(deliveries(3))
        await rig.ended()
        assert set(rig.subscription.verdicts().values()) == {ACK}
        assert len(rig.scripted.subscriptions) == 1
        assert "m1" in caplog.text


# ---------------------------------------------------------------------------------------------- handlers' misdeeds


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), RuntimeError("bug")])
@pytest.mark.parametrize("threads", [False, True])
async def test_what_no_policy_caught_is_released_told_and_harms_no_other(error: BaseException, threads: bool) -> None:
    def sync(item: Delivery) -> Decision:
        if item.message.id == "m5":
            raise error
        return DONE

    async def process(item: Delivery) -> Decision:
        return sync(item)

    async with running(Rig(sync if threads else process, threads=threads)) as rig:
        rig.feed(deliveries(10))
        await rig.ended()
        verdicts = rig.subscription.verdicts()
        assert verdicts.pop("m5") == (DIED if isinstance(error, SystemExit) else RELEASE)
        assert set(verdicts.values()) == {ACK}
        assert rig.fatal == [error]


async def test_in_order_nothing_starts_after_an_exit_though_others_let_the_worker_go_on() -> None:
    begun: list[str] = []

    async def process(item: Delivery) -> Decision:
        begun.append(item.message.id)
        if item.message.id == "bad":
            raise SystemExit(1)
        return DONE

    rig = Rig(process, lanes=KeyedLanes(ByKey()), concurrency=1)
    async with running(rig):
        rig.feed([delivery("bad", key=b"k"), delivery("next", key=b"k")])
        await until(lambda: bool(rig.fatal))
        rig.worker.halt()  # as for a turn, or for a move of suspects
        rig.worker.let_go()
        await asyncio.sleep(0.02)
        assert begun == ["bad"]


async def test_no_more_are_asked_for_at_once_than_a_window_of_few_bytes_may_hold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They may be much larger than those before them."""
    asked: list[int] = []
    receive = ScriptedSubscription.receive

    async def receiving(self: ScriptedSubscription, max_messages: int, max_wait: float) -> Sequence[Delivery]:
        asked.append(max_messages)
        return await receive(self, max_messages, max_wait)

    monkeypatch.setattr(ScriptedSubscription, "receive", receiving)
    async with running(Rig(done, window=Window(500, 2**18))) as rig:
        rig.feed(deliveries(3), deliveries(3, prefix="more"))
        await rig.ended()
    assert max(asked) == 16
    assert Window(500, 64 * 2**20).unseen == 1024


async def test_a_handler_that_cancels_itself_runs_again_with_its_key_held() -> None:
    order: list[str] = []

    async def process(item: Delivery) -> Decision:
        order.append(item.message.id)
        if item.message.id == "bad" and item.tries == 1:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(5)
        return DONE

    rig = Rig(process, lanes=KeyedLanes(ByKey()), concurrency=2)
    async with running(rig):
        rig.feed([delivery("bad", key=b"k"), delivery("next", key=b"k"), delivery("other", key=b"o")])
        await rig.ended()
        assert order == ["bad", "other", "bad", "next"]
        assert set(rig.subscription.verdicts().values()) == {ACK}


async def test_a_handler_past_its_timeout_fails_and_the_next_message_runs() -> None:
    async def process(item: Delivery) -> Decision:
        if item.message.id == "m0":
            await asyncio.sleep(60)
        return DONE

    rig = Rig(process, concurrency=1, timeout=0.02, failed=lambda *_: Decision(Retry(1.0), name="retried"))
    async with running(rig):
        rig.feed(deliveries(2))
        await rig.ended()
        assert rig.subscription.verdicts() == {"m0": Retry(1.0), "m1": ACK}
        assert [name for name, _ in rig.failed] == ["m0"]


async def test_in_place_runs_hold_their_key_and_let_others_go_on() -> None:
    order: list[tuple[str, int]] = []

    async def process(item: Delivery) -> Decision:
        order.append((item.message.id, item.tries))
        if item.message.id == "a1" and item.tries < 3:
            return Decision(again=0.01, name="retried_in_place")
        return DONE

    rig = Rig(process, lanes=KeyedLanes(ByKey()))
    async with running(rig):
        rig.feed([delivery("a1", key=b"a"), delivery("a2", key=b"a"), delivery("b1", key=b"b")])
        await rig.ended()
        assert [name for name, _ in order] == ["a1", "b1", "a1", "a1", "a2"]
        assert [tries for name, tries in order if name == "a1"] == [1, 2, 3]
        assert rig.counts == {"received": 3, "done": 3, "retried_in_place": 2}


async def test_what_a_stop_gives_back_keeps_the_order_of_its_key() -> None:
    """Regression: a queue with one active consumer hands out again in the order of what was given back, so what waited behind a
    running message came before it."""
    started: list[str] = []

    async def process(item: Delivery) -> Decision:
        started.append(item.message.id)
        await asyncio.sleep(60)
        return DONE

    rig = Rig(process, lanes=KeyedLanes(ByKey()), concurrency=2)
    async with running(rig, grace=0.05):
        rig.feed([delivery(name, key=name[:1].encode()) for name in ("a1", "a2", "b1", "a3", "b2", "c1")])
        await until(lambda: started == ["a1", "b1"])
    back = [name for name, verdict in rig.subscription.settled if verdict is RELEASE]
    assert sorted(back) == ["a1", "a2", "a3", "b1", "b2", "c1"]
    for key in "ab":
        assert [name for name in back if name.startswith(key)] == sorted(name for name in back if name.startswith(key))


async def test_what_waits_in_place_is_given_back_before_what_waits_behind_it() -> None:
    async def process(item: Delivery) -> Decision:
        return Decision(again=60.0, name="retried")

    rig = Rig(process, lanes=KeyedLanes(ByKey()), concurrency=2)
    async with running(rig):
        rig.feed([delivery(name, key=b"a") for name in ("a1", "a2", "a3")])
        await until(lambda: rig.worker.counts["retried"] == 1)
    back = [name for name, verdict in rig.subscription.settled if verdict is RELEASE]
    assert back == ["a1", "a2", "a3"]


async def test_a_held_delivery_whose_run_does_not_count_goes_on_in_its_lane() -> None:
    """Regression: it was queued behind itself."""
    order: list[str] = []

    async def process(item: Delivery) -> Decision:
        order.append(item.message.id)
        if len(order) == 1:
            item.tries = 0
            return Decision(again=0.001, name="held")
        return DONE

    rig = Rig(process, lanes=KeyedLanes(ByKey()))
    async with running(rig):
        rig.feed([delivery(name, key=b"a") for name in ("a1", "a2")])
        await rig.ended()
    assert order == ["a1", "a1", "a2"]


async def test_a_slow_def_handler_holds_up_nobody_while_others_idle() -> None:
    gate = threading.Event()

    def process(item: Delivery) -> Decision:
        if item.message.id.startswith("slow"):
            gate.wait(10)
        return DONE

    try:
        async with running(Rig(process, threads=True, concurrency=2)) as rig:
            rig.feed(deliveries(100, prefix="warm"))
            await rig.ended()
            rig.feed([delivery("slow"), *deliveries(60)])
            await until(lambda: len(rig.subscription.verdicts()) == 160)
            assert "slow" not in rig.subscription.verdicts()
            gate.set()
            await rig.ended()
    finally:
        gate.set()


# -------------------------------------------------------------------------------------------------- settling


async def test_a_settlement_whose_reply_was_lost_is_repeated_and_leaves_the_window_once() -> None:
    async with running(Rig(done)) as rig:
        rig.subscription.answers.append(lambda batch: [AWAY] * len(batch))
        rig.feed(deliveries(3, body=b"123"))
        await rig.ended()
        assert Counter(name for name, _ in rig.subscription.settled) == {"m0": 2, "m1": 2, "m2": 2}
        assert rig.counts == {"received": 3, "done": 3}


async def test_an_adapter_that_raises_from_settle_costs_repetitions_and_not_the_worker() -> None:
    async with running(Rig(done)) as rig:
        rig.subscription.answers.extend([lambda _: RuntimeError("bug")] * 2)
        rig.feed(deliveries(3))
        await rig.ended()
        rig.feed(deliveries(3, prefix="later"))
        await rig.ended()
        assert len(rig.subscription.verdicts()) == 6
        assert "unsettled" not in rig.counts


@pytest.mark.parametrize("outcome", [STALE, rejected(Code.INVALID, "no"), AWAY])
async def test_what_cannot_be_settled_leaves_the_window_and_is_counted(outcome: Outcome) -> None:
    async with running(Rig(done, window=Window(2, 1000))) as rig:
        rig.subscription.answers = Always(  # type: ignore[assignment]
            lambda batch: [outcome if item.message.id == "m0" else OK for item, _ in batch]
        )
        rig.feed(deliveries(20))
        await rig.ended()
        assert rig.counts == {"received": 20, "done": 20, "unsettled": 1}


# --------------------------------------------------------------------------------------------------- moving


async def test_a_move_that_fails_five_times_runs_the_handler_once_and_settles_after_the_copy() -> None:
    runs: list[str] = []

    async def process(item: Delivery) -> Decision:
        runs.append(item.message.id)
        return DEAD

    rig = Rig(process)
    async with running(rig):
        settled_before: list[int] = []

        def away(batch: Sequence[Outgoing]) -> Sequence[Outcome]:
            settled_before.append(len(rig.subscription.settled))
            return [AWAY] * len(batch)

        rig.scripted.answers.extend([away, away, lambda _: RuntimeError("bug"), away, away])
        rig.feed([delivery("m")])
        await rig.ended()
        assert runs == ["m"]
        assert rig.scripted.sends == [["dead"]] * 6
        assert settled_before == [0, 0, 0, 0]
        assert rig.subscription.settled == [("m", ACK)]
        assert rig.counts == {"received": 1, "dead": 1}


@pytest.mark.parametrize(
    ("other", "verdict", "counts"),
    [
        (Decision(copies=(copy("brief"),), name="dead"), ACK, {"dead": 1}),
        (Decision(Retry(2.0), name="kept"), Retry(2.0), {"kept": 1}),
        (GIVE_BACK, RELEASE, {"released": 1}),
        (DONE, ACK, {"done": 1}),
        (Decision(again=0.001, name="again"), ACK, {"again": 1, "done": 1}),
    ],
    ids=["other copy", "verdict", "give back", "done", "again"],
)
async def test_a_refused_copy_ends_as_the_policy_then_decides(
    other: Decision, verdict: Any, counts: dict[str, int]
) -> None:
    async def process(item: Delivery) -> Decision:
        return Decision(copies=(copy("large"),), name="retried") if item.tries == 1 else DONE

    asked: list[Fault] = []

    def rejection(item: Delivery, decision: Decision, fault: Fault) -> Decision:
        asked.append(fault)
        return other

    async with running(Rig(process, rejection=rejection)) as rig:
        rig.scripted.answers.append(lambda _: [rejected(Code.TOO_LARGE)])
        rig.feed([delivery("m")])
        await rig.ended()
        assert rig.subscription.settled == [("m", verdict)]
        assert [fault.code for fault in asked] == [Code.TOO_LARGE]
        assert rig.counts == {"received": 1, **counts}


async def test_an_unreachable_destination_becomes_backpressure() -> None:
    async def process(item: Delivery) -> Decision:
        return Decision(copies=(copy(item.message.id),), name="dead")

    rig = Rig(process, window=Window(5, 2**20))
    async with running(rig, grace=0.1):
        rig.scripted.answers.extend([lambda batch: [AWAY] * len(batch)] * 10_000)
        rig.feed(deliveries(50))
        await until(lambda: len(rig.scripted.sends) > 20)
        assert rig.worker.counts["received"] == 5
        assert rig.subscription.settled == []
        rig.scripted.answers.clear()
        await rig.ended()
        assert len(rig.subscription.verdicts()) == 50


async def test_a_move_that_still_fails_at_the_end_is_given_back() -> None:
    async def process(item: Delivery) -> Decision:
        return DEAD

    rig = Rig(process)
    async with running(rig, grace=0.05):
        rig.scripted.answers.extend([lambda batch: [AWAY] * len(batch)] * 10_000)
        rig.feed(deliveries(3))
        await until(lambda: len(rig.scripted.sends) > 3)
    assert rig.subscription.verdicts() == {"m0": RELEASE, "m1": RELEASE, "m2": RELEASE}


async def test_a_publish_that_hangs_at_the_end_leaves_its_message_unsettled_and_off_the_account(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker_module, "_FLUSH_SECONDS", 0.05)

    async def process(item: Delivery) -> Decision:
        return DEAD if item.message.id == "m1" else DONE

    rig = Rig(process)
    async with running(rig, grace=0.02):
        rig.scripted.sending.clear()
        rig.feed(deliveries(3))
        await until(lambda: rig.scripted.sends)
    assert rig.subscription.verdicts() == {"m0": ACK, "m2": ACK}
    assert rig.worker.counts["unsettled"] == 1


# ------------------------------------------------------------------------------------------- draining and losing


async def test_drain_releases_what_has_not_started_awaits_what_runs_and_lets_others_go_on() -> None:
    gate = Gate()
    async with running(Rig(gate, concurrency=1)) as rig:
        rig.feed([delivery("slow", stream="a"), delivery("a2", stream="a"), delivery("b1", stream="b")])
        await until(lambda: gate.started == ["slow"] and rig.worker.in_flight == 3)
        drain = asyncio.create_task(rig.worker.drain(["a"], 5))
        await until(lambda: rig.subscription.verdicts().get("a2") == RELEASE)
        rig.feed([delivery("a3", stream="a"), delivery("b2", stream="b")])  # was on its way
        await until(lambda: rig.subscription.verdicts().get("a3") == RELEASE)
        assert not drain.done()
        gate.event.set()
        await asyncio.wait_for(drain, 2)
        assert rig.subscription.verdicts()["slow"] == ACK
        await rig.ended()
        assert gate.started == ["slow", "b1", "b2"]
        rig.feed([delivery("a4", stream="a")])  # the stream may come back
        await rig.ended()
        assert rig.subscription.verdicts()["a4"] == ACK


async def test_drain_waits_no_longer_than_its_grace() -> None:
    gate = Gate()
    async with running(Rig(gate)) as rig:
        rig.feed(deliveries(1, prefix="slow"))
        await until(lambda: gate.started)
        begin = time.monotonic()
        await rig.worker.drain(["s"], 0.03)
        assert 0.03 <= time.monotonic() - begin < 1
        assert rig.worker.in_flight == 1
        gate.event.set()


async def test_drain_releases_what_waits_to_run_in_place_or_to_be_moved() -> None:
    async def process(item: Delivery) -> Decision:
        if item.message.id == "again":
            return Decision(again=60, name="again")
        return DEAD

    async with running(Rig(process)) as rig:
        rig.scripted.answers.extend([lambda batch: [AWAY] * len(batch)] * 10_000)
        rig.feed([delivery("again"), delivery("move")])
        await until(lambda: rig.worker.timers.holding and rig.worker.mover.failing)
        await asyncio.wait_for(rig.worker.drain(["s"], 5), 2)
        assert rig.subscription.verdicts() == {"again": RELEASE, "move": RELEASE}
        rig.scripted.answers.clear()


async def test_drains_that_overlap_each_hold_until_their_own_end() -> None:
    gate = Gate()
    async with running(Rig(gate)) as rig:
        rig.feed([delivery("slow", stream="a")])
        await until(lambda: gate.started)
        long = asyncio.create_task(rig.worker.drain(["a"], 5))
        await rig.worker.drain(["a"], 0.01)
        rig.feed([delivery("a2", stream="a")])
        await until(lambda: "a2" in rig.subscription.verdicts())
        assert rig.subscription.verdicts()["a2"] == RELEASE
        gate.event.set()
        await long


async def test_nothing_is_started_that_comes_in_after_the_end_has_begun() -> None:
    """A receive may already have it in its hands."""
    gate = Gate()
    rig = Rig(gate)
    async with running(rig):
        rig.feed(deliveries(1, prefix="slow"))
        await until(lambda: gate.started and rig.subscription.receiving)
        ending = asyncio.create_task(rig.worker.drain_all(5))
        await asyncio.sleep(0)
        rig.feed(deliveries(2, prefix="late"))
        await until(lambda: len(rig.subscription.verdicts()) == 2)
        assert rig.subscription.verdicts() == {"late0": RELEASE, "late1": RELEASE}
        gate.event.set()
        assert await ending


async def test_what_is_lost_is_never_sent_and_leaves_the_window() -> None:
    gate = Gate()
    async with running(Rig(gate, concurrency=1)) as rig:
        rig.feed([delivery("slow-a", stream="a"), delivery("a2", stream="a"), delivery("b1", stream="b")])
        await until(lambda: rig.worker.in_flight == 3)
        rig.worker.lost(["a"])
        await until(lambda: rig.worker.in_flight == 2)
        gate.event.set()
        await rig.ended()
        assert gate.started == ["slow-a", "b1"]
        assert rig.subscription.verdicts() == {"b1": ACK}
        assert rig.worker.counts["unsettled"] == 2


async def test_lost_reaches_every_kind_of_waiting() -> None:
    later = time.time() + 3600

    async def process(item: Delivery) -> Decision:
        if item.message.id == "again":
            return Decision(again=60, name="again")
        return DEAD

    rig = Rig(process, due=lambda item: later if item.message.id == "held" else 0.0)
    async with running(rig):
        rig.scripted.answers.extend([lambda batch: [AWAY] * len(batch)] * 10_000)
        rig.feed([delivery("again"), delivery("move"), delivery("held")])
        await until(lambda: rig.worker.mover.failing and rig.worker.timers.holding >= 2)
        rig.worker.lost(None)
        await rig.ended()
        assert rig.subscription.settled == []


async def test_a_lease_that_is_lost_before_its_message_started_means_that_it_does_not_start() -> None:
    gate = Gate()
    rig = Rig(gate, adapter=ScriptedAdapter(LEASED), concurrency=1)
    async with running(rig):
        rig.subscription.extensions.append(
            lambda batch: [STALE if item.message.id == "queued" else OK for item in batch]
        )
        rig.feed([delivery(name, lease_until=time.monotonic() + 0.3) for name in ("slow", "queued", "last")])
        await until(lambda: rig.subscription.extended)
        await until(lambda: rig.worker.in_flight == 2)
        gate.event.set()
        await rig.ended()
        assert gate.started == ["slow", "last"]
        assert rig.subscription.verdicts() == {"slow": ACK, "last": ACK}


# ----------------------------------------------------------------------------------------------------- pausing


async def test_receiving_goes_on_once_no_reason_is_left() -> None:
    async with running(Rig(done)) as rig:
        await until(lambda: rig.subscription.receiving)
        rig.feed(deliveries(1, prefix="held back"))
        await rig.worker.pause("operator")
        await rig.worker.pause("operator")
        await rig.worker.pause("broken store")
        assert rig.subscription.paused >= 1
        # what was fetched before is in nobody's hands but the subscription's; from then on nothing is fetched
        await rig.ended()
        rig.feed(deliveries(5))
        await rig.worker.resume("never given")
        await rig.worker.resume("operator")
        for _ in range(20):
            await asyncio.sleep(0)
        assert rig.worker.counts["received"] == 1
        assert not rig.subscription.resumed
        await rig.worker.resume("broken store")
        await rig.ended()
        assert rig.worker.counts["received"] == 6
        assert rig.subscription.resumed == 1


async def test_a_resume_that_overtakes_its_pause_wins() -> None:
    async with running(Rig(done)) as rig:
        await until(lambda: rig.subscription.receiving)
        gate = asyncio.Event()
        told: list[str] = []

        async def pause() -> None:
            await gate.wait()
            told.append("pause")

        async def resume() -> None:
            told.append("resume")

        rig.subscription.pause = pause  # type: ignore[method-assign]
        rig.subscription.resume = resume  # type: ignore[method-assign]
        pausing = asyncio.create_task(rig.worker.pause("slow broker"))
        await asyncio.sleep(0)
        resuming = asyncio.create_task(rig.worker.resume("slow broker"))
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(pausing, resuming)
        assert told[-1] == "resume"


async def test_a_pause_outlives_the_subscription() -> None:
    async with running(Rig(done)) as rig:
        await until(lambda: rig.subscription.receiving)
        await rig.worker.pause("operator")
        rig.feed(ConnectionLost("gone"))
        await until(lambda: len(rig.scripted.subscriptions) == 2)
        await until(lambda: rig.subscription.paused)
        rig.feed(deliveries(3))
        for _ in range(20):
            await asyncio.sleep(0)
        assert rig.worker.counts["received"] == 0
        await rig.worker.resume("operator")
        await rig.ended()
        assert rig.worker.counts["received"] == 3


async def test_pausing_while_there_is_no_subscription_is_remembered() -> None:
    rig = Rig(done, backoff=Backoff("20ms"))
    async with running(rig):
        dead = rig.subscription

        async def refuse() -> None:
            raise ConnectionLost("dead")

        dead.pause = dead.resume = refuse  # type: ignore[method-assign]
        rig.feed(ConnectionLost("gone"))
        await until(lambda: rig.worker.state[0] == "disconnected")
        await rig.worker.pause("operator")
        await until(lambda: len(rig.scripted.subscriptions) == 2 and rig.subscription.paused)
        await rig.worker.resume("operator")
        assert rig.subscription.resumed


# ----------------------------------------------------------------------------------------------------- stopping


async def test_stop_cancels_what_runs_beyond_its_grace_and_releases_it() -> None:
    gate = Gate()
    rig = Rig(gate, concurrency=2)
    async with running(rig, grace=0.02):
        rig.feed(deliveries(2, prefix="slow"), deliveries(3))
        await until(lambda: rig.worker.in_flight == 5)
    assert set(rig.subscription.verdicts().values()) == {RELEASE}
    assert len(rig.subscription.settled) == 5


async def test_stop_leaves_threads_that_run_beyond_its_grace_behind_unsettled() -> None:
    gate = threading.Event()

    def process(item: Delivery) -> Decision:
        if item.message.id == "slow":
            gate.wait(10)
        return DONE

    rig = Rig(process, threads=True, concurrency=2)
    before = set(threading.enumerate())
    try:
        async with running(rig, grace=0.02, threads_left=1):
            rig.feed([delivery("slow", body=b"123"), *deliveries(3)])
            await until(lambda: len(rig.subscription.verdicts()) == 3)
        assert "slow" not in rig.subscription.verdicts()
        assert rig.worker.counts["unsettled"] == 1
        counts = dict(rig.worker.counts)
        gate.set()  # it ends after all; there is nobody to tell any more
        await until(lambda: set(threading.enumerate()) <= before)
        await asyncio.sleep(0.01)
        assert dict(rig.worker.counts) == counts
        rig.check_empty()
    finally:
        gate.set()


async def test_stop_while_the_window_is_full() -> None:
    gate = Gate()
    rig = Rig(gate, concurrency=1, window=Window(2, 2**20))
    async with running(rig, grace=0.02):
        rig.feed(deliveries(10, prefix="slow"))
        await until(lambda: rig.worker.in_flight == 2)
        await asyncio.sleep(0)
    assert rig.subscription.verdicts() == {"slow0": RELEASE, "slow1": RELEASE}


async def test_stop_does_not_wait_for_ever_for_a_broker_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "_FLUSH_SECONDS", 0.05)
    rig = Rig(done)
    async with running(rig, grace=0.02):
        rig.subscription.settling.clear()
        rig.feed(deliveries(3))
        await until(lambda: rig.worker.settler.busy)
        begin = time.monotonic()
    assert time.monotonic() - begin < 2
    assert rig.worker.settler.busy is False
    assert rig.subscription.settled == []
    assert rig.worker.counts["unsettled"] == 3


# --------------------------------------------------------------------------------------------- over a real adapter


ORDERS = Source(Queue("orders"))


class Turned:
    """A memory broker's clock, turned by hand."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


async def memory(clock: Turned | None = None, lease: float = 30.0) -> MemoryAdapter:
    adapter = MemoryAdapter(clock=clock, lease=lease)
    await adapter.open()
    await adapter.declare(Topology(channels=(Queue("dead"),), sources=(ORDERS,)))
    return adapter


async def publish(adapter: MemoryAdapter, *names: str) -> None:
    outcomes = await adapter.send([Outgoing(Queue("orders"), Message(name, b"body")) for name in names])
    assert all(outcome.ok for outcome in outcomes)


@pytest.mark.parametrize("threads", [False, True])
async def test_over_memory_retries_moves_and_acks_come_out_even(threads: bool) -> None:
    runs: Counter[str] = Counter()

    def sync(item: Delivery) -> Decision:
        name = item.message.id
        runs[name] += 1
        number = int(name[1:])
        if number % 10 == 0 and item.count == 1:
            return Decision(Retry(5.0), name="retried")
        if number % 10 == 1:
            return Decision(copies=(Outgoing(Queue("dead"), item.message),), name="dead")
        if number % 10 == 2 and runs[name] == 1:
            return Decision(again=0.0, name="again")
        if number % 10 == 2 and runs[name] == 2:
            return GIVE_BACK
        return DONE

    async def process(item: Delivery) -> Decision:
        return sync(item)

    clock = Turned()
    adapter = await memory(clock)
    rig = Rig(sync if threads else process, adapter=adapter, source=ORDERS, threads=threads, window=Window(30, 2**20))

    async def waiting() -> tuple[int | None, int | None, int | None]:
        found = await adapter.backlog(ORDERS)
        return found.waiting, found.in_flight, found.delayed

    async def becomes(wanted: tuple[int, int, int]) -> None:
        deadline = time.monotonic() + 5
        while (found := await waiting()) != wanted:
            assert time.monotonic() < deadline, found
            await asyncio.sleep(0.001)

    async with running(rig):
        await publish(adapter, *(f"m{n}" for n in range(200)))
        await becomes((0, 0, 20))
        assert rig.worker.counts["retried"] == 20
        clock.now += 5.0
        adapter.broker.wake()
        await becomes((0, 0, 0))
        dead = await adapter.backlog(Source(Queue("dead")))
        assert dead.waiting == 20
        assert len(runs) == 200
        assert [runs[f"m{n}"] for n in range(4)] == [2, 1, 3, 1]
        assert rig.worker.counts["released"] == 20


async def test_over_memory_a_short_lease_is_kept_alive_under_a_long_handler() -> None:
    gate = Gate()
    adapter = await memory(lease=0.06)
    rig = Rig(gate, adapter=adapter, source=ORDERS, concurrency=2)
    async with running(rig):
        await publish(adapter, "slow1", "slow2", "queued1", "queued2")
        await until(lambda: rig.worker.in_flight == 4)
        await asyncio.sleep(0.2)  # more than three leases
        assert gate.started == ["slow1", "slow2"]
        gate.event.set()
        await until(lambda: not rig.worker.in_flight)
        assert Counter(gate.started) == {"slow1": 1, "slow2": 1, "queued1": 1, "queued2": 1}
        assert rig.worker.counts["unsettled"] == 0
        found = await adapter.backlog(ORDERS)
        assert (found.waiting, found.in_flight) == (0, 0)


async def test_over_memory_what_a_stopped_worker_held_goes_to_the_next_at_once() -> None:
    gate = Gate()
    adapter = await memory()
    async with running(Rig(gate, adapter=adapter, source=ORDERS, concurrency=1), grace=0.02) as rig:
        await publish(adapter, "slow", "m1", "m2")
        await until(lambda: rig.worker.in_flight == 3)
    async with running(Rig(done, adapter=adapter, source=ORDERS)) as second:
        await until(lambda: second.worker.counts["done"] == 3, within=2)


# ----------------------------------------------------------------------------------------- nothing for a message


@pytest.mark.parametrize("keyed", [False, True])
async def test_the_hot_path_creates_no_task_future_or_job_for_a_message(
    keyed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = 5000
    adapter = await memory()
    lanes = KeyedLanes(ByKey(lambda item: item.message.id[-1])) if keyed else None
    loop = asyncio.get_running_loop()
    created: Counter[str] = Counter()
    create_future, call_soon_threadsafe, run_in_executor = (
        loop.create_future,
        loop.call_soon_threadsafe,
        loop.run_in_executor,
    )

    def future() -> asyncio.Future[Any]:
        created["future"] += 1
        return create_future()

    def task(loop: asyncio.AbstractEventLoop, coro: Any, **kwargs: Any) -> asyncio.Task[Any]:
        created["task"] += 1
        return asyncio.Task(coro, loop=loop, **kwargs)

    def job(*args: Any) -> Any:
        created["job"] += 1
        return run_in_executor(*args)

    def threadsafe(*args: Any, **kwargs: Any) -> Any:
        created["threadsafe"] += 1
        return call_soon_threadsafe(*args, **kwargs)

    async with running(
        Rig(done, adapter=adapter, source=ORDERS, lanes=lanes, concurrency=50, window=Window(500, 2**24))
    ) as rig:
        await publish(adapter, *(f"m{n}" for n in range(100)))
        await until(lambda: rig.worker.counts["done"] == 100)
        finished = asyncio.Event()
        ended = rig.worker._settled

        def settled(batch: Sequence[Settlement], outcomes: Sequence[Outcome]) -> None:
            ended(batch, outcomes)
            if rig.worker.counts["done"] == total + 100:
                finished.set()

        rig.worker.settler._ended = settled
        monkeypatch.setattr(loop, "create_future", future)
        monkeypatch.setattr(loop, "run_in_executor", job)
        monkeypatch.setattr(loop, "call_soon_threadsafe", threadsafe)
        loop.set_task_factory(task)
        try:
            await publish(adapter, *(f"n{n}" for n in range(total)))
            await asyncio.wait_for(finished.wait(), 10)
        finally:
            loop.set_task_factory(None)
        assert created["task"] <= 2  # of this test
        assert created["job"] == created["threadsafe"] == 0
        assert created["future"] < total * 0.05


# ------------------------------------------------------------------------------------------ whatever may happen


PROCESS = st.sampled_from(["done", "back", "retry", "again", "move", "move2", "raise", "slow", "cancel", "exit"])
SETTLE = st.sampled_from(["ok", "ok", "ok", "unknown", "stale", "invalid", "raise", "short"])
SEND = st.sampled_from(["ok", "ok", "unknown", "rejected", "raise", "short"])
EVENT = st.sampled_from(["none", "none", "lose a", "lose all", "drain a", "connection", "pause", "broken receive"])


class Chaos:
    """A script of outcomes, consumed as they are asked for; once it is used up, all goes well."""

    def __init__(self, process: list[str], settle: list[str], send: list[str]) -> None:
        self.process, self.settle, self.send = iter(process), iter(settle), iter(send)
        self.runs: Counter[int] = Counter()
        self.verdicts: dict[int, list[str]] = {}
        self.running: list[bytes | None] = []
        self.overlaps: list[bytes | None] = []
        self.begun: defaultdict[bytes | None, list[int]] = defaultdict(list)

    async def run(self, item: Delivery) -> Decision:
        key = item.message.key
        if key in self.running:
            self.overlaps.append(key)
        if not self.runs[id(item)]:
            self.begun[key].append(int(item.message.id[1:]))
        self.running.append(key)
        try:
            return await self._run(item)
        finally:
            self.running.remove(key)

    async def _run(self, item: Delivery) -> Decision:
        self.runs[id(item)] += 1
        match next(self.process, "done"):
            case "back":
                return GIVE_BACK
            case "retry":
                return Decision(Retry(1.0), name="retried")
            case "again":
                return Decision(again=0.001, name="again")
            case "move":
                return DEAD
            case "move2":
                return Decision(Retry(0), (copy("x"), copy("y")), name="moved")
            case "raise":
                raise RuntimeError("bug")
            case "exit":
                raise SystemExit(1)
            case "slow":
                await asyncio.sleep(0.002)
            case "cancel":
                raise asyncio.CancelledError
        return DONE

    def answer_settle(self, batch: Sequence[Settlement]) -> Any:
        for item, verdict in batch:
            self.verdicts.setdefault(id(item), []).append(repr(verdict))
        return self._answer(next(self.settle, "ok"), len(batch))

    def answer_send(self, batch: Sequence[Outgoing]) -> Any:
        return self._answer(next(self.send, "ok"), len(batch))

    @staticmethod
    def _answer(how: str, count: int) -> Any:
        match how:
            case "unknown":
                return [AWAY] * count
            case "stale":
                return [STALE] * count
            case "invalid" | "rejected":
                return [rejected(Code.INVALID)] * count
            case "raise":
                return RuntimeError("bug")
            case "short":
                return [OK] * (count - 1)
        return [OK] * count


class Always:
    """An endless script."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def __bool__(self) -> bool:
        return True

    def popleft(self) -> Any:
        return self.answer


@settings(max_examples=60, deadline=None)
@given(
    st.booleans(),
    st.integers(1, 4),
    st.integers(1, 12),
    st.lists(PROCESS, max_size=40),
    st.lists(SETTLE, max_size=20),
    st.lists(SEND, max_size=20),
    st.lists(st.tuples(st.integers(1, 8), EVENT), min_size=1, max_size=8),
)
def test_whatever_happens_every_delivery_ends_once_and_the_account_returns_to_zero(
    keyed: bool,
    concurrency: int,
    window: int,
    process: list[str],
    settle: list[str],
    send: list[str],
    events: list[tuple[int, str]],
) -> None:
    chaos = Chaos(process, settle, send)
    everything: list[Delivery] = []

    async def main() -> None:
        rig = Rig(
            chaos.run,
            concurrency=concurrency,
            window=Window(window, 2**20),
            lanes=KeyedLanes(ByKey()) if keyed else None,
            rejection=lambda *_: Decision(name="discarded"),
        )
        rig.scripted.answers = Always(chaos.answer_send)  # type: ignore[assignment]
        async with running(rig):
            going_on = asyncio.create_task(go_on(rig))
            number = 0
            for count, event in events:
                rig.subscription.answers = Always(chaos.answer_settle)  # type: ignore[assignment]
                batch = [
                    delivery(f"m{number + n}", key=b"%d" % (n % 3), stream="ab"[n % 2], body=b"x" * n)
                    for n in range(count)
                ]
                number += count
                everything.extend(batch)
                rig.feed(batch)
                await asyncio.sleep(0)
                await disturb(rig, event)
            rig.subscription.answers = Always(chaos.answer_settle)  # type: ignore[assignment]
            await rig.ended()
            going_on.cancel()
            assert rig.worker.counts["received"] <= len(everything)
        if keyed:
            assert not chaos.overlaps, "two of a key ran at the same time"
            assert all(begun == sorted(begun) for begun in chaos.begun.values()), "a key was overtaken"

    async def go_on(rig: Rig) -> None:
        """In order nothing starts after an exit, since the service stops; here it does not."""
        while True:
            rig.worker.lanes.closed = False
            rig.worker.pool.wake()
            await asyncio.sleep(0.001)

    async def disturb(rig: Rig, event: str) -> None:
        match event:
            case "lose a":
                rig.worker.lost(["a"])
            case "lose all":
                rig.worker.lost(None)
            case "drain a":
                await rig.worker.drain(["a"], 0.005)
            case "pause":
                await rig.worker.pause("chaos")
                await asyncio.sleep(0)
                await rig.worker.resume("chaos")
            case "connection" | "broken receive":
                before = len(rig.scripted.subscriptions)
                unread = rig.subscription.waiting.copy()
                rig.subscription.waiting.clear()
                rig.feed(ConnectionLost("gone") if event == "connection" else ValueError("bug"))
                await until(lambda: len(rig.scripted.subscriptions) > before)
                rig.feed(*unread)

    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(main())
    for item in everything:
        verdicts = chaos.verdicts.get(id(item), [])
        assert len(set(verdicts)) <= 1, "a delivery got two verdicts"
        assert len(verdicts) <= 4, "a settlement was repeated too often"
        assert verdicts or item.lost, "a delivery was neither settled nor lost"
        assert item.settled


# ------------------------------------------------------------------------------------------------ elders


async def test_fresh_messages_wait_while_due_ones_lack_the_machines_time() -> None:
    elder = Rig(done, due=lambda _: time.time() - 1.0)  # a second late
    young = Rig(done)
    young.worker.elders.append(elder.worker)
    async with running(elder), running(young):
        young.feed(deliveries(1, prefix="first"))
        await young.ended()
        assert not elder.worker.behind
        elder.feed(deliveries(1))
        await elder.ended()
        assert elder.worker.behind
        # A receive was under way already; the one after it gives way.
        young.feed(deliveries(1, prefix="second"), deliveries(1, prefix="third"))
        await until(lambda: "second0" in young.subscription.verdicts())
        while elder.worker.behind:
            assert "third0" not in young.subscription.verdicts()
            await asyncio.sleep(0)
        await young.ended()


async def test_what_gives_way_is_not_kept_waiting_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Worker, "behind", True)
    elder, young = Rig(done), Rig(done)
    young.worker.elders.append(elder.worker)
    async with running(elder), running(young):
        began = time.monotonic()
        young.feed(deliveries(1), deliveries(1, prefix="next"))
        await young.ended()
        assert 0.5 < time.monotonic() - began < 4.0


async def test_slow_handlers_of_due_messages_hold_up_no_fresh_ones() -> None:
    gate = Gate()
    elder, young = Rig(gate, concurrency=2, due=lambda _: time.time() - 1.0), Rig(done)
    young.worker.elders.append(elder.worker)
    async with running(elder), running(young):
        elder.feed(deliveries(10, prefix="slow"))
        await until(lambda: len(gate.started) == 2)
        assert elder.worker.lanes.ready
        assert not elder.worker.behind  # what it lacks is places
        young.feed(deliveries(100, prefix="fresh"))
        await young.ended()
        gate.event.set()
        await elder.ended()
