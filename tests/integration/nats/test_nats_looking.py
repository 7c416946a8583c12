"""Looking through a stream: many messages for one question, each as it was stored, and only from who knows all of it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from nats.aio.msg import Msg
from nats_kit import PATIENCE, Proxy, eventually, opened, outgoing, prepared, raw, reading, send, server, take

from atleastonce import Queue, Source, check
from atleastonce.adapters.nats import NatsAdapter
from atleastonce.adapters.nats.direct import has_one_copy
from atleastonce.adapters.nats.topology import stream_config
from atleastonce.contract import Topology
from atleastonce.errors import BrokerUnavailable

MakeQueue = Callable[..., Queue[object]]

BLOCKS = (
    b"",
    b"NATS/1.0\r\n\r\n",
    b"NATS/1.0\r\nalo-id: one\r\nx: 1\r\nx: 2\r\nX: three \r\n\r\n",
    b"NATS/1.0\r\nalo-id: two\r\nbytes: \xff\xfe\r\nnothing:\r\n\r\n",
    # As the server marks what it answers with, and as it ends an answer.
    (
        b"NATS/1.0\r\nNats-Stream: s\r\nNats-Subject: s\r\nNats-Sequence: 7\r\nNats-Time-Stamp: never\r\n"
        b"Nats-Num-Pending: 0\r\nNats-Last-Sequence: 6\r\n\r\n"
    ),
    b"NATS/1.0 204 EOB\r\nNats-Num-Pending: 0\r\nNats-Last-Sequence: 3\r\n\r\n",
)


def flat(channel: Queue[object]) -> str:
    return channel.name.replace(".", "~")


async def seen(adapter: NatsAdapter, home: Queue[object]) -> list[Any]:
    async with aclosing(adapter.scan(home)) as lists:
        return [delivery async for each in lists for delivery in each]


async def publish(adapter: NatsAdapter, subject: str, block: bytes, body: bytes) -> None:
    """A message with this very header block."""
    replies = adapter._link.replies
    assert replies is not None
    size = len(block) + len(body)
    head = b"HPUB %b %d %d" % (subject.encode(), len(block), size) if block else b"PUB %b %d" % (subject.encode(), size)
    replies.wire.put(b"%b\r\n%b%b\r\n" % (head, block, body))
    await replies.wire.ping()


async def test_each_message_is_shown_as_it_is_stored(nats_url: str, queue: MakeQueue) -> None:
    """As the leader shows it, one by one."""
    direct, single = queue("direct"), queue("single", options={"nats": {"allow_direct": False}})
    shown: dict[Queue[object], list[Any]] = {}
    async with opened(nats_url) as adapter:
        for home in (direct, single):
            await prepared(adapter, home)
            for number, block in enumerate(BLOCKS):
                await publish(adapter, home.name, block, b"%d" % number if number else b"")
            await send(adapter, outgoing(home, headers=[("a", "1"), ("a", "2")], key=b"k\xff", id="known"))
            shown[home] = await seen(adapter, home)
    assert [each.raw is None for each in shown[direct]] == [True] * (len(BLOCKS) + 1)
    assert [each.raw is None for each in shown[single]] == [False] * (len(BLOCKS) + 1)
    for one, other in zip(shown[direct], shown[single], strict=True):
        assert (one.position, one.body, one.message.key) == (other.position, other.body, other.message.key)
        assert one.message.headers.items() == other.message.headers.items()
        assert one.message.id.replace("direct", "single") == other.message.id
        assert abs(one.message.published_at - other.message.published_at) < PATIENCE


async def test_a_look_asks_once_for_many_and_gets_over_gaps(nats_url: str, queue: MakeQueue) -> None:
    home = queue()
    async with opened(nats_url) as adapter, raw(nats_url) as client:
        await prepared(adapter, home)
        await send(adapter, outgoing(home, 2500))
        subscription = await reading(adapter, home, 1500)
        gone = {each.message.id for each in await take(subscription, 1200, ack=True)}
        await subscription.close()
        asked: Counter[str] = Counter()

        async def note(question: Msg) -> None:
            asked[question.subject] += 1

        await client.subscribe(f"$JS.API.*.GET.{flat(home)}", cb=note)
        await client.subscribe(f"$JS.API.STREAM.MSG.GET.{flat(home)}", cb=note)
        await client.flush()
        there = {each.message.id for each in await seen(adapter, home)}
        await client.flush()
        assert (len(there), there & gone) == (1300, set())
        assert asked.keys() == {f"$JS.API.DIRECT.GET.{flat(home)}"}
        assert asked.total() <= 3


async def test_large_messages_come_a_few_at_a_time(nats_url: str, queue: MakeQueue) -> None:
    home = queue()
    async with opened(nats_url) as adapter:
        await prepared(adapter, home)
        await send(adapter, outgoing(home, 40, body=b"x" * 200_000))
        async with aclosing(adapter.scan(home)) as lists:
            sizes = [sum(each.size for each in found) async for found in lists]
    assert sum(sizes) > 8_000_000
    assert max(sizes) < 2**20 + 250_000


async def test_dead_letters_from_before_direct_get_are_told_of_and_left_as_they_are(
    nats_url: str, queue: MakeQueue
) -> None:
    dead, home = queue("dead"), queue("home")
    wanted = Topology(channels=(home,), sources=(Source(home),), dead_letters=(dead,))
    async with opened(nats_url) as adapter:
        link = adapter._link
        for each in (dead, home):
            made = stream_config(each, link.config)
            await link.ask(f"STREAM.CREATE.{made['name']}", {**made, "allow_direct": False})
        drifts = await adapter.declare(wanted)
        assert [(each.name, each.setting, each.breaks) for each in drifts] == [(dead.name, "allow_direct", False)]
        (finding,) = check.topology(drifts, create=True)
        assert (finding.code, "nats stream edit" in str(finding.change)) == ("setting-differs", True)
        info = await link.ask(f"STREAM.INFO.{flat(dead)}")
        assert not info["config"].get("allow_direct")
        await link.ask(f"STREAM.UPDATE.{flat(dead)}", {**info["config"], "allow_direct": True})
        assert await adapter.declare(wanted) == []


async def test_a_mirror_that_keeps_what_is_gone_is_not_believed(nats_url: str, queue: MakeQueue) -> None:
    """It answers for its origin, one time in two."""
    home = queue()
    async with opened(nats_url) as adapter, raw(nats_url) as client:
        await prepared(adapter, home)
        await send(adapter, outgoing(home, 20))
        mirror: dict[str, Any] = {"name": f"{flat(home)}-copy", "mirror": {"name": flat(home)}, "mirror_direct": True}
        link = adapter._link
        await link.ask(f"STREAM.CREATE.{mirror['name']}", {**mirror, "allow_direct": True, "storage": "file"})

        async def copied() -> bool:
            told = await link.ask(f"STREAM.INFO.{mirror['name']}")
            return bool(told["state"]["messages"] == 20)

        await eventually(copied, "the mirror has all")
        for number in range(3, 18):
            await link.ask(f"STREAM.MSG.DELETE.{flat(home)}", {"seq": number})
        answered: set[str] = set()
        for _ in range(50):
            told = await client.request(
                f"$JS.API.DIRECT.GET.{flat(home)}", b'{"seq":1,"next_by_subj":"%b"}' % home.name.encode()
            )
            answered.add((told.headers or {}).get("Nats-Stream", ""))
            assert len(await seen(adapter, home)) == 5
        assert mirror["name"] in answered  # or this shows nothing


async def test_who_may_not_ask_so_asks_one_by_one(tmp_path: Path) -> None:
    users = """authorization { users: [
      { user: all, password: secret-1 },
      { user: some, password: secret-2, permissions: { publish: { deny: ["$JS.API.DIRECT.>"] } } } ] }"""
    home = Queue[object]("orders")
    async with server(tmp_path, users) as host:
        async with opened(f"nats://all:secret-1@{host}") as adapter:
            await prepared(adapter, home)
            await send(adapter, outgoing(home, 300))
        async with opened(f"nats://some:secret-2@{host}") as adapter:
            async with asyncio.timeout(PATIENCE):
                assert len(await seen(adapter, home)) == 300


@pytest.mark.parametrize("how", ["cut", "silent"])
async def test_a_look_whose_answers_end_is_an_error(nats_url: str, queue: MakeQueue, how: str) -> None:
    home = queue()
    async with Proxy(nats_url) as proxy, opened(proxy.url, request_timeout=1.0) as adapter:
        await prepared(adapter, home)
        await send(adapter, outgoing(home, 5000))
        lists = adapter.scan(home)
        async with asyncio.timeout(PATIENCE):
            assert await anext(lists)
            if how == "cut":
                proxy.cut()
            else:
                proxy.hold()
            with pytest.raises(BrokerUnavailable):
                _ = [each async for each in lists]
        proxy.release()
        async with asyncio.timeout(PATIENCE):
            assert len(await seen(adapter, home)) == 5000  # and the next one is none


@pytest.mark.parametrize(
    ("config", "believed"),
    [
        ({"allow_direct": True, "num_replicas": 1}, True),
        ({"allow_direct": True}, True),
        ({"allow_direct": True, "num_replicas": 3}, False),  # one that is behind may answer
        ({"allow_direct": False, "num_replicas": 1}, False),
        ({}, False),
    ],
)
def test_only_a_streams_single_copy_is_believed(config: dict[str, Any], believed: bool) -> None:
    assert has_one_copy(config) is believed
