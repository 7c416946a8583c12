"""A service with everything that changes what an export says, on any broker."""

from __future__ import annotations

from typing import Any

import msgspec

from atleastonce import FailurePolicy, Queue, RetryChain, Service, Topic
from atleastonce.topology import Declared, declared

URLS = {
    "kafka": "kafka://ada:s3cret@kafka:9092?security.protocol=SASL_SSL&sasl.mechanism=SCRAM-SHA-512",
    "rabbitmq": "rabbitmq://ada:s3cret@mq:5672/shop",
    "sqs": "sqs://AKIAEXAMPLE:s3cret@eu-west-1",
    "nats": "nats://ada:s3cret@nats:4222",
    "pubsub": "pubsub://shop-project",
    "redis": "redis://ada:s3cret@redis:6379/2",
    "sqlite": "sqlite:///shop.db",
    "memory": "memory://",
}


class Order(msgspec.Struct):
    order_id: int
    customer: str | None = None


class Mail(msgspec.Struct):
    to: str


async def charge(order: Order) -> None:
    """Charge the card. Once."""


async def send(mail: Mail) -> None: ...


def service_on(url: str, *, chain: bool = True, **settings: Any) -> Service:
    """``billing`` reads a topic, with a retry chain unless told otherwise, and a queue without one."""
    service = Service("billing", broker=url, **settings)
    policy = FailurePolicy(chain=RetryChain("5s", "10m") if chain else None)
    service.consumer(Topic("orders.created", Order), failure=policy)(charge)
    service.consumer(Queue("mails", Mail))(send)
    return service


def declared_on(broker: str, url: str | None = None, **settings: Any) -> Declared:
    """What that service needs on ``broker``."""
    service = service_on(url or URLS[broker], **settings)
    return declared(service.name, service.consumers, service.make_broker().adapter, service.drain_seconds)
