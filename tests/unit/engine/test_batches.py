"""Batch handlers: every member ends exactly once, whatever the handler does, and all lanes share the work."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest
from engine_kit import ByKey, deliveries, delivery, ids, until

from atleastonce.contract import Delivery
from atleastonce.engine.batches import BatchPool
from atleastonce.engine.decision import AMONG_THEM, DONE, EXITED, GIVE_BACK, Decision
from atleastonce.engine.lanes import FreeLanes, KeyedLanes, Lanes
from atleastonce.engine.pools import SELF_CANCELLED_RUNS
from atleastonce.errors import HandlerCancelled

FAILED = Decision(name="dead")
BatchHandler = Callable[[Sequence[Delivery]], Awaitable[Sequence[Decision]]]


class Bench:
    def __init__(
        self, process: BatchHandler, concurrency: int, max_messages: int, max_wait: float, lanes: Lanes | None = None
    ) -> None:
        self.lanes = FreeLanes() if lanes is None else lanes
        self.results: list[tuple[str, Decision]] = []
        self.fatal: list[BaseException] = []
        self.failures: list[tuple[str, BaseException]] = []
        self.batches: list[list[str]] = []

        async def recorded(batch: Sequence[Delivery]) -> Sequence[Decision]:
            self.batches.append(ids(batch))
            return await process(batch)

        self.pool = BatchPool(
            recorded,
            self.lanes,
            concurrency,
            max_messages=max_messages,
            max_wait=max_wait,
            ended=self.all_ended,
            failed=self.failed,
            fatal=self.fatal.append,
        )

    def failed(self, item: Delivery, error: BaseException) -> Decision:
        self.failures.append((item.message.id, error))
        return FAILED

    def all_ended(self, items: Sequence[Delivery], decisions: Sequence[Decision]) -> None:
        for item, decision in zip(items, decisions, strict=True):
            self.results.append((item.message.id, decision))
            self.lanes.finish(item)

    def feed(self, batch: list[Delivery]) -> None:
        self.lanes.offer(batch)
        self.pool.wake()

    async def all(self, count: int) -> None:
        await until(lambda: len(self.results) >= count, what=f"{len(self.results)} of {count} ended")
        assert len(self.results) == count


@contextlib.asynccontextmanager
async def batching(
    process: BatchHandler,
    concurrency: int = 1,
    *,
    max_messages: int = 10,
    max_wait: float = 0.005,
    lanes: Lanes | None = None,
) -> AsyncIterator[Bench]:
    before = asyncio.all_tasks()
    bench = Bench(process, concurrency, max_messages, max_wait, lanes)
    bench.pool.start()
    try:
        yield bench
    finally:
        await asyncio.wait_for(bench.pool.stop(), 5)
        assert asyncio.all_tasks() - before == set()


async def done(batch: Sequence[Delivery]) -> Sequence[Decision]:
    return [DONE] * len(batch)


async def test_a_batch_is_closed_by_its_size_or_by_time() -> None:
    async with batching(done) as bench:
        bench.feed(deliveries(23))
        await bench.all(23)
        assert [len(batch) for batch in bench.batches] == [10, 10, 3]
        assert [decision for _, decision in bench.results] == [DONE] * 23


async def test_a_batch_has_one_message_of_each_key_and_waits_for_no_message_that_waits_for_it() -> None:
    async with batching(done, 2, max_wait=60, lanes=KeyedLanes(ByKey())) as bench:
        bench.feed([delivery(f"{key}{n}", key=key.encode()) for n in range(3) for key in "ab"])
        await bench.all(4)
        assert bench.batches == [["a0", "b0"], ["a1", "b1"]]
        assert bench.lanes.take() is None, "the last two are being collected, and wait for others"


async def test_what_one_batch_leaves_is_begun_by_the_other_lanes() -> None:
    gate = asyncio.Event()

    async def process(batch: Sequence[Delivery]) -> Sequence[Decision]:
        await gate.wait()
        return await done(batch)

    async with batching(process, 3) as bench:
        await asyncio.sleep(0)
        bench.feed(deliveries(30))
        await until(lambda: len(bench.batches) == 3, within=1)
        gate.set()
        await bench.all(30)


async def cancelled(batch: Sequence[Delivery]) -> Sequence[Decision]:
    raise asyncio.CancelledError


async def cancels_itself(batch: Sequence[Delivery]) -> Sequence[Decision]:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(5)
    return await done(batch)


async def short(batch: Sequence[Delivery]) -> Sequence[Decision]:
    return [DONE] * (len(batch) - 1)


async def bug(batch: Sequence[Delivery]) -> Sequence[Decision]:
    raise RuntimeError("bug")


async def leaves(batch: Sequence[Delivery]) -> Sequence[Decision]:
    raise SystemExit(1)


@pytest.mark.parametrize(("misdeed", "fatal"), [(bug, 1), (short, 1), (leaves, 1), (cancelled, 0), (cancels_itself, 0)])
async def test_whatever_a_batch_does_its_members_end_once_and_the_next_runs(misdeed: BatchHandler, fatal: int) -> None:
    async def process(batch: Sequence[Delivery]) -> Sequence[Decision]:
        return await (misdeed if batch[0].message.id.startswith("bad") else done)(batch)

    async with batching(process) as bench:
        bench.feed(deliveries(10, prefix="bad"))
        await bench.all(10)
        for _, decision in bench.results:
            # Given back to end the service; or, if it was only cancelled, run again in place after a while.
            assert (decision is (AMONG_THEM if misdeed is leaves else GIVE_BACK)) if fatal else decision.again
        assert len(bench.fatal) == fatal
        bench.feed(deliveries(10))
        await bench.all(20)
        assert [decision for _, decision in bench.results[10:]] == [DONE] * 10


async def cancels_itself_and_returns(batch: Sequence[Delivery]) -> Sequence[Decision]:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    return await asyncio.shield(done(batch)) if len(batch) > 1 else [DONE]


@pytest.mark.parametrize("misdeed", [cancelled, cancels_itself, cancels_itself_and_returns])
async def test_a_batch_that_cancels_itself_runs_one_by_one_so_that_only_the_guilty_is_held(
    misdeed: BatchHandler,
) -> None:
    async def process(batch: Sequence[Delivery]) -> Sequence[Decision]:
        if any(item.message.id == "m1" for item in batch):
            return await misdeed(batch)
        await asyncio.sleep(0)
        return await done(batch)

    async with batching(process, max_messages=3) as bench:
        bench.feed(deliveries(3))
        await bench.all(3)
        assert bench.batches == [["m0", "m1", "m2"], ["m0"], ["m1"], ["m2"]]
        decisions = dict(bench.results)
        assert decisions["m0"] is decisions["m2"] is DONE
        assert decisions["m1"].again == (None if misdeed is cancels_itself_and_returns else 1.0)
        assert not bench.fatal


async def test_a_list_of_one_that_ends_the_process_is_known_to_have_done_it() -> None:
    for error in (SystemExit(3), BaseExceptionGroup("tasks", [ValueError(), SystemExit(3)])):

        async def process(batch: Sequence[Delivery], error: BaseException = error) -> Sequence[Decision]:
            raise error

        async with batching(process, max_messages=1) as bench:
            bench.feed(deliveries(1))
            await bench.all(1)
            assert bench.results[0][1] is EXITED
            assert bench.fatal == [error]


async def test_a_batch_handler_that_always_cancels_itself_has_failed_in_the_end() -> None:
    async with batching(cancelled) as bench:
        items = deliveries(2)
        for run in range(1, SELF_CANCELLED_RUNS + 2):
            assert not bench.failures
            bench.feed(items)
            await bench.all(2 * run)
        assert [name for name, _ in bench.failures] == ["m0", "m1"]
        assert all(isinstance(error, HandlerCancelled) for _, error in bench.failures)
        assert bench.results[-2:] == [("m0", FAILED), ("m1", FAILED)]
        assert not bench.fatal


async def test_stop_gives_back_what_runs_one_by_one_and_what_has_not_run() -> None:
    async def process(batch: Sequence[Delivery]) -> Sequence[Decision]:
        if len(batch) > 1:
            raise asyncio.CancelledError
        if batch[0].message.id == "m1":
            await asyncio.sleep(60)
        return await done(batch)

    async with batching(process, max_messages=4) as bench:
        bench.feed(deliveries(4))
        await until(lambda: bench.batches[-1:] == [["m1"]])
        await bench.pool.stop()
        assert bench.results == [("m0", DONE), ("m1", GIVE_BACK), ("m2", GIVE_BACK), ("m3", GIVE_BACK)]


async def test_reclaim_takes_members_of_what_is_still_collected() -> None:
    async with batching(done, max_wait=60) as bench:
        bench.feed(deliveries(6))
        await until(lambda: not len(bench.lanes))
        assert ids(bench.pool.reclaim(lambda item: item.message.id < "m4")) == ["m0", "m1", "m2", "m3"]
        bench.feed(deliveries(8, prefix="n"))
        await bench.all(10)
        assert bench.batches == [["m4", "m5", *(f"n{n}" for n in range(8))]]


async def test_stop_gives_back_what_runs_and_what_is_collected_and_starts_nothing_more() -> None:
    async def process(batch: Sequence[Delivery]) -> Sequence[Decision]:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        return await done(batch)

    async with batching(process, 2, max_wait=60) as bench:
        bench.feed(deliveries(14))
        await until(lambda: not len(bench.lanes) and bench.batches)
        bench.lanes.offer(deliveries(20, prefix="queued"))
        await bench.pool.stop()
        verdicts = dict(bench.results)
        assert len(bench.results) == len(verdicts) == 14
        assert list(verdicts.values()).count(DONE) == 10  # it outlived its cancellation: its result counts
        assert list(verdicts.values()).count(GIVE_BACK) == 4
        assert len(bench.lanes) == 20


def test_a_loop_that_ends_without_a_stop_ends() -> None:
    async def main() -> None:
        async def process(batch: Sequence[Delivery]) -> Sequence[Decision]:
            await asyncio.sleep(60)
            return await done(batch)

        bench = Bench(process, 2, 3, 60)
        bench.pool.start()
        bench.feed(deliveries(4))
        await until(lambda: bench.batches)
        found.append(bench)

    found: list[Any] = []
    thread = threading.Thread(target=asyncio.run, args=(main(),), daemon=True)
    thread.start()
    thread.join(5)
    assert not thread.is_alive(), "the loop does not end"
    assert {decision.name for _, decision in found[0].results} == {"released"}
