"""Kafka, through librdkafka (``confluent-kafka``): ``kafka://host:port,host:port?client.option=value``."""

from __future__ import annotations

from atleastonce.adapters.kafka.adapter import KafkaAdapter

__all__ = ["KafkaAdapter"]
