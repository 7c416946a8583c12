"""Request-reply when something breaks: the inbox is deleted, the broker restarts, owners of inboxes die."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from pathlib import Path
from typing import Any

import boto3
import pytest
import redis.asyncio as redis

from atleastonce import Broker, Context, Queue, RequestError, RequestTimeout, Service, Topic, connect, wire
from atleastonce.adapters.kafka import publisher as kafka_publisher
from atleastonce.adapters.kafka import replies as kafka_replies
from atleastonce.adapters.kafka.admin import Admin
from atleastonce.adapters.pubsub import presence as pubsub_presence
from atleastonce.adapters.sqlite.adapter import SQLiteAdapter
from atleastonce.adapters.sqs.adapter import SQSAdapter
from atleastonce.contract import Deletes, KeepsInboxes, Outgoing, Replies, Topology
from atleastonce.message import Message
from atleastonce.testing.brokers import killable

DEADLINE = 60.0


def shop(url: str, quotes: Queue[int]) -> tuple[Service, asyncio.Event, asyncio.Event, list[str]]:
    """A responder that answers 1 only when the gate is open; and the addresses that were asked from."""
    service, running, gate = Service("shop", broker=url), asyncio.Event(), asyncio.Event()
    addresses: list[str] = []

    @service.responder(quotes)
    async def quote(n: int, ctx: Context) -> int:
        addresses.append(ctx.headers.get(wire.REPLY_TO) or "")
        if n == 1:
            running.set()
            await gate.wait()
        return n * 10

    return service, running, gate, addresses


async def answered(broker: Broker, quotes: Queue[int]) -> None:
    """Until a request is answered again, at most for `DEADLINE`."""
    end = time.monotonic() + DEADLINE
    while True:
        try:
            assert await broker.request(quotes, 7, timeout="2s") == 70
            return
        except RequestError:
            if time.monotonic() > end:
                raise


@pytest.mark.parametrize("name", ["rabbitmq", "redis", "sqs", "pubsub", "memory", "sqlite"])
async def test_an_inbox_that_was_deleted_is_made_again(
    name: str, request: pytest.FixtureRequest, tmp_path: Any
) -> None:
    quotes: Queue[int] = Queue(f"t.trouble.{uuid.uuid4().hex[:8]}", int)
    urls = {"memory": f"memory://{uuid.uuid4().hex}", "sqlite": f"sqlite:///{tmp_path}/broker.db"}
    url = urls.get(name) or request.getfixturevalue(f"{name}_url")
    service, _, _, addresses = shop(url, quotes)
    async with service, connect(url) as broker:
        await answered(broker, quotes)
        address = addresses[-1]
        if name == "redis":
            client = redis.from_url(url)
            assert await client.delete(address) == 1
            await client.aclose()
        elif name == "rabbitmq":
            # An exclusive queue is its connection's alone: what takes it away is the end of that.
            assert isinstance(broker.adapter, Replies)
            inbox: Any = broker._asking()._inbox
            await inbox._channel.call("queue_delete", queue=address)
        elif isinstance(broker.adapter, KeepsInboxes):
            await broker.adapter.remove_inbox(address)
        else:
            assert isinstance(broker.adapter, Deletes)
            await broker.adapter.delete(Topology(channels=(Queue(address),)))
        await answered(broker, quotes)
        assert broker.requests.waiting == 0


async def test_a_deleted_stream_of_replies_is_there_again_within_5_s(redis_url: str) -> None:
    quotes: Queue[int] = Queue(f"t.trouble.{uuid.uuid4().hex[:8]}", int)
    service, _, _, addresses = shop(redis_url, quotes)
    client = redis.from_url(redis_url)
    async with service, connect(redis_url) as broker:
        for _ in range(2):  # the second time right after it was made: the next sign is furthest away
            await answered(broker, quotes)
            assert await client.delete(addresses[-1]) == 1
            begin = time.monotonic()
            while not await client.exists(addresses[-1]):
                assert time.monotonic() - begin <= 5.0
                await asyncio.sleep(0.05)  # polling a condition with a deadline
    await client.aclose()


@pytest.mark.parametrize("way", ["the last id", "no stream"])
async def test_a_stream_of_replies_that_somebody_spoilt_is_made_again(redis_url: str, way: str) -> None:
    """Whoever asks keeps its address, so that nothing else would ever help it."""
    quotes: Queue[int] = Queue(f"t.trouble.{uuid.uuid4().hex[:8]}", int)
    service, _, _, addresses = shop(redis_url, quotes)
    client = redis.from_url(redis_url)
    async with service, connect(redis_url) as broker:
        await answered(broker, quotes)
        if way == "no stream":
            await client.set(addresses[-1], "somebody's")
        else:
            await client.xadd(addresses[-1], {"body": "forged"}, id=f"{2**64 - 1}-{2**64 - 1}")
        await answered(broker, quotes)
        assert await client.type(addresses[-1]) == b"stream"
    await client.aclose()


async def test_requests_too_short_for_an_inbox_leave_none_behind(sqs_url: str) -> None:
    """Making a queue takes longer than any of them waits."""
    prefix = f"t{uuid.uuid4().hex[:8]}-"
    async with connect(sqs_url, {"prefix": prefix}) as broker, connect(sqs_url) as looking:
        assert isinstance(looking.adapter, SQSAdapter)
        sqs = looking.adapter._clients.sqs

        def inboxes() -> int:
            return len(sqs.list_queues(QueueNamePrefix=f"{prefix}alo--reply--").get("QueueUrls", ()))

        for _ in range(5):
            with pytest.raises(RequestTimeout):
                await broker.request(Queue(f"t.trouble.{prefix}"), 1, timeout="1ms")
        end = time.monotonic() + DEADLINE
        while broker._asking()._inbox is None:
            assert time.monotonic() < end
            await asyncio.sleep(0.02)  # polling a condition with a deadline
        assert await asyncio.to_thread(inboxes) == 1
        await broker.close()
        assert await asyncio.to_thread(inboxes) == 0
        async with connect(sqs_url, {"prefix": prefix}) as hurried:  # closed while it opens one
            with pytest.raises(RequestTimeout):
                await hurried.request(Queue(f"t.trouble.{prefix}"), 1, timeout="1ms")
        assert await asyncio.to_thread(inboxes) == 0


@pytest.mark.parametrize("name", ["nats", "rabbitmq", "redis"])
async def test_the_broker_restarts_while_a_request_is_being_answered(name: str) -> None:
    """It ends in an answer or in a defined failure within its time, and the next ones are answered."""
    quotes: Queue[int] = Queue(f"t.trouble.{uuid.uuid4().hex[:8]}", int)
    async with killable(name) as running_broker:
        service, running, gate, _ = shop(running_broker.url, quotes)
        async with service, connect(running_broker.url) as broker:
            await answered(broker, quotes)
            asking = asyncio.create_task(broker.request(quotes, 1, timeout="40s"))
            await running.wait()
            await running_broker.kill()
            await running_broker.start()
            gate.set()
            begin = time.monotonic()
            try:
                assert await asking == 10
            except RequestError:
                assert time.monotonic() - begin < 45
            await answered(broker, quotes)
            assert broker.requests.waiting == 0


async def test_inboxes_of_the_dead_are_swept(sqs_url: str) -> None:
    async with connect(sqs_url) as broker:
        adapter = broker.adapter
        assert isinstance(adapter, SQSAdapter)
        sqs: boto3.client = adapter._clients.sqs
        names = {which: f"alo.reply.{uuid.uuid4().hex}" for which in ("dead", "alive")}
        for name in names.values():
            await adapter.keep_inbox(name)
        urls = {which: adapter._directory.url(name.replace(".", "--")) for which, name in names.items()}
        foreign = sqs.create_queue(QueueName=f"alo--reply--{uuid.uuid4().hex}")["QueueUrl"]
        tags = sqs.list_queue_tags(QueueUrl=urls["dead"])["Tags"]
        assert tags["alo-owner"].count(":") == 1
        sqs.tag_queue(QueueUrl=urls["dead"], Tags={"alo-seen": str(int(time.time()) - 7200)})
        await asyncio.to_thread(adapter._inboxes.sweep)
        left = sqs.list_queues(QueueNamePrefix="alo--reply--").get("QueueUrls", [])
        assert urls["dead"] not in left
        assert urls["alive"] in left
        assert foreign in left  # without a tag of ours it is not ours to remove
        await adapter.remove_inbox(names["alive"])
        sqs.delete_queue(QueueUrl=foreign)


async def test_the_topic_of_replies_of_a_project_is_made_again(
    pubsub_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A subscription whose topic was deleted is there for ever, and never brings anything."""
    monkeypatch.setattr(pubsub_presence, "LOOK_SECONDS", 1.0)
    url = f"{pubsub_url}{'&' if '?' in pubsub_url else '?'}prefix=t{uuid.uuid4().hex[:8]}."  # the usual one is other tests' as well
    quotes: Queue[int] = Queue("quotes", int)
    service, _, _, addresses = shop(url, quotes)
    async with service, connect(url) as broker:
        await answered(broker, quotes)
        assert isinstance(broker.adapter, Deletes)
        await broker.adapter.delete(Topology(channels=(Topic("alo.replies"),)))
        await answered(broker, quotes)
        assert len(set(addresses)) == 1


async def test_a_stream_of_replies_outlives_its_owner_by_a_minute(redis_url: str) -> None:
    quotes: Queue[int] = Queue(f"t.trouble.{uuid.uuid4().hex[:8]}", int)
    service, _, _, addresses = shop(redis_url, quotes)
    client = redis.from_url(redis_url)
    async with service:
        async with connect(redis_url) as broker:
            await answered(broker, quotes)
            assert 0 < await client.ttl(addresses[-1]) <= 60
        assert await client.exists(addresses[-1]) == 0
    await client.aclose()


async def test_inboxes_of_the_dead_are_swept_from_a_file(tmp_path: Path) -> None:
    now = time.time()
    first, later = (SQLiteAdapter(tmp_path / "broker.db", clock=lambda: now) for _ in range(2))
    dead, empty, mine = (f"alo.reply.{uuid.uuid4().hex}" for _ in range(3))
    await first.open()
    for name in (dead, empty):
        await first.keep_inbox(name)
    (outcome,) = await first.send([Outgoing(Queue(dead), Message("m", b"1"))])
    assert outcome.ok
    await first.close()
    now += 3700.0
    await later.open()
    await later.keep_inbox(mine)
    there = await later.declare(Topology(channels=tuple(map(Queue, (dead, empty, mine)))), create=False)
    assert [drift.name for drift in there] == [dead]
    await later.close()


async def test_the_topic_of_replies_is_made_again(kafka_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody tells a reader that its topic was deleted: it has to look."""
    quotes: Queue[int] = Queue(f"t.trouble.{uuid.uuid4().hex[:8]}", int, partitions=1)
    topic = f"alo.replies.{uuid.uuid4().hex[:8]}"  # the usual one is other tests' as well
    monkeypatch.setattr(kafka_replies, "TOPIC", topic)
    monkeypatch.setattr(kafka_publisher, "TOPIC", topic)
    monkeypatch.setattr(kafka_replies, "_ADDRESS", re.compile(rf"{re.escape(topic)}/([0-9]+)/([0-9a-f]{{32}})"))
    service, _, _, addresses = shop(kafka_url, quotes)
    async with service, connect(kafka_url) as broker:
        await answered(broker, quotes)
        assert addresses[-1].startswith(topic)
        assert isinstance(broker.adapter, Deletes)
        await broker.adapter.delete(Topology(channels=(Topic(topic),)))
        await answered(broker, quotes)


async def test_answers_that_come_while_the_topic_is_looked_at_are_read_once(
    kafka_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its end as it was before them is no sign that the topic is another one."""
    quotes: Queue[int] = Queue(f"t.trouble.{uuid.uuid4().hex[:8]}", int, partitions=1)
    monkeypatch.setattr(kafka_replies, "_LOOK_SECONDS", 0.2)
    looks = done = 0
    service, *_ = shop(kafka_url, quotes)
    async with service, connect(kafka_url) as broker:
        await answered(broker, quotes)
        bounds = Admin.bounds

        async def slow(self: Admin, topic: str, partitions: int) -> dict[int, tuple[int, int]]:
            nonlocal looks
            found = await bounds(self, topic, partitions)
            if topic == kafka_replies.TOPIC:
                before = done
                while done < before + 3:  # noqa: ASYNC110 - answers within a look
                    await asyncio.sleep(0.01)
                looks += 1
            return found

        monkeypatch.setattr(Admin, "bounds", slow)
        while looks < 3:
            await answered(broker, quotes)
            done += 1
        assert broker.requests.duplicate == 0
