"""One failure policy, one observable behaviour, on every backend: each test here runs on all of them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from atleastonce import (
    Backoff,
    Context,
    DeadLetter,
    Discard,
    FailurePolicy,
    Queue,
    RetryChain,
    RetryLater,
    Service,
    Source,
    Topic,
    connect,
    wire,
)
from atleastonce.contract import Deletes, Delivery, Outgoing, Topology, Window
from atleastonce.message import Headers, Message
from atleastonce.patterns.redrive import redrive

DEADLINE = 30.0


class Order(msgspec.Struct):
    n: int


MakeTopic = Callable[[str], Topic[Any]]
MakeQueue = Callable[[str], Queue[Any]]


async def until(condition: Callable[[], bool], *services: Service) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        if time.monotonic() > end:
            readers = "\n".join(str(status) for service in services for status in service.status())
            pytest.fail(f"not true within {DEADLINE:g} s:\n{readers}")
        await asyncio.sleep(0.02)  # polling a condition with a deadline


class Quiet:
    async def drain(self, streams: object, grace: float) -> None: ...

    def lost(self, streams: object) -> None: ...

    def condition(self, state: str, detail: str) -> None: ...


async def read_all(service: Service, source: Source, count: int) -> list[Delivery]:
    """``count`` messages of ``source``, left where they are."""
    subscription = await service.broker.adapter.subscribe(source, Window(1000, 1 << 27), Quiet())
    found: list[Delivery] = []
    try:
        end = time.monotonic() + DEADLINE
        while len(found) < count and time.monotonic() < end:
            found += await subscription.receive(100, 0.5)
    finally:
        await subscription.close()
    return found


def counts(service: Service) -> Counter[str]:
    total: Counter[str] = Counter()
    for status in service.status():
        total.update(status.counts)
    return total


def settled(service: Service) -> bool:
    return all(status.in_flight == 0 for status in service.status())


async def test_a_message_is_handled_once_and_settled(backend_url: str, topic: MakeTopic) -> None:
    seen: list[int] = []
    orders = topic("orders")
    service = Service("billing", broker=backend_url)

    @service.consumer(orders)
    async def handle(order: Order) -> None:
        seen.append(order.n)

    async with service:
        outcomes = await service.broker.publish_many(orders, [Order(n) for n in range(500)])
        assert all(outcome.ok for outcome in outcomes)
        await until(lambda: len(seen) >= 500 and settled(service), service)
        backlog = await service.broker.backlog(orders, "billing")
    assert sorted(seen) == list(range(500))
    assert backlog.waiting in (0, None) or backend_url.startswith("kafka")

    # Settled means settled: a second run of the service gets none of them again.
    again = Service("billing", broker=backend_url)

    @again.consumer(orders)
    async def handle_again(order: Order) -> None:
        seen.append(order.n)

    async with again:
        await again.broker.publish(orders, Order(1000))
        await until(lambda: 1000 in seen and settled(again), again)
    assert sorted(seen) == [*range(500), 1000]


async def test_failures_go_through_the_chain_and_then_to_the_dead_letters(backend_url: str, topic: MakeTopic) -> None:
    orders = topic("orders")
    runs: dict[int, list[tuple[int, float]]] = defaultdict(list)
    service = Service("billing", broker=backend_url)
    policy = FailurePolicy(in_place=None, chain=RetryChain("300ms", "600ms"))

    @service.consumer(orders, failure=policy)
    async def handle(order: Order, ctx: Context) -> None:
        runs[order.n].append((ctx.attempt, time.time()))
        if order.n == 1 and ctx.attempt < 3:
            raise ValueError("not yet")
        if order.n == 2:
            raise RuntimeError("never\r\nwill")

    async with service:
        publishing = [
            service.broker.publish(orders, Order(n), key=f"k{n}", headers={"tenant": "a"}, id=f"order-{n}")
            for n in range(4)
        ]
        await asyncio.gather(*publishing)
        await until(lambda: counts(service)["done"] == 3 and counts(service)["dead"] == 1 and settled(service), service)
        (dead,) = await read_all(service, Source(service.consumers[0].home.dead_letter_channel), 1)

    assert [attempt for attempt, _ in runs[1]] == [1, 2, 3]
    assert [attempt for attempt, _ in runs[2]] == [1, 2, 3]
    assert len(runs[0]) == len(runs[3]) == 1
    times = [when for _, when in runs[2]]
    # Never early, by more than the brokers' own clocks (milliseconds) allow.
    assert times[1] - times[0] >= 0.29
    assert times[2] - times[1] >= 0.59
    message = dead.message
    assert (message.id, message.body, message.key) == ("order-2", b'{"n":2}', b"k2")
    assert message.headers.get("tenant") == "a"
    assert message.headers.get(wire.ERROR_TYPE) == "RuntimeError"
    assert message.headers.get(wire.ERROR_MESSAGE) == "never | will"
    assert message.headers.get(wire.ERROR_STAGE) == "handler"
    assert message.headers.get(wire.GROUP) == "billing"
    assert (message.headers.get(wire.ORIGIN) or "").startswith(orders.name)
    assert message.headers.get(wire.ATTEMPT) == "3"
    assert "RuntimeError" in (message.headers.get(wire.TRACEBACK) or "")


async def test_a_failing_message_does_not_hold_up_its_neighbours(backend_url: str, topic: MakeTopic) -> None:
    orders = topic("orders")
    done: list[int] = []
    failing = asyncio.Event()
    service = Service("billing", broker=backend_url)

    @service.consumer(orders, failure=FailurePolicy(in_place=None, chain=RetryChain("3s")), concurrency=1)
    async def handle(order: Order) -> None:
        if order.n == 0 and not failing.is_set():
            failing.set()
            raise ValueError("wait")
        done.append(order.n)

    async with service:
        await service.broker.publish_many(orders, [Order(n) for n in range(50)])
        await until(lambda: len(done) == 50)
        assert done[-1] == 0  # everyone else was done while it waited


async def test_bodies_that_do_not_decode_are_dead_at_once_with_their_bytes(backend_url: str, topic: MakeTopic) -> None:
    orders = topic("orders")
    seen: list[int] = []
    service = Service("billing", broker=backend_url)
    poison = bytes(range(256))

    @service.consumer(orders, retry=["5s"])
    async def handle(order: Order) -> None:
        seen.append(order.n)

    async with service:
        await service.broker.publish(orders, Order(1))
        await service.broker.publish(orders, poison, key=b"\x00\xff")
        await service.broker.publish(orders, Order(2))
        await until(lambda: counts(service)["dead"] == 1 and len(seen) == 2 and settled(service), service)
        (dead,) = await read_all(service, Source(service.consumers[0].home.dead_letter_channel), 1)
    assert dead.message.body == poison
    assert dead.message.key == b"\x00\xff"
    assert dead.message.headers.get(wire.ERROR_STAGE) == "decode"


async def test_handlers_steer_their_messages(backend_url: str, queue: MakeQueue) -> None:
    work = queue("work")
    runs: Counter[int] = Counter()
    service = Service("worker", broker=backend_url)

    @service.consumer(work, retry=["200ms", "400ms"])
    async def handle(order: Order) -> None:
        runs[order.n] += 1
        if order.n == 1:
            raise DeadLetter("unknown sku")
        if order.n == 2:
            raise Discard("stale price")
        if order.n == 3 and runs[3] == 1:
            raise RetryLater("300ms")

    async with service:
        await service.broker.publish_many(work, [Order(n) for n in range(4)])
        await until(
            lambda: runs[3] == 2 and counts(service)["dead"] == 1 and counts(service)["done"] == 2 and settled(service),
            service,
        )
        (dead,) = await read_all(service, Source(service.consumers[0].home.dead_letter_channel), 1)
        assert counts(service)["discarded"] == 1
    assert runs == {0: 1, 1: 1, 2: 1, 3: 2}
    assert dead.message.headers.get(wire.ERROR_MESSAGE) == "unknown sku"


async def test_every_group_gets_each_message_and_only_the_failing_group_retries(
    backend_url: str, topic: MakeTopic
) -> None:
    orders = topic("orders")
    billing: Counter[int] = Counter()
    shipping: Counter[int] = Counter()
    one, two = Service("billing", broker=backend_url), Service("shipping", broker=backend_url)

    @one.consumer(orders, failure=FailurePolicy(in_place=None, chain=RetryChain("200ms")))
    async def bill(order: Order) -> None:
        billing[order.n] += 1
        if order.n % 10 == 0 and billing[order.n] == 1:
            raise ValueError("try again")

    @two.consumer(orders)
    async def ship(order: Order) -> None:
        shipping[order.n] += 1

    async with one, two:
        await one.broker.publish_many(orders, [Order(n) for n in range(100)])
        await until(lambda: counts(one)["done"] == 100 and counts(two)["done"] == 100, one, two)
    assert all(billing[n] == (2 if n % 10 == 0 else 1) for n in range(100))
    assert all(shipping[n] == 1 for n in range(100))


async def test_redrive_returns_the_dead_to_the_group_that_failed_them(backend_url: str, topic: MakeTopic) -> None:
    orders = topic("orders")
    fixed = False
    billing: Counter[int] = Counter()
    shipping: Counter[int] = Counter()
    redrives: list[int] = []
    one, two = Service("billing", broker=backend_url), Service("shipping", broker=backend_url)

    @one.consumer(orders, failure=FailurePolicy(in_place=None))
    async def bill(order: Order, ctx: Context) -> None:
        if order.n % 2 and not fixed:
            raise ValueError("bug")
        redrives.append(ctx.redrives)
        billing[order.n] += 1

    @two.consumer(orders)
    async def ship(order: Order) -> None:
        shipping[order.n] += 1

    async with one, two:
        await one.broker.publish_many(orders, [Order(n) for n in range(20)])
        await until(lambda: counts(one)["dead"] == 10 and len(billing) == 10 and settled(one), one)
        fixed = True
        result = await redrive(one.broker.adapter, one.consumers[0].home)
        assert (result.matched, result.redriven, result.failed) == (10, 10, 0)
        await until(lambda: len(billing) == 20 and settled(one), one)
        await until(lambda: len(shipping) == 20 and settled(two), two)
    assert set(billing.values()) == {1}
    assert set(shipping.values()) == {1}
    assert sorted(redrives) == [0] * 10 + [1] * 10


async def test_def_handlers_run_beside_each_other_in_threads(backend_url: str, queue: MakeQueue) -> None:
    work = queue("work")
    seen: list[int] = []
    threads: set[int] = set()
    together = threading.Barrier(3, timeout=DEADLINE)
    service = Service("worker", broker=backend_url)

    @service.consumer(work, concurrency=3, failure=FailurePolicy(in_place=Backoff("10ms", max_attempts=2)))
    def handle(order: Order) -> None:
        threads.add(threading.get_ident())
        if order.n < 3:
            together.wait()  # passes only if three run at once
        if order.n == 7 and 7 not in seen:
            seen.append(7)
            raise ValueError("once more")
        seen.append(order.n)

    async with service:
        await service.broker.publish_many(work, [Order(n) for n in range(30)])
        await until(lambda: counts(service)["done"] == 30 and settled(service), service)
    assert sorted(seen) == sorted([*range(30), 7])
    assert len(threads) == 3


async def test_one_bad_message_costs_a_batch_only_itself(backend_url: str, queue: MakeQueue) -> None:
    work = queue("work")
    done: Counter[int] = Counter()
    sizes: list[int] = []
    service = Service("worker", broker=backend_url)

    @service.batch_consumer(work, max_messages=20, max_wait="100ms", failure=FailurePolicy(in_place=None))
    async def handle(orders: list[Order]) -> list[Exception | None] | None:
        sizes.append(len(orders))
        if any(order.n == 13 for order in orders):
            raise ValueError("thirteen")
        done.update(order.n for order in orders)
        if len(orders) > 1:
            return [ValueError("seven") if order.n == 7 else None for order in orders]
        return None

    async with service:
        await service.broker.publish_many(work, [*(Order(n) for n in range(40)), b"poison"])
        await until(lambda: sum(counts(service)[k] for k in ("done", "dead")) == 41 and settled(service), service)
        found = await read_all(service, Source(service.consumers[0].home.dead_letter_channel), counts(service)["dead"])
    assert 13 not in done
    bodies = {delivery.message.body for delivery in found}
    assert {b'{"n":13}', b"poison"} <= bodies <= {b'{"n":13}', b"poison", b'{"n":7}'}
    assert max(sizes) <= 20
    assert set(done) == set(range(40)) - {13}


async def test_what_a_handler_publishes_leaves_only_if_it_succeeds(backend_url: str, queue: MakeQueue) -> None:
    work, results = queue("work"), queue("results")
    got: list[int] = []
    service = Service("worker", broker=backend_url)

    @service.consumer(work, failure=FailurePolicy(in_place=None))
    async def handle(order: Order, ctx: Context) -> None:
        await ctx.publish(results, Order(order.n * 10))
        if order.n % 2:
            raise ValueError("odd")

    @service.consumer(results)
    async def collect(order: Order) -> None:
        got.append(order.n)

    async with service:
        await service.broker.publish_many(work, [Order(n) for n in range(10)])
        await until(lambda: counts(service)["dead"] == 5 and len(got) >= 5 and settled(service), service)
    assert sorted(got) == [0, 20, 40, 60, 80]


async def test_a_message_from_a_raw_client_is_a_first_class_citizen(backend_url: str, queue: MakeQueue) -> None:
    work = queue("work")
    seen: list[tuple[str, bytes]] = []
    service = Service("worker", broker=backend_url)

    @service.consumer(work, failure=FailurePolicy(in_place=None, chain=RetryChain("200ms")))
    async def handle(body: bytes, ctx: Context) -> None:
        seen.append((ctx.message.id, body))
        if len(seen) == 1:
            raise ValueError("once")

    async with service:
        # No header of ours, as a producer that has never heard of us would send it.
        bare = Message("ignored", b"raw", None, Headers({"x": "1"}))
        (outcome,) = await service.broker.adapter.send([Outgoing(work, bare)])
        assert outcome.ok
        await until(lambda: len(seen) == 2 and settled(service), service)
    assert seen[0] == seen[1]  # the same identity across the hop


async def test_system_exit_in_a_handler_gives_its_message_back_and_stops_the_service(
    backend_url: str, queue: MakeQueue
) -> None:
    work = queue("work")
    seen: list[int] = []
    service = Service("worker", broker=backend_url, drain="5s")

    @service.consumer(work, concurrency=1)
    async def handle(order: Order) -> None:
        if order.n == 3:
            raise SystemExit(7)
        seen.append(order.n)

    async with connect(backend_url) as broker:
        await broker.publish_many(work, [Order(n) for n in range(5)])
        with pytest.raises(SystemExit) as stopped:
            await service.serve()
        assert stopped.value.code == 7

        again = Service("worker", broker=backend_url)

        @again.consumer(work)
        async def handle_again(order: Order) -> None:
            seen.append(order.n)

        async with again:
            await until(lambda: set(seen) == set(range(5)))


async def test_a_stopped_service_finishes_what_runs_and_leaves_the_rest(backend_url: str, queue: MakeQueue) -> None:
    work = queue("work")
    started: list[int] = []
    finished: list[int] = []
    service = Service("worker", broker=backend_url, drain="10s")

    @service.consumer(work, concurrency=2)
    async def handle(order: Order) -> None:
        started.append(order.n)
        await asyncio.sleep(0.3)  # the work itself
        finished.append(order.n)

    async with service:
        await service.broker.publish_many(work, [Order(n) for n in range(20)])
        await until(lambda: len(started) >= 2)
    assert sorted(started) == sorted(finished)
    assert len(finished) < 20

    again = Service("worker", broker=backend_url)

    @again.consumer(work)
    async def rest(order: Order) -> None:
        finished.append(order.n)

    async with again:
        await until(lambda: set(finished) == set(range(20)))
    assert len(finished) == 20  # nothing that had been done was done again


async def test_a_handler_may_ask_for_a_longer_wait_than_its_chain_has(backend_url: str, queue: MakeQueue) -> None:
    work = queue("work")
    runs: dict[int, list[tuple[int, float]]] = defaultdict(list)
    service = Service("worker", broker=backend_url)

    @service.consumer(work, failure=FailurePolicy(in_place=None, chain=RetryChain("200ms", "500ms")))
    async def handle(order: Order, ctx: Context) -> None:
        runs[order.n].append((ctx.attempt, time.time()))
        if len(runs[order.n]) == 1 and order.n == 1:
            raise RetryLater("1800ms")

    async with service:
        await service.broker.publish_many(work, [Order(n) for n in range(3)])
        await until(lambda: counts(service)["done"] == 3 and settled(service), service)
    (first, began), (second, again) = runs[1]
    assert (first, second) == (1, 2)
    assert 1.75 < again - began < 5.0
    assert [len(runs[n]) for n in (0, 2)] == [1, 1]


class Foreign(BaseException):
    """What extension modules and greenlets raise: no Exception, and no reason to stop a service."""


async def test_whatever_a_handler_raises_only_the_process_ending_ones_stop_the_service(
    backend_url: str, queue: MakeQueue
) -> None:
    work = queue("work")
    done: list[int] = []
    runs: Counter[int] = Counter()
    service = Service("worker", broker=backend_url)

    @service.consumer(work, failure=FailurePolicy(in_place=None))
    async def handle(order: Order) -> None:
        runs[order.n] += 1
        if order.n == 1:
            raise Foreign("panic")
        if order.n == 2:
            raise BaseExceptionGroup("both", [ValueError("a"), asyncio.CancelledError()])
        if order.n == 3 and runs[3] == 1:
            raise BaseExceptionGroup("cut off", [asyncio.CancelledError()])
        if order.n == 4 and runs[4] == 1:
            raise asyncio.CancelledError
        if order.n == 5:
            await asyncio.gather(asyncio.sleep(0), _recurse())
        if order.n == 8:
            raise GeneratorExit
        done.append(order.n)

    async with service:
        await service.broker.publish_many(work, [Order(n) for n in range(9)])
        await until(lambda: len(done) == 5 and counts(service)["dead"] == 4 and settled(service), service)
    assert sorted(done) == [0, 3, 4, 6, 7]


async def _recurse() -> None:
    await _recurse()


async def test_the_largest_message_that_is_taken_can_also_be_dead(backend_url: str, queue: MakeQueue) -> None:
    work = queue("work")
    service = Service("worker", broker=backend_url)

    @service.consumer(work, failure=FailurePolicy(in_place=None))
    async def handle(body: bytes) -> None:
        raise ValueError("too much")

    async with service:
        limit = service.broker.adapter.capabilities.max_message_bytes or 1 << 20
        overhead = service.broker.compose(work, b"").message.size
        largest = [b"x" * (limit - overhead - spare) for spare in (0, 100, 5000)]
        for body in largest:
            await service.broker.publish(work, body)
        await until(lambda: counts(service)["dead"] == 3 and settled(service), service)
        found = await read_all(service, Source(service.consumers[0].home.dead_letter_channel), 3)
    assert sorted(len(delivery.message.body) for delivery in found) == sorted(map(len, largest))


async def test_a_dead_letter_queue_deleted_under_a_service_is_made_again(backend_url: str, queue: MakeQueue) -> None:
    work = queue("work")
    service = Service("worker", broker=backend_url)

    @service.consumer(work, failure=FailurePolicy(in_place=None))
    async def handle(order: Order) -> None:
        raise ValueError("always")

    async with service:
        letters = service.consumers[0].home.dead_letter_channel
        adapter = service.broker.adapter
        assert isinstance(adapter, Deletes)
        await adapter.delete(Topology(dead_letters=(letters,)))
        await service.broker.publish(work, Order(1))
        await until(lambda: counts(service)["dead"] == 1 and settled(service), service)
        (dead,) = await read_all(service, Source(letters), 1)
    assert dead.message.body == b'{"n":1}'


async def test_what_a_raw_producer_writes_into_our_header_fields_is_not_believed(
    backend_url: str, queue: MakeQueue
) -> None:
    work = queue("work")
    attempts: list[int] = []
    service = Service("worker", broker=backend_url)

    @service.consumer(work, failure=FailurePolicy(in_place=None, chain=RetryChain("200ms")))
    async def handle(body: bytes, ctx: Context) -> None:
        attempts.append(ctx.attempt)
        if ctx.attempt == 1:
            raise ValueError("once")

    fields = {
        wire.GROUP: work.name,
        wire.ORIGIN: work.name,
        wire.ATTEMPT: "32767",
        wire.DUE: "99999999999999",
        wire.WAIT: "99999999999",
        wire.FIRST_FAILED: "1000",
    }
    async with service:
        forged = Message("m", b"x", None, Headers(fields))
        (outcome,) = await service.broker.adapter.send([Outgoing(work, forged)])
        assert outcome.ok
        await until(lambda: counts(service)["done"] == 1 and settled(service), service)
    assert attempts == [1, 2]
