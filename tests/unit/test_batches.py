"""Batch handlers and single ones, from the delivery to the decision: what decodes, what fails, what is whose."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import warnings
from collections.abc import Sequence
from typing import Any

import pytest
from front_kit import until

from atleastonce import (
    Backoff,
    ConfigurationError,
    Context,
    Discard,
    FailurePolicy,
    HandlerTimeout,
    Queue,
    RetryChain,
    RetryLater,
    Service,
    Source,
    wire,
)
from atleastonce.bound import Bound
from atleastonce.contract import (
    Ability,
    Capabilities,
    Code,
    Counting,
    Delivery,
    Fault,
    Leasing,
    Level,
    Ordering,
    Outgoing,
    Retry,
)
from atleastonce.engine.batches import BatchPool
from atleastonce.engine.decision import DONE, GIVE_BACK, Decision, cut_off
from atleastonce.engine.lanes import FreeLanes
from atleastonce.message import Headers, Message

QUEUE: Queue[Any] = Queue("q")
POLICY = FailurePolicy(in_place=None, chain=RetryChain("5s", "30s"))


def bound(
    handler: Any, *, batch: bool = True, native: bool = False, dead_letter: bool = True, policy: FailurePolicy = POLICY
) -> Bound:
    service = Service("s", broker="memory://")
    register = service.batch_consumer if batch else service.consumer
    register(QUEUE, failure=policy, dead_letter=dead_letter)(handler)
    capabilities = Capabilities(
        delay=Ability(Level.NATIVE if native else Level.NONE),
        delivery_count=Counting.NONE,
        lease=Leasing.NONE,
        order=Ordering.NONE,
    )
    return Bound(service.consumers[0], capabilities, lambda *_, **__: Outgoing(QUEUE, Message("out", b"")), "s")


def delivery(body: bytes, name: str = "", headers: dict[str, str] | None = None) -> Delivery:
    message = Message(name or body.decode("latin-1"), body, None, Headers(headers or {}))
    made = Delivery(message, Source(QUEUE), "q", 1, 1, None)
    made.tries = 1
    made.returned = bool(headers)  # what has a past was brought back by the broker
    return made


def names(decisions: Sequence[Decision]) -> list[str]:
    return [decision.name for decision in decisions]


# ------------------------------------------------------------------------------------------ batches and decisions


async def test_a_batch_is_handled_as_one() -> None:
    seen: list[list[int]] = []

    async def handle(numbers: list[int]) -> None:
        seen.append(numbers)

    assert await bound(handle).process_batch([delivery(b"1"), delivery(b"2")]) == [DONE, DONE]
    assert seen == [[1, 2]]


async def test_what_does_not_decode_is_taken_out_first() -> None:
    seen: list[list[int]] = []

    def handle(numbers: list[int]) -> None:
        seen.append(numbers)

    decisions = await bound(handle).process_batch([delivery(b"1"), delivery(b"nope"), delivery(b"3"), delivery(b"[")])
    assert names(decisions) == ["done", "dead", "done", "dead"]
    assert seen == [[1, 3]]
    assert decisions[1].copies[0].message.headers.get(wire.ERROR_STAGE) == "decode"
    assert names(await bound(handle).process_batch([delivery(b"x")])) == ["dead"]
    assert seen == [[1, 3]], "with nothing left, the handler is not called"


@pytest.mark.parametrize("threaded", [False, True])
async def test_one_bad_message_costs_only_itself(threaded: bool) -> None:
    runs: list[list[int]] = []

    def work(numbers: list[int]) -> None:
        runs.append(numbers)
        if 2 in numbers:
            raise ValueError("two")

    async def work_async(numbers: list[int]) -> None:
        work(numbers)

    decisions = await bound(work if threaded else work_async).process_batch(
        [delivery(b"1"), delivery(b"2"), delivery(b"3")]
    )
    assert names(decisions) == ["done", "retried", "done"]
    assert runs == [[1, 2, 3], [1], [2], [3]]
    assert decisions[1].copies[0].destination == Queue("q.retry.5s")


async def test_one_result_for_each_message() -> None:
    async def handle(numbers: list[int]) -> list[Exception | None]:
        return [None, ValueError("x"), Discard("old"), RetryLater("30s")]

    decisions = await bound(handle).process_batch([delivery(b"%d" % n) for n in range(4)])
    assert names(decisions) == ["done", "retried", "discarded", "retried"]
    assert decisions[3].copies[0].destination == Queue("q.retry.30s")


@pytest.mark.parametrize("result", [[], [None], [None] * 3, "ab", 5, {1: 2}, True])
async def test_a_wrong_number_of_results_is_a_failure_of_all_and_says_so(result: Any) -> None:
    async def handle(numbers: list[int]) -> Any:
        return result

    decisions = await bound(handle).process_batch([delivery(b"1"), delivery(b"2")])
    assert names(decisions) == ["retried", "retried"]
    text = decisions[0].copies[0].message.headers.get(wire.ERROR_MESSAGE) or ""
    assert "must return None or one result per message, 2 here" in text


async def test_a_batch_on_a_thread_does_not_block_and_may_raise_anything() -> None:
    threads: list[threading.Thread] = []

    def handle(numbers: list[int]) -> None:
        threads.append(threading.current_thread())
        if 2 in numbers:
            raise StopIteration
        if 4 in numbers:
            raise GeneratorExit
        if 3 in numbers:
            raise SystemExit(3)

    ready = bound(handle)
    assert names(await ready.process_batch([delivery(b"1")])) == ["done"]
    assert names(await ready.process_batch([delivery(b"2")])) == ["retried"]
    assert names(await ready.process_batch([delivery(b"1"), delivery(b"4")])) == ["done", "retried"]
    with pytest.raises(SystemExit):
        await ready.process_batch([delivery(b"3")])
    assert threading.main_thread() not in threads
    assert all(thread.daemon for thread in threads), "a handler that hangs must not hold up the end of the process"


def test_a_batch_has_no_timeout() -> None:
    service = Service("s", broker="memory://")
    with pytest.raises(ConfigurationError, match="a batch has no timeout; leave timeout='5s' out"):
        service.batch_consumer(QUEUE, failure=FailurePolicy(timeout="5s"))(lambda numbers: numbers)


# ------------------------------------------------------------------------------------------------ single messages


async def test_a_def_handler_that_returns_a_coroutine_is_not_done() -> None:
    async def real(number: int) -> None: ...

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decision = bound(lambda number: real(number), batch=False).process_sync(delivery(b"1"))
    assert decision.name == "retried"
    assert "make it an async def" in (decision.copies[0].message.headers.get(wire.ERROR_MESSAGE) or "")
    assert bound(lambda number: number, batch=False).process_sync(delivery(b"1")) is DONE


async def test_errors_of_any_kind_end_in_a_decision() -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    def handle(number: int) -> None:
        raise [Broken(), RetryLater("soon"), HandlerTimeout("late"), RecursionError(), ExceptionGroup("g", [Broken()])][
            number
        ]

    ready = bound(handle, batch=False)
    for n in range(5):
        assert ready.process_sync(delivery(b"%d" % n)).name == "retried"
    last = {wire.GROUP: "q", wire.ORIGIN: "q/1", wire.ATTEMPT: "3"}
    for n in range(5):
        assert ready.process_sync(delivery(b"%d" % n, headers=last)).name == "dead"
    assert bound(handle, batch=False, dead_letter=False).process_sync(delivery(b"0", headers=last)).name == "dropped"


async def test_a_future_first_failure_does_not_lengthen_a_life() -> None:
    policy = FailurePolicy(in_place=None, chain=RetryChain("5s", "30s"), give_up_after="10s")

    def handle(number: int) -> None:
        raise ValueError

    forged = {wire.GROUP: "q", wire.ORIGIN: "q/1", wire.ATTEMPT: "2", wire.FIRST_FAILED: "9999999999999"}
    decision = bound(handle, batch=False, policy=policy).process_sync(delivery(b"1", headers=forged))
    assert decision.copies[0].message.headers.get(wire.ERROR_STAGE) == "expired"


async def test_native_delays_settle_and_a_refused_copy_becomes_brief() -> None:
    def handle(number: int) -> None:
        raise ValueError("x")

    native = bound(handle, batch=False, native=True)
    assert native.process_sync(delivery(b"1")).verdict == Retry(5.0)
    plain = bound(handle, batch=False)
    item = delivery(b"1")
    retried = plain.process_sync(item)
    too_large = Fault(Code.TOO_LARGE, detail="headers")
    dead = plain.rejected(item, retried, too_large)
    assert dead is not None
    assert dead.copies[0].message.headers.get(wire.ERROR_STAGE) == "rejected"
    assert dead.copies[0].message.headers.get(wire.ERROR_MESSAGE) == (
        "too-large: headers; it was to be tried again after ValueError"
    )
    for elsewhere in (Code.PERMISSION, Code.NOT_FOUND, Code.CONFLICT):
        assert plain.rejected(item, dead, Fault(elsewhere)) is None, "held as it is: less would be refused as well"
    brief = plain.rejected(item, dead, too_large)
    assert brief is not None
    assert wire.TRACEBACK not in brief.copies[0].message.headers
    assert wire.ERROR_MESSAGE not in brief.copies[0].message.headers
    bare = plain.rejected(item, brief, too_large)
    assert bare is not None
    assert bare.copies[0].message.headers == item.message.headers, "the move is made, unexplained"
    assert plain.rejected(item, bare, too_large) is None, "nothing left to leave out: held and tried again"


async def test_in_place_repetitions_come_first() -> None:
    def handle(number: int) -> None:
        raise ValueError

    policy = FailurePolicy(in_place=Backoff("1s", max_attempts=2, jitter=0))
    ready, item = bound(handle, batch=False, policy=policy), delivery(b"1")
    assert ready.process_sync(item).again == 1.0
    item.tries = 2
    assert ready.process_sync(item).name == "dead"


async def test_what_a_failed_handler_published_is_not_sent() -> None:
    def handle(number: int, ctx: Context) -> None:
        ctx.publish(QUEUE, b"")
        if number == 2:
            raise ValueError

    ready = bound(handle, batch=False)
    assert [copy.message.id for copy in ready.process_sync(delivery(b"1")).copies] == ["out"]
    assert [copy.destination for copy in ready.process_sync(delivery(b"2")).copies] == [Queue("q.retry.5s")]


# ----------------------------------------------------------------------------------------------------- the pool


class Pooled:
    """A batch pool on its own, with gates for its handler."""

    def __init__(self, *, concurrency: int = 2, max_messages: int = 3, max_wait: float = 60.0) -> None:
        self.lanes = FreeLanes()
        self.batches: list[list[str]] = []
        self.ended: list[tuple[str, Decision]] = []
        self.fatal: list[BaseException] = []
        self.gate = asyncio.Event()
        self.raising: BaseException | None = None
        self.pool = BatchPool(
            self.process,
            self.lanes,
            concurrency,
            max_messages=max_messages,
            max_wait=max_wait,
            ended=self.all_ended,
            failed=lambda *_: GIVE_BACK,
            fatal=self.fatal.append,
        )

    def all_ended(self, items: Sequence[Delivery], decisions: Sequence[Decision]) -> None:
        self.ended += [(item.message.id, decision) for item, decision in zip(items, decisions, strict=True)]

    async def process(self, batch: Sequence[Delivery]) -> Sequence[Decision]:
        self.batches.append([item.message.id for item in batch])
        if self.raising is not None:
            raise self.raising
        await self.gate.wait()
        return [DONE] * len(batch)

    def offer(self, *ids: str) -> None:
        self.lanes.offer([delivery(b"1", name) for name in ids])
        self.pool.wake()


@contextlib.asynccontextmanager
async def pooled(**settings: Any) -> Any:
    made = Pooled(**settings)
    made.pool.start()
    await asyncio.sleep(0)
    yield made
    await made.pool.stop()


async def test_a_trickle_fills_one_batch_after_the_other() -> None:
    async with pooled(concurrency=4) as made:
        for n in range(6):
            made.offer(f"m{n}")
            await until(lambda: not made.lanes.ready)
        await until(lambda: len(made.batches) == 2)
        assert made.batches == [["m0", "m1", "m2"], ["m3", "m4", "m5"]]


async def test_a_batch_runs_with_what_it_has_when_its_time_is_over() -> None:
    async with pooled(max_wait=0.01) as made:
        made.offer("a", "b")
        await until(lambda: made.batches == [["a", "b"]])
    async with pooled(max_wait=0.0) as made:
        made.offer("a", "b")
        await until(lambda: made.batches == [["a", "b"]])


async def test_stopping_gives_back_what_is_collected_and_what_runs() -> None:
    async with pooled(concurrency=2) as made:
        made.offer("a", "b", "c")
        await until(lambda: made.batches)
        made.offer("d")
        await until(lambda: not made.lanes.ready)
        await made.pool.stop()
        assert sorted(made.ended) == [(name, GIVE_BACK) for name in "abcd"]


@pytest.mark.parametrize(
    "error", [SystemExit(3), KeyboardInterrupt(), RuntimeError("bug"), BaseExceptionGroup("g", [SystemExit()])]
)
async def test_what_ends_a_service_gives_the_batch_back_and_keeps_the_lane(error: BaseException) -> None:
    async with pooled(concurrency=1) as made:
        made.raising = error
        made.offer("a", "b", "c")
        await until(lambda: len(made.ended) == 3)
        assert all(decision is cut_off(error, 3) for _, decision in made.ended)
        assert made.fatal == [error]
        made.raising = None
        made.gate.set()
        made.offer("d", "e", "f")
        await until(lambda: len(made.ended) == 6)
        assert made.ended[3:] == [(name, DONE) for name in "def"]
