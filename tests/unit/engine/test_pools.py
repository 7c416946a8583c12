"""Pools: every delivery that was started ends exactly once, whatever its handler does, and lanes and threads outlive it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
from engine_kit import ByKey, deliveries, delivery, ids, until

from atleastonce.contract import Delivery, Outgoing, ReplyTo, Retry
from atleastonce.engine import async_pool, thread_pool
from atleastonce.engine.async_pool import AsyncPool
from atleastonce.engine.decision import DONE, GIVE_BACK, Decision, cut_off
from atleastonce.engine.lanes import FreeLanes, KeyedLanes, Lanes
from atleastonce.engine.places import Places
from atleastonce.engine.pools import SELF_CANCELLED_RUNS
from atleastonce.engine.thread_pool import ThreadPool
from atleastonce.errors import HandlerCancelled, HandlerTimeout
from atleastonce.message import Message

FAILED = Decision(Retry(1), name="retried")
ANSWERED = Decision(copies=(Outgoing(ReplyTo("inbox"), Message("answer", b"")),))


class Bench:
    """A pool, its lanes, and what it told."""

    def __init__(self, lanes: Lanes | None = None) -> None:
        self.lanes = lanes if lanes is not None else FreeLanes()
        self.results: list[tuple[str, Decision]] = []
        self.fatal: list[BaseException] = []
        self.failures: list[tuple[str, BaseException]] = []
        self.threads: set[int] = set()
        self.pool: AsyncPool | ThreadPool

    def ended(self, item: Delivery, decision: Decision) -> None:
        self.threads.add(threading.get_ident())
        self.results.append((item.message.id, decision))
        self.lanes.finish(item)

    def failed(self, item: Delivery, error: BaseException) -> Decision:
        self.failures.append((item.message.id, error))
        return FAILED

    def feed(self, *names: str | Delivery) -> None:
        self.lanes.offer([name if isinstance(name, Delivery) else delivery(name) for name in names])
        self.pool.wake()

    def result(self, name: str) -> Decision:
        (found,) = [decision for ended, decision in self.results if ended == name]
        return found

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.results]

    async def all(self, count: int) -> None:
        await until(lambda: len(self.results) >= count, what=f"{len(self.results)} of {count} ended")
        assert len(self.results) == count


@contextlib.asynccontextmanager
async def lanes_of(
    process: Callable[[Delivery], Any],
    concurrency: int = 2,
    *,
    lanes: Lanes | None = None,
    longest: float | None = None,
    failed: Callable[[Delivery, BaseException], Decision] | None = None,
    places: Places | None = None,
) -> AsyncIterator[Bench]:
    bench = Bench(lanes)
    pool = bench.pool = AsyncPool(
        process,
        bench.lanes,
        concurrency,
        ended=bench.ended,
        failed=failed or bench.failed,
        fatal=bench.fatal.append,
        timeout=longest,
        places=places,
    )
    before = asyncio.all_tasks()
    pool.start()
    try:
        yield bench
        assert not any(task.done() for task in pool._tasks) or pool._stopping, "a lane has died"
    finally:
        await asyncio.wait_for(pool.stop(), 5)
        assert asyncio.all_tasks() - before == set()


async def late(bench: Bench) -> None:
    """What the timers do while handlers run."""
    bench.pool.cancel_late(time.monotonic() + 1000)


# ---------------------------------------------------------------------------------------------------- async def


async def test_every_decision_is_told_once() -> None:
    given = {"a": DONE, "b": FAILED, "c": GIVE_BACK, "d": Decision(again=1.0, name="again")}

    async def process(item: Delivery) -> Decision:
        await asyncio.sleep(0)
        return given[item.message.id]

    async with lanes_of(process) as bench:
        bench.feed(*given)
        await bench.all(4)
        assert dict(bench.results) == given
        assert not bench.fatal


@pytest.mark.parametrize("concurrency", [1, 3, 10])
async def test_as_many_handlers_run_at_once_as_there_are_lanes(concurrency: int) -> None:
    running = peak = 0

    async def process(item: Delivery) -> Decision:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await asyncio.sleep(0.001)
        running -= 1
        return DONE

    async with lanes_of(process, concurrency) as bench:
        bench.feed(*deliveries(50))
        await bench.all(50)
        assert peak == concurrency


async def test_a_waiting_handler_holds_up_nobody() -> None:
    gate = asyncio.Event()

    async def process(item: Delivery) -> Decision:
        if item.message.id == "slow":
            await gate.wait()
        return DONE

    async with lanes_of(process) as bench:
        bench.feed("slow", *deliveries(20))
        await bench.all(20)
        bench.feed(*deliveries(20, prefix="later"))
        await bench.all(40)
        assert "slow" not in bench.names
        gate.set()
        await bench.all(41)


def cancel_inside() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()


async def cancelled_future(item: Delivery) -> Decision:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    future.cancel()
    await future
    return DONE


async def cancels_itself(item: Delivery) -> Decision:
    cancel_inside()
    await asyncio.sleep(10)
    return DONE


async def cancels_itself_and_returns(item: Delivery) -> Decision:
    cancel_inside()
    return DONE


async def cancels_itself_later(item: Delivery) -> Decision:
    """After its end: a forgotten timer that hits whatever its lane does then."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().call_soon(task.cancel)
    return DONE


@pytest.mark.parametrize(
    ("misdeed", "again"),
    [
        (cancelled_future, True),
        (cancels_itself, True),
        (cancels_itself_and_returns, False),
        (cancels_itself_later, False),
    ],
)
async def test_a_handler_that_cancels_itself_harms_only_itself(misdeed: Callable[..., Any], again: bool) -> None:
    async def process(item: Delivery) -> Decision:
        if item.message.id == "bad":
            return await misdeed(item)
        async with asyncio.TaskGroup() as group:  # what is left of a cancellation would show here
            group.create_task(asyncio.sleep(0))
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        await asyncio.sleep(0)
        return DONE

    async with lanes_of(process, 1) as bench:
        bench.feed("bad")
        await bench.all(1)
        for _ in range(3):
            await asyncio.sleep(0)
        bench.feed("next", "after")
        await bench.all(3)
        assert bench.result("next") is DONE
        assert bench.result("after") is DONE
        assert (bench.result("bad").again is not None) is again
        if not again:
            assert bench.result("bad") is DONE
        assert not bench.fatal
        assert not bench.failures


async def test_a_neighbour_in_the_same_batch_is_not_hit_by_a_cancellation_that_hangs_in_the_air() -> None:
    async def process(item: Delivery) -> Decision:
        if item.message.id == "bad":
            return await cancels_itself_and_returns(item)
        await asyncio.sleep(0)
        return DONE

    async with lanes_of(process, 1) as bench:
        bench.feed("bad", "next")
        await bench.all(2)
        assert bench.results == [("bad", DONE), ("next", DONE)]


@pytest.mark.parametrize(
    "error",
    [
        SystemExit(3),
        KeyboardInterrupt(),
        RuntimeError("a bug in the policy"),
        BaseExceptionGroup("tasks", [SystemExit(3)]),
    ],
)
async def test_what_no_policy_caught_gives_back_tells_the_service_and_harms_no_other(error: BaseException) -> None:
    async def process(item: Delivery) -> Decision:
        if item.message.id == "bad":
            raise error
        return DONE

    async with lanes_of(process, 1) as bench:
        bench.feed("a", "bad", "b")
        await bench.all(3)
        assert bench.results == [("a", DONE), ("bad", cut_off(error)), ("b", DONE)]
        assert bench.fatal == [error]


async def test_a_handler_past_its_timeout_is_cancelled_and_has_failed_and_its_lane_goes_on() -> None:
    seen: list[str] = []

    async def process(item: Delivery) -> Decision:
        if item.message.id == "slow":
            try:
                await asyncio.sleep(60)
            finally:
                seen.append("cleaned up")
        return DONE

    async with lanes_of(process, 1, longest=0.5) as bench:
        bench.feed("slow", "next")
        await until(lambda: len(bench.lanes) == 1)
        bench.pool.cancel_late(time.monotonic() + 0.4)
        await asyncio.sleep(0)
        assert not bench.results
        bench.pool.cancel_late(time.monotonic() + 0.6)
        bench.pool.cancel_late(time.monotonic() + 0.7)  # cancelling twice could hit the clean-up
        await bench.all(2)
        assert bench.results == [("slow", FAILED), ("next", DONE)]
        ((name, error),) = bench.failures
        assert name == "slow"
        assert isinstance(error, HandlerTimeout)
        assert "0.5 s" in str(error)
        assert seen == ["cleaned up"]
        await late(bench)  # an idle lane has nothing that could be late
        bench.feed("more")
        await bench.all(3)


async def test_the_result_of_a_handler_that_outlives_its_cancellation_counts() -> None:
    async def process(item: Delivery) -> Decision:
        if item.message.id == "tough":
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(60)
            await asyncio.sleep(0)
        return DONE

    async with lanes_of(process, 1, longest=0.5) as bench:
        bench.feed("tough", "next")
        await until(lambda: len(bench.lanes) == 1)
        await late(bench)
        await bench.all(2)
        assert bench.results == [("tough", DONE), ("next", DONE)]
        assert not bench.failures


async def test_a_handler_that_would_have_ended_just_then_ends_once() -> None:
    gate: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def process(item: Delivery) -> Decision:
        if item.message.id == "close":
            await gate
        await asyncio.sleep(0)
        return DONE

    async with lanes_of(process, 1, longest=0.5) as bench:
        bench.feed("close", "next")
        await until(lambda: len(bench.lanes) == 1)
        gate.set_result(None)
        await late(bench)
        await bench.all(2)
        assert bench.names == ["close", "next"]
        assert bench.result("close") in (DONE, FAILED)
        assert bench.result("next") is DONE


async def test_a_policy_that_fails_about_a_timeout_gives_back_and_the_lane_goes_on() -> None:
    def failed(item: Delivery, error: BaseException) -> Decision:
        raise ValueError("bug")

    async def process(item: Delivery) -> Decision:
        if item.message.id == "slow":
            await asyncio.sleep(60)
        return DONE

    async with lanes_of(process, 1, longest=0.5, failed=failed) as bench:
        bench.feed("slow", "next")
        await until(lambda: len(bench.lanes) == 1)
        await late(bench)
        await bench.all(2)
        assert bench.results == [("slow", GIVE_BACK), ("next", DONE)]
        assert len(bench.fatal) == 1


async def test_stop_cancels_what_runs_gives_it_back_and_starts_nothing_more() -> None:
    async def process(item: Delivery) -> Decision:
        if item.message.id == "keeps":
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(60)
            return FAILED
        await asyncio.sleep(60)
        return DONE

    async with lanes_of(process, 2) as bench:
        bench.feed("runs", "keeps", "queued", "queued too")
        await until(lambda: len(bench.lanes) == 2)
        await asyncio.wait_for(bench.pool.stop(), 2)
        assert sorted(bench.results) == [("keeps", FAILED), ("runs", GIVE_BACK)]
        assert len(bench.lanes) == 2
        await bench.pool.stop()
        bench.pool.wake()
        await asyncio.sleep(0)
        assert len(bench.lanes) == 2


async def test_stop_does_not_wait_for_ever_for_a_handler_that_will_not_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(async_pool, "CANCEL_SECONDS", 0.02)
    gate = asyncio.Event()

    async def process(item: Delivery) -> Decision:
        while not gate.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await gate.wait()
        return DONE

    async with lanes_of(process, 1) as bench:
        bench.feed("stubborn", "queued")
        await until(lambda: len(bench.lanes) == 1)
        await asyncio.wait_for(bench.pool.stop(), 2)
        assert not bench.results
        assert "left behind: 1 cancelled handler" in caplog.text
        gate.set()
        await bench.all(1)


@pytest.mark.parametrize("state", ["running", "idle", "never started"])
def test_a_loop_that_ends_without_a_stop_ends(state: str) -> None:
    """`asyncio.run` cancels every task and waits for them: lanes must not take that for a handler's own affair."""

    async def main() -> None:
        bench = Bench()
        started = asyncio.Event()

        async def process(item: Delivery) -> Decision:
            started.set()
            await asyncio.sleep(60)
            return DONE

        pool = bench.pool = AsyncPool(
            process, bench.lanes, 2, ended=bench.ended, failed=bench.failed, fatal=bench.fatal.append
        )
        pool.start()
        if state == "running":
            bench.feed("m")
            await started.wait()
        elif state == "idle":
            await asyncio.sleep(0)
        results.append(bench)

    results: list[Bench] = []
    thread = threading.Thread(target=asyncio.run, args=(main(),), daemon=True)
    thread.start()
    thread.join(5)
    assert not thread.is_alive(), "the loop does not end"
    assert results[0].results == ([("m", GIVE_BACK)] if state == "running" else [])


async def most_in_a_turn(process: Callable[[Delivery], Any], concurrency: int, count: int) -> int:
    """How many of ``count`` deliveries end in one iteration of the loop, at most."""
    turns: list[int] = []

    async def beat() -> None:
        while True:
            turns.append(len(bench.results))
            await asyncio.sleep(0)

    places = Places(concurrency)
    async with lanes_of(process, concurrency, places=places) as bench:
        beating = asyncio.create_task(beat())
        await asyncio.sleep(0)  # the lanes have begun
        bench.feed(*deliveries(count))
        await bench.all(count)
        beating.cancel()
        await asyncio.wait([beating])
        turns.append(count)
        await until(lambda: places._left == concurrency, what="a lane that does nothing keeps its place")
    return max(later - earlier for earlier, later in itertools.pairwise(turns))


@pytest.mark.parametrize("concurrency", [1, 10])
async def test_handlers_that_never_wait_give_the_loop_back_in_time(concurrency: int) -> None:
    """Settlements, renewals and heartbeats run on it: a few milliseconds of handlers, not sixteen handlers, nor of each lane."""

    async def process(item: Delivery) -> Decision:
        until_then = time.perf_counter() + 0.006
        while time.perf_counter() < until_then:
            pass
        return DONE

    assert await most_in_a_turn(process, concurrency, 20) <= 2


@pytest.mark.parametrize("concurrency", [1, 10])
async def test_what_is_to_be_published_leaves_before_all_runs_are_over(concurrency: int) -> None:
    """Whoever waits for an answer does not wait for everybody's."""

    async def process(item: Delivery) -> Decision:
        return ANSWERED

    assert await most_in_a_turn(process, concurrency, 500) <= 2 * async_pool._PUBLISHING_RUNS


@pytest.mark.parametrize("concurrency", [1, 10])
async def test_copies_that_nobody_waits_for_leave_in_longer_lists(
    concurrency: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(async_pool, "_TURN_SECONDS", 60.0)  # a busy machine ends the turn earlier

    async def process(item: Delivery) -> Decision:
        return msgspec.structs.replace(ANSWERED, name="retried")

    most = await most_in_a_turn(process, concurrency, 1000)
    assert 2 * async_pool._PUBLISHING_RUNS < most <= 2 * async_pool._MOVING_RUNS


class Creations:
    """Counts the futures and tasks that the running loop creates."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loop = asyncio.get_running_loop()
        self.futures = self.tasks = 0
        create_future = loop.create_future

        def counted_future() -> asyncio.Future[Any]:
            self.futures += 1
            return create_future()

        def counted_task(loop: asyncio.AbstractEventLoop, coro: Any, **kwargs: Any) -> asyncio.Task[Any]:
            self.tasks += 1
            return asyncio.Task(coro, loop=loop, **kwargs)

        monkeypatch.setattr(loop, "create_future", counted_future)
        loop.set_task_factory(counted_task)


@pytest.mark.parametrize("concurrency", [1, 10, 100])
async def test_lanes_create_nothing_for_a_message(concurrency: int, monkeypatch: pytest.MonkeyPatch) -> None:
    async def process(item: Delivery) -> Decision:
        return DONE

    async with lanes_of(process, concurrency) as bench:
        await asyncio.sleep(0)
        count = Creations(monkeypatch)
        for n in range(50):
            bench.feed(*deliveries(100, prefix=f"b{n}-"))
            await until(lambda n=n: len(bench.results) == 100 * (n + 1))
        asyncio.get_running_loop().set_task_factory(None)
        assert count.tasks == 0
        assert count.futures < 50 * 5


async def test_lanes_create_nothing_for_a_message_that_waits_for_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    async def process(item: Delivery) -> Decision:
        return DONE

    async with lanes_of(process, 10, lanes=KeyedLanes(ByKey())) as bench:
        await asyncio.sleep(0)
        count = Creations(monkeypatch)
        for n in range(20):
            bench.feed(*(delivery(f"{n}-{m}", key=b"hot") for m in range(100)))
            await until(lambda n=n: len(bench.results) == 100 * (n + 1))
        assert count.futures < 20 * 5


async def test_the_lanes_share_what_waits_although_one_wakes_the_next() -> None:
    """One lane at a time is woken; all must still come to run when handlers wait."""
    gate = asyncio.Event()

    async def process(item: Delivery) -> Decision:
        await gate.wait()
        return DONE

    async with lanes_of(process, 50) as bench:
        await asyncio.sleep(0)
        bench.feed(*deliveries(49))
        await until(lambda: len(bench.lanes) == 0)
        bench.feed("one more", "waits")
        await until(lambda: len(bench.lanes) == 1)
        gate.set()
        await bench.all(51)


# ---------------------------------------------------------------------------------------------------------- def


@contextlib.asynccontextmanager
async def threads_of(
    process: Callable[[Delivery], Decision],
    concurrency: int = 2,
    *,
    lanes: Lanes | None = None,
    longest: float | None = None,
    left: int = 0,
    failed: Callable[[Delivery, BaseException], Decision] | None = None,
) -> AsyncIterator[Bench]:
    bench = Bench(lanes)
    before = set(threading.enumerate())
    pool = bench.pool = ThreadPool(
        process,
        bench.lanes,
        concurrency,
        ended=bench.ended,
        failed=failed or bench.failed,
        fatal=bench.fatal.append,
        timeout=longest,
    )
    pool.start()
    try:
        yield bench
    finally:
        await pool.stop()
    await until(lambda: len(set(threading.enumerate()) - before) <= left, what="threads are left")
    assert bench.threads <= {threading.get_ident()}


async def warm(bench: Bench, count: int = 100) -> None:
    """Let the pool learn that runs are short, so that it hands out larger chunks."""
    done = len(bench.results)
    bench.feed(*deliveries(count, prefix="warm"))
    await bench.all(done + count)


async def test_def_handlers_run_on_threads_and_are_told_on_the_loop() -> None:
    idents: set[int] = set()

    def process(item: Delivery) -> Decision:
        idents.add(threading.get_ident())
        return FAILED if item.message.id == "m3" else DONE

    async with threads_of(process, 3) as bench:
        bench.feed(*deliveries(200))
        await bench.all(200)
        assert threading.get_ident() not in idents
        assert len(idents) <= 3
        assert bench.result("m3") is FAILED
        assert sorted(bench.names) == sorted(ids(deliveries(200)))


async def test_quick_runs_are_handed_over_in_chunks() -> None:
    def process(item: Delivery) -> Decision:
        return DONE

    async with threads_of(process, 2) as bench:
        assert isinstance(bench.pool, ThreadPool)
        await warm(bench)
        handed, told = count_hops(bench.pool)
        bench.feed(*deliveries(5000))
        await bench.all(5100)
        assert handed() < 500
        assert told() < 1500


def count_hops(pool: ThreadPool) -> tuple[Callable[[], int], Callable[[], int]]:
    """How many chunks go to threads, and how many wake-ups come back, from now on."""
    counts: Counter[str] = Counter()
    inbox, call = pool._inbox, pool._call

    class Inbox:
        get = staticmethod(inbox.get)

        @staticmethod
        def put(chunk: Any) -> None:
            counts["handed"] += 1
            inbox.put(chunk)

    def counted(function: Callable[..., None], *args: object) -> None:
        counts["told"] += 1
        call(function, *args)

    pool._inbox = Inbox  # type: ignore[assignment]
    pool._call = counted  # type: ignore[method-assign]
    return lambda: counts["handed"], lambda: counts["told"]


async def test_a_slow_run_does_not_hold_up_the_rest_of_its_chunk_while_others_idle() -> None:
    gate = threading.Event()

    def process(item: Delivery) -> Decision:
        if item.message.id.startswith("slow"):
            gate.wait(10)
        return DONE

    try:
        async with threads_of(process, 2) as bench:
            await warm(bench)
            bench.feed("slow", *deliveries(60))
            await until(lambda: len(bench.results) > 100)
            await asyncio.sleep(0.03)  # longer than what counts as slow
            bench.pool.cancel_late(time.monotonic())
            await bench.all(160)
            assert "slow" not in bench.names
            # ... and the chunks of the others stay as large as they were
            assert isinstance(bench.pool, ThreadPool)
            handed, _ = count_hops(bench.pool)
            bench.feed(*deliveries(2000, prefix="later"))
            deadline = time.monotonic() + 5
            while len(bench.results) < 2160:
                assert time.monotonic() < deadline
                bench.pool.cancel_late(time.monotonic())
                await asyncio.sleep(0.001)
            assert handed() < 400
            gate.set()
            await bench.all(2161)
    finally:
        gate.set()


async def test_reclaim_takes_back_what_has_not_started_and_only_what_is_unwanted() -> None:
    gate = threading.Event()
    started: list[str] = []

    def process(item: Delivery) -> Decision:
        started.append(item.message.id)
        if item.message.id == "slow":
            gate.wait(10)
        return DONE

    try:
        async with threads_of(process, 1) as bench:
            await warm(bench)
            bench.feed("slow", *deliveries(10, prefix="gone"), *deliveries(10, prefix="kept"))
            await until(lambda: "slow" in started)
            assert len(bench.lanes) < 20, "nothing was handed over with the slow one: the test shows nothing"
            back = bench.pool.reclaim(lambda item: not item.message.id.startswith("kept"))
            back += bench.lanes.purge(lambda item: not item.message.id.startswith("kept"))
            assert sorted(ids(back)) == sorted(ids(deliveries(10, prefix="gone")))
            assert bench.pool.reclaim(lambda _: False) == []
            gate.set()
            await bench.all(111)
            assert [name for name in bench.names if name.startswith("kept")] == ids(deliveries(10, prefix="kept"))
            assert not [name for name in started if name.startswith("gone")]
    finally:
        gate.set()


async def test_stop_gives_back_what_has_not_started_and_leaves_what_runs_behind() -> None:
    gate = threading.Event()
    started: list[str] = []

    def process(item: Delivery) -> Decision:
        started.append(item.message.id)
        if item.message.id.startswith("slow"):
            gate.wait(10)
        return DONE

    try:
        async with threads_of(process, 2, left=1) as bench:
            await warm(bench)
            bench.feed("slow", *deliveries(30))
            await until(lambda: "slow" in started)
            await bench.pool.stop()
            ended = Counter(bench.names)
            assert "slow" not in ended
            assert max(ended.values()) <= 2  # warm0 and so on are told once, too
            left = bench.lanes.purge(lambda _: True)
            assert set(ids(deliveries(30))) == {n for n in ended if n[0] == "m"} | set(ids(left))
            begun = len(started)
            bench.lanes.offer(deliveries(5, prefix="never"))
            bench.pool.wake()
            gate.set()
            await until(lambda: "slow" in bench.names)
            await asyncio.sleep(0.01)
            assert len(started) == begun
            assert len(bench.lanes) == 5
    finally:
        gate.set()


async def test_a_run_that_has_ended_when_the_pool_stops_is_told() -> None:
    def process(item: Delivery) -> Decision:
        return FAILED

    async with threads_of(process, 1) as bench:
        assert isinstance(bench.pool, ThreadPool)
        bench.feed("m")
        deadline = time.monotonic() + 5
        while not bench.pool._results:  # holding the loop, so that nothing is collected
            assert time.monotonic() < deadline
            time.sleep(0.001)  # noqa: ASYNC251
        await bench.pool.stop()
        assert bench.results == [("m", FAILED)]


@pytest.mark.parametrize(
    "error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), RuntimeError("a bug in the policy")]
)
async def test_a_thread_outlives_whatever_a_handler_raises(error: BaseException) -> None:
    def process(item: Delivery) -> Decision:
        if item.message.id == "bad":
            raise error
        return DONE

    async with threads_of(process, 1) as bench:
        bench.feed("a", "bad", "b")
        await bench.all(3)
        assert bench.results == [("a", DONE), ("bad", cut_off(error)), ("b", DONE)]
        assert bench.fatal == [error]
        await warm(bench)  # its chunk came back, and with it the thread


async def test_a_def_handler_that_was_cancelled_inside_runs_again_as_an_async_one_would() -> None:
    def process(item: Delivery) -> Decision:
        if item.message.id == "bad":
            raise asyncio.CancelledError
        return DONE

    async with threads_of(process, 1) as bench:
        bench.feed("bad", "b")
        await bench.all(2)
        assert bench.result("bad").again is not None
        assert not bench.fatal


@pytest.mark.parametrize("pool", ["lanes", "threads"])
async def test_a_handler_that_always_cancels_itself_has_failed_in_the_end(pool: str) -> None:
    def process(item: Delivery) -> Decision:
        raise asyncio.CancelledError

    async def process_async(item: Delivery) -> Decision:
        process(item)
        return DONE

    item = delivery("bad")
    async with lanes_of(process_async, 1) if pool == "lanes" else threads_of(process, 1) as bench:
        for run in range(1, SELF_CANCELLED_RUNS + 2):
            assert not bench.failures
            bench.feed(item)
            await bench.all(run)
        assert [decision.again for _, decision in bench.results] == [1.0] * SELF_CANCELLED_RUNS + [None]
        assert bench.results[-1] == ("bad", FAILED)
        ((name, error),) = bench.failures
        assert name == "bad"
        assert isinstance(error, HandlerCancelled)
        assert "run 6 of this delivery ended in CancelledError" in str(error)
        assert isinstance(error.__cause__, asyncio.CancelledError), "it says where it came from"
        assert not bench.fatal


@pytest.mark.parametrize("pool", ["lanes", "threads"])
async def test_a_policy_that_fails_about_a_cancelled_run_gives_back_and_tells_the_service(pool: str) -> None:
    bug = RuntimeError("bug")

    def process(item: Delivery) -> Decision:
        raise asyncio.CancelledError

    async def process_async(item: Delivery) -> Decision:
        process(item)
        return DONE

    def failed(item: Delivery, error: BaseException) -> Decision:
        raise bug

    item = delivery("bad")
    item.tries = SELF_CANCELLED_RUNS
    make: Any = lanes_of(process_async, 1, failed=failed) if pool == "lanes" else threads_of(process, 1, failed=failed)
    async with make as bench:
        bench.feed(item)
        await bench.all(1)
        assert bench.results == [("bad", GIVE_BACK)]
        await until(lambda: bench.fatal == [bug])


async def test_a_run_past_its_timeout_is_reported_once_and_its_result_counts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    gate = threading.Event()

    def process(item: Delivery) -> Decision:
        gate.wait(10)
        return FAILED

    try:
        async with threads_of(process, 1, longest=0.5) as bench:
            bench.feed("slow")
            await until(lambda: len(bench.lanes) == 0)
            for _ in range(3):
                bench.pool.cancel_late(time.monotonic() + 1)
            assert len([r for r in caplog.records if "slow runs longer than 0.5 s" in r.getMessage()]) <= 1
            await until(lambda: bench.pool.cancel_late(time.monotonic() + 1) or "slow runs longer" in caplog.text)
            gate.set()
            await bench.all(1)
            assert bench.result("slow") is FAILED
    finally:
        gate.set()


async def test_a_clock_too_coarse_for_quick_runs_breaks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows counts in steps of 16 ms: nearly all runs measure as no time at all."""

    class Frozen:
        monotonic = staticmethod(lambda: 1.0)

    monkeypatch.setattr(thread_pool, "time", Frozen)

    def process(item: Delivery) -> Decision:
        return DONE

    async with threads_of(process, 1) as bench:
        for _ in range(5):
            await warm(bench, 1000)


async def test_nothing_is_lost_or_run_twice_while_chunks_are_taken_back_at_any_moment() -> None:
    """Threads pop from one end while the loop takes from the other, for all it is worth."""
    chance = random.Random(7)
    ran: list[str] = []
    previous = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)

    def process(item: Delivery) -> Decision:
        ran.append(item.message.id)
        return DONE

    try:
        async with threads_of(process, 4) as bench:
            assert isinstance(bench.pool, ThreadPool)
            fed, back = 0, []
            for n in range(150):
                batch = deliveries(20, prefix=f"{n}-")
                fed += len(batch)
                bench.feed(*batch)
                digit = str(chance.randrange(10))
                back += ids(bench.pool.reclaim(lambda item, digit=digit: item.message.id.endswith(digit)))
                bench.pool.cancel_late(time.monotonic() + chance.choice([0, 1]))
                if chance.random() < 0.5:
                    await asyncio.sleep(0)
            await until(lambda: len(bench.results) + len(back) == fed)
            assert Counter(ran) == Counter(bench.names)
            assert max(Counter(ran + back).values()) == 1
            await until(lambda: bench.pool._free == 4)  # type: ignore[union-attr]
            assert not bench.pool._chunks
    finally:
        sys.setswitchinterval(previous)
