"""What the Kafka tests share: a recording listener, an opened adapter, and librdkafka's mock cluster."""

from __future__ import annotations

import asyncio
import ctypes
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import confluent_kafka

from atleastonce.adapters import open_adapter
from atleastonce.adapters.kafka import KafkaAdapter
from atleastonce.adapters.kafka.subscription import KafkaSubscription
from atleastonce.channels import Channel, Queue, Source
from atleastonce.contract import ACK, Delivery, Outgoing, Topology, Window
from atleastonce.message import Headers, Message, new_id

WINDOW = Window(1000, 64 << 20)


class Recorder:
    """A `Listener` that writes down what it is told, and drains as the test says."""

    def __init__(self) -> None:
        self.drained: list[str] = []
        self.gone: list[str] = []
        self.conditions: list[str] = []
        self.while_draining: Callable[[float], Awaitable[None]] | None = None

    async def drain(self, streams: Collection[str], grace: float) -> None:
        self.drained += streams
        if self.while_draining is not None:
            await self.while_draining(grace)

    def lost(self, streams: Collection[str] | None) -> None:
        self.gone += streams or ["*"]

    def condition(self, state: str, detail: str) -> None:
        self.conditions.append(state)


class Member:
    """One subscription with its adapter and listener."""

    def __init__(self, adapter: KafkaAdapter, subscription: KafkaSubscription, listener: Recorder) -> None:
        self.adapter = adapter
        self.subscription = subscription
        self.listener = listener
        self.got: list[Delivery] = []

    async def take(self, count: int, seconds: float = 15.0) -> list[Delivery]:
        """Exactly ``count`` deliveries."""
        taken: list[Delivery] = []
        deadline = time.monotonic() + seconds
        while len(taken) < count:
            left = deadline - time.monotonic()
            assert left > 0, f"{len(taken)} of {count} came"
            taken += await self.subscription.receive(count - len(taken), left)
        self.got += taken
        return taken

    async def nothing(self, seconds: float) -> None:
        came = await self.subscription.receive(10, seconds)
        assert not came, came

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        outcomes = await self.subscription.settle([(each, ACK) for each in deliveries])
        assert all(outcome.ok for outcome in outcomes), outcomes

    async def owns(self, partitions: int, seconds: float = 20.0) -> None:
        await eventually(
            lambda: len(self.subscription._assignment.live) == partitions, f"{partitions} assigned", seconds
        )


@asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncIterator[KafkaAdapter]:
    adapter = open_adapter(url, {name.replace("_", "."): value for name, value in options.items()})
    assert isinstance(adapter, KafkaAdapter)
    await adapter.open()
    try:
        yield adapter
    finally:
        await adapter.close()


@asynccontextmanager
async def member(url: str, source: Source, *, window: Window = WINDOW, **options: Any) -> AsyncIterator[Member]:
    async with opened(url, **options) as adapter:
        listener = Recorder()
        subscription = await adapter.subscribe(source, window, listener)
        assert isinstance(subscription, KafkaSubscription)
        try:
            yield Member(adapter, subscription, listener)
        finally:
            await subscription.close()


async def eventually(condition: Callable[[], bool], what: str, seconds: float = 15.0) -> None:
    """Until ``condition()`` is true; fails with ``what`` after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"did not happen in {seconds} s: {what}"
        await asyncio.sleep(0.01)


def message(body: bytes, key: bytes | None = None, identity: str | None = None) -> Message:
    identity = identity or new_id()
    return Message(identity, body, key, Headers([("alo-id", identity)]))


async def publish(adapter: KafkaAdapter, channel: Channel[Any], messages: Sequence[Message]) -> None:
    outcomes = await adapter.send([Outgoing(channel, each) for each in messages])
    assert all(outcome.ok for outcome in outcomes), [outcome for outcome in outcomes if not outcome.ok][:3]


def fresh(partitions: int | None = 1) -> Queue[Any]:
    return Queue(f"t.{uuid.uuid4().hex[:12]}", partitions=partitions)


async def declared(adapter: KafkaAdapter, partitions: int = 1) -> Source:
    source = Source(fresh(partitions))
    await adapter.declare(Topology(sources=(source,)))
    return source


def numbers(deliveries: Sequence[Delivery]) -> list[int]:
    """The numbers that the test wrote into the bodies."""
    return [int(each.message.body) for each in deliveries]


class MockCluster:
    """librdkafka's own cluster in this process, with faults to order: the wheel's library exports its C interface."""

    PRODUCE, OFFSET_COMMIT, OFFSET_FETCH, HEARTBEAT = 0, 8, 9, 12

    def __init__(self, brokers: int = 1) -> None:
        package = Path(confluent_kafka.__file__).parent
        library = next((package.parent / "confluent_kafka.libs").glob("librdkafka-*.so*"))
        self._lib = ctypes.CDLL(str(library))  # the instance that the extension has loaded already
        self.topics: dict[str, int] = {}
        text = ctypes.create_string_buffer(512)
        conf = self._call("rd_kafka_conf_new", ctypes.c_void_p)
        self._call(
            "rd_kafka_conf_set", ctypes.c_int, ctypes.c_void_p(conf), b"log_level", b"0", text, ctypes.c_size_t(512)
        )
        self._handle = self._call(
            "rd_kafka_new", ctypes.c_void_p, ctypes.c_int(0), ctypes.c_void_p(conf), text, ctypes.c_size_t(512)
        )
        self._cluster = self._call(
            "rd_kafka_mock_cluster_new", ctypes.c_void_p, ctypes.c_void_p(self._handle), ctypes.c_int(brokers)
        )
        self._mock("rd_kafka_mock_group_initial_rebalance_delay_ms", None, ctypes.c_int32(0))  # 3 s otherwise
        bootstraps = self._mock("rd_kafka_mock_cluster_bootstraps", ctypes.c_char_p)
        self.url = f"kafka://{bootstraps.decode()}"

    def topic(self, partitions: int = 1) -> Source:
        queue = fresh(partitions)
        self.topics[queue.name] = partitions
        assert not self._mock(
            "rd_kafka_mock_topic_create", ctypes.c_int, queue.name.encode(), ctypes.c_int(partitions), ctypes.c_int(1)
        )
        return Source(queue)

    def fail(self, api: int, *errors: int) -> None:
        """Answer the next requests of this kind with these error codes."""
        array = (ctypes.c_int * len(errors))(*errors)
        self._mock(
            "rd_kafka_mock_push_request_errors_array", None, ctypes.c_int16(api), ctypes.c_size_t(len(errors)), array
        )

    def stop(self, broker: int = 1) -> None:
        self._mock("rd_kafka_mock_broker_set_down", ctypes.c_int, ctypes.c_int32(broker))

    def start(self, broker: int = 1) -> None:
        self._mock("rd_kafka_mock_broker_set_up", ctypes.c_int, ctypes.c_int32(broker))

    def delete_records(self, topic: str, partition: int, before: int) -> None:
        self._mock(
            "rd_kafka_mock_partition_delete_records",
            ctypes.c_int,
            topic.encode(),
            ctypes.c_int32(partition),
            ctypes.c_int64(before),
        )

    def close(self) -> None:
        self._mock("rd_kafka_mock_cluster_destroy", None)
        self._call("rd_kafka_destroy", None, ctypes.c_void_p(self._handle))

    def _mock(self, name: str, result: Any, *arguments: Any) -> Any:
        return self._call(name, result, ctypes.c_void_p(self._cluster), *arguments)

    def _call(self, name: str, result: Any, *arguments: Any) -> Any:
        function = getattr(self._lib, name)
        function.restype = result
        return function(*arguments)
