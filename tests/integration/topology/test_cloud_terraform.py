"""What a provider makes of our Terraform resources is what our own declaration makes: on SQS, SNS and Pub/Sub.

The providers cannot be had here: their part, an argument for each field of the API, is played by this file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import pytest
from topology_kit import looked_at, needs_of, read, remove, shop, unlike

from atleastonce.topology import terraform

pytestmark = pytest.mark.timeout(120, func_only=True)

# The aws provider's arguments, and the API's attributes for them.
ATTRIBUTES = {
    "message_retention_seconds": "MessageRetentionPeriod",
    "fifo_queue": "FifoQueue",
    "fifo_topic": "FifoTopic",
    "visibility_timeout_seconds": "VisibilityTimeout",
}


class Evaluated:
    """Resources as Terraform makes them: one after the other, references filled in with what was made."""

    def __init__(self) -> None:
        self.known: dict[str, str] = {}

    def text(self, expression: str) -> str:
        """What ``${...}`` comes to."""
        inner = re.fullmatch(r"\$\{(.*)\}", expression)
        assert inner is not None, expression
        if inner[1].startswith("jsonencode("):
            return json.dumps(self._object(inner[1].removeprefix("jsonencode(").removesuffix(")")))
        return self.known[inner[1]]

    def _object(self, text: str) -> Any:
        """HCL's objects as JSON: keys without quotes, ``=`` for ``:``, references by what they are."""
        filled = re.sub(r"\b(aws_\w+\.[\w-]+\.\w+)", lambda found: json.dumps(self.known[found[1]]), text)
        return json.loads(re.sub(r'("?)([A-Za-z:]+)\1 = ', r'"\2": ', filled))


def attributes(body: Mapping[str, Any]) -> dict[str, str]:
    return {
        ATTRIBUTES[name]: str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in body.items()
        if name in ATTRIBUTES
    }


async def test_sqs_and_sns(sqs_url: str) -> None:
    from atleastonce.adapters.sqs.clients import Clients
    from atleastonce.adapters.sqs.config import Config
    from atleastonce.urls import BrokerUrl

    service = shop(sqs_url)
    found = read(terraform(needs_of(service)))["resource"]
    clients, evaluated = Clients(Config.build(BrokerUrl.parse(sqs_url), {})), Evaluated()
    sqs, sns = clients.sqs, clients.sns
    try:
        for label, body in found["aws_sns_topic"].items():
            arn = sns.create_topic(Name=body["name"], Attributes=attributes(body))["TopicArn"]
            evaluated.known[f"aws_sns_topic.{label}.arn"] = arn
        for label, body in found["aws_sqs_queue"].items():
            wanted = attributes(body)
            if "redrive_policy" in body:
                wanted["RedrivePolicy"] = evaluated.text(body["redrive_policy"])
            url = sqs.create_queue(QueueName=body["name"], Attributes=wanted)["QueueUrl"]
            arn = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
            evaluated.known |= {f"aws_sqs_queue.{label}.id": url, f"aws_sqs_queue.{label}.arn": arn}
        for body in found["aws_sqs_queue_policy"].values():
            policy = evaluated.text(body["policy"])
            sqs.set_queue_attributes(QueueUrl=evaluated.text(body["queue_url"]), Attributes={"Policy": policy})
        for body in found["aws_sns_topic_subscription"].values():
            sns.subscribe(
                TopicArn=evaluated.text(body["topic_arn"]),
                Protocol=body["protocol"],
                Endpoint=evaluated.text(body["endpoint"]),
                Attributes={"RawMessageDelivery": str(body["raw_message_delivery"]).lower()},
            )
        assert unlike(await looked_at(service)) == []
        (net,) = [
            each for each in found["aws_sqs_queue"].values() if "redrive_policy" in each and "orders" in each["name"]
        ]
        there = sqs.get_queue_attributes(
            QueueUrl=sqs.get_queue_url(QueueName=net["name"])["QueueUrl"], AttributeNames=["RedrivePolicy"]
        )["Attributes"]["RedrivePolicy"]
        assert json.loads(there)["deadLetterTargetArn"].endswith("--dlq")
    finally:
        await remove(service)
        clients.close()


async def test_pubsub(pubsub_url: str) -> None:
    from google.protobuf import json_format

    from atleastonce.adapters.pubsub.channel import Link, Subscription, Topic
    from atleastonce.adapters.pubsub.config import Config
    from atleastonce.urls import BrokerUrl

    service = shop(pubsub_url)
    found = read(terraform(needs_of(service)))["resource"]
    config = Config.build(BrokerUrl.parse(pubsub_url), {})
    link = Link(config)
    await link.open()
    ids: dict[str, str] = {}
    try:
        for label, body in found["google_pubsub_topic"].items():
            ids[f"${{google_pubsub_topic.{label}.id}}"] = name = f"projects/{body['project']}/topics/{body['name']}"
            await link.call("CreateTopic", Topic(name=name), seconds=10)
        for body in found["google_pubsub_subscription"].values():
            fields = {name: value for name, value in body.items() if name not in ("lifecycle", "project")}
            fields["name"] = f"projects/{body['project']}/subscriptions/{body['name']}"
            fields["topic"] = ids[body["topic"]]
            (fields["expiration_policy"],) = body["expiration_policy"]
            if not fields["expiration_policy"].pop("ttl"):
                fields["expiration_policy"] = {}  # never
            if "dead_letter_policy" in body:
                (policy,) = body["dead_letter_policy"]
                fields["dead_letter_policy"] = {**policy, "dead_letter_topic": ids[policy["dead_letter_topic"]]}
            await link.call("CreateSubscription", json_format.ParseDict(fields, Subscription()), seconds=10)
        assert unlike(await looked_at(service)) == []
    finally:
        await link.close()
        await remove(service)
