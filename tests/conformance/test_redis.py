"""Redis Streams: groups, leases by idle time, retries that stay in the pending list."""

from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

pytest.importorskip("redis", reason="redis is not installed")

from redis.asyncio import Redis

from atleastonce.brokers import Running
from atleastonce.channels import Queue, Topic
from atleastonce.contract import Adapter
from atleastonce.testing.brokers import can_kill, killable
from atleastonce.testing.conformance import ConformanceSuite, Harness, KillableBroker, RawMessage

NOBODY = "redis://127.0.0.1:1"


class RawRedis:
    """redis-py, as any producer and consumer would use it."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def publish(self, queue: Queue[Any], message: RawMessage) -> None:
        async with Redis.from_url(self._url) as client:
            fields: dict[Any, Any] = {"body": message.body, **message.headers}
            await client.xadd(queue.name, fields)

    async def read(self, queue: Queue[Any]) -> RawMessage:
        async with Redis.from_url(self._url, socket_timeout=20) as client:
            found: Any = await client.xreadgroup(queue.name, "raw", {queue.name: ">"}, count=1, block=10_000)
            assert found, "no message came"
            ((_, ((id, fields),)),) = found
            await client.xack(queue.name, queue.name, id)
        body = fields.pop(b"body")
        return RawMessage(body, fields.pop(b"alo-key", None), {k.decode(): v.decode() for k, v in fields.items()})


class RedisHarness(Harness):
    name = "redis"
    lease = 1.0

    def __init__(self, broker: Running) -> None:
        self.url = broker.url
        self.short_lease = {"lease": self.lease}
        self.raw = RawRedis(broker.url)
        self.killable = can_kill("redis")
        self._version = broker.version

    def broker_version(self) -> str:
        version = self._version or ""
        return version if version.startswith("Valkey") else f"Redis {version}".strip()

    def unreachable(self) -> Adapter:
        return self.adapter(url=NOBODY)

    def unauthorised(self) -> Adapter:
        return self.adapter(url=self.url.replace("redis://", "redis://nobody:wrong@"))

    def conflicting(self, name: str) -> tuple[Queue[Any], Topic[Any]]:
        return Queue(name), Topic(name)

    def own_broker(self) -> AbstractAsyncContextManager[KillableBroker]:
        return killable("redis")


class TestRedis(ConformanceSuite):
    @pytest.fixture
    def harness(self, redis_broker: Running) -> Harness:
        return RedisHarness(redis_broker)
