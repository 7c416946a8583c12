"""Request-reply with clients that know nothing of this library, in both directions."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Callable
from typing import Any

import msgspec
import nats
import pika
import pytest

from atleastonce import NoResponder, Queue, Service, connect


class Ask(msgspec.Struct):
    n: int


class Quote(msgspec.Struct):
    price: int


def a_queue() -> Queue[Ask]:
    return Queue(f"t.raw.{uuid.uuid4().hex[:8]}", Ask)


def shop(url: str, quotes: Queue[Ask], **options: Any) -> tuple[Service, list[int]]:
    service, runs = Service("shop", broker=url), []

    @service.responder(quotes, **options)
    async def quote(ask: Ask) -> Quote:
        runs.append(ask.n)
        if ask.n < 0:
            raise ValueError("below zero")
        return Quote(ask.n * 10)

    return service, runs


# ---------------------------------------------------------------------------------------------------------------- RabbitMQ


def _amqp(url: str) -> pika.BlockingConnection:
    return pika.BlockingConnection(pika.URLParameters(url.replace("rabbitmq://", "amqp://", 1).rstrip("/") + "/%2F"))


def _ask_raw(
    url: str, queue: str, reply_to: str | None, bodies: list[bytes], correlation: str = "c-{}"
) -> dict[str, tuple[Any, bytes]]:
    """What a textbook's client does: ``reply_to``, ``correlation_id``, an inbox, and nothing else."""
    connection = _amqp(url)
    try:
        channel = connection.channel()
        inbox = reply_to or channel.queue_declare("", exclusive=True).method.queue
        found: dict[str, tuple[Any, bytes]] = {}

        def answered(_: Any, __: Any, properties: Any, body: bytes) -> None:
            found[properties.correlation_id] = (properties, body)

        channel.basic_consume(inbox, answered, auto_ack=True)
        for number, body in enumerate(bodies):
            properties = pika.BasicProperties(reply_to=inbox, correlation_id=correlation.format(number))
            channel.basic_publish("", queue, body, properties)
        for _ in range(300):
            if len(found) == len(bodies):
                break
            connection.process_data_events(0.1)
        return found
    finally:
        connection.close()


@pytest.mark.parametrize("reply_to", [None, "amq.rabbitmq.reply-to"], ids=["exclusive-queue", "direct-reply-to"])
async def test_a_raw_amqp_client_is_answered(rabbitmq_url: str, reply_to: str | None) -> None:
    quotes = a_queue()
    service, _ = shop(rabbitmq_url, quotes)
    bodies = [json.dumps({"n": n}).encode() for n in (*range(20), -1)]
    async with service:
        found = await asyncio.to_thread(_ask_raw, rabbitmq_url, quotes.name, reply_to, bodies)
        status = service.status()[0]
        assert len(found) == 21
        for n in range(20):
            properties, body = found[f"c-{n}"]
            assert json.loads(body) == {"price": n * 10}
            assert properties.content_type == "application/json"
        properties, body = found["c-20"]
        assert properties.headers["alo-error-type"] == "ValueError"
        assert json.loads(body) == {"type": "ValueError", "message": "below zero", "retryable": True}
        # A direct reply-to is no queue to the broker: answers to it must not come back as unroutable, nor be sent again.
        assert status.counts["done"] == 20
        assert not status.counts.get("unheard")


@pytest.mark.parametrize("correlation", ["Grüße {}", "{}\n\t", "日本 {}", "{}" + "x" * 250])
async def test_a_raw_amqp_clients_correlation_comes_back_as_it_was(rabbitmq_url: str, correlation: str) -> None:
    quotes = a_queue()
    service, _ = shop(rabbitmq_url, quotes)
    bodies = [json.dumps({"n": n}).encode() for n in (1, 2, -1)]
    async with service:
        found = await asyncio.to_thread(_ask_raw, rabbitmq_url, quotes.name, None, bodies, correlation)
    assert set(found) == {correlation.format(n) for n in range(3)}


async def test_a_raw_amqp_responder_answers(rabbitmq_url: str) -> None:
    quotes = a_queue()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()

    def respond() -> None:
        connection = _amqp(rabbitmq_url)
        channel = connection.channel()
        channel.queue_declare(quotes.name, durable=True, arguments={"x-queue-type": "quorum"})

        def answer(_: Any, method: Any, properties: Any, body: bytes) -> None:
            price = json.loads(body)["n"] * 10
            back = pika.BasicProperties(correlation_id=properties.correlation_id)
            channel.basic_publish("", properties.reply_to, json.dumps({"price": price}).encode(), back)
            channel.basic_ack(method.delivery_tag)

        channel.basic_consume(quotes.name, answer)
        loop.call_soon_threadsafe(ready.set)
        while not stop.is_set():
            connection.process_data_events(0.1)
        connection.close()

    responding = asyncio.create_task(asyncio.to_thread(respond))
    try:
        await ready.wait()
        async with connect(rabbitmq_url) as broker:
            asking = [broker.request(quotes, Ask(n), returns=Quote, timeout="30s") for n in range(20)]
            assert await asyncio.gather(*asking) == [Quote(n * 10) for n in range(20)]
    finally:
        stop.set()
        await responding


@pytest.mark.parametrize(
    "address", ["amq.rabbitmq.reply-to.bogusbogus", "amq.gen-nobodynobodynobody", f"alo.reply.{'0' * 32}"]
)
async def test_answers_to_nobody_harm_no_others(rabbitmq_url: str, address: str) -> None:
    """Whatever the broker makes of such an address, the channel of all other publishes lives on."""
    quotes = a_queue()
    service, runs = shop(rabbitmq_url, quotes)

    def forge() -> None:
        connection = _amqp(rabbitmq_url)
        properties = pika.BasicProperties(reply_to=address, correlation_id="c")
        connection.channel().basic_publish("", quotes.name, b'{"n": 1}', properties)
        connection.close()

    async with service, connect(rabbitmq_url) as broker:
        await asyncio.to_thread(forge)
        asking = [broker.request(quotes, Ask(n), returns=Quote, timeout="30s") for n in range(2, 30)]
        assert await asyncio.gather(*asking) == [Quote(n * 10) for n in range(2, 30)]
        for _ in range(1000):
            if not service.status()[0].in_flight:
                break
            await asyncio.sleep(0.01)
        assert service.status()[0].in_flight == 0
    assert sorted(runs) == list(range(1, 30))


# -------------------------------------------------------------------------------------------------------------------- NATS


async def test_a_raw_nats_client_is_answered(nats_url: str) -> None:
    quotes = a_queue()
    service, _ = shop(nats_url, quotes)
    client = await nats.connect(nats_url)
    try:
        async with service:
            answers = await asyncio.gather(
                *(client.request(quotes.name, b'{"n": %d}' % n, timeout=30) for n in range(20))
            )
            assert [json.loads(each.data) for each in answers] == [{"price": n * 10} for n in range(20)]
            failed = await client.request(quotes.name, b'{"n": -1}', timeout=30)
            assert (failed.headers or {})["alo-error-type"] == "ValueError"
            own = await client.subscribe(custom := f"my.replies.{uuid.uuid4().hex[:8]}")
            await client.publish(quotes.name, b'{"n": 5}', reply=custom)
            with pytest.raises(nats.errors.TimeoutError):  # no inbox: not allowed unless said so
                await own.next_msg(timeout=0.5)
            assert service.status()[0].counts["refused"] == 1
        allowing, _ = shop(nats_url, quotes, reply_to=["my.replies.*"])
        async with allowing:
            await client.publish(quotes.name, b'{"n": 5}', reply=custom)
            assert json.loads((await own.next_msg(timeout=30)).data) == {"price": 50}
    finally:
        await client.close()


async def test_a_raw_nats_responder_answers(nats_url: str) -> None:
    quotes = a_queue()
    client = await nats.connect(nats_url)
    try:
        async with connect(nats_url) as broker:
            with pytest.raises(NoResponder):
                await broker.request(quotes, Ask(1), timeout="30s")

            async def answer(message: Any) -> None:
                await message.respond(json.dumps({"price": json.loads(message.data)["n"] * 10}).encode())

            await client.subscribe(quotes.name, cb=answer)
            await client.flush()
            await client.flush()  # once more: nats-py's first PING may overtake the subscription
            asking = [broker.request(quotes, Ask(n), returns=Quote, timeout="30s") for n in range(20)]
            assert await asyncio.gather(*asking) == [Quote(n * 10) for n in range(20)]
    finally:
        await client.close()


async def test_requests_in_a_stream_are_kept_until_a_responder_comes(nats_url: str) -> None:
    kept: Queue[Ask] = Queue(f"t.raw.{uuid.uuid4().hex[:8]}", Ask, options={"nats": {"core": False}})
    service, _ = shop(nats_url, kept)
    async with connect(nats_url) as broker:
        await broker.declare(kept)
        asking = asyncio.create_task(broker.request(kept, Ask(4), returns=Quote, timeout="30s"))
        done: Callable[[], bool] = asking.done
        for _ in range(500):
            if (await broker.backlog(kept)).waiting:
                break
            await asyncio.sleep(0.01)
        assert not done()
        async with service:
            assert await asking == Quote(40)
