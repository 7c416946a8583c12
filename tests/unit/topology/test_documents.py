"""The exports that a broker's own tools read: RabbitMQ definitions, Kafka's topics, CloudWatch alarms."""

from __future__ import annotations

import json
import re
import shlex
from typing import Any

import msgspec
from topology_shop import URLS, declared_on, send

from atleastonce import Queue, Service, Topic
from atleastonce.topology import Declared, alarms, declared, definitions, topics_script


def read(document: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(msgspec.json.encode(document))
    return found


def needs_of(url: str, *channels: Any) -> Declared:
    service = Service("billing", broker=url)
    for channel in channels:
        service.consumer(channel)(send)
    return declared(service.name, service.consumers, service.make_broker().adapter, 25.0)


# --------------------------------------------------------------------------------------------------------- RabbitMQ


def test_rabbitmq_definitions_hold_queues_exchanges_and_bindings_in_one_virtual_host_and_no_users() -> None:
    document = read(definitions(declared_on("rabbitmq")).document)
    assert set(document) == {"vhosts", "exchanges", "queues", "bindings"}
    assert document["vhosts"] == [{"name": "shop"}]
    assert {each["vhost"] for part in ("exchanges", "queues", "bindings") for each in document[part]} == {"shop"}
    (exchange,) = document["exchanges"]
    assert (exchange["name"], exchange["type"], exchange["durable"]) == ("orders.created", "fanout", True)
    (binding,) = document["bindings"]
    assert (binding["source"], binding["destination"]) == ("orders.created", "orders.created.billing")
    queues = {each["name"]: each["arguments"] for each in document["queues"]}
    assert queues["orders.created.billing.retry.5s"]["x-message-ttl"] == 5000
    assert queues["orders.created.billing.retry.5s"]["x-dead-letter-routing-key"] == "orders.created.billing"
    assert "s3cret" not in json.dumps(document)


def test_rabbitmq_options_of_a_channel_are_in_it() -> None:
    orders = Topic(
        "orders", options={"rabbitmq": {"alternate-exchange": "lost", "x-max-length": 10}}, single_active=True
    )
    document = read(definitions(needs_of(URLS["rabbitmq"], orders)).document)
    assert document["exchanges"][0]["arguments"] == {"alternate-exchange": "lost"}
    (queue,) = [each for each in document["queues"] if each["name"] == "orders.billing"]
    assert queue["arguments"]["x-max-length"] == 10
    assert queue["arguments"]["x-single-active-consumer"] is True


# ------------------------------------------------------------------------------------------------------------ Kafka


def commands(script: str) -> list[list[str]]:
    return [shlex.split(line)[2:] for line in script.splitlines() if line.startswith('"$KAFKA_TOPICS"')]


def test_kafka_script_makes_each_topic_once_and_touches_none_that_is_there() -> None:
    found = commands(str(topics_script(declared_on("kafka")).document))
    names = [words[words.index("--topic") + 1] for words in found]
    assert len(set(names)) == len(names) == 9
    assert all({"--create", "--if-not-exists"} <= set(words) for words in found)
    retry = found[names.index("orders.created.billing.retry.5s")]
    assert "retention.ms=604800000" in retry
    assert retry[retry.index("--partitions") + 1] == "6"
    assert not any("--replication-factor" in words for words in found)
    assert "s3cret" not in str(topics_script(declared_on("kafka")).document)


def test_kafka_script_says_what_was_asked_for_and_quotes_it() -> None:
    odd = Queue("mails", partitions=3, options={"kafka": {"cleanup.policy": "compact,delete", "x": "a b'c"}})
    found = commands(str(topics_script(needs_of("kafka://k?replication.factor=2", odd)).document))
    (mails,) = [words for words in found if words[words.index("--topic") + 1] == "mails"]
    assert mails[mails.index("--replication-factor") + 1] == "2"
    assert mails[mails.index("--partitions") + 1] == "3"
    assert "x=a b'c" in mails


# ------------------------------------------------------------------------------------------------------- CloudWatch


def test_cloudwatch_has_an_alarm_for_each_dead_letter_queue_and_for_the_oldest_message_of_each_source() -> None:
    document = read(alarms(declared_on("sqs"), 900.0).document)
    found = [each["Properties"] for each in document["Resources"].values()]
    assert all(each["Type"] == "AWS::CloudWatch::Alarm" for each in document["Resources"].values())
    assert all(re.fullmatch(r"[A-Za-z0-9]{1,255}", name) for name in document["Resources"])
    by_metric = {(each["MetricName"], each["Dimensions"][0]["Value"]): each["Threshold"] for each in found}
    depth, age = "ApproximateNumberOfMessagesVisible", "ApproximateAgeOfOldestMessage"
    assert by_metric == {
        (depth, "orders--created--billing--dlq"): 0,
        (depth, "mails--dlq"): 0,
        (age, "orders--created--billing"): 900 + 5 + 600,  # a message that waits for its retries is meant to be old
        (age, "orders--created--billing--retry--11h"): 900 + 39600,  # for what a handler defers for longer
        (age, "mails"): 900,
    }
    assert {each["ComparisonOperator"] for each in found} == {"GreaterThanThreshold"}
    assert all(each["AlarmActions"]["Fn::If"][0] in document["Conditions"] for each in found)


def test_two_queues_of_one_spelling_have_two_alarms() -> None:
    document = read(alarms(needs_of(URLS["sqs"], Queue("a-b"), Queue("a_b")), 900.0).document)
    assert len(document["Resources"]) == 4
