"""Declaring on a real RabbitMQ: what is made, what differs, what cannot be."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from rabbitmq_kit import all_of, opened, outgoing, prepared, raw, reading, take

from atleastonce.channels import Queue, Source, Topic
from atleastonce.contract import DelayChannel, Drift, Outgoing, Topology
from atleastonce.errors import ConfigurationError

Sources = Callable[..., Source]


async def test_publisher_and_consumer_declare_the_same_queue_in_any_order(rabbitmq_url: str, source: Sources) -> None:
    async with opened(rabbitmq_url) as adapter:
        for first_the_consumer in (True, False):
            queue = source(f"order-{first_the_consumer}")
            consumer = Topology(sources=(queue,), dead_letters=(queue.dead_letter_channel,))
            publisher = Topology(channels=(queue.channel,))
            both = [consumer, publisher] if first_the_consumer else [publisher, consumer]
            for wanted in both:
                assert list(await adapter.declare(wanted)) == []
            # Somebody who redrives reads the dead letters.
            assert list(await adapter.declare(Topology(sources=(Source(queue.dead_letter_channel),)))) == []


async def test_ten_declare_at_once(rabbitmq_url: str, source: Sources) -> None:
    topic = Topic(source().name)
    groups = tuple(Source(topic, name) for name in ("one", "two"))
    wanted = Topology(channels=(topic,), sources=groups, dead_letters=tuple(g.dead_letter_channel for g in groups))
    async with opened(rabbitmq_url) as one, opened(rabbitmq_url) as two:
        found = await asyncio.gather(*(adapter.declare(wanted) for adapter in [one, two] * 5))
        assert [list(drifts) for drifts in found] == [[]] * 10


@pytest.mark.parametrize(
    ("there", "setting", "breaks"),
    [
        ({"x-queue-type": "classic"}, None, True),
        ({"x-queue-type": "quorum"}, "x-dead-letter-exchange", True),
        ("limit", "x-delivery-limit", False),
        ("length", "x-max-length", False),
    ],
)
async def test_other_settings_are_a_drift_and_nothing_is_changed(
    rabbitmq_url: str, source: Sources, there: Any, setting: str | None, breaks: bool
) -> None:
    queue = source()
    async with opened(rabbitmq_url) as adapter:
        if isinstance(there, dict):
            await raw(rabbitmq_url, lambda channel: channel.queue_declare(queue.name, durable=True, arguments=there))
        else:
            other = {"limit": {"x-delivery-limit": 3}, "length": {"x-max-length": 10}}[there]
            await prepared(adapter, Source(Queue(queue.name, options={"rabbitmq": other})))
        await adapter.send(outgoing(queue))
        for create in (True, False):
            (drift,) = await adapter.declare(Topology(sources=(queue,)), create=create)
            assert drift.name == queue.name
            assert drift.wanted != drift.found
            assert drift.breaks is breaks
            if setting is not None:
                assert drift.setting == setting
        assert (await adapter.backlog(queue)).waiting == 1
        await take(await reading(adapter, queue), 1, ack=True)  # and it can be read


async def test_looking_makes_nothing(rabbitmq_url: str, source: Sources) -> None:
    queue = source()
    topic = Topic(queue.name + ".topic")
    wanted = Topology(channels=(topic,), sources=(queue, Source(topic, "g")))
    async with opened(rabbitmq_url) as adapter:
        drifts = await adapter.declare(wanted, create=False)
        assert {drift.name for drift in drifts} == {queue.name, topic.name, f"{topic.name}.g"}
        assert all(drift.setting == "missing" and drift.breaks for drift in drifts)
        assert await adapter.declare(wanted, create=False) == drifts


async def test_an_exchange_of_another_type_is_a_drift(rabbitmq_url: str, source: Sources) -> None:
    topic = Topic(source().name)
    await raw(rabbitmq_url, lambda channel: channel.exchange_declare(topic.name, "topic", durable=True))
    async with opened(rabbitmq_url) as adapter:
        (drift,) = await adapter.declare(Topology(channels=(topic,)))
        assert drift == Drift(topic.name, "type", "'fanout'", "'topic'", breaks=True)


async def test_a_retry_room_returns_to_one_group_with_everything_intact(rabbitmq_url: str, source: Sources) -> None:
    """Round after round: an x-death that travelled along would look like a cycle, and the broker would drop the message."""
    topic = Topic(source().name)
    billing, shipping = Source(topic, "billing"), Source(topic, "shipping")
    room = DelayChannel(billing.retry_channel(0.2), 0.2, billing)
    async with opened(rabbitmq_url) as adapter:
        await prepared(adapter, billing, shipping, delays=(room,))
        sent = outgoing(
            topic,
            5,
            body=bytes(range(256)),
            key=b"\xff\0key",
            headers=[("b", "1"), ("a", "2"), ("b", b"\xff"), ("n", None), ("content-type", "application/json")],
        )
        await adapter.send(sent)
        subscription = await reading(adapter, billing)
        for _round in range(4):
            got = await take(subscription, 5, ack=True)
            for delivery, item in zip(got, sent, strict=True):
                assert delivery.message.id == item.message.id
                assert delivery.message.body == item.message.body
                assert delivery.message.key == item.message.key
                assert delivery.message.headers == item.message.headers
                assert delivery.count == 1
            began = time.monotonic()
            outcomes = await adapter.send([Outgoing(room.channel, delivery.message) for delivery in got])
            assert all(outcome.ok for outcome in outcomes)
            assert await subscription.receive(1, 0.1) == []
        back = await take(subscription, 5, ack=True)
        assert 0.2 <= time.monotonic() - began < 3
        assert all(len(delivery.raw.properties.headers["x-death"]) == 1 for delivery in back), "x-death grows"
        assert len(await all_of(adapter, shipping)) == 5, "another group saw a retry"


async def test_what_a_broker_cannot_have_is_told(rabbitmq_url: str, source: Sources) -> None:
    async with opened(rabbitmq_url) as adapter:
        queue = source()

        async def refused(*, match: str, **wanted: Any) -> None:
            with pytest.raises(ConfigurationError, match=match):
                await adapter.declare(Topology(**wanted))

        bad = Queue(queue.name, options={"rabbitmq": {"max-length": 3}})
        await refused(match='"x-..." arguments', channels=(bad,))
        bad = Queue(queue.name, options={"rabbitmq": {"x-max-length": "many"}})
        await refused(match="x-max-length", channels=(bad,))
        bad = Queue(queue.name, options={"rabbitmq": {"x-max-length": 1.5}})
        await refused(match=r"1\.5", channels=(bad,))
        await refused(match="reserved prefix", channels=(Queue("amq.mine"),))
        await refused(match="t", sources=(Source(Topic("t" * 200), "g" * 200),))
        long = DelayChannel(queue.retry_channel(5_000_000), 5_000_000, queue)
        await refused(match="49 days", delays=(long,))
        room = DelayChannel(Queue(queue.name), 5, source("back"))
        await refused(match="two different settings", sources=(queue,), delays=(room,))
        assert [drift.setting for drift in await adapter.declare(Topology(sources=(queue,)), create=False)] == [
            "missing"
        ]
