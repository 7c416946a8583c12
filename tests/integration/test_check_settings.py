"""Settings that break promises, made on real brokers with their own clients: each is found, and refused where it should be."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any
from urllib.parse import quote, urlsplit

import boto3
import nats
import pytest
import redis.asyncio
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from atleastonce import ConfigurationError, FailurePolicy, Lease, MemoryStore, Queue, RetryChain, Service, connect
from atleastonce.adapters.pubsub.channel import DeleteSubscriptionRequest, Link, Subscription
from atleastonce.adapters.pubsub.config import Config
from atleastonce.brokers.running import Running
from atleastonce.check import RULES, Finding
from atleastonce.patterns.once.options import last_redelivery
from atleastonce.stores.records import Completion
from atleastonce.urls import BrokerUrl

pytestmark = pytest.mark.timeout(120, func_only=True)

REFUSED = {rule.code for rule in RULES if rule.severity == "refuse"}


def service_on(
    url: str, queue: Queue[Any], *delays: str, options: dict[str, Any] | None = None, **policy: Any
) -> Service:
    service = Service("billing", broker=url, options=options, wait=0)
    chain = RetryChain(*delays) if delays else None

    @service.consumer(queue, failure=FailurePolicy(chain=chain, **policy))
    async def handle(order: dict[str, Any]) -> None: ...

    return service


async def expect(service: Service, code: str, setting: str, subject: str, changed: str) -> Finding:
    """That a check finds it, with what to change, and that a start refuses it if it must be."""
    found = [finding for finding in await service.check() if finding.code == code and setting in finding.what]
    assert found, await service.check()
    finding = found[0]
    assert subject in finding.subject
    assert changed in finding.change
    refused = {each.text for each in await service.check() if each.severity == "refuse"}
    assert (code in REFUSED) <= (finding.text in refused)
    if refused:
        with pytest.raises(ConfigurationError) as told:
            await service.start()
        assert str(told.value) in refused
    else:
        async with service:
            pass
    return finding


async def declared(service: Service) -> None:
    """Everything that ``service`` needs, made as it makes it."""
    async with service:
        pass


# ---------------------------------------------------------------------------------------------------------------- Kafka


@pytest.fixture
def kafka(kafka_url: str) -> Callable[..., None]:
    """Sets settings of a topic."""
    client = AdminClient({"bootstrap.servers": kafka_url.partition("://")[2]})

    def alter(topic: str, **settings: str) -> None:
        entries = [
            ConfigEntry(name.replace("_", "."), value, incremental_operation=AlterConfigOpType.SET)
            for name, value in settings.items()
        ]
        resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)
        for future in client.incremental_alter_configs([resource]).values():
            future.result(20)
        deadline = time.monotonic() + 20
        while True:  # the broker says yes before it knows it itself
            (asked,) = client.describe_configs([ConfigResource(ResourceType.TOPIC, topic)]).values()
            found = asked.result(20)
            if all(found[name.replace("_", ".")].value == value for name, value in settings.items()):
                return
            assert time.monotonic() < deadline, settings
            time.sleep(0.05)

    return alter


KAFKA = [
    ("{q}.retry.1m", {"retention_ms": "5000"}, "retention-below-delay", "retention.ms=5000", "1d1m"),
    ("{q}.retry.1m", {"retention_ms": "3600000"}, "retention-near-delay", "retention.ms=3600000", "or more"),
    ("{q}.dlq", {"retention_ms": "60000"}, "dead-letters-short", "retention.ms=60000", "or more"),
    ("{q}.dlq", {"max_message_bytes": "1000"}, "copies-too-small", "max.message.bytes=1000", "or more"),
    ("{q}.retry.1m", {"max_message_bytes": "1048588"}, "copies-tight", "max.message.bytes=1048588", "1056780"),
    ("{q}.dlq", {"cleanup_policy": "compact"}, "copies-compacted", "cleanup.policy=compact", "delete"),
    ("{q}", {"cleanup_policy": "compact,delete"}, "source-compacted", "cleanup.policy=", "no key"),
    ("{q}.dlq", {"retention_bytes": "100000"}, "drops-when-full", "retention.bytes=100000", "raise the limit"),
    ("{q}", {"min_insync_replicas": "2"}, "never-confirmed", "min.insync.replicas=2", "1 or less"),
]


@pytest.mark.parametrize(("topic", "settings", "code", "shown", "change"), KAFKA, ids=[each[2] for each in KAFKA])
async def test_kafka(
    kafka_url: str,
    kafka: Callable[..., None],
    queue: Callable[[str], Queue[Any]],
    topic: str,
    settings: dict[str, str],
    code: str,
    shown: str,
    change: str,
) -> None:
    orders = queue("orders")
    service = service_on(kafka_url, orders, "1m")
    await declared(service)
    name = topic.format(q=orders.name)
    kafka(name, **settings)
    await expect(service, code, shown, name, change)


async def test_kafka_says_that_it_is_alone(kafka_url: str, queue: Callable[[str], Queue[Any]]) -> None:
    service = service_on(kafka_url, queue("orders"), "1m")
    await declared(service)
    found = {finding.code: finding for finding in await service.check()}
    assert set(found) <= {"one-node", "auto-create"}, found
    assert "one-node" in found


# -------------------------------------------------------------------------------------------------------------- RabbitMQ


@pytest.fixture
def rabbitmq(rabbitmq_broker: Running) -> Iterator[Callable[..., str]]:
    """Makes a policy for one queue; gives the URL with which settings can be asked for."""
    management = rabbitmq_broker.management_url
    if management is None:
        pytest.skip("the RabbitMQ of the environment names no management API")
    made: list[str] = []

    def call(method: str, name: str, body: dict[str, Any] | None = None) -> None:
        request = urllib.request.Request(
            f"{management}/api/policies/%2F/{quote(name)}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": "Basic Z3Vlc3Q6Z3Vlc3Q=", "Content-Type": "application/json"},
        )
        urllib.request.urlopen(request, timeout=10).close()

    def policy(queue: str, **definition: Any) -> str:
        name = f"check-{uuid.uuid4().hex[:8]}"
        if definition:
            made.append(name)
            spelled = {key.replace("_", "-"): value for key, value in definition.items()}
            pattern = f"^{queue}$".replace(".", "\\.")
            call("PUT", name, {"pattern": pattern, "definition": spelled, "apply-to": "queues"})
        return f"{rabbitmq_broker.url}?management={management}"

    yield policy
    for name in made:
        call("DELETE", name)


RABBITMQ = [
    ("{q}.dlq", {"message_ttl": 60_000}, "dead-letters-short", "message-ttl (policy)=60000", "or more"),
    ("{q}.dlq", {"max_length": 10}, "drops-when-full", "max-length (policy)=10", "raise the limit"),
    ("{q}.dlq", {"expires": 600_000}, "vanishes", "expires (policy)=600000", "take"),
    ("{q}", {"delivery_limit": 1}, "net-below-crash-limit", "delivery-limit (policy)=1", "raise"),
]


@pytest.mark.parametrize(("name", "policy", "code", "shown", "change"), RABBITMQ, ids=[each[2] for each in RABBITMQ])
async def test_rabbitmq(
    rabbitmq: Callable[..., str],
    queue: Callable[[str], Queue[Any]],
    name: str,
    policy: dict[str, int],
    code: str,
    shown: str,
    change: str,
) -> None:
    orders = queue("orders")
    url = rabbitmq(orders.name)
    service = service_on(url, orders, "1m")
    await declared(service)
    rabbitmq(name.format(q=orders.name), **policy)
    await settled(service, code)
    await expect(service, code, shown, name.format(q=orders.name), change)


async def settled(service: Service, code: str) -> None:
    """Return once a policy has reached its queue, and the API tells it: both take a moment."""
    deadline = time.monotonic() + 30
    while not any(finding.code == code for finding in await service.check()):
        assert time.monotonic() < deadline, code


async def test_rabbitmq_without_the_api_tells_nothing(rabbitmq_url: str, queue: Callable[[str], Queue[Any]]) -> None:
    service = service_on(rabbitmq_url, queue("orders"), "1m")
    await declared(service)
    assert await service.check() == []


# ------------------------------------------------------------------------------------------------------------------ SQS


SQS: list[tuple[str, dict[str, str], str, str, str]] = [
    ("{q}", {"MessageRetentionPeriod": "3600"}, "retention-below-chain", "MessageRetentionPeriod=3600", "shorten"),
    ("{q}--dlq", {"MessageRetentionPeriod": "3600"}, "dead-letters-short", "MessageRetentionPeriod=3600", "or more"),
    ("{q}", {"RedrivePolicy": "2"}, "net-below-attempts", "maxReceiveCount=2", "shorten the chain"),
    ("{q}", {"RedrivePolicy": "3"}, "net-below-crash-limit", "maxReceiveCount=3", "raise maxReceiveCount to"),
]


@pytest.mark.parametrize(("name", "attributes", "code", "shown", "change"), SQS, ids=[each[2] for each in SQS])
async def test_sqs(
    sqs_url: str,
    queue: Callable[[str], Queue[Any]],
    name: str,
    attributes: dict[str, str],
    code: str,
    shown: str,
    change: str,
) -> None:
    orders = queue("orders")
    service = service_on(sqs_url, orders, "30m", "1h")
    await declared(service)
    parts = urlsplit(sqs_url)
    client = boto3.client(
        "sqs",
        endpoint_url=f"http://{parts.hostname}:{parts.port}",
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
    plain = orders.name.replace(".", "--")
    url = client.get_queue_url(QueueName=name.format(q=plain))["QueueUrl"]
    if count := attributes.get("RedrivePolicy"):
        below = client.get_queue_url(QueueName=f"{plain}--dlq")["QueueUrl"]
        arn = client.get_queue_attributes(QueueUrl=below, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        attributes = {"RedrivePolicy": json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": count})}
    client.set_queue_attributes(QueueUrl=url, Attributes=attributes)
    await expect(service, code, shown, orders.name, change)


# ----------------------------------------------------------------------------------------------------------------- NATS

MINUTE = 60 * 10**9

NATS: list[tuple[str, dict[str, Any], dict[str, Any], str, str, str]] = [
    ("{q}", {"max_age": 30 * MINUTE}, {}, "retention-below-chain", "max_age=1800s", "shorten the chain"),
    ("{q}.dlq", {"max_age": 30 * MINUTE}, {}, "dead-letters-short", "max_age=1800s", "or more"),
    ("{q}.dlq", {"max_msgs": 10, "discard": "old"}, {}, "drops-when-full", "max_msgs=10", "refuse"),
    ("{q}", {"storage": "memory"}, {}, "volatile", "storage=memory", "disk"),
    ("{q}", {}, {"max_ack_pending": 50}, "retries-hold-up", "max_ack_pending=50", "unlimited"),
    ("{q}", {}, {"inactive_threshold": 90 * MINUTE}, "vanishes", "inactive_threshold=5400s", "take"),
    ("{q}", {}, {"max_deliver": 2}, "net-below-attempts", "max_deliver=2", "raise max_deliver"),
]


@pytest.mark.parametrize(
    ("name", "stream", "consumer", "code", "shown", "change"),
    NATS,
    ids=[each[3] + str(n) for n, each in enumerate(NATS)],
)
async def test_nats(
    nats_url: str,
    queue: Callable[[str], Queue[Any]],
    name: str,
    stream: dict[str, Any],
    consumer: dict[str, Any],
    code: str,
    shown: str,
    change: str,
) -> None:
    orders = queue("orders")
    changed = name.format(q=orders.name)
    spelled = changed.replace(".", "~")
    client = await nats.connect(nats_url)
    try:
        config = {"name": spelled, "subjects": [changed], "retention": "workqueue", "storage": "file", "discard": "new"}
        await ask(client, f"STREAM.CREATE.{spelled}", config | stream)
        durable = {
            "durable_name": spelled,
            "ack_policy": "explicit",
            "ack_wait": MINUTE // 2,
            "filter_subject": changed,
        }
        limits = {"max_deliver": -1, "max_ack_pending": -1}
        question = {"stream_name": spelled, "config": durable | limits | consumer, "action": "create"}
        await ask(client, f"CONSUMER.CREATE.{spelled}.{spelled}", question)
    finally:
        await client.close()
    await expect(service_on(nats_url, orders, "30m", "1h"), code, shown, changed, change)


async def ask(client: Any, subject: str, body: dict[str, Any]) -> None:
    answer = json.loads((await client.request(f"$JS.API.{subject}", json.dumps(body).encode())).data)
    assert "error" not in answer, answer


# -------------------------------------------------------------------------------------------------------------- Pub/Sub


@pytest.fixture
async def pubsub(pubsub_url: str) -> AsyncIterator[tuple[Link, Config]]:
    config = Config.build(BrokerUrl.parse(pubsub_url), {})
    link = Link(config)
    await link.open()
    yield link, config
    await link.close()


PUBSUB: list[tuple[str, dict[str, Any], str, str, str]] = [
    ("{q}", {"retention": 600}, "retention-below-chain", "message_retention_duration=600s", "shorten the chain"),
    ("{q}", {"attempts": 5}, "net-below-attempts", "max_delivery_attempts=5", "shorten the chain"),
    ("{q}", {"ttl": 86_400}, "vanishes", "expiration_policy=86400s", "take expiration_policy away"),
    ("{q}.retry.2h", {"retention": 3600}, "retention-below-delay", "message_retention_duration=3600s", "more than"),
]


@pytest.mark.parametrize(("name", "settings", "code", "shown", "change"), PUBSUB, ids=[each[2] for each in PUBSUB])
async def test_pubsub(
    pubsub_url: str,
    pubsub: tuple[Link, Config],
    queue: Callable[[str], Queue[Any]],
    name: str,
    settings: dict[str, Any],
    code: str,
    shown: str,
    change: str,
) -> None:
    link, config = pubsub
    orders = queue("orders")
    service = service_on(pubsub_url, orders, *["3m"] * 6, "2h")
    await declared(service)
    changed = name.format(q=orders.name)
    await link.call(
        "DeleteSubscription", DeleteSubscriptionRequest(subscription=config.subscription(changed)), seconds=10
    )
    made = Subscription(name=config.subscription(changed), topic=config.topic(changed), ack_deadline_seconds=30)
    made.message_retention_duration.FromSeconds(settings.get("retention", 7 * 86_400))
    made.expiration_policy.SetInParent()
    if ttl := settings.get("ttl"):
        made.expiration_policy.ttl.FromSeconds(ttl)
    made.dead_letter_policy.dead_letter_topic = config.topic(f"{orders.name}.dlq")
    made.dead_letter_policy.max_delivery_attempts = settings.get("attempts", 100)
    await link.call("CreateSubscription", made, seconds=10)
    await expect(service, code, shown, changed, change)


# ---------------------------------------------------------------------------------------------------------------- Redis

REDIS = [
    ({"appendonly": "no", "save": ""}, "volatile", "appendonly=no", "disk"),
    ({"appendonly": "no", "save": "3600 1"}, "late-sync", "save=3600 1", ""),
    ({"maxmemory": "500mb", "maxmemory-policy": "allkeys-lru"}, "evicts", "allkeys-lru", "noeviction"),
]


@pytest.mark.parametrize(("settings", "code", "shown", "change"), REDIS, ids=[each[1] for each in REDIS])
async def test_redis(
    private_broker: Callable[[str], Any],
    queue: Callable[[str], Queue[Any]],
    settings: dict[str, str],
    code: str,
    shown: str,
    change: str,
) -> None:
    with private_broker("redis") as running:
        client = redis.asyncio.Redis.from_url(running.url)
        try:
            for name, value in settings.items():
                await client.config_set(name, value)
        finally:
            await client.aclose()
        finding = await expect(service_on(running.url, queue("orders"), "1m"), code, shown, "127.0.0.1", change)
        assert finding.severity in ("warn", "note")


# -------------------------------------------------------------------------------------------------------------- embedded


@pytest.mark.parametrize(("synchronous", "codes"), [("full", {"one-node"}), ("normal", {"one-node", "late-sync"})])
async def test_sqlite(tmp_path: Any, synchronous: str, codes: set[str]) -> None:
    service = service_on(f"sqlite:///{tmp_path}/shop.db?synchronous={synchronous}", Queue("orders"), "1m")
    await declared(service)
    assert {finding.code for finding in await service.check()} == codes


async def test_looking_at_sqlite_makes_no_file_and_finds_what_a_start_finds(tmp_path: Any) -> None:
    bad = tmp_path / "bad.db"
    service = service_on(f"sqlite:///{bad}", Queue("orders", options={"sqlite": {"colour": "red"}}), "1m")
    (refused,) = [finding for finding in await service.check() if finding.severity == "refuse"]
    assert not bad.exists()
    with pytest.raises(ConfigurationError) as told:
        await service.start()
    assert refused.text == str(told.value)
    path = tmp_path / "shop.db"
    good = service_on(f"sqlite:///{path}", Queue("orders"), "1m")
    before = await good.check()
    assert await good.explain(live=True)
    assert not path.exists()
    assert [f.subject for f in before if f.code == "channel-to-be-made"] == [
        "orders",
        "orders.suspects",
        "orders.dlq",
    ]
    async with connect(f"sqlite:///{path}"):
        pass  # it is there, and nothing in it
    assert await good.check() == before


async def test_memory_ends_with_its_process() -> None:
    service = service_on(f"memory://{uuid.uuid4().hex}", Queue("orders"), "1m")
    async with service:
        (finding,) = await service.check()
    assert (finding.severity, finding.code) == ("note", "process-bound")


async def test_missing_channels_have_no_settings(kafka_url: str, queue: Callable[[str], Queue[Any]]) -> None:
    found = await service_on(kafka_url, queue("never"), "1m").check()
    assert {finding.code for finding in found} <= {"channel-to-be-made", "auto-create"}


# ---------------------------------------------------------------------------------------------------- what is remembered

KEPT = [
    ("kafka", "retention.ms=1209600000", 14),
    ("sqs", "MessageRetentionPeriod=1209600", 14),
    ("pubsub", "message_retention_duration=2678400s", 31),
]


class Told(MemoryStore):
    """Writes down for how long it is told to remember."""

    def __init__(self) -> None:
        super().__init__()
        self.spans: list[float] = []

    async def _complete(self, completions: Sequence[Completion]) -> Sequence[bool]:
        self.spans += [each.ttl for each in completions]
        return await super()._complete(completions)


@pytest.mark.parametrize(("broker", "shown", "days"), KEPT, ids=[each[0] for each in KEPT])
async def test_what_a_broker_keeps_is_remembered_for_as_long(
    request: pytest.FixtureRequest, queue: Callable[[str], Queue[Any]], broker: str, shown: str, days: int
) -> None:
    """With the channels as they are made here. A ``ttl`` that is shorter does not start."""
    url, orders, store = request.getfixturevalue(f"{broker}_url"), queue("orders"), Told()

    def remembering(**lease: str) -> Service:
        service = Service("billing", broker=url, wait=0)

        @service.consumer(orders, idempotency=Lease(store, **lease))
        async def handle(order: dict[str, Any]) -> None: ...

        return service

    async def found(service: Service) -> list[Finding]:
        return [each for each in await service.check() if each.code.startswith("forgotten-")]

    service = remembering()
    async with service:
        await service.broker.publish(orders, {})
        end = time.monotonic() + 30
        while not store.spans and time.monotonic() < end:  # noqa: ASYNC110 - polling a condition with a deadline
            await asyncio.sleep(0.02)
    latest = last_redelivery(service.consumers[0].failure, days * 86_400.0, dead_letter=True)
    assert store.spans == [pytest.approx(latest)]
    assert not await found(remembering())
    assert not await found(remembering(redrive_within="3d"))
    (finding,) = [each for each in await found(remembering(ttl="7d")) if each.severity == "refuse"]
    assert finding.code == "forgotten-before-redrive"
    assert shown in finding.what
    with pytest.raises(ConfigurationError, match="redrive_within="):
        async with remembering(ttl="7d"):
            pass
    async with remembering(ttl="7d", redrive_within="3d"):
        pass
