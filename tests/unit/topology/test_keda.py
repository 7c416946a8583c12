"""``topology export keda``: one object for a service, a trigger for each place it reads, and nothing counted that is no work."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from keda_rules import violations
from topology_shop import URLS, declared_on, service_on

from atleastonce import ConfigurationError, Queue, Service
from atleastonce.topology import Declared, Scaling, declared, keda

BROKERS = ["kafka", "rabbitmq", "sqs", "nats", "pubsub", "redis"]


def exported(needs: Declared, **settings: Any) -> dict[str, Any]:
    """The document, as a program reads it."""
    export = keda(needs, Scaling(**{"deployment": "billing", **settings}))
    found: dict[str, Any] = json.loads(msgspec.json.encode(export.document))
    return found


def scaled(document: dict[str, Any]) -> dict[str, Any]:
    (found,) = [item for item in document["items"] if item["kind"] == "ScaledObject"]
    return dict(found["spec"])


def metadata(document: dict[str, Any]) -> dict[str, dict[str, str]]:
    return {trigger["name"]: trigger["metadata"] for trigger in scaled(document)["triggers"]}


@pytest.mark.parametrize("least", [0, 1, 3])
@pytest.mark.parametrize("broker", BROKERS)
def test_keda_would_take_it(broker: str, least: int) -> None:
    assert violations(exported(declared_on(broker), least=least)) == []


@pytest.mark.parametrize("broker", BROKERS)
def test_no_secret_is_exported_and_no_dead_letter_asks_for_replicas(broker: str) -> None:
    text = json.dumps(exported(declared_on(broker)))
    assert "s3cret" not in text
    assert "AKIAEXAMPLE" not in text
    assert "dlq" not in text


def test_the_rules_find_what_is_wrong() -> None:
    document = exported(declared_on("kafka"))
    spoiled = json.loads(json.dumps(document))
    (scaled_object,) = [item for item in spoiled["items"] if item["kind"] == "ScaledObject"]
    trigger = scaled_object["spec"]["triggers"][0]
    del trigger["metadata"]["consumerGroup"]
    trigger["metadata"]["lag"] = 5
    scaled_object["spec"]["cooldownPeriod"] = 300
    found = violations(spoiled)
    assert {"kafka: consumerGroup is missing", "kafka: no such field lag", "kafka: lag is no text"} <= set(found)
    assert "cooldownPeriod is configured but is not relevant" in found
    spoiled["items"].append(scaled_object)
    assert "the workload is already managed by another ScaledObject" in violations(spoiled)


def test_kafka_counts_each_topic_by_its_own_group_and_retries_by_their_delay() -> None:
    found = metadata(exported(declared_on("kafka"), waiting=50, within=60.0))
    common = {
        "bootstrapServers": "kafka:9092",
        "offsetResetPolicy": "earliest",
        "tls": "enable",
        "sasl": "scram_sha512",
    }

    def expected(topic: str, group: str, threshold: int, **more: str) -> dict[str, str]:
        return {"topic": topic, "consumerGroup": group, "lagThreshold": str(threshold), **common, **more}

    home = "orders.created.billing"
    not_due = {"excludePersistentLag": "true"}
    assert found == {
        home: expected("orders.created", "billing", 50),
        f"{home}.suspects": expected(f"{home}.suspects", f"{home}.suspects", 50),
        f"{home}.retry.5s": expected(f"{home}.retry.5s", f"{home}.retry.5s", 50, **not_due),
        f"{home}.retry.10m": expected(f"{home}.retry.10m", f"{home}.retry.10m", 500, **not_due),
        f"{home}.redrive": expected(f"{home}.redrive", f"{home}.redrive", 50),
        "mails": expected("mails", "mails", 50),
        "mails.suspects": expected("mails.suspects", "mails.suspects", 50),
    }


def test_on_kafka_there_are_no_more_replicas_than_partitions_unless_asked_for() -> None:
    assert scaled(exported(declared_on("kafka", "kafka://k?partitions=12")))["maxReplicaCount"] == 12
    asked = keda(declared_on("kafka"), Scaling("billing", most=20))
    assert scaled(json.loads(msgspec.json.encode(asked.document)))["maxReplicaCount"] == 20
    assert any("replicas beyond 6" in note for note in asked.notes)
    assert not any("replicas beyond" in note for note in keda(declared_on("kafka"), Scaling("billing")).notes)


@pytest.mark.parametrize(("broker", "field"), [("rabbitmq", "value"), ("redis", "lagCount"), ("nats", "lagThreshold")])
def test_each_part_answers_for_all_and_replicas_beyond_them_would_be_idle(broker: str, field: str) -> None:
    service = Service("billing", broker=URLS[broker])

    @service.consumer(Queue("orders", partitions=8, single_active=True), ordered=True)
    async def handle(body: bytes) -> None: ...

    needs = declared(service.name, service.consumers, service.make_broker().adapter, service.drain_seconds)
    document = exported(needs, waiting=100)
    assert violations(document) == []
    found = metadata(document)
    parts = {f"orders.p{number}" for number in range(8)}
    assert parts <= set(found)
    assert {found[part][field] for part in parts} == {"13"}  # a hundred in all, if they are spread evenly
    assert found["orders.suspects"][field] == "100"
    assert "orders" not in found
    assert scaled(document)["maxReplicaCount"] == 8


def test_rabbitmq_does_not_count_its_waiting_rooms() -> None:
    found = metadata(exported(declared_on("rabbitmq")))
    assert set(found) == {"orders.created.billing", "orders.created.billing.suspects", "mails", "mails.suspects"}
    assert found["orders.created.billing"] == {
        "host": "amqp://mq:5672",
        "protocol": "amqp",
        "vhostName": "shop",
        "queueName": "orders.created.billing",
        "mode": "QueueLength",
        "value": "100",
    }


def test_rabbitmq_is_asked_over_http_where_its_management_is_known_and_no_password_goes_along() -> None:
    url = f"{URLS['rabbitmq']}?management=http://ada:s3cret@mq:15672/"
    export = keda(declared_on("rabbitmq", url), Scaling("billing"))
    found = metadata(json.loads(msgspec.json.encode(export.document)))["mails"]
    assert (found["host"], found["protocol"]) == ("http://mq:15672", "http")
    assert not any("not counted" in note for note in export.notes)
    assert any("up to 1000 messages" in note for note in keda(declared_on("rabbitmq"), Scaling("billing")).notes)


def test_sqs_does_not_count_retries_that_are_not_due() -> None:
    found = metadata(exported(declared_on("sqs")))
    assert found["orders.created.billing"] == {
        "queueURL": "orders--created--billing",
        "awsRegion": "eu-west-1",
        "queueLength": "100",
        "scaleOnInFlight": "false",  # they are in flight until they are due
    }
    assert found["mails"]["scaleOnInFlight"] == "true"
    assert found["orders.created.billing.retry.11h"]["scaleOnInFlight"] == "false"


def test_sqs_needs_a_region() -> None:
    with pytest.raises(ConfigurationError, match="names none; write sqs://eu-west-1"):
        exported(declared_on("sqs", "sqs://"))


def test_nats_asks_the_monitoring_of_the_server() -> None:
    found = metadata(exported(declared_on("nats"), monitoring="nats-headless:8222", account="SHOP"))
    assert found["mails"] == {
        "natsServerMonitoringEndpoint": "nats-headless:8222",
        "account": "SHOP",
        "stream": "mails",
        "consumer": "mails",
        "lagThreshold": "100",
    }
    assert metadata(exported(declared_on("nats")))["mails"]["natsServerMonitoringEndpoint"] == "nats:8222"


def test_nats_does_not_count_retries_that_wait_and_keeps_one_replica_for_them() -> None:
    document = exported(declared_on("nats"), monitoring="nats-headless:8222", account="SHOP")
    found = metadata(document)
    consumer = (
        'account_details.#(name=="SHOP").stream_detail.#(name=="orders~created").consumer_detail.#(name=="billing")'
    )
    assert found["orders.created.billing"] == {
        "url": "http://nats-headless:8222/jsz?acc=SHOP&consumers=true",
        "valueLocation": f"{consumer}.num_pending",
        "targetValue": "100",
    }
    pending = found["orders.created.billing.pending"]
    assert pending["valueLocation"] == f"{consumer}.num_ack_pending"
    assert int(pending["targetValue"]) >= 10**9
    kinds = {trigger["name"]: trigger["type"] for trigger in scaled(document)["triggers"]}
    assert kinds["orders.created.billing"] == kinds["orders.created.billing.pending"] == "metrics-api"
    assert kinds["mails"] == kinds["orders.created.billing.suspects"] == "nats-jetstream"


@pytest.mark.parametrize("url", ["nats://n1:4222,n2:4222", "nats://nats:4222?replicas=3"])
def test_in_a_cluster_of_nats_the_scaler_is_asked_that_finds_the_leader(url: str) -> None:
    needs = declared_on("nats", url)
    assert {trigger["type"] for trigger in scaled(exported(needs))["triggers"]} == {"nats-jetstream"}
    assert any("waits for a retry" in note for note in keda(needs, Scaling("billing")).notes)


@pytest.mark.parametrize(("broker", "told"), [("nats", False), ("pubsub", True), ("kafka", False), ("redis", False)])
def test_a_broker_that_counts_waiting_retries_as_work_is_told_of(broker: str, told: bool) -> None:
    def notes(needs: Declared) -> list[str]:
        return [note for note in keda(needs, Scaling("billing")).notes if "waits for a retry" in note]

    assert bool(notes(declared_on(broker))) is told
    assert notes(declared_on(broker, chain=False)) == []


def test_redis_scaled_to_zero_moves_no_delayed_publishes_and_says_so() -> None:
    assert any(
        "a publish with a delay" in note for note in keda(declared_on("redis"), Scaling("billing", least=0)).notes
    )
    assert not any("a publish with a delay" in note for note in keda(declared_on("redis"), Scaling("billing")).notes)


def test_pubsub_names_the_whole_subscription_and_the_pods_identity() -> None:
    document = exported(declared_on("pubsub"), deployment="shop-billing")
    assert metadata(document)["orders.created.billing"] == {
        "subscriptionName": "projects/shop-project/subscriptions/orders.created.billing",
        "mode": "SubscriptionSize",
        "value": "100",
    }
    (auth,) = [item for item in document["items"] if item["kind"] == "TriggerAuthentication"]
    assert auth["spec"] == {"podIdentity": {"provider": "gcp"}}
    assert auth["metadata"]["name"] == "shop-billing-broker"


def test_redis_keeps_one_replica_for_what_is_pending() -> None:
    found = metadata(exported(declared_on("redis")))
    lag, pending = found["orders.created.billing"], found["orders.created.billing.pending"]
    assert (lag["stream"], lag["consumerGroup"], lag["lagCount"]) == ("orders.created", "billing", "100")
    assert (lag["databaseIndex"], lag["address"]) == ("2", "redis:6379")
    assert "lagCount" not in pending  # with it the scaler would count lag again
    assert int(pending["pendingEntriesCount"]) > 1_000_000


@pytest.mark.parametrize(
    ("broker", "secrets"),
    [
        ("kafka", ["username", "password"]),
        ("rabbitmq", ["username", "password"]),
        ("sqs", ["awsAccessKeyID", "awsSecretAccessKey"]),
        ("redis", ["username", "password"]),
    ],
)
def test_secrets_are_named_and_every_trigger_refers_to_them(broker: str, secrets: list[str]) -> None:
    export = keda(declared_on(broker), Scaling("billing", secret="shop-broker"))
    document = json.loads(msgspec.json.encode(export.document))
    (auth,) = [item for item in document["items"] if item["kind"] == "TriggerAuthentication"]
    wanted = [{"parameter": name, "name": "shop-broker", "key": name} for name in secrets]
    assert auth["spec"] == {"secretTargetRef": wanted}
    references = [trigger["authenticationRef"] for trigger in scaled(document)["triggers"]]
    assert references == [{"name": "billing-broker"}] * len(references)
    assert any("make secret shop-broker" in note for note in export.notes)


def test_an_authentication_that_exists_is_used_and_none_is_made() -> None:
    document = exported(declared_on("kafka"), auth="kafka-auth", namespace="shop")
    (only,) = document["items"]
    assert only["metadata"] == {"name": "billing", "namespace": "shop"}
    assert {trigger["authenticationRef"]["name"] for trigger in only["spec"]["triggers"]} == {"kafka-auth"}


def test_without_secrets_nobody_authenticates() -> None:
    (only,) = exported(declared_on("kafka", "kafka://k"))["items"]
    assert not any("authenticationRef" in trigger for trigger in only["spec"]["triggers"])


def test_the_cool_down_is_longer_than_the_drain() -> None:
    short, long = declared_on("kafka"), declared_on("kafka", drain="10m")
    assert scaled(exported(short, least=0))["cooldownPeriod"] == 300
    behavior = scaled(exported(long))["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert behavior["scaleDown"]["stabilizationWindowSeconds"] == 1200
    assert any(
        "terminationGracePeriodSeconds of billing to more than 10m" in n for n in keda(long, Scaling("billing")).notes
    )


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"deployment": "Billing_1"}, '--deployment "Billing_1": Kubernetes takes'),
        ({"deployment": "billing", "secret": "a.b"}, '--secret "a.b"'),
        ({"deployment": "billing", "least": 5, "most": 2}, "--min 5 is above --max 2"),
    ],
)
def test_what_kubernetes_cannot_have_is_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        exported(declared_on("kafka"), **settings)


def test_kafka_mechanisms_that_need_more_than_a_password_need_an_authentication_by_hand() -> None:
    needs = declared_on("kafka", "kafka://k?security.protocol=SASL_SSL&sasl.mechanism=OAUTHBEARER")
    with pytest.raises(ConfigurationError, match="give --auth NAME"):
        exported(needs)
    assert violations(exported(needs, auth="mine")) == []


def test_requests_that_nothing_keeps_cannot_be_counted() -> None:
    service = Service("quotes", broker=URLS["nats"])
    service.responder(Queue("quotes"))(service_on(URLS["nats"]).consumers[0].binding.call)
    needs = declared(service.name, service.consumers, service.make_broker().adapter, 25.0)
    names = set(metadata(exported(needs, deployment="quotes")))
    assert "quotes" not in names
    assert any("nothing is kept for it" in note for note in keda(needs, Scaling("quotes")).notes)


@pytest.mark.parametrize("broker", ["memory", "sqlite"])
def test_an_embedded_broker_has_no_trigger_and_the_error_says_what_there_is(broker: str) -> None:
    with pytest.raises(ConfigurationError, match=f"is on {broker}, .*possible here: asyncapi"):
        exported(declared_on(broker))
