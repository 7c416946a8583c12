"""RabbitMQ: quorum queues, exchanges and dead-lettering."""

import asyncio
import time
from contextlib import AbstractAsyncContextManager
from typing import Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("pika", reason="pika is not installed")

import pika

from atleastonce.brokers import Running
from atleastonce.channels import Queue
from atleastonce.contract import Adapter
from atleastonce.testing.brokers import can_kill, killable
from atleastonce.testing.conformance import ConformanceSuite, Harness, KillableBroker, RawMessage

NOBODY = "rabbitmq://guest:guest@127.0.0.1:1/"


class RawRabbitMQ:
    """pika's blocking connection, as its tutorials show it, with confirms."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        credentials = pika.PlainCredentials(parts.username or "guest", parts.password or "guest")
        self._parameters = pika.ConnectionParameters(parts.hostname, parts.port or 5672, credentials=credentials)

    async def publish(self, queue: Queue[Any], message: RawMessage) -> None:
        def run() -> None:
            fields = dict(message.headers)
            properties = pika.BasicProperties(
                content_type=fields.pop("content-type", None), headers=fields, delivery_mode=2
            )
            with pika.BlockingConnection(self._parameters) as connection:
                channel = connection.channel()
                channel.confirm_delivery()
                channel.basic_publish("", queue.name, message.body, properties, mandatory=True)

        await asyncio.to_thread(run)

    async def read(self, queue: Queue[Any]) -> RawMessage:
        def run() -> RawMessage:
            with pika.BlockingConnection(self._parameters) as connection:
                channel = connection.channel()
                deadline = time.monotonic() + 10
                while time.monotonic() < deadline:
                    method, properties, body = channel.basic_get(queue.name, auto_ack=True)
                    if method is not None:
                        fields = {k: v for k, v in (properties.headers or {}).items() if isinstance(v, str)}
                        return RawMessage(body, None, fields)
                    connection.process_data_events(0.1)
                raise AssertionError("no message came")

        return await asyncio.to_thread(run)


class RabbitMQHarness(Harness):
    name = "rabbitmq"
    # RabbitMQ 3.10 killed within a second of a quorum queue's declaration never elects a leader for it again.
    newborn = 3.0

    def __init__(self, broker: Running) -> None:
        self.url = broker.url
        self.raw = RawRabbitMQ(broker.url)
        self.killable = can_kill("rabbitmq")
        self._version = broker.version

    def broker_version(self) -> str:
        return f"RabbitMQ {self._version or ''}".strip()

    def unreachable(self) -> Adapter:
        return self.adapter(url=NOBODY)

    def unauthorised(self) -> Adapter:
        parts = urlsplit(self.url)
        return self.adapter(url=parts._replace(netloc=f"guest:wrong@{parts.hostname}:{parts.port}").geturl())

    def conflicting(self, name: str) -> tuple[Queue[Any], Queue[Any]]:
        return Queue(name), Queue(name, options={"rabbitmq": {"x-max-length": 10}})

    def own_broker(self) -> AbstractAsyncContextManager[KillableBroker]:
        return killable("rabbitmq")


class TestRabbitMQ(ConformanceSuite):
    @pytest.fixture
    def harness(self, rabbitmq_broker: Running) -> Harness:
        return RabbitMQHarness(rabbitmq_broker)
