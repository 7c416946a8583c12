"""Reading from Pub/Sub: leases, counts, order, and subscriptions that are not what they were."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from pubsub_kit import Listening, message, opened, publish, raw, reading, send, take, topology, until

from atleastonce import Context, FailurePolicy, Service
from atleastonce.adapters.pubsub import channel as api
from atleastonce.adapters.pubsub import presence, records
from atleastonce.brokers import Running
from atleastonce.channels import Queue, Source, Topic
from atleastonce.contract import ACK, RELEASE, Code, Level, Retry, Status, Window
from atleastonce.engine import intake
from atleastonce.errors import ConfigurationError, NotFound
from atleastonce.message import Headers
from atleastonce.testing.brokers import killable
from atleastonce.testing.proxy import FaultProxy

MakeQueue = Callable[..., Queue[Any]]
MakeTopic = Callable[..., Topic[Any]]


async def test_a_retry_is_a_deadline_that_nobody_extends(pubsub_url: str, queue: MakeQueue) -> None:
    async with opened(pubsub_url) as adapter:
        await adapter.declare(topology(work := queue()))
        await publish(adapter, work, message())
        subscription = await reading(adapter, work)
        (got,) = await take(subscription, 1)
        given = time.monotonic()
        assert (await subscription.settle([(got, Retry(2.0))]))[0].ok
        (outcome,) = await subscription.extend([got], 30.0)
        assert outcome.status is Status.REJECTED
        (again,) = await take(subscription, 1)
        assert time.monotonic() - given >= 1.95
        assert again.count == 2


async def test_a_delay_beyond_ten_minutes_is_no_deadline(pubsub_url: str, queue: MakeQueue) -> None:
    async with opened(pubsub_url) as adapter:
        assert adapter.capabilities.delay.limit == 600
        await adapter.declare(topology(work := queue()))
        await publish(adapter, work, message())
        (got,) = await take(subscription := await reading(adapter, work), 1)
        (refused,) = await subscription.settle([(got, Retry(601))])
        assert refused.fault is not None
        assert refused.fault.code is Code.INVALID
        assert (await subscription.settle([(got, ACK)]))[0].ok


async def test_more_acknowledgements_than_a_request_takes(pubsub_url: str, queue: MakeQueue) -> None:
    async with opened(pubsub_url) as adapter:
        await adapter.declare(topology(work := queue()))
        await publish(adapter, work, *(message() for _ in range(2500)))
        subscription = await adapter.subscribe(Source(work), Window(2500, 1 << 26), Listening())
        got = await take(subscription, 2500)
        assert all(o.ok for o in await subscription.extend(got, 30))
        assert all(o.ok for o in await subscription.settle([(each, ACK) for each in got]))
        await publish(adapter, work, last := message())
        assert [each.message.id for each in await take(subscription, 1)] == [last.id]


async def test_an_acknowledgement_without_an_answer_is_no_success(
    pubsub_broker: Running, toxiproxy_broker: Running, queue: MakeQueue
) -> None:
    """Google's own client reports SUCCESS for an acknowledgement whose request failed, unless delivery is exactly-once."""
    upstream = pubsub_broker.url.removeprefix("pubsub://").partition("/")[0]
    async with (
        FaultProxy(toxiproxy_broker.url, upstream) as proxy,
        opened(f"pubsub://{proxy.address}", operation_timeout=2.0) as adapter,
    ):
        await adapter.declare(topology(work := queue()))
        await publish(adapter, work, message())
        subscription = await reading(adapter, work)
        (held,) = await take(subscription, 1)
        async with proxy.black_hole():
            (lost,) = await subscription.settle([(held, ACK)])
            assert lost.status is Status.UNKNOWN
            assert held.lost is False
        (told,) = await subscription.settle([(held, ACK)])
        assert told.ok


async def test_what_waits_behind_a_retried_key_does_not_overtake_it(pubsub_url: str, queue: MakeQueue) -> None:
    async with opened(pubsub_url) as adapter:
        await adapter.declare(topology(work := queue(fifo=True)))
        sent = [message(b"%d" % n, key=b"a") for n in range(3)]
        await publish(adapter, work, *sent)
        subscription = await reading(adapter, work)
        (first,) = await take(subscription, 1, most=1)
        await subscription.settle([(first, Retry(1.0))])
        order: list[str] = []
        while len(order) < 3:
            (got,) = await take(subscription, 1, most=1)
            order.append(got.message.id)
            await subscription.settle([(got, ACK)])
        assert order == [each.id for each in sent]


async def test_without_a_net_there_is_no_count_and_no_native_delay(pubsub_url: str, queue: MakeQueue) -> None:
    """Pub/Sub counts for subscriptions with a dead-letter policy alone: uncounted redelivery would never end."""
    async with opened(pubsub_url, max_delivery_attempts=0) as bare, opened(pubsub_url) as adapter:
        assert bare.capabilities.delay.level is Level.NONE
        await bare.declare(topology(work := queue()))
        await publish(bare, work, message())
        (got,) = await take(await reading(bare, work), 1)
        assert got.count == 0
        with pytest.raises(ConfigurationError, match="no dead-letter policy"):
            await reading(adapter, work)
        drifts = await adapter.declare(topology(work))
        assert [(drift.setting, drift.breaks) for drift in drifts] == [("dead_letter_topic", True)]


async def test_pubsub_moves_what_is_never_settled_to_the_dead_letters(pubsub_url: str, queue: MakeQueue) -> None:
    async with opened(pubsub_url, max_delivery_attempts=5) as adapter:
        await adapter.declare(topology(work := queue()))
        await publish(adapter, work, poison := message(b"poison", key=b"k", headers=[("h", "v")]))
        subscription = await reading(adapter, work)
        for attempt in range(1, 6):
            (got,) = await take(subscription, 1)
            assert got.count == attempt
            await subscription.settle([(got, RELEASE)])
        dead = await reading(adapter, Source(work).dead_letter_channel)
        await subscription.receive(1, 0.1)  # the fake moves it when somebody asks
        (letter,) = await take(dead, 1)
        assert (letter.message.id, letter.body, letter.message.key) == (poison.id, b"poison", b"k")


async def test_each_group_has_its_own_count(pubsub_url: str, topic: MakeTopic) -> None:
    async with opened(pubsub_url) as adapter:
        groups = [Source(events := topic(), name) for name in ("one", "two")]
        await adapter.declare(topology(*groups))
        await publish(adapter, events, message())
        for group in groups:
            (got,) = await take(await reading(adapter, group), 1)
            assert got.count == 1


async def test_a_changed_subscription_is_reported(pubsub_url: str, queue: MakeQueue) -> None:
    async with opened(pubsub_url) as adapter, opened(pubsub_url, lease="60s") as longer:
        await adapter.declare(topology(work := queue(options={"pubsub": {"subscription": {"filter": "attributes:a"}}})))
        plain: Queue[Any] = Queue(work.name)
        found = {drift.setting: drift for drift in await longer.declare(topology(plain))}
        assert found["filter"].breaks
        assert (found["ack_deadline_seconds"].wanted, found["ack_deadline_seconds"].found) == ("60", "30")
        ordered = {drift.setting for drift in await adapter.declare(topology(Queue(work.name, fifo=True)))}
        assert "enable_message_ordering" in ordered


async def test_a_lease_follows_the_subscriptions_own_deadline(pubsub_url: str, queue: MakeQueue) -> None:
    """A subscription whose deadline is shorter than our lease would hand messages to others behind our back."""
    async with opened(pubsub_url, lease="10s") as short, opened(pubsub_url, lease="60s") as long:
        await short.declare(topology(work := queue()))
        await publish(short, work, message())
        began = time.monotonic()
        (got,) = await take(await reading(long, work), 1)
        assert got.lease_until <= began + 12


async def test_a_subscription_without_its_topic_is_told(pubsub_url: str, queue: MakeQueue) -> None:
    async with opened(pubsub_url) as adapter, raw(pubsub_url) as (link, config):
        await adapter.declare(topology(work := queue()))
        await link.call("DeleteTopic", api.DeleteTopicRequest(topic=config.topic(work.name)), seconds=5)
        with pytest.raises(NotFound, match="topic of this subscription was deleted"):
            await reading(adapter, work)
        drifts = await adapter.declare(topology(work))
        assert [(drift.setting, drift.found, drift.breaks) for drift in drifts] == [("topic", "_deleted-topic_", True)]


async def test_a_subscription_that_is_deleted_while_it_is_read_is_told(pubsub_url: str, queue: MakeQueue) -> None:
    async with opened(pubsub_url) as adapter, raw(pubsub_url) as (link, config):
        await adapter.declare(topology(work := queue()))
        subscription = await reading(adapter, work)
        receiving = asyncio.create_task(subscription.receive(1, 60.0))
        request = api.DeleteSubscriptionRequest(subscription=config.subscription(work.name))
        await link.call("DeleteSubscription", request, seconds=5)
        with pytest.raises(NotFound, match=f"reading {work.name}: .*not found"):
            await asyncio.wait_for(receiving, 30)
        await subscription.close()


async def test_a_topic_that_is_deleted_while_it_is_read_is_told(
    pubsub_url: str, queue: MakeQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No pull says so: it waits as if nothing had been published."""
    monkeypatch.setattr(presence, "LOOK_SECONDS", 0.2)
    async with opened(pubsub_url) as adapter, raw(pubsub_url) as (link, config):
        await adapter.declare(topology(work := queue()))
        await publish(adapter, work, message())
        subscription = await reading(adapter, work)
        (got,) = await take(subscription, 1)
        assert (await subscription.settle([(got, ACK)]))[0].ok
        await link.call("DeleteTopic", api.DeleteTopicRequest(topic=config.topic(work.name)), seconds=5)
        with pytest.raises(NotFound, match="topic of this subscription was deleted"):
            await take(subscription, 1, wait=0.1)
        await subscription.close()


async def test_a_look_that_fails_is_not_the_last_one(
    pubsub_url: str, queue: MakeQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its error was: else a reader without a topic would wait in silence for ever."""
    monkeypatch.setattr(presence, "LOOK_SECONDS", 0.2)
    ask, failed = presence.ensure_topic, 0

    def fails_once(found: object, source: Source) -> None:
        nonlocal failed
        failed += 1
        if failed == 1:
            raise ValueError("an answer that nobody thought of")
        ask(found, source)

    async with opened(pubsub_url) as adapter, raw(pubsub_url) as (link, config):
        await adapter.declare(topology(work := queue()))
        subscription = await reading(adapter, work)
        monkeypatch.setattr(presence, "ensure_topic", fails_once)
        await link.call("DeleteTopic", api.DeleteTopicRequest(topic=config.topic(work.name)), seconds=5)
        with pytest.raises(NotFound, match="topic of this subscription was deleted"):
            await take(subscription, 1, wait=0.1)
        assert failed == 2
        await subscription.close()


async def test_a_reader_whose_topic_was_deleted_says_so_in_its_status(
    pubsub_url: str, queue: MakeQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "LOOK_SECONDS", 0.2)
    monkeypatch.setattr(intake, "_RECEIVE_WAIT", 0.1)
    service = Service("s", broker=pubsub_url)
    work = queue()

    @service.consumer(work, retry=["1s"])
    async def handle(payload: bytes) -> None: ...

    async with service, raw(pubsub_url) as (link, config):
        await link.call("DeleteTopic", api.DeleteTopicRequest(topic=config.topic(work.name)), seconds=5)

        def told() -> bool:
            status = service.status()[0]
            return status.state == "disconnected" and "topic of this subscription was deleted" in status.detail

        await until(told)


async def test_a_publisher_believes_no_longer_in_a_subscription_that_its_reader_misses(
    pubsub_url: str, queue: MakeQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is published to a topic without any succeeds, and is lost."""
    monkeypatch.setattr(presence, "LOOK_SECONDS", 0.2)
    async with opened(pubsub_url) as adapter, raw(pubsub_url) as (link, config):
        await adapter.declare(topology(work := queue()))
        await publish(adapter, work, message())
        subscription = await reading(adapter, work)
        (got,) = await take(subscription, 1)
        assert (await subscription.settle([(got, ACK)]))[0].ok
        request = api.DeleteSubscriptionRequest(subscription=config.subscription(work.name))
        await link.call("DeleteSubscription", request, seconds=5)
        with pytest.raises(NotFound):
            await take(subscription, 1, wait=0.1)
        (outcome,) = await send(adapter, work, message())
        assert outcome.fault is not None
        assert outcome.fault.code is Code.UNROUTABLE
        await subscription.close()


async def test_what_others_packed_into_attributes_harms_nothing(pubsub_url: str, queue: MakeQueue) -> None:
    """What looks like our own attributes and is not fails, and becomes a dead letter, as it came."""
    service = Service("s", broker=pubsub_url)
    handled: list[bytes] = []
    work = queue()

    @service.consumer(work, failure=FailurePolicy(in_place=None, chain=None))
    async def handle(payload: bytes) -> None:
        handled.append(payload)
        if payload.startswith(b"evil"):
            raise ValueError("boom")

    evil = {
        b"evil-surrogate": {"alo-more-0": '[[0,"x","\\ud800"]]'},
        b"evil-huge": {"alo-more-0": f'[[{10**30},"a","b"]]'},
        b"evil-deep": {f"alo-more-{number}": "[" * 1024 for number in range(14)},
    }
    async with service, raw(pubsub_url) as (link, config):
        request = api.PublishRequest(topic=config.topic(work.name))
        for body, attributes in {b"good-1": {}, **evil, b"good-2": {}}.items():
            request.messages.append(api.PubsubMessage(data=body, attributes=attributes))
        await link.call("Publish", request, seconds=5)
        await until(lambda: {b"good-1", *evil, b"good-2"} <= set(handled))
        await until(lambda: service.status()[0].counts.get("dead", 0) == 3 and not service.status()[0].in_flight)
    async with opened(pubsub_url) as adapter:
        letters = await take(await reading(adapter, Source(work).dead_letter_channel), 3)
        for letter in letters:
            items = dict(letter.message.headers.items())
            assert evil[letter.body].items() <= items.items()


async def test_a_message_that_cannot_be_read_fails_as_one_that_does_not_decode(
    pubsub_url: str, queue: MakeQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a bug in reading raises costs that message alone."""
    read = records.read_attributes

    def broken(found: Mapping[str, str], ordering_key: str) -> tuple[Headers, bytes | None]:
        if found.get("evil"):
            raise OverflowError("cannot fit")
        return read(found, ordering_key)

    monkeypatch.setattr(records, "read_attributes", broken)
    service = Service("s", broker=pubsub_url)
    seen: list[tuple[bytes, str]] = []
    work = queue()

    @service.consumer(work, retry=["1s"])
    async def handle(payload: bytes, ctx: Context) -> None:
        seen.append((payload, ctx.message.id))

    async with service, opened(pubsub_url) as adapter:
        await publish(adapter, work, message(b"1"), message(b"2", headers=[("evil", "yes")]), message(b"3"))
        await until(lambda: len(seen) == 2 and service.status()[0].counts.get("dead") == 1)
        assert service.status()[0].state == "running"
        monkeypatch.undo()
        (letter,) = await take(await reading(adapter, Source(work).dead_letter_channel), 1)
        assert letter.body == b"2"
        assert letter.message.headers.get("alo-error-stage") == "decode"
        assert "OverflowError: cannot fit" in (letter.message.headers.get("alo-error-message") or "")


async def test_a_backlog_is_unknown_and_never_nothing(pubsub_url: str, queue: MakeQueue) -> None:
    async with opened(pubsub_url) as adapter:
        await adapter.declare(topology(work := queue()))
        found = await adapter.backlog(Source(work))
        assert found.waiting is None
        assert found.in_flight is None
        assert "num_undelivered_messages" in found.detail


async def test_a_reader_is_told_that_its_broker_went_and_came(queue: MakeQueue) -> None:
    async with killable("pubsub") as broker, opened(broker.url) as adapter:
        await adapter.declare(topology(work := queue()))
        listener = Listening()
        subscription = await reading(adapter, work, listener)
        receiving = asyncio.create_task(subscription.receive(1, 60.0))
        await broker.kill()
        await until(lambda: "disconnected" in listener.conditions)
        await broker.start()
        await until(lambda: listener.conditions[-1] == "connected")
        with pytest.raises(NotFound):  # the fake forgot everything
            await asyncio.wait_for(receiving, 15)
        await adapter.declare(topology(work))
        await publish(adapter, work, sent := message())
        assert [each.message.id for each in await take(await reading(adapter, work), 1)] == [sent.id]


async def test_closing_waits_for_no_message_that_never_comes(pubsub_url: str, queue: MakeQueue) -> None:
    async with opened(pubsub_url) as adapter:
        await adapter.declare(topology(work := queue()))
        subscription = await reading(adapter, work)
        await subscription.receive(10, 0.2)
        began = time.monotonic()
        await subscription.close()
        assert time.monotonic() - began < 1.5


@pytest.mark.parametrize("fifo", [False, True], ids=["unordered", "ordered"])
async def test_what_is_given_back_is_not_brought_by_a_pull_of_ones_own(
    pubsub_url: str, queue: MakeQueue, fifo: bool
) -> None:
    """A pull that waits would take it, and it would be counted once more."""
    async with opened(pubsub_url, lease="60s") as adapter:
        await adapter.declare(topology(work := queue(fifo=fifo)))
        await publish(adapter, work, *[message(key=b"%d" % n) for n in range(25)])
        leaving, peer = await reading(adapter, work), await reading(adapter, work)
        held = await take(leaving, 25)
        assert await leaving.receive(10, 0.5) == ()  # pulls, and there is nothing
        await leaving.leave()
        began = time.monotonic()
        assert all(outcome.ok for outcome in await leaving.settle([(each, RELEASE) for each in held]))
        await leaving.close()
        came = await take(peer, 25)
        assert time.monotonic() - began < 2.0
        assert [delivery.count for delivery in came] == [2] * 25
        await peer.settle([(delivery, ACK) for delivery in came])


async def test_who_leaves_keeps_nothing_that_was_fetched(pubsub_url: str, queue: MakeQueue) -> None:
    """A drain may last for minutes, and nobody renews a lease here."""
    async with opened(pubsub_url, lease="60s") as adapter:
        await adapter.declare(topology(work := queue()))
        draining, peer = await reading(adapter, work), await reading(adapter, work)
        assert await draining.receive(30, 0.05) == ()  # a pull for thirty waits
        await publish(adapter, work, *[message() for _ in range(30)])
        (held,) = await take(draining, 1, most=1)
        await draining.leave()
        began = time.monotonic()
        came = await take(peer, 29)
        assert time.monotonic() - began < 2.0
        assert max(delivery.count for delivery in came) <= 2
        await peer.settle([(delivery, ACK) for delivery in came])
        assert (await draining.settle([(held, ACK)]))[0].ok
