"""Amazon SQS and SNS, on the emulator that speaks both; or the services themselves, where ALO_SQS_URL names a region."""

import asyncio
import secrets
import time
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

pytest.importorskip("boto3", reason="boto3 is not installed")

from guarded_brokers import Guard, guard
from guarded_brokers import sqs as guarded_sqs

from atleastonce.adapters.sqs import names
from atleastonce.adapters.sqs.clients import Clients
from atleastonce.adapters.sqs.config import Config
from atleastonce.brokers import Running
from atleastonce.channels import Queue
from atleastonce.contract import Adapter
from atleastonce.testing.brokers import can_kill, killable
from atleastonce.testing.conformance import ConformanceSuite, Harness, KillableBroker, RawMessage
from atleastonce.urls import BrokerUrl

NOBODY = "sqs://127.0.0.1:1?connect_timeout=2s"


class RawSQS:
    """boto3, as its guide shows it."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._client = Clients(config).sqs

    def _url(self, queue: Queue[Any]) -> str:
        return str(self._client.get_queue_url(QueueName=names.of_queue(queue, self._config.prefix))["QueueUrl"])

    async def publish(self, queue: Queue[Any], message: RawMessage) -> None:
        def run() -> None:
            attributes = {name: {"DataType": "String", "StringValue": text} for name, text in message.headers.items()}
            self._client.send_message(
                QueueUrl=self._url(queue), MessageBody=message.body.decode(), MessageAttributes=attributes
            )

        await asyncio.to_thread(run)

    async def read(self, queue: Queue[Any]) -> RawMessage:
        def run() -> RawMessage:
            url, deadline = self._url(queue), time.monotonic() + 10
            while time.monotonic() < deadline:
                answer = self._client.receive_message(QueueUrl=url, WaitTimeSeconds=2, MessageAttributeNames=["All"])
                for found in answer.get("Messages", ()):
                    self._client.delete_message(QueueUrl=url, ReceiptHandle=found["ReceiptHandle"])
                    fields = found.get("MessageAttributes", {})
                    text = {name: field["StringValue"] for name, field in fields.items() if "StringValue" in field}
                    return RawMessage(found["Body"].encode(), None, text)
            raise AssertionError("no message came")

        return await asyncio.to_thread(run)


class SQSHarness(Harness):
    name = "sqs"
    short_lease = {"lease": 2}  # noqa: RUF012
    lease = 2.0

    def __init__(self, broker: Running, guard: Guard | None) -> None:
        self._guard = guard
        self.url = broker.url
        self._version = broker.version
        config = Config.build(BrokerUrl.parse(self.url), {})
        self._real = config.endpoint is None
        self.killable = not self._real and can_kill("sqs")
        if self._real:
            self.options = {"prefix": f"alo-test-{secrets.token_hex(3)}-"}
            self.patience = 90.0  # deleting and purging take a minute
        else:
            self.known_gaps = {
                "55": "ministack keeps messages in memory: what was confirmed is gone with the process",
                "55b": "ministack keeps messages in memory: what was confirmed is gone with the process",
            }
        self.raw = RawSQS(Config.build(BrokerUrl.parse(self.url), self.options))

    def broker_version(self) -> str:
        return "Amazon SQS" if self._real else f"ministack {self._version or ''}".strip()

    def unreachable(self) -> Adapter:
        return self.adapter(url=NOBODY)

    def unauthorised(self) -> Adapter | None:
        if not self._real:
            return None if self._guard is None else self.adapter(url=self._guard.refused)
        region = BrokerUrl.parse(self.url).hosts[0][0]
        return self.adapter(url=f"sqs://AKIAIOSFODNN7EXAMPLE:wrong@{region}")

    def conflicting(self, name: str) -> tuple[Queue[Any], Queue[Any]]:
        return Queue(name), Queue(name, options={"sqs": {"DelaySeconds": 7}})

    def own_broker(self) -> AbstractAsyncContextManager[KillableBroker]:
        return killable("sqs")


@pytest.fixture(scope="module")
def guarded(sqs_broker: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guard | None]:
    with guard(sqs_broker, guarded_sqs, tmp_path_factory) as made:
        yield made


class TestSQS(ConformanceSuite):
    @pytest.fixture
    def harness(self, sqs_broker: Running, guarded: Guard | None) -> Harness:
        return SQSHarness(sqs_broker, guarded)


TOPICS = ("12b", "13", "19", "19b", "20", "22", "24", "24d", "34", "42", "42b", "63", "65", "72", "73b")
"""The cases that need a topic."""


class ElasticMQHarness(SQSHarness):
    """A second opinion on the queues. It has no SNS, so no topics."""

    name = "sqs (ElasticMQ)"

    def __init__(self, broker: Running) -> None:
        super().__init__(broker, None)
        self.killable = can_kill("elasticmq")
        self.known_gaps = {
            **dict.fromkeys(TOPICS, "ElasticMQ has no SNS, and so no topics"),
            "55": "ElasticMQ keeps messages in memory: what was confirmed is gone with the process",
            "55b": "ElasticMQ keeps messages in memory: what was confirmed is gone with the process",
            "60": "ElasticMQ looks at no credentials",
        }

    def broker_version(self) -> str:
        return f"ElasticMQ {self._version or ''}".strip()

    def unauthorised(self) -> Adapter:
        return self.adapter(url=self.url.replace("sqs://", "sqs://AKIAIOSFODNN7EXAMPLE:wrong@"))

    def own_broker(self) -> AbstractAsyncContextManager[KillableBroker]:
        return killable("elasticmq")


class TestElasticMQ(ConformanceSuite):
    @pytest.fixture
    def harness(self, elasticmq_broker: Running) -> Harness:
        return ElasticMQHarness(elasticmq_broker)
