"""NATS JetStream: streams, durable pull consumers, delayed naks and the duplicate window."""

from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

pytest.importorskip("nats", reason="nats-py is not installed")

import nats
from guarded_brokers import Guard, guard
from guarded_brokers import nats as guarded_nats

from atleastonce.brokers import Running
from atleastonce.channels import Queue
from atleastonce.contract import Adapter
from atleastonce.testing.brokers import can_kill, killable
from atleastonce.testing.conformance import ConformanceSuite, Harness, KillableBroker, RawMessage

NOBODY = "nats://127.0.0.1:1"


class RawNats:
    """nats-py as its tutorials show it."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def publish(self, queue: Queue[Any], message: RawMessage) -> None:
        client = await nats.connect(self._url)
        try:
            await client.jetstream().publish(queue.name, message.body, headers=dict(message.headers))
        finally:
            await client.close()

    async def read(self, queue: Queue[Any]) -> RawMessage:
        client = await nats.connect(self._url)
        try:
            name = queue.name.replace(".", "~")
            subscription = await client.jetstream().pull_subscribe_bind(name, name)
            (message,) = await subscription.fetch(1, timeout=10)
            await message.ack_sync()
            return RawMessage(message.data, None, message.headers or {})
        except nats.errors.TimeoutError:
            raise AssertionError("no message came") from None
        finally:
            await client.close()


class NatsHarness(Harness):
    name = "nats"
    # The lease is the consumer's, which whoever declares first makes: every client of the suite declares the same.
    lease = 4.0
    options = {"ack_wait": 4.0}  # noqa: RUF012
    short_lease = {"ack_wait": 4.0}  # noqa: RUF012

    def __init__(self, broker: Running, guard: Guard | None) -> None:
        self._guard = guard
        self.url = broker.url
        self.raw = RawNats(broker.url)
        self.killable = can_kill("nats")
        self._version = broker.version

    def broker_version(self) -> str:
        return f"NATS {self._version or ''}".strip()

    def unreachable(self) -> Adapter:
        return self.adapter(url=NOBODY)

    def unauthorised(self) -> Adapter | None:
        return None if self._guard is None else self.adapter(url=self._guard.refused)

    def conflicting(self, name: str) -> tuple[Queue[Any], Queue[Any]]:
        return Queue(name), Queue(name, options={"nats": {"max_msgs": 10}})

    def own_broker(self) -> AbstractAsyncContextManager[KillableBroker]:
        return killable("nats")


@pytest.fixture(scope="module")
def guarded(nats_broker: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guard | None]:
    with guard(nats_broker, guarded_nats, tmp_path_factory) as made:
        yield made


class TestNats(ConformanceSuite):
    @pytest.fixture
    def harness(self, nats_broker: Running, guarded: Guard | None) -> Harness:
        return NatsHarness(nats_broker, guarded)
