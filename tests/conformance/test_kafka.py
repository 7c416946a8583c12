"""Apache Kafka: a log read by consumer groups."""

import asyncio
import os
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any, ClassVar

import pytest

pytest.importorskip("confluent_kafka", reason="confluent-kafka is not installed")

from confluent_kafka import Consumer, Producer
from guarded_brokers import CAN_CERTIFY, Guard, guard
from guarded_brokers import kafka as guarded_kafka

from atleastonce.brokers import Running
from atleastonce.channels import Queue
from atleastonce.contract import Adapter
from atleastonce.testing.brokers import can_kill, killable
from atleastonce.testing.conformance import ConformanceSuite, Harness, KillableBroker, RawMessage

# The other kinds of groups: "consumer" and "share"; `python3 dev.py matrix` runs them.
PROTOCOL = os.environ.get("ALO_KAFKA_PROTOCOL", "classic")

NOBODY = "kafka://127.0.0.1:1"


class RawKafka:
    """confluent-kafka as its documentation shows it."""

    def __init__(self, url: str) -> None:
        self._servers = url.removeprefix("kafka://")

    async def publish(self, queue: Queue[Any], message: RawMessage) -> None:
        def run() -> None:
            producer = Producer({"bootstrap.servers": self._servers})
            producer.produce(queue.name, message.body, message.key, headers=dict(message.headers))
            assert producer.flush(10) == 0

        await asyncio.to_thread(run)

    async def read(self, queue: Queue[Any]) -> RawMessage:
        def run() -> RawMessage:
            group = {"group.id": f"{queue.name}-raw", "auto.offset.reset": "earliest"}
            consumer = Consumer({"bootstrap.servers": self._servers, **group})
            try:
                consumer.subscribe([queue.name])
                record = consumer.poll(10)
                assert record is not None, "no record came"
                assert record.error() is None
                fields = {name: value.decode() for name, value in record.headers() or []}
                return RawMessage(record.value() or b"", record.key(), fields)
            finally:
                consumer.close()

        return await asyncio.to_thread(run)


class KafkaHarness(Harness):
    name = "kafka" if PROTOCOL == "classic" else f"kafka ({PROTOCOL} protocol)"
    settle_lag = 2.0  # commit.interval, and a busy machine

    def __init__(self, broker: Running, guard: Guard | None) -> None:
        self._guard = guard if CAN_CERTIFY else None
        self.url = broker.url
        self.raw = RawKafka(broker.url)
        self.killable = can_kill("kafka")
        self.options = {"request.timeout": 4, "group.protocol": PROTOCOL}  # how long an absent broker is waited for
        if PROTOCOL == "classic":
            # The least that brokers allow; a killed consumer's partitions wait for it. Others are told by the broker.
            self.options |= {"session.timeout.ms": 6000, "heartbeat.interval.ms": 500}
        self._version = broker.version

    def broker_version(self) -> str:
        return f"Apache Kafka {self._version or ''}".strip()

    def unreachable(self) -> Adapter:
        return self.adapter(url=NOBODY)

    def unauthorised(self) -> Adapter | None:
        return None if self._guard is None else self.adapter(url=self._guard.refused)

    def conflicting(self, name: str) -> tuple[Queue[Any], Queue[Any]]:
        return Queue(name, partitions=2), Queue(name, partitions=4)

    def own_broker(self) -> AbstractAsyncContextManager[KillableBroker]:
        return killable("kafka")


class SharingHarness(KafkaHarness):
    """Queues and groups read by share groups."""

    name = "kafka (share groups)"
    settle_lag = 0.0
    lease = 15.0  # the least that brokers allow by default
    known_gaps: ClassVar = {
        "53": "a member is handed nothing more until all that it was handed is settled, and these 40 messages come one by one",
        "71": "Kafka's client for Python cannot ask what a share group has done: only dead letters can be looked at",
    }

    unsteady: ClassVar = {
        "58": "the members of a killed process lose their connections one by one, and what one had may be handed to another that "
        "is about to go: one kill counts twice, now and then",
    }

    def __init__(self, broker: Running, guard: Guard | None) -> None:
        super().__init__(broker, guard)
        del self.options["group.protocol"]  # of the rooms of retries and dead letters, which consumer groups read
        self.options |= {"session.timeout.ms": 6000, "heartbeat.interval.ms": 500}
        self.options |= {"share.groups": "true", "share.lock": self.lease}


@pytest.fixture(scope="module")
def guarded(kafka_broker: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guard | None]:
    with guard(kafka_broker, guarded_kafka, tmp_path_factory) as made:
        yield made


class TestKafka(ConformanceSuite):
    @pytest.fixture
    def harness(self, kafka_broker: Running, guarded: Guard | None) -> Harness:
        return (SharingHarness if PROTOCOL == "share" else KafkaHarness)(kafka_broker, guarded)
