"""The failure policy on every backend: floods, removed hops, deferrals, foreign headers, poison, waits of days."""

from __future__ import annotations

import asyncio
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
    DeadLetterPolicy,
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
from atleastonce.contract import ACK, RELEASE, Adapter, Delivery, Level, Outgoing, Reject, Topology, Window
from atleastonce.message import Headers, Message
from atleastonce.patterns.obituary import read_obituary

DEADLINE = 30.0

MakeTopic = Callable[[str], Topic[Any]]
MakeQueue = Callable[[str], Queue[Any]]


class Order(msgspec.Struct):
    n: int


class Quiet:
    async def drain(self, streams: object, grace: float) -> None: ...

    def lost(self, streams: object) -> None: ...

    def condition(self, state: str, detail: str) -> None: ...


async def until(condition: Callable[[], bool], *services: Service) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        if time.monotonic() > end:
            readers = "\n".join(str(status) for service in services for status in service.status())
            pytest.fail(f"not true within {DEADLINE:g} s:\n{readers}")
        await asyncio.sleep(0.02)  # polling a condition with a deadline


async def read_all(service: Service, source: Source, count: int) -> list[Delivery]:
    """``count`` messages of ``source``, left where they are."""
    subscription = await service.broker.adapter.subscribe(source, Window(1000, 1 << 24), Quiet())
    found: list[Delivery] = []
    try:
        end = time.monotonic() + DEADLINE
        while len(found) < count and time.monotonic() < end:
            found += await subscription.receive(100, 0.5)
    finally:
        await subscription.close()
    return found


async def first_of(adapter: Adapter, source: Source) -> Delivery:
    """The first message of ``source``, left where it is."""
    subscription = await adapter.subscribe(source, Window(10, 1 << 20), Quiet())
    try:
        found = await subscription.receive(1, DEADLINE)
        return found[0]
    finally:
        await subscription.close()


async def letters(service: Service, count: int) -> list[Delivery]:
    return await read_all(service, Source(service.consumers[0].home.dead_letter_channel), count)


def users(delivery: Delivery) -> list[Any]:
    """The header fields that are neither ours nor the broker's."""
    return [item for item in delivery.message.headers.items() if not item[0].startswith(("alo-", "Nats-"))]


def counts(service: Service) -> Counter[str]:
    total: Counter[str] = Counter()
    for status in service.status():
        total.update(status.counts)
    return total


def settled(service: Service) -> bool:
    return all(status.in_flight == 0 for status in service.status())


# ------------------------------------------------------------------------------------------------ floods


@pytest.mark.parametrize("by_hand", [False, True], ids=["probe", "hand"])
async def test_a_flood_of_dead_letters_pauses_the_source_and_nothing_is_lost(
    backend_url: str, topic: MakeTopic, by_hand: bool
) -> None:
    orders = topic("orders")
    down, runs, done = True, Counter[int](), set[int]()
    limits = DeadLetterPolicy(max_share=None, max_consecutive=5, probe_after=None if by_hand else "400ms")
    service = Service("billing", broker=backend_url)

    @service.consumer(orders, failure=FailurePolicy(in_place=None, dead_letter=limits), concurrency=2, max_in_flight=20)
    async def handle(order: Order) -> None:
        runs[order.n] += 1
        if down:
            raise ConnectionError("gateway")
        done.add(order.n)

    def home() -> Any:
        return service.status()[0]

    async with service:
        await service.broker.publish_many(orders, [Order(n) for n in range(200)])
        await until(lambda: home().state == "paused", service)
        assert "more than 5 in a row would be dead, the last one by ConnectionError: gateway" in home().detail
        if not by_hand:
            await until(lambda: max(runs.values()) >= 3, service)  # two probes have failed
            assert home().state in ("paused", "running")
        assert counts(service)["dead"] == 5
        assert len(runs) <= 5 + 20 * (1 if by_hand else 3), "it read on while it was paused"
        down = False
        if by_hand:
            before = sum(runs.values())
            await service.resume(orders)
            await until(lambda: sum(runs.values()) > before, service)
        await until(lambda: len(done) == 195 and settled(service), service)
        assert home().state == "running"
        dead = await letters(service, 5)
    assert len(dead) == 5
    assert len({delivery.message.body for delivery in dead} | {b'{"n":%d}' % n for n in done}) == 200


async def test_what_handlers_give_up_themselves_is_no_flood(backend_url: str, queue: MakeQueue) -> None:
    work = queue("work")
    service = Service("worker", broker=backend_url)
    limits = DeadLetterPolicy(max_share=0.1, over=10, max_consecutive=2)

    @service.consumer(work, failure=FailurePolicy(dead_letter=limits))
    async def handle(order: Order) -> None:
        raise DeadLetter("unknown sku")

    async with service:
        await service.broker.publish_many(work, [Order(n) for n in range(50)])
        await until(lambda: counts(service)["dead"] == 50 and settled(service), service)
        assert service.status()[0].state == "running"


async def test_a_service_paused_by_hand_receives_nothing(backend_url: str, queue: MakeQueue) -> None:
    work = queue("work")
    seen: list[int] = []
    service = Service("worker", broker=backend_url)

    @service.consumer(work)
    async def handle(order: Order) -> None:
        seen.append(order.n)

    async with service:
        await service.broker.publish(work, Order(1))
        await until(lambda: seen == [1] and settled(service), service)
        await service.pause()
        status = service.status()[0]
        assert (status.state, status.detail) == ("paused", "by hand")
        await service.broker.publish(work, Order(2))
        received = counts(service)["received"]
        await asyncio.sleep(0.7)  # nothing may come: there is no event to wait for
        assert seen == [1]
        assert counts(service)["received"] == received
        await service.resume(work)
        await until(lambda: seen == [1, 2], service)


# ------------------------------------------------------------------------------------------------ counting


async def test_every_delivery_of_a_chain_is_one_attempt_across_restarts(backend_url: str, queue: MakeQueue) -> None:
    work = queue("work")
    runs: dict[int, list[int]] = defaultdict(list)
    policy = FailurePolicy(in_place=Backoff("10ms", max_attempts=2), chain=RetryChain("200ms", "400ms", "600ms"))

    def make() -> Service:
        service = Service("worker", broker=backend_url)

        @service.consumer(work, failure=policy)
        async def handle(order: Order, ctx: Context) -> None:
            runs[order.n].append(ctx.attempt)
            raise ValueError("never")

        return service

    first, second = make(), make()
    async with first:
        await first.broker.publish_many(work, [Order(n) for n in range(20)])
        await until(lambda: len(runs) == 20 and min(map(max, runs.values())) >= 2, first)
    async with second:
        await until(lambda: all(attempts.count(max(attempts)) >= 2 for attempts in runs.values()), second)
        await until(lambda: settled(second) and min(map(max, runs.values())) >= 4, second)
        found = await letters(second, 20)
    # Four attempts of two tries each, wherever they ran; a run that the stop cut off is not one, and comes again.
    for attempts in runs.values():
        assert attempts == sorted(attempts)
        assert set(attempts) == {1, 2, 3, 4}
        assert all(2 <= times <= 4 for times in Counter(attempts).values())
    assert {delivery.message.headers.get(wire.ATTEMPT) for delivery in found} == {"4"}
    assert len({delivery.message.id for delivery in found}) == 20


async def test_stops_take_no_attempts(backend_url: str, queue: MakeQueue) -> None:
    """Three processes end, each with a window of which one message was cut off and the others had not begun; some of it had not
    even been asked for."""
    work = queue("work")
    count, begun, runs = 30, list[int](), defaultdict[int, list[int]](list)

    def make(handler: Callable[[Order, Context], Any], concurrency: int) -> Service:
        service = Service("worker", broker=backend_url)
        policy = FailurePolicy(in_place=None, chain=RetryChain("200ms", "300ms"))

        @service.consumer(work, failure=policy, concurrency=concurrency, max_in_flight=20)
        async def handle(order: Order, ctx: Context) -> None:
            await handler(order, ctx)

        return service

    async def hangs(order: Order, _: Context) -> None:
        begun.append(order.n)
        await asyncio.sleep(3600)

    async def fails(order: Order, ctx: Context) -> None:
        runs[order.n].append(ctx.attempt)
        raise ValueError("no")

    async with connect(backend_url) as keep:  # what is in memory lives as long as somebody has it
        # Not by a service: on SQS the poll of an idle one goes on after it has stopped, and gives back what it still brings.
        await keep.declare(make(fails, 1).consumers[0].topology(keep.adapter.capabilities))
        await keep.publish_many(work, [Order(n) for n in range(count)])
        for _ in range(3):
            begun.clear()
            service = make(hangs, 1)
            await service.start()
            await until(
                lambda service=service: len(begun) == 1 and service.status()[0].in_flight >= 10,  # type: ignore[misc]
                service,
            )
            await service.stop(0.2)
        last = make(fails, 8)
        async with last:
            await until(lambda: counts(last)["dead"] == count and settled(last), last)
            found = await letters(last, count)
    assert {tuple(attempts) for attempts in runs.values()} == {(1, 2, 3)}
    assert {read_obituary(delivery).attempts for delivery in found} == {3}
    assert {delivery.message.body for delivery in found} == {b'{"n":%d}' % n for n in range(count)}


async def test_a_deferral_that_is_not_to_count_does_not(backend_url: str, queue: MakeQueue) -> None:
    work = queue("work")
    runs: list[int] = []
    service = Service("worker", broker=backend_url)

    @service.consumer(work, failure=FailurePolicy(in_place=None, chain=RetryChain("200ms", "300ms")))
    async def handle(order: Order, ctx: Context) -> None:
        runs.append(ctx.attempt)
        if len(runs) <= 5:
            raise RetryLater("200ms", count=False)
        raise ValueError("now it fails")

    async with service:
        await service.broker.publish(work, Order(1))
        await until(lambda: counts(service)["dead"] == 1 and settled(service), service)
    assert runs == [1] * 6 + [2, 3]


async def test_a_life_that_is_over_ends_before_the_hop_that_could_not_end_in_time(
    backend_url: str, queue: MakeQueue
) -> None:
    work = queue("work")
    runs: list[float] = []
    service = Service("worker", broker=backend_url)
    policy = FailurePolicy(in_place=None, chain=RetryChain("300ms", "400ms", "1h", "1h"), give_up_after="30m")

    @service.consumer(work, failure=policy)
    async def handle(order: Order) -> None:
        runs.append(time.time())
        raise ValueError("no")

    began = time.time()
    async with service:
        await service.broker.publish(work, Order(1))
        await until(lambda: counts(service)["dead"] == 1 and settled(service), service)
        (dead,) = await letters(service, 1)
    story = read_obituary(dead)
    assert len(runs) == 3
    assert (story.stage, story.attempts, story.error_type) == ("expired", 3, "ValueError")
    assert story.first_failed is not None
    assert story.last_failed is not None
    # Brokers that count keep no time: it is reckoned, and SQS makes whole seconds of each wait.
    assert began - 1 <= story.first_failed <= runs[0] + 3
    assert story.last_failed >= story.first_failed + 0.69


# ------------------------------------------------------------------------------------------------ long waits


async def test_a_wait_of_days_survives_a_restart_and_holds_up_nobody(backend_url: str, queue: MakeQueue) -> None:
    work = queue("work")
    runs: Counter[int] = Counter()

    def make() -> Service:
        service = Service("worker", broker=backend_url)

        @service.consumer(work, failure=FailurePolicy(in_place=None, chain=RetryChain("200ms", "3d")), concurrency=1)
        async def handle(order: Order) -> None:
            runs[order.n] += 1
            if order.n == 0:
                raise ValueError("not for days")

        return service

    first, second = make(), make()
    async with first:
        await first.broker.publish(work, Order(0))
        await until(lambda: runs[0] == 2 and counts(first)["retried"] == 2, first)
    async with second:
        await second.broker.publish_many(work, [Order(n) for n in range(1, 30)])
        await until(lambda: len(runs) == 30, second)
        await asyncio.sleep(0.5)  # it may not come: there is no event to wait for
    assert runs[0] == 2


# ------------------------------------------------------------------------------------------------ changed chains


async def test_a_hop_that_a_deploy_removed_is_still_drained(backend_url: str, topic: MakeTopic) -> None:
    orders = topic("orders")
    fixed = False
    runs: dict[int, list[int]] = defaultdict(list)

    def make(chain: RetryChain) -> Service:
        service = Service("billing", broker=backend_url)

        @service.consumer(orders, failure=FailurePolicy(in_place=None, chain=chain))
        async def handle(order: Order, ctx: Context) -> None:
            runs[order.n].append(ctx.attempt)
            if not fixed:
                raise ValueError("bug")

        return service

    old = make(RetryChain("1500ms", "2s"))
    async with old:
        await old.broker.publish_many(orders, [Order(n) for n in range(10)])
        await until(lambda: (counts(old)["retried"] >= 10 and settled(old)) or len(runs) == 10, old)
    fixed = True
    new = make(RetryChain("300ms", drain_only=("1500ms", "2s")))
    async with new:
        await until(lambda: all(len(runs[n]) >= 2 for n in range(10)) and settled(new), new)
    assert all(attempts[-1] >= 2 for attempts in runs.values()), dict(runs)


async def test_a_chain_may_be_removed_altogether(backend_url: str, queue: MakeQueue) -> None:
    work = queue("work")
    runs: Counter[str] = Counter()
    old, new = Service("worker", broker=backend_url), Service("worker", broker=backend_url)

    @old.consumer(work, failure=FailurePolicy(in_place=None, chain=RetryChain("1s")))
    async def before(order: Order) -> None:
        runs["old"] += 1
        raise ValueError("bug")

    @new.consumer(work, failure=FailurePolicy(in_place=None, chain=RetryChain(drain_only=["1s"])))
    async def after(order: Order) -> None:
        runs["new"] += 1
        if runs["new"] == 1:
            raise RetryLater("300ms")
        raise ValueError("still")

    async with old:
        await old.broker.publish(work, Order(1))
        await until(lambda: counts(old)["retried"] == 1, old)
    async with new:
        await until(lambda: counts(new)["dead"] == 1 and settled(new), new)
    assert runs == {"old": 1, "new": 2}


# ------------------------------------------------------------------------------------------------ bad input


async def test_every_byte_survives_the_chain_and_the_dead_letters(backend_url: str, queue: MakeQueue) -> None:
    work = queue("work")
    runs: Counter[bytes] = Counter()
    service = Service("worker", broker=backend_url)

    @service.consumer(work, failure=FailurePolicy(in_place=None, chain=RetryChain("200ms", "300ms")))
    async def handle(body: bytes) -> None:
        runs[body] += 1
        raise ValueError("no")

    fields: list[tuple[str, Any]] = [
        ("b", "1"),
        ("a", "caf\u00e9"),
        ("b", "2"),
        ("Empty", ""),
        ("traceparent", "00-ab-cd-01"),
    ]
    async with service:
        capabilities = service.broker.adapter.capabilities
        if capabilities.binary_headers:
            fields += [("raw", b"\xff\xfe")]
        sent = {
            bytes(range(256)): b"\x00\xff key",
            b"": b"",
            b"plain": None,
        }
        messages = [Message(f"m{n}", body, key, Headers(fields)) for n, (body, key) in enumerate(sent.items())]
        outcomes = await service.broker.adapter.send([Outgoing(work, message) for message in messages])
        assert all(outcome.ok for outcome in outcomes), outcomes
        await until(lambda: counts(service)["dead"] == 3 and settled(service), service)
        found = await letters(service, 3)
    assert set(runs.values()) == {3}
    assert {delivery.message.body: delivery.message.key for delivery in found} == sent
    for delivery in found:
        assert users(delivery) == fields
        assert wire.ID in delivery.message.headers


@pytest.mark.parametrize("stage", ["body", "key", "headers", "id"])
async def test_poison_at_any_stage_is_dead_with_its_bytes_and_its_neighbours_live(
    backend_url: str, queue: MakeQueue, stage: str
) -> None:
    work = queue("work")
    seen: list[int] = []
    service = Service("worker", broker=backend_url)

    @service.consumer(work, retry=["5s"])
    async def handle(order: Order, ctx: Context) -> None:
        if stage != "body" and order.n == 2:
            # Undecodable keys and header values are no failures by themselves: whoever needs them as text fails.
            assert (ctx.message.key or b"").decode()
            for _, value in ctx.headers.items():  # noqa: PERF102 - no mapping: names may repeat
                assert value is None or isinstance(value, str) or value.decode()
            assert stage == "id"
        seen.append(order.n)

    poison = b"\xff{not json" if stage == "body" else b'{"n":2}'
    key = b"\xff\xfe" if stage == "key" else b"k"
    fields: list[tuple[str, Any]] = [("tenant", "a")]
    async with service:
        if stage == "headers":
            if not service.broker.adapter.capabilities.binary_headers:
                pytest.skip("this broker's header values are text")
            fields.append(("broken", b"\xff\xfe"))
        if stage == "id":
            fields.append((wire.ID, "\u00e9" * 300))
        bad = Message("m2", poison, key, Headers(fields))
        good = [Message(f"m{n}", b'{"n":%d}' % n, b"k", Headers([("tenant", "a")])) for n in (1, 3)]
        outcomes = await service.broker.adapter.send([Outgoing(work, message) for message in (good[0], bad, good[1])])
        if stage == "id" and not outcomes[1].ok:
            pytest.skip(f"this broker refuses such an id: {outcomes[1].fault}")
        assert all(outcome.ok for outcome in outcomes), outcomes
        if stage == "id":
            await until(lambda: sorted(seen) == [1, 2, 3] and settled(service), service)
            return
        await until(lambda: counts(service)["dead"] == 1 and sorted(seen) == [1, 3] and settled(service), service)
        (dead,) = await letters(service, 1)
    assert (dead.message.body, dead.message.key) == (poison, key)
    assert users(dead) == [item for item in fields if item[0] != wire.ID]
    assert read_obituary(dead).stage == ("decode" if stage == "body" else "handler")


async def test_forged_fields_in_a_retry_channel_are_clamped(
    backend_url: str, queue: MakeQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attempt 9999, due in 2099, failed first in 1970: written straight into the channel that is believed."""
    monkeypatch.setattr(wire, "CLOCK_SLACK", 3.0)  # a minute, as a rule: too long for a test
    work = queue("work")
    attempts: list[int] = []
    service = Service("worker", broker=backend_url)

    @service.consumer(work, failure=FailurePolicy(in_place=None, chain=RetryChain("300ms"), give_up_after="1h"))
    async def handle(body: bytes, ctx: Context) -> None:
        attempts.append(ctx.attempt)
        raise ValueError("no")

    async with service:
        home = service.consumers[0].home
        rooms = {
            delay.channel.name for delay in service.consumers[0].topology(service.broker.adapter.capabilities).delays
        }
        room = home.retry_channel(0.3)
        if room.name not in rooms:
            pytest.skip("this broker delays by itself: there is no channel to forge in")
        fields = {
            wire.GROUP: home.group_name,
            wire.ORIGIN: home.channel.name,
            wire.ATTEMPT: "9999",
            wire.FIRST_FAILED: "1",
        }
        late = Message("late", b"x", None, Headers({**fields, wire.DUE: "4070908800000"}))
        odd = Message("odd", b"x", None, Headers({**fields, wire.ATTEMPT: "99999", wire.DUE: "soon"}))
        outcomes = await service.broker.adapter.send([Outgoing(room, odd), Outgoing(room, late)])
        assert all(outcome.ok for outcome in outcomes)
        await until(lambda: counts(service)["dead"] == 2, service)
        dead = await letters(service, 2)
        copies = counts(service)["parked"]
    # Out of range: the first attempt, which fails with no time left. The other one waits as an honest one might.
    assert attempts == [1, 9999]
    assert {read_obituary(letter).stage for letter in dead} == {"expired", "handler"}
    assert copies <= 20


async def test_what_the_brokers_own_net_catches_is_read_like_ours(backend_url: str, queue: MakeQueue) -> None:
    work = queue("work")
    service = Service("worker", broker=backend_url)

    @service.consumer(work)
    async def handle(order: Order) -> None: ...

    async with service:  # declares the queue and its net
        pass
    async with connect(backend_url) as broker:
        if broker.adapter.capabilities.dead_letter is not Level.NATIVE:
            pytest.skip("this broker has no net of its own")
        sent = Message("m1", b"\x00\xff", b"k", Headers([("tenant", "a"), (wire.ID, "m1")]))
        (outcome,) = await broker.adapter.send([Outgoing(work, sent)])
        assert outcome.ok
        subscription = await broker.adapter.subscribe(Source(work), Window(10, 1 << 20), Quiet())
        (delivery,) = await subscription.receive(1, DEADLINE)
        (settling,) = await subscription.settle([(delivery, Reject("no"))])
        assert settling.ok
        await subscription.close()
        dead = await first_of(broker.adapter, Source(Source(work).dead_letter_channel))
    story = read_obituary(dead)
    assert (dead.message.id, dead.message.body, dead.message.key) == ("m1", b"\x00\xff", b"k")
    assert dead.message.headers.get("tenant") == "a"
    if backend_url.startswith("rabbitmq"):
        assert (story.writer, story.error_type, story.attempts) == ("rabbitmq", "rejected", 1)
        assert story.last_failed is not None
        assert abs(story.last_failed - time.time()) < 60
        assert story.origin == work.name
    assert story.fingerprint


async def test_long_deferrals_do_not_hold_up_the_channel_they_wait_in(backend_url: str, queue: MakeQueue) -> None:
    """More of them than the reader of a retry channel may hold, and one honest retry behind them."""
    work = queue("work")
    runs: Counter[int] = Counter()
    service = Service("worker", broker=backend_url)

    @service.consumer(work, failure=FailurePolicy(in_place=None, chain=RetryChain("300ms", "500ms")), max_in_flight=40)
    async def handle(order: Order) -> None:
        runs[order.n] += 1
        if order.n < 60:
            raise RetryLater("2h")
        if runs[order.n] <= 2:
            raise ValueError("twice")

    async with service:
        await service.broker.publish_many(work, [Order(n) for n in range(60)])
        await until(lambda: len(runs) == 60, service)
        await service.broker.publish(work, Order(60))
        await until(lambda: runs[60] == 3, service)
    assert all(runs[n] == 1 for n in range(60))


async def test_a_full_dead_letter_queue_holds_its_letters_and_keeps_their_explanation(
    rabbitmq_url: str, queue: MakeQueue
) -> None:
    """RabbitMQ with ``overflow: reject-publish``: the originals stay unsettled until somebody makes room."""
    work = queue("work")
    runs: Counter[int] = Counter()
    service = Service("worker", broker=rabbitmq_url)

    @service.consumer(work, failure=FailurePolicy(in_place=None), concurrency=1)
    async def handle(order: Order) -> None:
        runs[order.n] += 1
        await asyncio.sleep(0.02)  # a quorum queue notices its limit with a delay
        raise ValueError("no")

    home = service.consumers[0].home
    options = {"rabbitmq": {"x-max-length": 3, "x-overflow": "reject-publish"}}
    small = Queue[Any](home.dead_letter_channel.name, options=options)
    async with connect(rabbitmq_url) as broker:
        await broker.adapter.declare(Topology(dead_letters=(small,), channels=(small,)), create=True)
    async with service:
        await service.broker.publish_many(work, [Order(n) for n in range(60)])
        await until(lambda: len(runs) == 60, service)
        await asyncio.sleep(1.5)  # some moves are tried again: there is no event to wait for
        assert sum(status.in_flight for status in service.status()) > 0
        subscription = await service.broker.adapter.subscribe(Source(small), Window(100, 1 << 20), Quiet())
        found: list[Delivery] = []
        end = time.monotonic() + DEADLINE
        while len(found) < 60 and time.monotonic() < end:
            batch = await subscription.receive(100, 0.5)
            await subscription.settle([(delivery, ACK) for delivery in batch])
            found += batch
        await subscription.close()
        await until(lambda: settled(service), service)
    assert sorted(delivery.message.body for delivery in found) == sorted(b'{"n":%d}' % n for n in range(60))
    assert set(runs.values()) == {1}, "no handler ran again because its dead letter found no room"
    assert {read_obituary(delivery).error_message for delivery in found} == {"no"}


async def test_what_sqs_moves_by_its_redrive_policy_says_where_it_failed(sqs_url: str, queue: MakeQueue) -> None:
    work = queue("work")
    service = Service("worker", broker=sqs_url, options={"net": 3})

    @service.consumer(work)
    async def handle(body: bytes) -> None: ...

    async with service:  # declares the queue and its net
        pass
    async with connect(sqs_url, {"net": 3}) as broker:
        (outcome,) = await broker.adapter.send([Outgoing(work, Message("m1", b"x", None, Headers([("tenant", "a")])))])
        assert outcome.ok
        subscription = await broker.adapter.subscribe(Source(work), Window(10, 1 << 20), Quiet())
        while batch := await subscription.receive(1, 3.0):  # given back until SQS has had enough
            await subscription.settle([(delivery, RELEASE) for delivery in batch])
        await subscription.close()
        dead = await first_of(broker.adapter, Source(Source(work).dead_letter_channel))
    story = read_obituary(dead)
    assert (story.writer, story.error_type) == ("sqs", "max_receive_count")
    assert story.origin == work.name.replace(".", "--")  # as SQS spells it
    assert (story.attempts or 0) >= 3
    assert (dead.message.id, dead.message.body, dead.message.headers.get("tenant")) == ("m1", b"x", "a")
