"""What a user may do: the rights that the documentation names are enough, and what is missing is told before it does harm."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis_kit import PATIENCE, Listening, declared, eventually, message, opened, reading, sent, take

from atleastonce import FailurePolicy, RetryChain, Service
from atleastonce.adapters.redis_streams import faults
from atleastonce.channels import Queue, Source, Topic
from atleastonce.contract import ACK, OK, RELEASE, Code, Retry, Topology, Window
from atleastonce.errors import PermissionDenied

PAGE = Path(__file__).parents[3] / "docs" / "brokers" / "redis.md"


@pytest.fixture
def name() -> str:
    """Of a channel, and of the user."""
    return f"rights-{uuid.uuid4().hex[:8]}"


@asynccontextmanager
async def user(raw: Any, url: str, name: str, *rules: str) -> AsyncIterator[str]:
    """The URL for a new user with ``rules``."""
    await raw.execute_command("ACL", "SETUSER", name, "reset", "on", ">pw", *rules)
    try:
        yield url.replace("redis://", f"redis://{name}:pw@")
    finally:
        await raw.execute_command("ACL", "DELUSER", name)


def documented(channel: str) -> list[str]:
    """The rules of the one ACL line on the page, with ``channel`` in the place of its example."""
    (line,) = re.findall(r"^ACL SETUSER app (.*)$", PAGE.read_text(), re.MULTILINE)
    rules = line.split()
    assert rules[:2] == ["on", ">secret"]
    return [rule.replace("orders", channel) for rule in rules[2:]]


@pytest.mark.parametrize("kind", [Queue, Topic])
async def test_the_documented_rights_are_enough(redis_url: str, raw: Any, name: str, kind: Any) -> None:
    here = Source(kind(name), "billing" if kind is Topic else None)
    async with user(raw, redis_url, name, *documented(name)) as url, opened(url, lease=0.4) as adapter:
        topology = Topology(channels=(here.channel,), sources=(here,))
        assert await adapter.declare(topology) == []
        assert await sent(adapter, here.channel, message(id="now")) == [OK]
        assert await sent(adapter, here.channel, message(id="later"), delay=0.1) == [OK]
        async with reading(adapter, here) as reader:
            first, second = await take(reader, 2)
            assert {first.message.id, second.message.id} == {"now", "later"}
            assert await reader.extend([first, second], 0.4) == [OK, OK]
            assert await reader.settle([(first, Retry(0.05)), (second, RELEASE)]) == [OK, OK]
            again = await take(reader, 2)
            assert await reader.settle([(each, ACK) for each in again]) == [OK, OK]
            assert await sent(adapter, here.channel, message(id="held")) == [OK]
            assert len(await take(reader, 1)) == 1
            await reader.pause()
            async with reading(adapter, here) as other:
                (taken,) = await take(other, 1)
                assert (taken.message.id, taken.count) == ("held", 2)
                assert await other.settle([(taken, ACK)]) == [OK]
            assert (await adapter.backlog(here)).waiting == 0
        if isinstance(here.channel, Queue):
            assert await sent(adapter, here.channel, message(id="seen")) == [OK]
            seen = [each.message.id async for part in adapter.scan(here.channel) for each in part]
            assert seen == ["seen"]
            assert [each.message.id for each in await adapter.browse(here.channel, 10)] == ["seen"]
            assert await adapter.purge(here.channel) == 1
        await adapter.delete(topology)


async def test_the_documented_rights_are_enough_for_a_service(redis_url: str, raw: Any, name: str) -> None:
    """Retries, dead letters, suspects: every channel beside the queue."""
    async with user(raw, redis_url, name, *documented(name)) as url:
        service = Service("worker", broker=url)
        tries: list[bytes] = []

        @service.consumer(Queue(name), failure=FailurePolicy(in_place=None, chain=RetryChain("50ms")))
        async def handle(body: bytes) -> None:
            tries.append(body)
            raise ValueError("no")

        await service.start()
        await service.broker.publish(Queue(name), b"x")

        async def dead() -> bool:
            return bool((await service.broker.backlog(Queue(f"{name}.dlq"))).waiting)

        await eventually(dead, "it is in the dead letters")
        assert len(tries) == 2
        await service.stop()
        async with opened(redis_url) as admin:
            await admin.delete(Topology(channels=(Queue(name), Queue(f"{name}.dlq"), Queue(f"{name}.suspects"))))


@pytest.mark.parametrize("missing", ["time", "zrangebyscore"])
async def test_what_is_forbidden_inside_a_script_is_called_a_missing_right(
    redis_url: str, raw: Any, name: str, missing: str
) -> None:
    """The server's answer begins with ``ERR`` then, as that of a broken script does."""
    here = Source(Queue(name))
    async with opened(redis_url) as admin:
        await declared(admin, here)
        async with user(raw, redis_url, name, "~*", "+@all", f"-{missing}") as url, opened(url) as adapter:
            with pytest.raises(PermissionDenied, match=r"ACL failure in script|The user executing the script"):
                async with reading(adapter, here) as reader:
                    await take(reader, 1, 1.0)
        async with user(raw, redis_url, name, "+@all", f"~{name}") as url, opened(url) as adapter:
            with pytest.raises(PermissionDenied):
                await adapter.subscribe(here, Window(10, 1 << 20), Listening())
        await admin.delete(Topology(channels=(here.channel,), sources=(here,)))


def test_both_ways_of_saying_so_are_known() -> None:
    for text in (
        "ERR ACL failure in script: User app has no permissions to run the 'time' command script: 0a, on @user_script:2.",
        "ERR The user executing the script can't run this command or subcommand script: 0a, on @user_script:2.",
        "ERR The user executing the script can't access at least one of the keys mentioned in the command arguments",
    ):
        assert faults.classify(faults.ReplyError(text)).code is Code.PERMISSION
    assert faults.classify(faults.ReplyError("ERR unknown command 'FOO', script: 0a")).code is Code.INVALID


@pytest.mark.parametrize("missing", ["xack", "xclaim", "zadd", "xdel"])
async def test_who_may_not_settle_is_handed_nothing(redis_url: str, raw: Any, name: str, missing: str) -> None:
    """It would run the same messages for ever."""
    here = Source(Queue(name))
    async with opened(redis_url) as admin:
        await declared(admin, here)
        await sent(admin, here.channel, message())
        async with user(raw, redis_url, name, "~*", "+@all", f"-{missing}") as url, opened(url) as adapter:
            with pytest.raises(PermissionDenied, match=missing):
                await adapter.subscribe(here, Window(10, 1 << 20), Listening())
        assert (await admin.backlog(here)).waiting == 1
        async with reading(admin, here) as reader:
            (delivery,) = await take(reader, 1)
            assert delivery.count == 1
        await admin.delete(Topology(channels=(here.channel,), sources=(here,)))


async def test_a_service_whose_right_is_taken_away_ends_and_copies_nothing(redis_url: str, raw: Any, name: str) -> None:
    async with user(raw, redis_url, name, "~*", "+@all") as url, opened(redis_url) as admin:
        await declared(admin, Source(Queue(name)))
        acking = ("-xack", "-xackdel") if admin._server.xackdel else ("-xack",)
        service = Service("worker", broker=f"{url}?lease=400ms")
        runs: list[bytes] = []

        @service.consumer(Queue(name), failure=FailurePolicy(in_place=None))
        async def handle(body: bytes) -> None:
            await raw.execute_command("ACL", "SETUSER", name, *acking)
            runs.append(body)

        await sent(admin, Queue(name), message(b"once"))
        with pytest.raises(PermissionDenied, match="may not ack"):
            await asyncio.wait_for(service.serve(), PATIENCE)
        assert runs == [b"once"]
        for _ in range(
            8
        ):  # as a platform starts it again; more often than a message is handed out before it is suspected
            with pytest.raises(PermissionDenied, match="xack"):
                await asyncio.wait_for(service.serve(), PATIENCE)
        assert runs == [b"once"]
        assert await raw.xlen(f"{name}.suspects") == 0
        await raw.execute_command("ACL", "SETUSER", name, "+@all")

        async def given_back(body: bytes) -> None: ...

        healed = Service("worker", broker=f"{url}?lease=400ms")
        healed.consumer(Queue(name))(given_back)
        await healed.start()

        async def empty() -> bool:
            found = await admin.backlog(Source(Queue(name)))
            return (found.waiting, found.in_flight) == (0, 0)

        await eventually(empty, "the right is back, and the message is done")
        await healed.stop()
        await admin.delete(
            Topology(
                channels=(Queue(name), Queue(f"{name}.dlq"), Queue(f"{name}.suspects")),
                sources=(Source(Queue(name)), Source(Queue(f"{name}.suspects"))),
            )
        )
