"""What Terraform's providers take: the arguments of each resource that we write, from the providers' own documentation."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

LABEL = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
REFERENCE = re.compile(r"(data\.)?([a-z]+_[a-z_]+)\.([A-Za-z_][A-Za-z0-9_-]*)\.([a-z_]+)")

# Required arguments, those that may be there, and what others may read.
RESOURCES: Mapping[str, tuple[set[str], set[str], set[str]]] = {
    "kafka_topic": ({"name", "partitions", "replication_factor"}, {"config"}, set()),
    "confluent_kafka_topic": ({"topic_name"}, {"partitions_count", "config"}, set()),
    "rabbitmq_queue": ({"name", "settings"}, {"vhost"}, {"name"}),
    "rabbitmq_exchange": ({"name", "settings"}, {"vhost"}, {"name"}),
    "rabbitmq_binding": ({"source", "vhost", "destination", "destination_type"}, {"routing_key", "arguments"}, set()),
    "aws_sqs_queue": (
        {"name"},
        {"fifo_queue", "message_retention_seconds", "visibility_timeout_seconds", "delay_seconds", "redrive_policy"}
        | {"content_based_deduplication", "deduplication_scope", "fifo_throughput_limit", "kms_master_key_id"}
        | {"kms_data_key_reuse_period_seconds", "max_message_size", "receive_wait_time_seconds"}
        | {"redrive_allow_policy", "sqs_managed_sse_enabled"},
        {"arn", "id", "name", "url"},
    ),
    "aws_sqs_queue_policy": ({"queue_url", "policy"}, set(), set()),
    "aws_sns_topic": (
        {"name"},
        {"fifo_topic", "content_based_deduplication", "display_name", "kms_master_key_id", "policy", "delivery_policy"},
        {"arn", "id", "name"},
    ),
    "aws_sns_topic_subscription": (
        {"topic_arn", "protocol", "endpoint"},
        {"raw_message_delivery", "filter_policy"},
        set(),
    ),
    "google_pubsub_topic": (
        {"name"},
        {"project", "labels", "kms_key_name", "message_retention_duration", "message_storage_policy"},
        {"id", "name"},
    ),
    "google_pubsub_subscription": (
        {"name", "topic"},
        {"project", "labels", "ack_deadline_seconds", "message_retention_duration", "retain_acked_messages", "filter"}
        | {"expiration_policy", "dead_letter_policy", "retry_policy", "enable_message_ordering"}
        | {"enable_exactly_once_delivery"},
        {"id", "name"},
    ),
    "google_pubsub_topic_iam_member": ({"topic", "role", "member"}, {"project"}, set()),
    "google_pubsub_subscription_iam_member": ({"subscription", "role", "member"}, {"project"}, set()),
}
DATA = {"google_project": ({"project_id"}, {"number", "project_id"})}
BLOCKS: Mapping[str, tuple[set[str], set[str]]] = {
    "rabbitmq_queue.settings": (set(), {"durable", "auto_delete", "arguments", "arguments_json"}),
    "rabbitmq_exchange.settings": ({"type"}, {"durable", "auto_delete", "arguments"}),
    "google_pubsub_subscription.expiration_policy": ({"ttl"}, set()),
    "google_pubsub_subscription.dead_letter_policy": (set(), {"dead_letter_topic", "max_delivery_attempts"}),
    "google_pubsub_subscription.retry_policy": (set(), {"minimum_backoff", "maximum_backoff"}),
    "google_pubsub_topic.message_storage_policy": ({"allowed_persistence_regions"}, set()),
}


def violations(document: Mapping[str, Any]) -> list[str]:
    """What Terraform or a provider would refuse; empty: nothing."""
    found = [f"unknown block {name}" for name in set(document) - {"terraform", "resource", "data"}]
    for kind, each in document["resource"].items():
        needed, allowed, _ = RESOURCES[kind]
        for label, body in each.items():
            where = f"{kind}.{label}"
            if not LABEL.fullmatch(label):
                found.append(f"{where}: no label")
            found += [f"{where}: {name} is missing" for name in needed - set(body)]
            found += [f"{where}: no argument {name}" for name in set(body) - needed - allowed - {"lifecycle"}]
            found += list(_nested(kind, where, body))
    for text in _texts([document["resource"], document.get("data", {})]):
        found += list(_references(text, document))
    return found


def _nested(kind: str, where: str, body: Mapping[str, Any]) -> Iterator[str]:
    for name, value in body.items():
        if f"{kind}.{name}" not in BLOCKS:
            continue
        needed, allowed = BLOCKS[f"{kind}.{name}"]
        (block,) = value
        yield from (f"{where}.{name}: {one} is missing" for one in needed - set(block))
        yield from (f"{where}.{name}: no argument {one}" for one in set(block) - needed - allowed)
        if "arguments_json" in block:
            json.loads(block["arguments_json"])


def _references(text: str, document: Mapping[str, Any]) -> Iterator[str]:
    for data, kind, label, attribute in REFERENCE.findall(" ".join(re.findall(r"\$\{(.*)\}", text))):
        there = document.get("data", {}) if data else document["resource"]
        readable = DATA[kind][1] if data else RESOURCES.get(kind, (0, 0, set()))[2]
        if label not in there.get(kind, {}):
            yield f"{text}: no {kind}.{label}"
        elif attribute not in readable:
            yield f"{text}: {kind} has no {attribute}"


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)
