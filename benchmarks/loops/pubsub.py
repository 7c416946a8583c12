"""google-cloud-pubsub by hand: the fastest loop that loses nothing (raw protobufs over grpc.aio), and the tutorial's."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from typing import Any
from urllib.parse import urlsplit

import grpc
import msgspec
from google.protobuf import empty_pb2
from google.pubsub_v1.types import pubsub as types

from loops import common
from loops.common import ID_HEADER, Job, Meter, Order, Result, body, headers, stamped

_PULL = 1000
_PULLS = 4
_REQUEST = 1000
_REQUESTS = 4

_Publish, _Published = types.PublishRequest.pb(), types.PublishResponse.pb()
_Pull, _Pulled = types.PullRequest.pb(), types.PullResponse.pb()
_Ack = types.AcknowledgeRequest.pb()
_Message = types.PubsubMessage.pb()


class _Client:
    """The calls that the loops need."""

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        self.channel = grpc.aio.insecure_channel(parts.netloc, options=[("grpc.max_receive_message_length", -1)])
        self.project = f"projects/{parts.path.strip('/') or 'atleastonce'}"
        self.publish = self._call("Publisher/Publish", _Publish, _Published)
        self.pull = self._call("Subscriber/Pull", _Pull, _Pulled)
        self.acknowledge = self._call("Subscriber/Acknowledge", _Ack, empty_pb2.Empty)
        self.delete_topic = self._call("Publisher/DeleteTopic", types.DeleteTopicRequest.pb(), empty_pb2.Empty)
        delete = types.DeleteSubscriptionRequest.pb()
        self.delete_subscription = self._call("Subscriber/DeleteSubscription", delete, empty_pb2.Empty)

    def _call(self, name: str, asks: Any, answers: Any) -> Any:
        return self.channel.unary_unary(
            f"/google.pubsub.v1.{name}",
            request_serializer=asks.SerializeToString,
            response_deserializer=answers.FromString,
        )

    def topic(self, queue: str) -> str:
        return f"{self.project}/topics/{queue}"

    def subscription(self, queue: str) -> str:
        return f"{self.project}/subscriptions/{queue}"


def delete(address: str, queue: str) -> None:
    async def run() -> None:
        client = _Client(address)
        for name in (queue, f"{queue}.suspects", f"{queue}.dlq"):
            request = types.DeleteSubscriptionRequest.pb()(subscription=client.subscription(name))
            with contextlib.suppress(grpc.RpcError):  # whether there is one depends on the contender
                await client.delete_subscription(request)
                await client.delete_topic(types.DeleteTopicRequest.pb()(topic=client.topic(name)))
        await client.channel.close()

    common.run(run())


def remaining(address: str, queue: str) -> int:
    """What is ready: call it when no consumer is left. What a lease holds is not seen."""

    async def run() -> int:
        client = _Client(address)
        request = _Pull(subscription=client.subscription(queue), max_messages=_PULL, return_immediately=True)
        found = await client.pull(request)
        await client.channel.close()
        return len(found.received_messages)

    return common.run(run())


def load(address: str, queue: str, messages: int) -> None:
    """Fill an existing queue."""

    async def run() -> None:
        client = _Client(address)
        items = ((body(n), dict(headers(n))) for n in range(messages))
        await _requests(client, queue, items, _REQUEST, _REQUESTS)
        await client.channel.close()

    common.run(run())


def raw(job: Job) -> Result:
    """pull(1000) four at a time, one acknowledge for each answer. Publishing: 1000 in a request, four at a time."""
    return asyncio.run(_publish(job) if job.scenario.startswith("publish") else _consume(job))


async def _consume(job: Job) -> Result:
    client, meter = _Client(job.address), Meter(job)
    decode, handled = msgspec.json.Decoder(Order).decode, meter.handled
    name = client.subscription(job.channel)
    request = _Pull(subscription=name, max_messages=_PULL)
    loop = asyncio.get_running_loop()
    finished: asyncio.Future[None] = loop.create_future()

    async def pull() -> None:
        while not meter.done:
            received = (await client.pull(request)).received_messages
            ids = []
            if job.scenario == "batch":
                if received and meter.left == meter.total:
                    meter.begin()
                orders = []
                for each in received:
                    message = each.message
                    _ = message.attributes[ID_HEADER]
                    orders.append(decode(message.data))
                    ids.append(each.ack_id)
                for order in orders:
                    handled(order)
            else:
                for each in received:
                    message = each.message
                    _ = message.attributes[ID_HEADER]
                    handled(decode(message.data))
                    ids.append(each.ack_id)
            if ids:
                await client.acknowledge(_Ack(subscription=name, ack_ids=ids))
        if not finished.done():
            finished.set_result(None)

    pulls = [asyncio.create_task(pull()) for _ in range(1 if job.scenario == "latency" else _PULLS)]
    await finished
    # The one that handled the last message has acknowledged it; of the others each has acknowledged all, or waits in vain.
    result = meter.result()
    for task in pulls:
        task.cancel()
    await asyncio.gather(*pulls, return_exceptions=True)
    await client.channel.close()
    return result


async def _publish(job: Job) -> Result:
    client, meter = _Client(job.address), Meter(job)
    orders = [msgspec.json.decode(body(n), type=Order) for n in range(job.messages)]
    encode = msgspec.json.encode

    def items() -> Any:
        for order in orders:
            fields = {"content-type": "application/json", ID_HEADER: os.urandom(16).hex(), "tenant": "blue"}
            yield encode(order), fields

    meter.begin()
    if job.scenario == "publish_many":
        await _requests(client, job.channel, items(), _REQUEST, _REQUESTS)
    else:
        await _requests(client, job.channel, items(), job.concurrency, 1)
    result = meter.result()
    await client.channel.close()
    return result


async def _requests(client: _Client, queue: str, items: Any, size: int, parallel: int) -> None:
    source = iter(items)

    async def work() -> None:
        while True:
            request = _Publish(topic=client.topic(queue))
            count = 0
            for text, fields in source:
                message = request.messages.add()  # a third of what making it and putting it there costs
                message.data = text
                attributes = message.attributes
                for name, value in fields.items():
                    attributes[name] = value
                count += 1
                if count == size:
                    break
            if not count:
                return
            answer = await client.publish(request)
            if len(answer.message_ids) != count:
                raise RuntimeError("not all were published")

    await asyncio.gather(*(work() for _ in range(parallel)))


def naive(job: Job) -> Result:
    """The tutorial's: the synchronous client, one message, one acknowledgement; a result for each publish."""
    parts = urlsplit(job.address)
    os.environ["PUBSUB_EMULATOR_HOST"] = parts.netloc
    from google.cloud import pubsub_v1

    project, meter = parts.path.strip("/") or "atleastonce", Meter(job)
    if job.scenario.startswith("publish"):
        publisher = pubsub_v1.PublisherClient()
        topic = publisher.topic_path(project, job.channel)
        orders = [json.loads(body(n)) for n in range(job.messages)]
        meter.begin()
        for n, order in enumerate(orders):
            publisher.publish(topic, json.dumps(order).encode(), **dict(headers(n))).result()
        return meter.result()
    subscriber = pubsub_v1.SubscriberClient()
    subscription = subscriber.subscription_path(project, job.channel)
    while not meter.done:
        for each in subscriber.pull(subscription=subscription, max_messages=1).received_messages:
            _ = each.message.attributes[ID_HEADER]
            order = json.loads(each.message.data)
            meter.handled(Order(**order) if job.scenario == "latency" else order)
            subscriber.acknowledge(subscription=subscription, ack_ids=[each.ack_id])
    return meter.result()


def feed(job: Job) -> None:
    """Publish at ``job.rate`` per second, each with its time in ``order_id``."""

    async def run() -> None:
        client = _Client(job.address)
        begin = time.perf_counter()
        for n in range(job.messages):
            await asyncio.sleep(max(0.0, begin + n / job.rate - time.perf_counter()))
            message = _Message(data=stamped(n), attributes=dict(headers(n)))
            await client.publish(_Publish(topic=client.topic(job.channel), messages=[message]))
        await client.channel.close()

    common.run(run())
