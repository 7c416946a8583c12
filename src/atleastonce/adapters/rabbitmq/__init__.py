"""RabbitMQ over AMQP 0-9-1: quorum queues, pipelined confirms, retries in TTL queues. Needs ``atleastonce[rabbitmq]``."""

from __future__ import annotations

from atleastonce.adapters.rabbitmq.adapter import RabbitMQAdapter

__all__ = ["RabbitMQAdapter"]
