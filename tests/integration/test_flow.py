"""Circuits, rates, adaptive concurrency and memory limits of real services."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from once_kit import Order, counts, settled, until

from atleastonce import (
    AdaptiveConcurrency,
    CircuitBreaker,
    ConfigurationError,
    DeadLetter,
    Discard,
    FailurePolicy,
    Inbox,
    Lease,
    MemoryStore,
    Overloaded,
    Queue,
    RetryChain,
    RetryLater,
    Service,
    SQLiteStore,
    connect,
)
from atleastonce.engine import memory

MakeQueue = Callable[[str], Queue[Any]]
FAST = CircuitBreaker(failures=5, within="30s", open_for="300ms")
ONCE = FailurePolicy(in_place=None)  # a failure that counts as an attempt is the end


@pytest.fixture
def memory_url() -> str:
    return f"memory://{uuid.uuid4().hex}"


async def test_an_outage_of_what_the_handler_calls_burns_no_attempts(backend_url: str, queue: MakeQueue) -> None:
    work, service = queue("work"), Service("worker", broker=backend_url)
    down, calls = True, 0
    begun: Counter[int] = Counter()

    @service.consumer(work, failure=ONCE, circuit=FAST, concurrency=4)
    async def handle(order: Order) -> None:
        nonlocal calls
        calls += 1
        begun[order.n] += 1
        if down:
            raise ConnectionError("the bank is away")

    async with service:
        await service.broker.publish_many(work, [Order(n) for n in range(60)])
        await until(lambda: any(status.state == "paused" for status in service.status()), service)
        (detail,) = {status.detail for status in service.status() if status.state == "paused"}
        assert detail.startswith("circuit open: 5 of 5 failed within ")
        assert "the last one by ConnectionError: the bank is away; prob" in detail
        before = calls
        await until(lambda: calls >= before + 2, service)  # two probes, one at a time
        assert calls < 30, f"{calls} calls of what was down"
        down = False
        await until(lambda: counts(service)["done"] + counts(service)["dead"] == 60 and settled(service), service)
        await until(lambda: all(status.state == "running" for status in service.status()), service)
        # Only what failed before the circuit opened is dead: here nothing has a second attempt.
        assert counts(service)["dead"] == 4
    assert len(begun) == 60


async def test_only_what_failed_before_it_opened_is_dead(memory_url: str, queue: MakeQueue) -> None:
    work, service = queue("work"), Service("worker", broker=memory_url)
    down = True

    @service.consumer(work, failure=ONCE, circuit=FAST, concurrency=1)
    async def handle(order: Order) -> None:
        if down:
            raise ConnectionError("away")

    async with service:
        await service.broker.publish_many(work, [Order(n) for n in range(40)])
        await until(lambda: any(status.state == "paused" for status in service.status()), service)
        down = False
        await until(lambda: counts(service)["done"] == 36 and settled(service), service)
        assert counts(service)["dead"] == 4


@pytest.mark.parametrize("kind", ["def", "batch", "inbox", "lease", "timeout"])
async def test_every_kind_of_handler_has_a_circuit(
    kind: str, memory_url: str, queue: MakeQueue, tmp_path: Path
) -> None:
    work, service = queue("work"), Service("worker", broker=memory_url)
    down = True
    done: Counter[int] = Counter()
    lock = threading.Lock()

    def touch(order: Order) -> None:
        if down:
            raise ConnectionError("away")
        with lock:
            done[order.n] += 1

    if kind == "def":

        @service.consumer(work, failure=ONCE, circuit=FAST, concurrency=3)
        def handle(order: Order) -> None:
            touch(order)

    elif kind == "batch":

        @service.batch_consumer(work, failure=ONCE, circuit=FAST, max_messages=10, max_wait="20ms")
        async def handle_batch(orders: list[Order]) -> None:
            for order in orders:
                touch(order)

    elif kind == "timeout":
        slow = FailurePolicy(in_place=None, timeout="100ms")

        @service.consumer(work, failure=slow, circuit=FAST, concurrency=3)
        async def handle_slow(order: Order) -> None:
            if down:
                await asyncio.sleep(10)
            touch(order)

    else:
        once = Inbox(SQLiteStore(tmp_path / "inbox.db")) if kind == "inbox" else Lease(MemoryStore(), ttl="20d")

        @service.consumer(work, failure=ONCE, circuit=FAST, concurrency=3, idempotency=once)
        async def handle_once(order: Order) -> None:
            touch(order)

    async with service:
        await service.broker.publish_many(work, [Order(n) for n in range(30)])
        await until(lambda: any(status.state == "paused" for status in service.status()), service)
        down = False
        await until(lambda: counts(service)["done"] + counts(service)["dead"] == 30 and settled(service), service)
        dead = counts(service)["dead"]
    assert dead <= 4 + 10 * (kind == "batch"), "so many had failed before it opened"
    assert sum(done.values()) == len(done) == 30 - dead


async def test_what_a_handler_decides_and_what_does_not_decode_opens_no_circuit(
    memory_url: str, queue: MakeQueue
) -> None:
    work, service = queue("work"), Service("worker", broker=memory_url)

    @service.consumer(work, failure=ONCE, circuit=CircuitBreaker(failures=3, on=(ConnectionError,)))
    async def handle(order: Order) -> None:
        if order.n % 2:
            raise DeadLetter("unknown sku")
        raise ValueError("not a connection")

    async with service:
        await service.broker.publish_many(work, [Order(n) for n in range(20)])
        for _ in range(10):
            await service.broker.publish(Queue(work.name, bytes, partitions=2), b"{")
        await until(lambda: counts(service)["dead"] == 30 and settled(service), service)
        assert not counts(service)["held"]


@pytest.mark.parametrize("probe", ["dead", "discard", "later", "uncounted", "duplicate"])
async def test_a_probe_that_says_nothing_closes_no_circuit(probe: str, backend_url: str, queue: MakeQueue) -> None:
    """What is down stays alone: each circuit that closes for nothing burns as many attempts as it takes to open it again."""
    work, service = queue("work"), Service("worker", broker=backend_url)
    down, only = True, CircuitBreaker(failures=5, within="30s", open_for="300ms", on=(ConnectionError,))
    begun: Counter[int] = Counter()
    once: dict[str, Any] = {"idempotency": Lease(MemoryStore(), ttl="40d")} if probe == "duplicate" else {}

    @service.consumer(work, failure=ONCE, circuit=only, concurrency=5, **once)
    async def handle(order: Order) -> None:
        begun[order.n] += 1
        if order.n < 10 and probe == "dead":
            raise DeadLetter("unknown sku")
        if order.n < 10 and probe == "discard":
            raise Discard("stale")
        if order.n < 10 and probe == "later":
            raise RetryLater("10m")
        if order.n < 10 and probe == "uncounted":
            raise ValueError("not a connection")
        if down and order.n >= 10:
            raise ConnectionError("away")

    async with service:
        if probe == "duplicate":
            await service.broker.publish_many(work, [Order(n) for n in range(10)], id=lambda order: f"id-{order.n}")
            await until(lambda: counts(service)["done"] == 10, service)
            begun.clear()
        mixed = [*range(10, 15), *range(10), *range(15, 30)]  # five that fail, ten that say nothing, and more that fail
        await service.broker.publish_many(work, [Order(n) for n in mixed], id=lambda order: f"id-{order.n}")
        await until(lambda: sum(begun[n] for n in range(10, 30)) >= 8, service)  # three probes of what is down
        assert sum(bool(begun[n]) for n in range(10, 30)) <= 8, f"the circuit was closed: {begun}"
        down = False
        # Without a chain some brokers have nowhere to put what runs ten minutes later: it stays.
        await until(lambda: counts(service)["done"] >= 16 and (settled(service) or probe == "later"), service)
        assert all(begun[n] == 1 for n in range(10)) or probe == "duplicate"
        assert counts(service)["dead"] == 4 + 10 * (probe in ("dead", "uncounted"))


async def test_what_is_discarded_is_no_success_beside_failures(memory_url: str, queue: MakeQueue) -> None:
    """It says nothing of what the handler calls: three of three that did are all of them."""
    work, service = queue("work"), Service("worker", broker=memory_url)

    @service.consumer(
        work, failure=ONCE, circuit=CircuitBreaker(failures=3, within="30s", open_for="30s"), concurrency=1
    )
    async def handle(order: Order) -> None:
        if order.n < 20:
            raise Discard("stale")
        raise ConnectionError("away")

    async with service:
        await service.broker.publish_many(work, [Order(n) for n in (20, *range(20), *range(21, 30))])
        await until(lambda: service.status()[0].state == "paused" or counts(service)["dead"] > 2, service)
        assert (counts(service)["discarded"], counts(service)["dead"]) == (20, 2)


async def test_resume_closes_the_circuit(memory_url: str, queue: MakeQueue) -> None:
    work, service = queue("work"), Service("worker", broker=memory_url)
    down = True

    @service.consumer(work, failure=ONCE, circuit=CircuitBreaker(failures=1, open_for="1h"))
    async def handle(order: Order) -> None:
        if down:
            raise ConnectionError("away")

    async with service:
        await service.broker.publish(work, Order(1))
        await until(lambda: any(status.state == "paused" for status in service.status()), service)
        down = False
        await service.resume()
        await until(lambda: counts(service)["done"] == 1 and settled(service), service)


async def test_a_service_stops_while_its_circuit_is_open_and_loses_nothing(tmp_path: Path, queue: MakeQueue) -> None:
    work, url = queue("work"), f"sqlite:///{tmp_path}/q.db"
    first, second = Service("worker", broker=url), Service("worker", broker=url)
    seen: set[int] = set()

    @first.consumer(work, failure=ONCE, circuit=CircuitBreaker(failures=1, open_for="1h"))
    async def fails(order: Order) -> None:
        raise ConnectionError("away")

    @second.consumer(work)
    async def works(order: Order) -> None:
        seen.add(order.n)

    async with first:
        await first.broker.publish_many(work, [Order(n) for n in range(100)])
        await until(lambda: any(status.state == "paused" for status in first.status()), first)
    async with second:
        await until(lambda: len(seen) == 100 and settled(second), second)


async def test_it_receives_no_faster_than_its_rate(backend_url: str, queue: MakeQueue) -> None:
    work, service = queue("work"), Service("worker", broker=backend_url)
    times: list[float] = []

    @service.consumer(work, rate_limit="100/s")
    async def handle(order: Order) -> None:
        times.append(time.monotonic())

    async with service:
        await service.broker.publish_many(work, [Order(n) for n in range(60)])
        await until(lambda: len(times) == 60 and settled(service), service)
    # A burst of a tenth of a second, and perhaps as much again while that came; the other 40 come at the rate.
    assert times[-1] - times[0] >= 0.35


async def test_adaptive_concurrency_shrinks_on_overload_and_grows_back(memory_url: str, queue: MakeQueue) -> None:
    work, service = queue("work"), Service("worker", broker=memory_url)
    running = peak = 0
    bears = 8  # what is called

    @service.consumer(
        work,
        concurrency=AdaptiveConcurrency(min=2, max=64, initial=64),
        # Nothing is given up: how many are refused before it has shrunk depends on the machine.
        failure=FailurePolicy(in_place=None, chain=RetryChain(*["20ms"] * 900)),
    )
    async def handle(order: Order) -> None:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        try:
            if running > bears:
                raise Overloaded("too many at once")
            await asyncio.sleep(0.01)
        finally:
            running -= 1

    async with service:
        await service.broker.publish_many(work, [Order(n) for n in range(1000)])
        await until(lambda: counts(service)["done"] >= 300, service)
        peak = 0
        await until(lambda: counts(service)["done"] >= 500, service)
        assert peak < 40, f"{peak} at once of what bears {bears}"
        bears = 1000
        await until(lambda: counts(service)["done"] == 1000 and settled(service), service)


async def test_adaptive_concurrency_of_threads_keeps_to_its_number(memory_url: str, queue: MakeQueue) -> None:
    work, service = queue("work"), Service("worker", broker=memory_url)
    running = peak = 0
    lock = threading.Lock()

    @service.consumer(work, concurrency=AdaptiveConcurrency(min=2, max=2))
    def handle(order: Order) -> None:
        nonlocal running, peak
        with lock:
            running += 1
            peak = max(peak, running)
        time.sleep(0.001)  # the handler's work
        with lock:
            running -= 1

    async with service:
        await service.broker.publish_many(work, [Order(n) for n in range(200)])
        await until(lambda: counts(service)["done"] == 200 and settled(service), service)
    assert peak <= 2


async def test_a_process_near_its_memory_limit_receives_less(backend_url: str, queue: MakeQueue) -> None:
    work = queue("work")
    used = memory.resident()
    if used is None:
        pytest.skip("this system does not say how much memory a process occupies")
    service = Service("worker", broker=backend_url, memory_limit=used // 2)
    gate = asyncio.Event()

    @service.consumer(work, max_in_flight=1000, concurrency=1)
    async def handle(order: Order) -> None:
        await gate.wait()

    async with service:
        await service.broker.publish(work, Order(0))  # what is asked for already is asked for with a whole window
        await until(lambda: any(status.in_flight for status in service.status()), service)
        await service.broker.publish_many(work, [Order(n) for n in range(1, 500)])
        await until(lambda: sum(status.in_flight for status in service.status()) >= 20, service)
        await asyncio.sleep(0.1)  # more would have come by now
        assert sum(status.in_flight for status in service.status()) == 20
        gate.set()
        await until(lambda: counts(service)["done"] == 500 and settled(service), service)


async def test_bytes_in_flight_stay_below_their_limit(
    backend_url: str, queue: MakeQueue, caplog: pytest.LogCaptureFixture
) -> None:
    """Large messages among small ones: once one was seen, at no sample more than the window; what is larger than it is alone."""
    work, service = queue("work"), Service("worker", broker=backend_url)
    limit, large, seen = 256 * 1024, 100_000, 0
    samples: list[tuple[int, int]] = []

    @service.consumer(work, concurrency=8, max_in_flight=100, max_in_flight_bytes=limit)
    async def handle(body: bytes) -> None:
        nonlocal seen
        (status,) = service.status()
        samples.append((status.bytes, status.in_flight))
        await asyncio.sleep(0.002)
        seen += 1

    async with service:
        await service.broker.publish(work, bytes(large))
        await until(lambda: seen == 1 and settled(service), service)
        samples.clear()
        await service.broker.publish_many(work, [bytes(large if n % 3 else 50) for n in range(100)])
        await until(lambda: seen == 101 and settled(service), service, within=60)
        assert max(size for size, _ in samples) <= limit
        assert max(size for size, _ in samples) > large, "two at a time fit"
        for _ in range(2):
            await service.broker.publish(work, bytes(300_000))
        await until(lambda: seen == 103 and settled(service), service, within=60)
        samples.clear()
        await service.broker.publish_many(work, [bytes(300_000 if n % 2 else 50) for n in range(20)])
        await until(lambda: seen == 123 and settled(service), service, within=60)
        assert {held for size, held in samples if size > limit} == {1}
        assert sum("such messages run one at a time" in record.getMessage() for record in caplog.records) == 1


@pytest.mark.parametrize(("window", "places"), [(1000, 16), (50, 16), (50, 2), (10, 10)])
async def test_priority_lets_one_channel_go_first(backend_url: str, queue: MakeQueue, window: int, places: int) -> None:
    """Whether its backlog waits in the process or in the broker, for a place or for the machine."""
    urgent, bulk, service = queue("urgent"), queue("bulk"), Service("worker", broker=backend_url)
    order_of_ends: list[str] = []

    def spin() -> None:
        end = time.perf_counter() + 0.001
        while time.perf_counter() < end:
            pass

    @service.consumer(bulk, max_in_flight=10)
    async def handle_bulk(order: Order) -> None:
        spin()
        order_of_ends.append("bulk")

    @service.consumer(urgent, priority=1, max_in_flight=window, concurrency=places)
    async def handle_urgent(order: Order) -> None:
        spin()
        order_of_ends.append("urgent")

    async with service:
        await service.pause()
        await service.broker.publish_many(bulk, [Order(n) for n in range(300)])
        await service.broker.publish_many(urgent, [Order(n) for n in range(300)])
        await service.resume()
        await until(lambda: len(order_of_ends) == 600 and settled(service), service, within=60)
    # From the first one on: a broker may take its time until it hands out any.
    places_of_urgent = [position for position, name in enumerate(order_of_ends) if name == "urgent"]
    passed = order_of_ends[places_of_urgent[0] : places_of_urgent[-1]].count("bulk")
    # With a window of its places alone nothing waits here: what waits with the broker shows from one receive to the next.
    assert passed <= (100 if window > places else 150), "without priority it would be nearly 300"


async def test_a_producer_stops_while_too_much_waits(backend_url: str, queue: MakeQueue) -> None:
    work = queue("work")
    async with connect(backend_url) as broker:
        await broker.declare(work)
        broker.limit_depth(work, above=10, every="50ms")
        await broker.publish_many(work, [Order(n) for n in range(20)])
        if (await broker.backlog(work)).waiting is None:
            for _ in range(20):
                await broker.publish(work, Order(1))  # what cannot be counted sheds nothing
            return
        refused = ""
        async with asyncio.timeout(20):
            while not refused:
                try:
                    await broker.publish(work, Order(2))
                    await asyncio.sleep(0.02)  # until the next look
                except Overloaded as error:
                    refused = str(error)
        assert f"messages wait in {work.name}, and 10 are the limit; not sent" in refused
        with pytest.raises(Overloaded):
            await broker.publish_many(work, [Order(3)])
        with pytest.raises(Overloaded, match="messages wait in"):
            await broker.request(work, Order(3))
        broker.limit_depth(work, above=None)
        await broker.publish(work, Order(4))


async def test_a_producer_publishes_no_faster_than_its_rate(memory_url: str, queue: MakeQueue) -> None:
    work = queue("work")
    async with connect(memory_url, rate_limit="200/s") as broker:
        begin = time.monotonic()
        outcomes = await broker.publish_many(work, [Order(n) for n in range(100)])
        await asyncio.gather(*(broker.publish(work, Order(n)) for n in range(20)))
        took = time.monotonic() - begin
    assert all(outcome.ok for outcome in outcomes)
    assert took >= 0.45  # 120 messages, of which a burst of 20 is free


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"above": 0}, "limit_depth above=0"),
        ({"above": "many"}, "limit_depth above='many'"),
        ({"above": 1, "every": 0}, "limit_depth every"),
    ],
)
async def test_a_depth_that_is_none_is_refused(wrong: dict[str, Any], sentence: str, memory_url: str) -> None:
    async with connect(memory_url) as broker:
        with pytest.raises(ConfigurationError, match=sentence):
            broker.limit_depth(Queue("work"), **wrong)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"circuit": 5}, "give CircuitBreaker"),
        ({"rate_limit": "fast"}, "is no rate"),
        ({"rate_limit": 0}, "rate_limit: 0 is out of range"),
        ({"priority": 5000}, "priority=5000 is out of range"),
        (
            {"concurrency": AdaptiveConcurrency(), "batch": True},
            "AdaptiveConcurrency is for handlers of single messages",
        ),
    ],
)
def test_limits_that_are_none_are_refused(wrong: dict[str, Any], sentence: str) -> None:
    service = Service("worker", broker="memory://")
    register = service.batch_consumer if wrong.pop("batch", False) else service.consumer

    async def handle(order: Order) -> None: ...

    async def handle_batch(orders: list[Order]) -> None: ...

    with pytest.raises(ConfigurationError, match=sentence):
        register(Queue("work", Order), **wrong)(handle if register == service.consumer else handle_batch)
    with pytest.raises(ConfigurationError, match="memory_limit"):
        Service("worker", memory_limit="much")


@pytest.mark.parametrize("kind", ["async", "def", "batch"])
@pytest.mark.parametrize("name", ["kafka", "memory"])
async def test_retries_run_in_the_same_places(
    name: str, kind: str, request: pytest.FixtureRequest, queue: MakeQueue
) -> None:
    """However many channels a consumer reads for them: ``concurrency`` is what its handler's dependencies bear."""
    url = request.getfixturevalue(f"{name}_url")
    work, service = queue("work"), Service("worker", broker=url)
    running = most = 0
    failed: set[int] = set()
    done: set[int] = set()
    lock = threading.Lock()

    def begin() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)

    def end(order: Order) -> None:
        nonlocal running
        with lock:
            running -= 1
            if order.n not in failed:
                failed.add(order.n)
                raise ValueError("not yet")
            done.add(order.n)

    options: Any = {"failure": FailurePolicy(in_place=None, chain=RetryChain("20ms", "50ms", "100ms"))}
    if kind == "async":

        @service.consumer(work, concurrency=2, **options)
        async def handle(order: Order) -> None:
            begin()
            await asyncio.sleep(0.005)
            end(order)

    elif kind == "def":

        @service.consumer(work, concurrency=2, **options)
        def handle_sync(order: Order) -> None:
            begin()
            time.sleep(0.005)  # the handler's work
            end(order)

    else:

        @service.batch_consumer(work, max_messages=1, max_wait="1ms", concurrency=2, **options)
        async def handle_list(orders: list[Order]) -> None:
            begin()
            await asyncio.sleep(0.005)
            end(orders[0])

    async with service:
        await service.broker.publish_many(work, [Order(n) for n in range(150)])
        await until(lambda: len(done) == 150 and settled(service), service, within=60)
    assert most == 2
