"""Order per key as a handler sees it, on the embedded broker: who waits for whom, what a failure holds up, where it ends."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypedDict

import msgspec
import pytest
from front_kit import until

from atleastonce import (
    AdaptiveConcurrency,
    Backoff,
    CircuitBreaker,
    ConfigurationError,
    Context,
    DeadLetter,
    Discard,
    FailurePolicy,
    Inbox,
    InvalidOrderKey,
    Message,
    Ordered,
    Queue,
    RetryChain,
    RetryLater,
    Service,
    Source,
    SQLiteStore,
    Topic,
)
from atleastonce.contract import Ability, Delivery, Level, Status
from atleastonce.patterns.ordering import LineReader, Parked, read_order
from atleastonce.patterns.redrive.letters import Letter
from atleastonce.testing.history import History


class Step(msgspec.Struct):
    key: str
    n: int
    do: str = ""


QUICK = FailurePolicy(in_place=None, chain=RetryChain("20ms", "40ms"))


class Runs:
    """What ran: an order and overlap checker's receive log."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, int, int]] = []
        self.history = History()
        self.done: list[tuple[str, int]] = []

    def begin(self, step: Step, attempt: int) -> float:
        self.steps.append((step.key, step.n, attempt))
        return time.monotonic()

    def end(self, step: Step, began: float) -> None:
        self.history.received(f"{step.key}/{step.n}", started=began, ended=time.monotonic())

    def of(self, key: str) -> list[tuple[int, int]]:
        return [(n, attempt) for each, n, attempt in self.steps if each == key]


def queue(name: str = "steps", **settings: Any) -> Queue[Step]:
    return Queue(name, Step, fifo=True, **settings)


async def send(service: Service, channel: Any, steps: Iterable[Step], *, keyed: bool = True) -> None:
    async with asyncio.timeout(10):
        await service.broker.publish_many(
            channel,
            list(steps),
            key=(lambda step: step.key) if keyed else None,
            id=lambda step: f"{step.key[:10]}/{step.n}",
        )


async def letters(service: Service, channel: Queue[Any]) -> list[Letter]:
    return [letter async for letter in service.broker.dead_letters(channel).letters()]


@pytest.mark.parametrize("kind", ["async", "def"])
async def test_keys_keep_their_order_and_run_in_parallel_whatever_fails(kind: str) -> None:
    service, steps, runs = Service("s", broker="memory://"), queue(), Runs()
    running, most, lock = 0, 0, threading.Lock()

    def count(by: int) -> None:
        nonlocal running, most
        with lock:
            running += by
            most = max(most, running)

    def fails(step: Step, ctx: Context) -> bool:
        return step.n % 7 == 3 and ctx.attempt < 3

    async def wait(step: Step, ctx: Context) -> None:
        count(1)
        began = runs.begin(step, ctx.attempt)
        try:
            await asyncio.sleep(0.001)
            if fails(step, ctx):
                raise ValueError("not yet")
        finally:
            runs.end(step, began)
            count(-1)

    def block(step: Step, ctx: Context) -> None:
        count(1)
        began = runs.begin(step, ctx.attempt)
        try:
            time.sleep(0.001)
            if fails(step, ctx):
                raise ValueError("not yet")
        finally:
            runs.end(step, began)
            count(-1)

    service.consumer(steps, ordered=True, failure=QUICK, concurrency=8)(wait if kind == "async" else block)
    sent = [Step(f"k{n % 10}", n // 10) for n in range(300)]
    for step in sent:
        runs.history.sent(f"{step.key}/{step.n}", Status.OK, key=step.key)
    async with service:
        await send(service, steps, sent)
        await until(lambda: service.status()[0].counts.get("done", 0) == 300, 20)
    found = runs.history.check()
    assert found.ok
    assert not found.reordered
    assert not found.overlaps
    assert most > 1, "keys did not run in parallel"
    expected = [(n, attempt) for n in range(30) for attempt in (range(1, 4) if n % 7 == 3 else (1,))]
    assert runs.of("k4") == expected


async def test_a_failing_key_waits_in_place_and_the_others_run_on() -> None:
    service, steps, runs = Service("s", broker="memory://"), queue(), Runs()
    policy = FailurePolicy(in_place=Backoff("1ms", max_attempts=2), chain=RetryChain("10m"))

    @service.consumer(steps, ordered="key", failure=policy)
    async def handle(step: Step, ctx: Context) -> None:
        runs.begin(step, ctx.attempt)
        runs.done.append((step.key, ctx.tries))
        if step.do == "fail" and ctx.attempt == 1:
            raise ValueError("not yet")

    async with service:
        await send(service, steps, [Step("a", 0, "fail"), Step("a", 1), *(Step("b", n) for n in range(20))])
        await until(lambda: service.status()[0].counts.get("done", 0) == 20)
        await until(lambda: service.status()[0].counts.get("retried", 0) == 1)
        assert runs.of("a") == [(0, 1), (0, 1)]
        await until(lambda: service.status()[0].in_flight == 1, what="what waits counts in the window")
        for supervisor in service._running.runtimes[0].supervisors:
            supervisor.worker.hasten(lambda _: True)
        await until(lambda: service.status()[0].in_flight == 0)
    assert runs.of("a") == [(0, 1), (0, 1), (0, 2), (1, 1)]
    assert [tries for key, tries in runs.done if key == "a"] == [1, 2, 1, 1]


async def test_what_is_given_up_is_a_dead_letter_and_its_key_goes_on_after_it() -> None:
    service, steps, runs = Service("s", broker="memory://"), queue(), Runs()

    @service.consumer(steps, ordered=True, failure=QUICK)
    async def handle(step: Step, ctx: Context) -> None:
        runs.begin(step, ctx.attempt)
        match step.do:
            case "fail":
                raise ValueError("always")
            case "dead":
                raise DeadLetter("unknown sku")
            case "discard":
                raise Discard("stale")
            case "later" if ctx.attempt == 1:
                raise RetryLater("30ms")
            case "uncounted" if len(runs.of("u")) == 1:
                raise RetryLater("30ms", count=False)

    todo = [Step("a", 0, "fail"), Step("a", 1, "dead"), Step("a", 2, "discard"), Step("a", 3, "later"), Step("a", 4)]
    async with service:
        await send(service, steps, [*todo, Step("u", 0, "uncounted")])
        await until(lambda: (4, 1) in runs.of("a") and service.status()[0].in_flight == 0)
        counts = service.status()[0].counts
        found = await letters(service, steps)
    assert runs.of("a") == [(0, 1), (0, 2), (0, 3), (1, 1), (2, 1), (3, 1), (3, 2), (4, 1)]
    assert runs.of("u") == [(0, 1), (0, 1)]
    assert {"dead": 2, "discarded": 1}.items() <= counts.items()
    assert [(letter.message.id, letter.obituary.attempts) for letter in found] == [("a/0", 3), ("a/1", 1)]


async def test_a_parked_key_follows_its_head_until_that_was_redriven_and_handled() -> None:
    service, steps, runs = Service("s", broker="memory://shop"), queue(), Runs()
    broken = True

    @service.consumer(steps, ordered=Ordered(park=True), failure=QUICK)
    async def handle(step: Step, ctx: Context) -> None:
        runs.begin(step, ctx.attempt)
        if step.do == "fail" and broken:
            raise ValueError("always")

    async with service:
        await send(service, steps, [Step("a", 0), Step("a", 1, "fail"), Step("a", 2), Step("a", 3), Step("b", 0)])
        await until(lambda: service.status()[0].counts.get("dead", 0) == 3)
        await send(service, steps, [Step("a", 4), Step("b", 1)])
        await until(lambda: service.status()[0].counts.get("dead", 0) == 4 and len(runs.of("b")) == 2)
        await until(lambda: service.status()[0].in_flight == 0)
        assert runs.of("a") == [(0, 1), (1, 1), (1, 2), (1, 3)]
        found = await letters(service, steps)
        assert [(each.message.id, each.obituary.stage) for each in found] == [
            ("a/1", "handler"),
            ("a/2", "parked"),
            ("a/3", "parked"),
            ("a/4", "parked"),
        ]
        assert "a/1 of its key" in (found[1].obituary.error_message or "")
        broken = False
        report = await service.broker.dead_letters(steps).redrive()
        assert report.redriven == 4
        await until(lambda: service.status()[0].in_flight == 0 and runs.of("a")[-1] == (4, 1))
        await send(service, steps, [Step("a", 5)])
        await until(lambda: runs.of("a")[-1] == (5, 1))
    assert runs.of("a")[4:] == [(1, 1), (2, 1), (3, 1), (4, 1), (5, 1)]


async def test_parked_keys_go_on_when_the_channel_is_resumed_by_hand() -> None:
    service, steps, runs = Service("s", broker="memory://"), queue(), Runs()

    @service.consumer(steps, ordered=Ordered(park=True), failure=QUICK)
    async def handle(step: Step) -> None:
        runs.begin(step, 1)
        if step.do == "fail":
            raise DeadLetter("no")

    async with service:
        await send(service, steps, [Step("a", 0, "fail"), Step("a", 1)])
        await until(lambda: service.status()[0].counts.get("dead", 0) == 2)
        await service.resume(steps)
        await send(service, steps, [Step("a", 2)])
        await until(lambda: runs.of("a") == [(0, 1), (2, 1)])


async def test_messages_without_a_key_wait_for_nobody() -> None:
    service, steps, runs = Service("s", broker="memory://"), queue(), Runs()
    gate = asyncio.Event()

    @service.consumer(steps, ordered=True)
    async def handle(step: Step) -> None:
        runs.begin(step, 1)
        if step.n == 0:
            await gate.wait()

    async with service:
        await send(service, steps, [Step("none", n) for n in range(10)], keyed=False)
        await until(lambda: len(runs.steps) == 10)
        gate.set()


async def test_a_key_that_cannot_be_read_costs_its_own_message_alone() -> None:
    service, steps, runs = Service("s", broker="memory://"), queue(), Runs()

    def line(step: Step, message: Message) -> object:
        if step.do == "raise":
            raise RuntimeError("no tenant")
        return [step.key, message.headers.get("tenant")]  # what cannot be hashed is compared by what it says

    @service.consumer(steps, ordered=line, failure=QUICK)
    async def handle(step: Step) -> None:
        runs.begin(step, 1)

    async with service:
        await send(service, steps, [Step("a", 0), Step("a", 1, "raise"), Step("a", 2)])
        await service.broker.publish(Queue("steps", bytes, fifo=True), b"{", key="a", id="poison")
        await send(service, steps, [Step("a", 3)])
        await until(lambda: len(runs.steps) == 3 and service.status()[0].in_flight == 0)
        found = await letters(service, steps)
    assert [n for n, _ in runs.of("a")] == [0, 2, 3]
    assert sorted((each.message.id, each.obituary.stage) for each in found) == [("a/1", "key"), ("poison", "decode")]
    assert "its order key function raised RuntimeError: no tenant" in (found[0].obituary.error_message or "")


@pytest.mark.parametrize("error", [asyncio.CancelledError, GeneratorExit])
async def test_a_key_function_that_ends_in_what_looks_like_our_end_costs_its_own_message_alone(
    error: type[BaseException],
) -> None:
    service, steps, runs = Service("s", broker="memory://"), queue(), Runs()

    def line(step: Step) -> str:
        if step.do == "raise":
            raise error("a call was cut off")
        return step.key

    @service.consumer(steps, ordered=line, failure=QUICK)
    async def handle(step: Step) -> None:
        runs.begin(step, 1)

    async with service:
        await send(service, steps, [Step("a", 0), Step("a", 1, "raise"), Step("a", 2), Step("b", 0)])
        await until(lambda: len(runs.steps) == 3 and service.status()[0].in_flight == 0)
        (letter,) = await letters(service, steps)
    assert [n for n, _ in runs.of("a")] == [0, 2]
    assert (letter.message.id, letter.obituary.stage) == ("a/1", "key")
    text = letter.obituary.error_message or ""
    assert f"its order key function raised {error.__name__}: a call was cut off" in text


async def test_a_key_of_a_megabyte_and_a_key_with_all_the_traffic() -> None:
    service, steps, runs = Service("s", broker="memory://"), queue(), Runs()

    @service.consumer(steps, ordered="key", max_in_flight=50)
    async def handle(step: Step) -> None:
        runs.begin(step, 1)

    large = "k" * (1 << 20)
    async with service:
        await send(service, steps, [Step(large, n) for n in range(3)], keyed=False)
        await send(service, steps, [Step("hot", n) for n in range(2000)])
        await until(lambda: service.status()[0].counts.get("done", 0) == 2003, 20)
        worker = service._running.runtimes[0].supervisors[1].worker
        assert worker.lanes._lanes == {}, "a lane outlives what was in it"  # type: ignore[attr-defined]
    assert [n for n, _ in runs.of("hot")] == list(range(2000))
    assert [n for n, _ in runs.of(large)] == [0, 1, 2]


async def test_a_batch_has_one_message_of_each_key() -> None:
    service, steps = Service("s", broker="memory://"), queue()
    batches: list[list[tuple[str, int]]] = []
    failed: Counter[tuple[str, int]] = Counter()

    @service.batch_consumer(steps, ordered=True, retry=["10ms"], max_messages=10, max_wait="1ms", concurrency=2)
    async def handle(batch: list[Step]) -> list[Exception | None]:
        batches.append([(step.key, step.n) for step in batch])
        answers: list[Exception | None] = []
        for step in batch:
            failed[step.key, step.n] += step.do == "fail"
            answers.append(ValueError("not yet") if step.do == "fail" and failed[step.key, step.n] < 4 else None)
        return answers

    todo = [Step(f"k{n % 4}", n // 4, "fail" if n == 9 else "") for n in range(40)]
    async with service:
        await send(service, steps, todo)
        await until(lambda: service.status()[0].counts.get("done", 0) == 40)
    for batch in batches:
        assert len({key for key, _ in batch}) == len(batch)
    seen: defaultdict[str, list[int]] = defaultdict(list)
    for key, n in (each for batch in batches for each in batch):
        if n not in seen[key]:
            seen[key].append(n)
    assert all(order == sorted(order) for order in seen.values())
    assert failed["k1", 2] == 4


async def test_an_inbox_that_is_away_holds_a_message_in_its_lane(tmp_path: Any) -> None:
    """Regression: a held message whose run does not count was queued behind itself, and its key stood still for ever."""
    store = SQLiteStore(str(tmp_path / "shop.db"))
    service, steps, runs = Service("s", broker="memory://"), queue(), Runs()

    @service.consumer(steps, ordered=True, idempotency=Inbox(store))
    async def handle(step: Step, ctx: Context) -> None:
        runs.begin(step, ctx.attempt)

    async with service:
        outage = service._running.runtimes[0]._outage
        assert outage is not None
        bound = service._running.runtimes[0]._bound
        active = True
        original = bound._process  # type: ignore[attr-defined]

        async def process(batch: Any) -> Any:
            return [outage.hold(delivery) for delivery in batch] if active else await original(batch)

        bound._process = process  # type: ignore[attr-defined]
        await send(service, steps, [Step("a", n) for n in range(3)])
        await until(lambda: service.status()[0].in_flight == 1)
        await asyncio.sleep(0)
        active = False
        for supervisor in service._running.runtimes[0].supervisors:
            supervisor.worker.hasten(lambda _: True)
        await until(lambda: len(runs.of("a")) == 3, 20)
    assert [n for n, _ in runs.of("a")] == [0, 1, 2]


async def test_a_wait_that_the_lease_cannot_outlast_is_a_dead_letter_that_says_so() -> None:
    service, steps = Service("s", broker="memory://"), queue()

    @service.consumer(steps, ordered=True)
    async def handle(step: Step) -> None:
        raise RetryLater("2h")

    async with service:
        service._running.runtimes[0]._bound._lease_limit = 3600.0
        await send(service, steps, [Step("a", 0)])
        await until(lambda: service.status()[0].counts.get("dead", 0) == 1 and service.status()[0].in_flight == 0)
        (letter,) = await letters(service, steps)
    assert "it was to wait 2h in its order" in (letter.obituary.error_message or "")


async def test_a_stop_gives_back_a_held_line_in_its_order() -> None:
    service, steps, runs = Service("s", broker="memory://shelf"), queue(), Runs()
    held = True

    def register(service: Service) -> None:
        @service.consumer(steps, ordered=True, failure=FailurePolicy(in_place=None, chain=RetryChain("10m")))
        async def handle(step: Step, ctx: Context) -> None:
            runs.begin(step, ctx.attempt)
            if held and step.n == 1:
                raise ValueError("not yet")

    register(service)
    async with service:
        await send(service, steps, [Step("a", n) for n in range(5)])
        await until(lambda: service.status()[0].counts.get("retried", 0) == 1)
        assert await service.stop(grace=5), "a wait in place is no reason for a drain to wait"
        held = False
        other = Service("s", broker="memory://shelf")
        register(other)
        async with other:
            await until(lambda: len(runs.steps) == 6)
    assert runs.of("a") == [(0, 1), (1, 1), (1, 1), (2, 1), (3, 1), (4, 1)]


# ---------------------------------------------------------------------------------------------------------------- what is said


class Row(msgspec.Struct):
    tenant: str
    order: int


def reader(by: Any, kind: Any = Row) -> LineReader:
    order = read_order(by)
    assert order is not None
    return LineReader(order, "handle", kind, lambda body: msgspec.json.decode(body, type=kind))


def test_false_and_none_are_no_order() -> None:
    assert read_order(None) is None
    assert read_order(False) is None
    assert read_order(True) == Ordered()
    assert read_order("tenant") == Ordered(by="tenant")
    assert read_order(Ordered(by="tenant", park=True)).park  # type: ignore[union-attr]


@pytest.mark.parametrize("by", [5, [], [""], ["a", 3], {"a"}])
def test_what_is_no_key_is_refused(by: Any) -> None:
    with pytest.raises(ConfigurationError, match="give True for the message key"):
        read_order(by)


@pytest.mark.parametrize(
    ("by", "kind", "says"),
    [
        ("tennant", Row, 'order key "tennant" is no field of Row; it has order, tenant'),
        ("tenant", bytes, "its payload is bytes"),
        (lambda: 1, Row, "order key function must be a def of the payload"),
    ],
)
def test_a_key_that_cannot_be_is_told_when_the_handler_is_registered(by: Any, kind: Any, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        reader(by, kind)


def test_park_needs_dead_letters() -> None:
    async def handle(step: Step) -> None: ...

    with pytest.raises(ConfigurationError, match="dead_letter=None keeps none"):
        Service("s").consumer(queue(), ordered=Ordered(park=True), dead_letter=None)(handle)


def test_parked_keys() -> None:
    parked = Parked()
    parked.park(b"a", "m1")
    parked.park(b"a", "m2")
    assert parked.behind(b"a", "m1") is None, "the head itself may come back"
    assert parked.behind(b"a", "m2") == "m1"
    assert parked.behind(b"b", "m2") is None
    parked.done(b"a", "m2")
    assert parked.behind(b"a", "m3") == "m1"
    parked.done(b"a", "m1")
    assert parked.behind(b"a", "m3") is None
    assert not parked


def test_an_ordered_consumer_needs_no_retry_channels() -> None:
    async def handle(step: Step) -> None: ...

    service = Service("s")
    service.consumer(Topic("steps", Step), ordered=True, retry=["5s", "30d"])(handle)
    from front_kit import FakeAdapter

    for delay in (Ability(Level.NONE), Ability(Level.EMULATED, 60.0), Ability(Level.NATIVE, 60.0)):
        can = msgspec.structs.replace(FakeAdapter.capabilities, delay=delay, addresses_groups=True)
        assert service.consumers[0].topology(can).delays == ()


async def test_order_holds_with_limits_that_hold_messages_back() -> None:
    service, steps, runs = Service("s", broker="memory://"), queue(), Runs()

    @service.consumer(
        steps,
        ordered=True,
        failure=QUICK,
        concurrency=AdaptiveConcurrency(min=2, max=8),
        rate_limit="2000/s",
        circuit=CircuitBreaker(failures=5, within="10s", open_for="50ms"),
    )
    async def handle(step: Step, ctx: Context) -> None:
        began = runs.begin(step, ctx.attempt)
        try:
            await asyncio.sleep(0.0005)
            if step.n == 2 and ctx.attempt == 1:
                raise ValueError("not yet")
        finally:
            runs.end(step, began)

    sent = [Step(f"k{n % 10}", n // 10) for n in range(200)]
    for step in sent:
        runs.history.sent(f"{step.key}/{step.n}", Status.OK, key=step.key)
    async with service:
        await send(service, steps, sent)
        await until(lambda: service.status()[0].counts.get("done", 0) == 200, 20)
    found = runs.history.check()
    assert found.ok, found
    assert not found.reordered, found
    assert not found.overlaps, found


class Mapped(TypedDict):
    tenant: str


@dataclass
class Plain:
    tenant: str | None


@pytest.mark.parametrize(
    ("kind", "body", "key"),
    [
        (Row, b'{"tenant": "a", "order": 1}', "a"),
        (Plain, b'{"tenant": "a"}', "a"),
        (Plain, b'{"tenant": null}', None),
        (Mapped, b'{"tenant": "a"}', "a"),
        (dict, b'{"tenant": ["a", 1]}', b'["a",1]'),
        (Any, b'{"tenant": 5}', 5),
    ],
)
def test_a_field_is_read_from_payloads_of_every_kind(kind: Any, body: bytes, key: Any) -> None:
    delivery = Delivery(Message("m", body), Source(Queue("q")), "q", 0, 1, None)
    assert reader("tenant", kind).key_of(delivery) == key


def test_a_field_that_is_not_there_is_an_error_of_its_message() -> None:
    delivery = Delivery(Message("m", b"{}"), Source(Queue("q")), "q", 0, 1, None)
    with pytest.raises(InvalidOrderKey, match='field "tenant" is missing'):
        reader("tenant", dict).key_of(delivery)
