"""Publishing: outcomes that are true, delays that survive, entries that raw clients read and write."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from redis.asyncio import Redis
from redis_kit import PATIENCE, Proxy, declared, message, opened, reading, sent, take

from atleastonce.adapters import open_adapter
from atleastonce.brokers import Running
from atleastonce.channels import Source
from atleastonce.contract import ACK, OK, Code, Outgoing, Status, Topology
from atleastonce.errors import BrokerUnavailable
from atleastonce.message import Headers, Message
from atleastonce.testing.brokers import PrivateBroker

Sources = Callable[..., Source]


async def test_a_publish_whose_reply_is_lost_is_unknown_and_stored_once(
    redis_url: str, raw: Any, source: Sources
) -> None:
    """redis-py repeats a command after a lost connection, ten times by default: the stream then holds two."""
    async with Proxy.before(redis_url) as proxy, opened(proxy.url, operation_timeout=0.5) as adapter:
        here = source()
        await declared(adapter, here)
        await sent(adapter, here.channel, message())
        proxy.deaf = True
        (outcome,) = await sent(adapter, here.channel, message())
        assert outcome.status is Status.UNKNOWN
        assert await raw.xlen(here.channel.name) == 2
        proxy.deaf = False
        assert list(await sent(adapter, here.channel, message())) == [OK]
        assert await raw.xlen(here.channel.name) == 3


async def test_publishing_at_once_takes_no_connections(redis_url: str, raw: Any, source: Sources) -> None:
    """redis-py's pool raises MaxConnectionsError at the hundred and first."""
    async with opened(redis_url, client_name="many") as adapter:
        here = source()
        await declared(adapter, here)
        outcomes = await asyncio.gather(*(sent(adapter, here.channel, message()) for _ in range(300)))
        assert all(each == [OK] for each in map(list, outcomes))
        assert sum(row["name"].startswith("many-") for row in await raw.client_list()) == 2


async def test_a_server_without_memory_refuses_for_now(private_broker: PrivateBroker, source: Sources) -> None:
    with private_broker("redis") as broker:
        await _without_memory(broker, source())


async def _without_memory(broker: Running, here: Source) -> None:
    async with opened(broker.url) as adapter, Redis.from_url(broker.url) as raw:
        await declared(adapter, here)
        await sent(adapter, here.channel, message(id="before"))
        await raw.config_set("maxmemory-policy", "noeviction")
        await raw.config_set("maxmemory", "1")
        (outcome,) = await sent(adapter, here.channel, message())
        assert outcome.status is Status.UNKNOWN
        assert outcome.fault is not None
        assert (outcome.fault.code, outcome.fault.retryable) == (Code.OVERLOADED, True)
        # Reading and acknowledging go on: only that frees memory.
        async with reading(adapter, here) as subscription:
            (before,) = await take(subscription, 1)
            assert before.message.id == "before"
            assert list(await subscription.settle([(before, ACK)])) == [OK]
        await raw.config_set("maxmemory", "0")
        # It became a replica: nothing is stored, and the connection is worth nothing any more.
        await raw.replicaof("127.0.0.1", "1")
        (outcome,) = await sent(adapter, here.channel, message())
        assert outcome.status is Status.UNKNOWN
        await raw.replicaof("NO", "ONE")
        assert list(await sent(adapter, here.channel, message(id="after"))) == [OK]
        async with reading(adapter, here) as subscription:
            assert [each.message.id for each in await take(subscription, 1)] == ["after"]
        await raw.config_set("maxmemory", "1gb")
        await raw.config_set("maxmemory-policy", "allkeys-lru")
        async with opened(broker.url) as another:
            (drift,) = await another.declare(Topology(sources=(here,)))
            assert (drift.setting, drift.found, drift.breaks) == ("maxmemory-policy", "allkeys-lru", False)


async def test_a_delayed_publish_outlives_its_publisher(redis_url: str, raw: Any, source: Sources) -> None:
    here = source()
    async with opened(redis_url) as adapter:
        await declared(adapter, here)
        begun = time.monotonic()
        await sent(adapter, here.channel, message(b"\x00\xff", headers=[("h", "v")], id="later"), delay=0.6)
        assert (await adapter.backlog(here)).delayed == 1
    assert await raw.xlen(here.channel.name) == 0
    async with opened(redis_url) as other, reading(other, here) as subscription:
        (delivery,) = await take(subscription, 1)
        assert time.monotonic() - begun >= 0.55
        assert (delivery.message.id, delivery.message.body) == ("later", b"\x00\xff")
        assert delivery.message.headers.get("h") == "v"
        await subscription.settle([(delivery, ACK)])
    assert await raw.zcard(f"{{{here.channel.name}}}:due") == await raw.xlen(f"{{{here.channel.name}}}:later") == 0


async def test_scripts_that_the_server_has_forgotten_are_sent_again(redis_url: str, raw: Any, source: Sources) -> None:
    async with opened(redis_url, dedupe="1m") as adapter:
        here = source()
        await declared(adapter, here)
        await raw.script_flush()
        batch = [message(id=f"m{n}") for n in range(3)]
        assert list(await sent(adapter, here.channel, *batch)) == [OK] * 3
        await raw.script_flush()
        async with reading(adapter, here) as subscription:
            assert [each.message.id for each in await take(subscription, 3)] == ["m0", "m1", "m2"]


async def test_a_repeated_id_is_stored_once_where_that_was_asked_for(redis_url: str, raw: Any, source: Sources) -> None:
    async with opened(redis_url, dedupe="1m") as one, opened(redis_url, dedupe="1m") as two:
        here = source()
        await declared(one, here)
        again = message(id="again")
        for adapter in (one, two, one):
            assert list(await sent(adapter, here.channel, again, message())) == [OK, OK]
        assert list(await sent(two, here.channel, again, delay=60)) == [OK]
        assert await raw.xlen(here.channel.name) == 4
        assert (await one.backlog(here)).delayed == 0
        assert one.capabilities.dedupe.limit == 60


async def test_entries_of_raw_producers_are_messages(redis_url: str, raw: Any, source: Sources) -> None:
    here, there = source("in"), source("out")
    async with opened(redis_url) as adapter:
        await declared(adapter, here, there)
        ids = [
            await raw.xadd(here.channel.name, {"body": b"\xff\x00", "tenant": "a", b"\xfe": b"\xfd", "two words": "x"}),
            await raw.xadd(here.channel.name, {"order": "17", "name": "Ärger"}),
            await raw.xadd(here.channel.name, {"x": "1", "body": "late", "~body": "mark", "alo-id": "theirs"}),
        ]
        async with reading(adapter, here) as subscription, reading(adapter, there) as copies:
            found = await take(subscription, 3)
            one, two, three = (each.message for each in found)
            assert one.id == f"{here.channel.name}-{ids[0].decode()}"
            assert one.body == found[0].body == b"\xff\x00"
            assert one.headers.get("tenant") == "a"
            assert one.headers.get("two words") == "x"
            assert two.body == found[1].body == '{"order": "17", "name": "Ärger"}'.encode()
            assert (three.id, three.body, found[2].body) == ("theirs", b"late", b"late")
            assert three.headers.get("body") == "mark"
            # A hop writes what came, byte for byte.
            outcomes = await adapter.send([Outgoing(there.channel, each) for each in (one, two, three)])
            assert list(outcomes) == [OK] * 3
            entries = [fields for _, fields in await raw.xrange(there.channel.name)]
            assert entries[0] == {b"body": b"\xff\x00", b"tenant": b"a", b"\xfe": b"\xfd", b"two words": b"x"}
            assert entries[1] == {b"order": b"17", b"name": "Ärger".encode()}
            assert entries[2] == {b"body": b"late", b"x": b"1", b"~body": b"mark", b"alo-id": b"theirs"}
            again = [each.message for each in await take(copies, 3)]
            assert [(each.body, each.headers) for each in again] == [(m.body, m.headers) for m in (one, two, three)]


async def test_fields_are_called_what_people_expect(redis_url: str, raw: Any, source: Sources) -> None:
    async with opened(redis_url, body_field="payload") as adapter:
        here = source()
        await declared(adapter, here)
        fields = Headers([("alo-id", "m"), ("tenant", "t"), ("tenant", "u"), ("payload", "p"), ("body", "b")])
        sending = adapter.send([Outgoing(here.channel, Message("m", b"data", b"k", fields))])
        assert list(await sending) == [OK]
        await raw.execute_command("XADD", here.channel.name, "*", "payload", "theirs")
        entry = (await raw.xrange(here.channel.name))[0][1]
        assert entry[b"payload"] == b"data"
        assert (entry[b"alo-key"], entry[b"alo-id"]) == (b"k", b"m")
        async with reading(adapter, here) as subscription:
            ours, theirs = await take(subscription, 2)
            assert (ours.message.body, ours.message.key, ours.message.headers) == (b"data", b"k", fields)
            assert theirs.message.body == b"theirs"


async def test_a_peer_that_accepts_and_never_answers_is_unavailable(source: Sources) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    adapter = open_adapter(f"redis://:hidden@127.0.0.1:{port}", {"connect_timeout": 0.5})
    begun = time.monotonic()
    with pytest.raises(BrokerUnavailable) as refused:
        await asyncio.wait_for(adapter.open(), PATIENCE)
    assert time.monotonic() - begun < 3
    assert "hidden" not in f"{refused.value!r} {adapter!r}"
    await adapter.close()
    server.close()


async def test_what_is_no_redis_is_unavailable(source: Sources) -> None:
    async def http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(http, "127.0.0.1", 0)
    adapter = open_adapter(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}", {"connect_timeout": 1})
    with pytest.raises(BrokerUnavailable):
        await asyncio.wait_for(adapter.open(), PATIENCE)
    await adapter.close()
    server.close()


async def test_of_several_hosts_one_that_serves_is_taken(redis_url: str, source: Sources) -> None:
    host = redis_url.removeprefix("redis://")
    async with opened(f"redis://127.0.0.1:1,{host}") as adapter:
        here = source()
        await declared(adapter, here)
        assert list(await sent(adapter, here.channel, message())) == [OK]


async def test_the_client_library_still_has_what_we_take_from_it(redis_url: str) -> None:
    """Its writer is private to redis-py: a release without it must be noticed here, and not by users."""
    from redis.asyncio.connection import Connection

    host, _, port = redis_url.removeprefix("redis://").partition(":")
    connection = Connection(host=host, port=int(port), protocol=2)
    await connection.connect()  # type: ignore[no-untyped-call]
    assert connection._writer is not None
    assert connection._writer.transport is not None
    await connection.disconnect()


async def test_a_hop_of_a_message_is_no_repetition_of_it(redis_url: str, source: Sources) -> None:
    """By the id alone, a redriven letter would be dropped as seen, its publish confirmed, and the letter settled: lost."""
    async with opened(redis_url, dedupe="1m") as adapter:
        here = source()
        await declared(adapter, here)
        first = message(id="order-1")
        redriven = [
            Message(first.id, first.body, None, first.headers.set({"alo-attempt": "1", "alo-redrives": str(number)}))
            for number in (1, 2)
        ]
        assert list(await sent(adapter, here.channel, first, *redriven, *redriven)) == [OK] * 5
        async with reading(adapter, here) as reader:
            came = [each.message.headers.get("alo-redrives") for each in await take(reader, 3)]
            assert came == [None, "1", "2"]
            assert list(await reader.receive(1, 0.2)) == []
