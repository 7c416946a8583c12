"""Publishing to Pub/Sub: what a request takes, what an attribute takes, and what would be lost without a word."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from pubsub_kit import message, opened, publish, raw, reading, send, take, topology

from atleastonce.adapters import open_adapter
from atleastonce.adapters.pubsub import channel as api
from atleastonce.brokers import Running
from atleastonce.channels import Queue, Source, Topic
from atleastonce.contract import ACK, Code, Status
from atleastonce.errors import BrokerUnavailable
from atleastonce.testing.proxy import FaultProxy

MakeQueue = Callable[..., Queue[Any]]
MakeTopic = Callable[..., Topic[Any]]


async def test_fields_named_like_the_clients_arguments_are_fields(pubsub_url: str, queue: MakeQueue) -> None:
    """``PublisherClient.publish(topic, data, ordering_key, retry, timeout, **attributes)`` cannot send these."""
    fields = [(name, "mine") for name in ("topic", "data", "ordering_key", "retry", "timeout")]
    async with opened(pubsub_url) as adapter:
        await adapter.declare(topology(work := queue()))
        await publish(adapter, work, sent := message(b"x", headers=fields))
        (got,) = await take(await reading(adapter, work), 1)
        assert got.message.headers == sent.headers


async def test_a_batch_of_more_bytes_than_a_request_takes_goes_through(pubsub_url: str, queue: MakeQueue) -> None:
    async with opened(pubsub_url) as adapter:
        await adapter.declare(topology(work := queue()))
        sent = [message(bytes([n]) * 1_000_000) for n in range(25)]
        await publish(adapter, work, *sent)
        got = await take(await reading(adapter, work), 25)
        assert {each.message.id: each.body for each in got} == {each.id: each.body for each in sent}


async def test_values_above_a_kilobyte_and_refused_names_travel_packed(pubsub_url: str, queue: MakeQueue) -> None:
    """A traceback is longer than an attribute can be, and a move must not fail for its diagnostics."""
    fields = [("alo-traceback", "x" * 4096), ("googclient", "v"), ("a", "ü" * 1000), ("a", "2"), ("alo-key", "forged")]
    async with opened(pubsub_url) as adapter:
        await adapter.declare(topology(work := queue()))
        sent = message(b"x", key=b"real", headers=[*fields, *((f"h{n}", "v") for n in range(95))])
        await publish(adapter, work, sent)
        (got,) = await take(subscription := await reading(adapter, work), 1)
        assert list(got.message.headers.items()) == list(sent.headers.items())
        assert got.message.key == b"real"
        attributes = dict(got.raw.message.attributes)
        assert len(attributes) <= 100
        assert max(len(value.encode()) for value in attributes.values()) <= 1024
        assert not [name for name in attributes if name.startswith("goog")]
        await subscription.settle([(got, ACK)])


async def test_headers_that_do_not_fit_at_all_are_refused_before_anything_is_sent(
    pubsub_url: str, queue: MakeQueue
) -> None:
    async with opened(pubsub_url) as adapter:
        await adapter.declare(topology(work := queue()))
        outcomes = await send(
            adapter,
            work,
            message(b"good"),
            message(headers=[("h", "x" * 70_000)]),
            message(key=b"k" * 2000),
        )
        assert [outcome.status for outcome in outcomes] == [Status.OK, Status.REJECTED, Status.REJECTED]
        assert {outcome.fault.code for outcome in outcomes[1:]} == {Code.TOO_LARGE}


async def test_a_topic_that_nobody_subscribes_to_is_no_success(pubsub_url: str, topic: MakeTopic) -> None:
    """Pub/Sub confirms such a publish, and the message is gone."""
    async with opened(pubsub_url) as adapter:
        await adapter.declare(topology(events := topic()))
        (refused,) = await send(adapter, events, message())
        assert refused.fault is not None
        assert refused.fault.code is Code.UNROUTABLE
        await adapter.declare(topology(Source(events, "billing")))
        await publish(adapter, events, message())


async def test_a_key_of_an_ordered_channel_has_one_request_at_a_time(pubsub_url: str, queue: MakeQueue) -> None:
    async with opened(pubsub_url) as adapter:
        await adapter.declare(topology(work := queue(fifo=True)))
        sent = [message(b"%d" % n, key=b"a") for n in range(40)]
        await publish(adapter, work, warm := message(key=b"w"))  # looks at the topic, once for all
        batches = [sent[start : start + 8] for start in range(0, 40, 8)]
        answers = await asyncio.gather(*(send(adapter, work, *batch) for batch in batches))
        assert all(outcome.ok for batch in answers for outcome in batch)
        subscription = await reading(adapter, work)
        order: list[str] = []
        while len(order) < 40:
            got = await take(subscription, 1)
            assert got[0].raw.message.ordering_key == (got[0].message.key or b"").decode()
            order += [each.message.id for each in got if each.message.id != warm.id]
            await subscription.settle([(each, ACK) for each in got])
        assert order == [each.id for each in sent]


async def test_a_lost_answer_is_unknown_and_the_repeat_keeps_its_id(
    pubsub_broker: Running, toxiproxy_broker: Running, queue: MakeQueue
) -> None:
    upstream = pubsub_broker.url.removeprefix("pubsub://").partition("/")[0]
    async with (
        FaultProxy(toxiproxy_broker.url, upstream) as proxy,
        opened(f"pubsub://{proxy.address}", send_timeout=3.0) as adapter,
    ):
        await adapter.declare(topology(work := queue()))
        await publish(adapter, work, message(b"warm"))
        again = message(b"again")
        async with proxy.black_hole():
            (lost,) = await send(adapter, work, again)
            assert lost.status is Status.UNKNOWN
        await publish(adapter, work, again)
        got = await take(await reading(adapter, work), 2)
        assert again.id in {each.message.id for each in got}


async def test_a_peer_that_accepts_and_never_answers_is_unavailable_in_time(pubsub_url: str) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        adapter = open_adapter(f"pubsub://127.0.0.1:{port}?connect_timeout=1s")
        with pytest.raises(BrokerUnavailable, match="no answer within 1 s"):
            await asyncio.wait_for(adapter.open(), 5)
        await adapter.close()


async def test_a_deleted_subscription_is_noticed_by_the_publisher_of_its_queue(
    pubsub_url: str, queue: MakeQueue
) -> None:
    async with opened(pubsub_url) as adapter, raw(pubsub_url) as (link, config):
        await adapter.declare(topology(work := queue()))
        request = api.DeleteSubscriptionRequest(subscription=config.subscription(work.name))
        await link.call("DeleteSubscription", request, seconds=5)
        (refused,) = await send(adapter, work, message())
        assert refused.fault is not None
        assert refused.fault.code is Code.UNROUTABLE
        assert list(await adapter.declare(topology(work))) == []
        await publish(adapter, work, message())


async def test_an_emulator_that_the_environment_puts_in_the_services_place_is_said(
    pubsub_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Production that publishes into an emulator, without TLS and credentials, looks fine from within."""
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", pubsub_url.removeprefix("pubsub://").partition("/")[0])
    async with opened("pubsub://shop"):
        assert "PUBSUB_EMULATOR_HOST is set: project shop" in caplog.text
    caplog.clear()
    async with opened(pubsub_url):  # names its server itself
        assert caplog.text == ""


async def test_what_is_no_utf_8_is_refused_where_it_is_published(pubsub_url: str, queue: MakeQueue) -> None:
    """Attributes are text on the wire, so that nobody can hand us bytes that are none."""
    async with opened(pubsub_url) as adapter, raw(pubsub_url) as (_, config):
        await adapter.declare(topology(work := queue()))
        text = api.PublishRequest(topic=config.topic(work.name))
        text.messages.add(data=b"bad").attributes["tenant"] = "AAAA"
        foreign = text.SerializeToString().replace(b"AAAA", b"\xff\xfe\xfd\xfc")
        async with grpc.aio.insecure_channel(config.endpoint) as channel:
            publish_bytes = channel.unary_unary("/google.pubsub.v1.Publisher/Publish")
            with pytest.raises(grpc.RpcError, match="UTF-8"):
                await publish_bytes(foreign)
        await publish(adapter, work, good := message())
        assert [each.message.id for each in await take(await reading(adapter, work), 1)] == [good.id]


async def test_an_item_that_cannot_be_encoded_costs_itself_alone(pubsub_url: str, queue: MakeQueue) -> None:
    async with opened(pubsub_url) as adapter:
        await adapter.declare(topology(work := queue()))
        broken = [message(b"2", headers=[("x", "\ud800")]), message(b"3", headers=[("x", "y" * 400 + "\udfff")])]
        outcomes = await send(adapter, work, message(b"1"), *broken, message(b"4"))
        assert [outcome.ok for outcome in outcomes] == [True, False, False, True]
        assert [outcome.fault.code for outcome in outcomes if not outcome.ok] == [Code.INVALID] * 2
        got = await take(await reading(adapter, work), 2)
        assert sorted(each.body for each in got) == [b"1", b"4"]
