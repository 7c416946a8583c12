"""``topology export terraform``: arguments that the providers have, references that lead somewhere, nothing that is destroyed."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from terraform_rules import violations
from topology_shop import URLS, declared_on, send

from atleastonce import ConfigurationError, Queue, Service, Topic
from atleastonce.topology import PROVIDERS, Declared, declared, terraform

EACH = [(broker, provider) for broker, known in PROVIDERS.items() for provider in known]


def exported(needs: Declared, provider: str | None = None) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(msgspec.json.encode(terraform(needs, provider).document))
    return found


def needs_of(url: str, *channels: Any) -> Declared:
    service = Service("billing", broker=url)
    for channel in channels:
        service.consumer(channel)(send)
    return declared(service.name, service.consumers, service.make_broker().adapter, 25.0)


@pytest.mark.parametrize(("broker", "provider"), EACH)
def test_the_providers_would_take_it(broker: str, provider: str) -> None:
    document = exported(declared_on(broker), provider)
    assert violations(document) == []
    (source,) = document["terraform"]["required_providers"].values()
    assert source == {"source": PROVIDERS[broker][provider][0]}
    assert "s3cret" not in json.dumps(document)


def test_the_rules_find_what_is_wrong() -> None:
    document = exported(declared_on("sqs"))
    queues = document["resource"]["aws_sqs_queue"]
    del queues["mails"]["name"]
    queues["mails"]["colour"] = "red"
    queues["orders--created--billing"]["redrive_policy"] = "${jsonencode({a = aws_sqs_queue.nobody.arn})}"
    found = "\n".join(violations(document))
    assert "aws_sqs_queue.mails: name is missing" in found
    assert "aws_sqs_queue.mails: no argument colour" in found
    assert "no aws_sqs_queue.nobody" in found


@pytest.mark.parametrize(("broker", "provider"), EACH)
def test_what_holds_messages_is_never_destroyed(broker: str, provider: str) -> None:
    for kind, each in exported(declared_on(broker), provider)["resource"].items():
        holds = kind.endswith(("_topic", "_queue", "_exchange", "_pubsub_subscription"))
        assert all((body.get("lifecycle") == {"prevent_destroy": True}) is holds for body in each.values()), kind


def test_kafka_leaves_the_number_of_copies_to_the_broker_unless_it_was_given() -> None:
    topics = exported(declared_on("kafka"))["resource"]["kafka_topic"]
    assert topics["orders_created_billing_retry_10m"] == {
        "name": "orders.created.billing.retry.10m",
        "partitions": 6,
        "replication_factor": -1,
        "config": {"cleanup.policy": "delete", "max.message.bytes": "1114124", "retention.ms": "604800000"},
        "lifecycle": {"prevent_destroy": True},
    }
    three = exported(declared_on("kafka", "kafka://k?replication.factor=3"))["resource"]["kafka_topic"]
    assert {topic["replication_factor"] for topic in three.values()} == {3}


def test_sqs_joins_a_queue_to_its_topic_and_to_its_net() -> None:
    found = exported(declared_on("sqs"))["resource"]
    queue = found["aws_sqs_queue"]["orders--created--billing"]
    assert queue["redrive_policy"] == (
        "${jsonencode({deadLetterTargetArn = aws_sqs_queue.orders--created--billing--dlq.arn, maxReceiveCount = 1000})}"
    )
    assert queue["message_retention_seconds"] == 1_209_600
    subscription = found["aws_sns_topic_subscription"]["orders--created--billing"]
    assert subscription["raw_message_delivery"] is True
    policy = found["aws_sqs_queue_policy"]["orders--created--billing"]["policy"]
    assert '"aws:SourceArn" = aws_sns_topic.orders--created.arn' in policy
    assert '"2012-10-17"' in policy


def test_sqs_attributes_become_typed_arguments_and_unknown_ones_are_named() -> None:
    tuned = Queue("mails", fifo=True, options={"sqs": {"VisibilityTimeout": 60, "ContentBasedDeduplication": True}})
    queue = exported(needs_of(URLS["sqs"], tuned))["resource"]["aws_sqs_queue"]["mails_fifo"]
    assert (queue["visibility_timeout_seconds"], queue["content_based_deduplication"]) == (60, True)
    assert (queue["name"], queue["fifo_queue"]) == ("mails.fifo", True)
    with pytest.raises(ConfigurationError, match="mails: attribute Colour has no argument"):
        exported(needs_of(URLS["sqs"], Queue("mails", options={"sqs": {"Colour": "red"}})))


def test_pubsub_subscriptions_never_expire_and_the_service_may_move_dead_letters() -> None:
    found = exported(declared_on("pubsub"))["resource"]
    subscription = found["google_pubsub_subscription"]["orders_created_billing"]
    assert subscription["expiration_policy"] == [{"ttl": ""}]
    assert subscription["dead_letter_policy"] == [
        {"max_delivery_attempts": 100, "dead_letter_topic": "${google_pubsub_topic.orders_created_billing_dlq.id}"}
    ]
    member = found["google_pubsub_topic_iam_member"]["orders_created_billing_dlq"]
    assert member["role"] == "roles/pubsub.publisher"
    assert "data.google_project.this.number" in member["member"]
    assert "orders_created_billing" in found["google_pubsub_subscription_iam_member"]


def test_two_names_never_share_a_label_and_a_template_is_text() -> None:
    odd = Queue("a.b", options={"kafka": {"x": "${path} %{if}"}})
    topics = exported(needs_of("kafka://k", odd, Queue("a_b"), Topic("7days")))["resource"]["kafka_topic"]
    assert len({body["name"] for body in topics.values()}) == len(topics)
    by_name = {body["name"]: (label, body) for label, body in topics.items()}
    assert by_name["a.b"][0] != by_name["a_b"][0]
    assert by_name["a.b"][1]["config"]["x"] == "$${path} %%{if}"
    assert by_name["7days"][0].startswith("_7days")


@pytest.mark.parametrize("broker", ["nats", "redis", "memory"])
def test_a_broker_without_a_provider_is_told_what_there_is(broker: str) -> None:
    with pytest.raises(ConfigurationError, match=f"is on {broker}, for which there is no export terraform.*asyncapi"):
        exported(declared_on(broker))


def test_an_unknown_provider_is_refused() -> None:
    with pytest.raises(ConfigurationError, match='"conflent": for kafka there are kafka and confluent'):
        exported(declared_on("kafka"), "conflent")
