"""Kafka topics: with ``Mongey/kafka``, or on Confluent Cloud with ``confluentinc/confluent``."""

from __future__ import annotations

from atleastonce.topology.declared import Declared
from atleastonce.topology.terraform.blocks import Blocks, literal


def kafka(declared: Declared, blocks: Blocks) -> list[str]:
    """Resources of ``Mongey/kafka``; a replication factor of -1 is the broker's default."""
    for topic in declared.of_kind("topic"):
        blocks.add(
            "kafka_topic",
            topic.name,
            {
                "name": topic.name,
                "partitions": topic.settings["partitions"],
                "replication_factor": topic.settings["replication.factor"],
                "config": literal(topic.settings["config"]),
            },
        )
    return ['give the provider its servers: provider "kafka" { bootstrap_servers = [...] }']


def confluent(declared: Declared, blocks: Blocks) -> list[str]:
    """Resources of ``confluentinc/confluent``; how many copies there are, its cluster decides."""
    for topic in declared.of_kind("topic"):
        blocks.add(
            "confluent_kafka_topic",
            topic.name,
            {
                "topic_name": topic.name,
                "partitions_count": topic.settings["partitions"],
                "config": literal(topic.settings["config"]),
            },
        )
    return [
        'give the provider its cluster: provider "confluent" { kafka_id, kafka_rest_endpoint, kafka_api_key, kafka_api_secret }'
    ]
