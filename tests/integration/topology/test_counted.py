"""A scaler that asks as KEDA does, at the place that we export, finds what waits there: on every broker that can be asked."""

from __future__ import annotations

import asyncio
import json
import re
import time
import urllib.request
import uuid
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import pytest
from topology_kit import Order, needs_of, read, remove, shop

from atleastonce import FailurePolicy, Queue, RetryChain, Service
from atleastonce.brokers import Running
from atleastonce.topology import Scaling, keda

pytestmark = pytest.mark.timeout(120, func_only=True)

WAITING = 5


def by_kafka(url: str, metadata: Mapping[str, str]) -> int:
    from confluent_kafka import Consumer, KafkaException, TopicPartition

    assert metadata["offsetResetPolicy"] == "earliest"
    consumer = Consumer({"bootstrap.servers": metadata["bootstrapServers"], "group.id": metadata["consumerGroup"]})
    try:
        partitions = consumer.list_topics(metadata["topic"], timeout=10).topics[metadata["topic"]].partitions
        wanted = [TopicPartition(metadata["topic"], number) for number in partitions]
        lag, deadline = 0, time.monotonic() + 30
        while True:
            try:
                committed = consumer.committed(wanted, timeout=10)
                break
            except KafkaException:  # a broker that has just begun is still looking for who coordinates the group
                if time.monotonic() > deadline:
                    raise
        for each in committed:
            start, end = consumer.get_watermark_offsets(each, timeout=10)
            lag += end - (each.offset if each.offset >= 0 else start)
        return lag
    finally:
        consumer.close()


def by_rabbitmq(url: str, metadata: Mapping[str, str]) -> int:
    import pika

    parts = urlsplit(metadata["host"])
    assert parts.scheme == metadata["protocol"] == "amqp"
    where = pika.ConnectionParameters(str(parts.hostname), int(parts.port or 0), metadata["vhostName"])
    with pika.BlockingConnection(where) as connection:
        found = connection.channel().queue_declare(metadata["queueName"], passive=True)
        return int(found.method.message_count)


def by_sqs(url: str, metadata: Mapping[str, str]) -> int:
    from atleastonce.adapters.sqs.clients import Clients
    from atleastonce.adapters.sqs.config import Config
    from atleastonce.urls import BrokerUrl

    clients = Clients(Config.build(BrokerUrl.parse(url), {}))
    try:
        queue = clients.sqs.get_queue_url(QueueName=metadata["queueURL"])["QueueUrl"]
        found = clients.sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["ApproximateNumberOfMessages"])
        return int(found["Attributes"]["ApproximateNumberOfMessages"])
    finally:
        clients.close()


def by_metrics_api(metadata: Mapping[str, str]) -> int:
    """The paths that we export, of GJSON: names, and the first of a list whose name is so."""
    with urllib.request.urlopen(metadata["url"], timeout=10) as answer:
        found = json.load(answer)
    for step in re.findall(r'#\(name=="[^"]+"\)|[a-z_]+', metadata["valueLocation"]):
        named = re.fullmatch(r'#\(name=="(.+)"\)', step)
        found = next(each for each in found if each["name"] == named[1]) if named else found[step]
    return int(found)


def by_nats(url: str, metadata: Mapping[str, str]) -> int:
    if "valueLocation" in metadata:
        return by_metrics_api(metadata)
    where = (
        f"http://{metadata['natsServerMonitoringEndpoint']}/jsz?acc={metadata['account']}&consumers=true&config=true"
    )
    with urllib.request.urlopen(where, timeout=10) as answer:
        accounts = json.load(answer)["account_details"]
    (stream,) = [s for a in accounts for s in a["stream_detail"] if s["name"] == metadata["stream"]]
    (consumer,) = [each for each in stream["consumer_detail"] if each["name"] == metadata["consumer"]]
    return int(consumer["num_pending"] + consumer["num_ack_pending"])


def by_redis(url: str, metadata: Mapping[str, str]) -> int:
    import redis

    host, _, port = metadata["address"].rpartition(":")
    with redis.Redis(host=host, port=int(port), db=int(metadata["databaseIndex"])) as client:
        if "lagCount" not in metadata:
            return int(client.xpending(metadata["stream"], metadata["consumerGroup"])["pending"])
        groups = {each["name"].decode(): each for each in client.xinfo_groups(metadata["stream"])}
        return int(groups[metadata["consumerGroup"]]["lag"])


SCALERS = {"kafka": by_kafka, "rabbitmq": by_rabbitmq, "sqs": by_sqs, "nats": by_nats, "redis": by_redis}


def asked(running: Running, service: Service) -> list[dict[str, Any]]:
    """The triggers that are exported for ``service``."""
    monitoring = urlsplit(running.addresses.get("monitoring", "")).netloc or None
    document = read(keda(needs_of(service), Scaling("billing", monitoring=monitoring)))
    found: list[dict[str, Any]] = document["items"][-1]["spec"]["triggers"]
    return found


def counted(broker: str, url: str, triggers: Sequence[Mapping[str, Any]], wanted: Mapping[str, int]) -> dict[str, int]:
    """What each trigger's scaler finds: ``wanted``, or what it is 20 seconds later, for SQS and the NATS monitoring count late."""
    deadline, found = time.monotonic() + 20, dict[str, int]()
    while found != wanted and time.monotonic() < deadline:
        found = {each["name"]: SCALERS[broker](url, each["metadata"]) for each in triggers}
    return found


@pytest.mark.parametrize("broker", SCALERS)
async def test_what_waits_is_counted_where_the_trigger_asks(broker: str, request: pytest.FixtureRequest) -> None:
    running: Running = request.getfixturevalue(f"{broker}_broker")
    service = shop(running.url)
    triggers = asked(running, service)
    try:
        async with service.make_broker() as client:
            for consumer in service.consumers:
                await client.adapter.declare(consumer.topology(client.adapter.capabilities))
                for number in range(WAITING):
                    await client.publish(consumer.home.channel, Order(number))
        homes = {str(consumer.home) for consumer in service.consumers}
        wanted = {trigger["name"]: WAITING if trigger["name"] in homes else 0 for trigger in triggers}
        assert counted(broker, running.url, triggers, wanted) == wanted
        assert homes < wanted.keys()
    finally:
        await remove(service)


# Of three messages that wait ten minutes for their retry: what the trigger of the source counts, and which other one keeps the
# last replica. Without one the broker returns them by itself.
RETRIES = {
    "kafka": (0, ".retry.10m"),
    "rabbitmq": (0, None),
    "sqs": (0, None),
    "nats": (0, ".pending"),
    "redis": (0, ".pending"),
}


@pytest.mark.parametrize("broker", RETRIES)
async def test_what_waits_for_its_retry_is_no_work(broker: str, request: pytest.FixtureRequest) -> None:
    running: Running = request.getfixturevalue(f"{broker}_broker")
    service = Service("billing", broker=running.url, wait=0)
    queue = Queue(f"waits.{uuid.uuid4().hex[:8]}", Order, partitions=1)
    failed: list[int] = []
    all_failed = asyncio.Event()

    async def refuse(order: Order) -> None:
        failed.append(order.order_id)
        if len(failed) == 3:
            all_failed.set()
        raise RuntimeError("not now")

    service.consumer(queue, failure=FailurePolicy(in_place=None, chain=RetryChain("10m")))(refuse)
    triggers = asked(running, service)
    work, keeper = RETRIES[broker]
    try:
        async with service:
            for number in range(3):
                await service.broker.publish(queue, Order(number))
            await asyncio.wait_for(all_failed.wait(), 30)
        assert sorted(failed) == [0, 1, 2]  # and moved or settled, for the service has drained
        kept = {f"{queue.name}{keeper}": 3} if keeper else {}
        wanted = {trigger["name"]: 0 for trigger in triggers} | {queue.name: work} | kept
        assert counted(broker, running.url, triggers, wanted) == wanted
    finally:
        await remove(service)
