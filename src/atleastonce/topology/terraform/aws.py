"""SQS queues, SNS topics and what joins them, with ``hashicorp/aws``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from atleastonce.contract import Resource
from atleastonce.errors import ConfigurationError
from atleastonce.topology.declared import Declared
from atleastonce.topology.terraform.blocks import Blocks, literal

# Attributes of the API, and the provider's arguments for them.
_QUEUE: Final = {
    "ContentBasedDeduplication": "content_based_deduplication",
    "DeduplicationScope": "deduplication_scope",
    "DelaySeconds": "delay_seconds",
    "FifoQueue": "fifo_queue",
    "FifoThroughputLimit": "fifo_throughput_limit",
    "KmsDataKeyReusePeriodSeconds": "kms_data_key_reuse_period_seconds",
    "KmsMasterKeyId": "kms_master_key_id",
    "MaximumMessageSize": "max_message_size",
    "MessageRetentionPeriod": "message_retention_seconds",
    "ReceiveMessageWaitTimeSeconds": "receive_wait_time_seconds",
    "RedriveAllowPolicy": "redrive_allow_policy",
    "SqsManagedSseEnabled": "sqs_managed_sse_enabled",
    "VisibilityTimeout": "visibility_timeout_seconds",
}
_TOPIC: Final = {
    "ContentBasedDeduplication": "content_based_deduplication",
    "DeliveryPolicy": "delivery_policy",
    "DisplayName": "display_name",
    "FifoThroughputScope": "fifo_throughput_scope",
    "FifoTopic": "fifo_topic",
    "KmsMasterKeyId": "kms_master_key_id",
    "Policy": "policy",
    "SignatureVersion": "signature_version",
    "TracingConfig": "tracing_config",
}


def aws(declared: Declared, blocks: Blocks) -> list[str]:
    """Resources of ``hashicorp/aws``.

    Raises:
        ConfigurationError: a channel's options have an attribute for which the provider has no argument.
    """
    for topic in declared.of_kind("topic"):
        blocks.add("aws_sns_topic", topic.name, {"name": topic.name, **_arguments(topic, _TOPIC)})
    for queue in declared.of_kind("queue"):
        body = {"name": queue.name, **_arguments(queue, _QUEUE)}
        if net := queue.joins.get("dead-letter"):
            # In place, and not as a resource of its own: what is made in one step is never without its net.
            below = blocks.address("aws_sqs_queue", net)
            most = queue.settings["maxReceiveCount"]
            body["redrive_policy"] = f"${{jsonencode({{deadLetterTargetArn = {below}.arn, maxReceiveCount = {most}}})}}"
        address = blocks.add("aws_sqs_queue", queue.name, body)
        if source := queue.joins.get("topic"):
            _let_in(blocks, queue.name, address, str(blocks.address("aws_sns_topic", source)))
    for subscription in declared.of_kind("subscription"):
        topic_at = blocks.address("aws_sns_topic", subscription.joins["topic"])
        queue_at = blocks.address("aws_sqs_queue", subscription.name)
        body = {
            "topic_arn": f"${{{topic_at}.arn}}",
            "protocol": subscription.settings["Protocol"],
            "endpoint": f"${{{queue_at}.arn}}",
            "raw_message_delivery": subscription.settings["RawMessageDelivery"] == "true",
        }
        blocks.add("aws_sns_topic_subscription", subscription.name, body, keep=False)
    return []


def _let_in(blocks: Blocks, name: str, queue: str, topic: str) -> None:
    statement = (
        '{Effect = "Allow", Principal = {Service = "sns.amazonaws.com"}, Action = "sqs:SendMessage", '
        f'Resource = {queue}.arn, Condition = {{ArnEquals = {{"aws:SourceArn" = {topic}.arn}}}}}}'
    )
    policy = f'${{jsonencode({{Version = "2012-10-17", Statement = [{statement}]}})}}'
    blocks.add("aws_sqs_queue_policy", name, {"queue_url": f"${{{queue}.id}}", "policy": policy}, keep=False)


def _arguments(resource: Resource, known: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in resource.settings.items():
        if name == "maxReceiveCount":
            continue  # part of the redrive policy
        if name not in known:
            raise ConfigurationError(
                f"{resource.name}: attribute {name} has no argument in Terraform's aws provider; leave it out of the channel's "
                "options, and set it by hand"
            )
        found[known[name]] = _typed(value)
    return found


def _typed(value: Any) -> Any:
    """The API takes text; the provider numbers and booleans."""
    if value in ("true", "false"):
        return value == "true"
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else literal(value)
