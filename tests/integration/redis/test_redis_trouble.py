"""What others do to a server: consumers removed by hand, entries of any size and shape; and servers that are none for us."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis_kit import PATIENCE, Listening, declared, eventually, message, opened, reading, sent, take

from atleastonce import FailurePolicy, RetryChain, Service
from atleastonce.adapters import open_adapter
from atleastonce.brokers.model import Command
from atleastonce.brokers.ports import free_port
from atleastonce.brokers.process import spawn
from atleastonce.brokers.progress import Silent
from atleastonce.brokers.redis import install
from atleastonce.channels import Queue, Source, Topic
from atleastonce.contract import ACK, OK, RELEASE, Code, Outgoing, Retry, Status, Window
from atleastonce.errors import ConfigurationError
from atleastonce.testing.brokers import marked

Sources = Callable[..., Source]
MIB = 1 << 20


async def remove_consumers(raw: Any, here: Source) -> int:
    """What an operator does who takes an idle consumer for a dead one. How many entries it took along."""
    stream, group = here.channel.name, here.group_name
    names = [row["name"] for row in await raw.xinfo_consumers(stream, group)]
    return sum([await raw.xgroup_delconsumer(stream, group, name) for name in names if name != b"~parked"])


# ------------------------------------------------------------------------------------------------------ bytes of a window


async def test_what_is_read_ahead_keeps_to_the_windows_bytes(redis_url: str, source: Sources) -> None:
    """XREADGROUP counts entries and no bytes: 250 entries of a MiB would be in memory of a window of 8 MiB."""
    async with opened(redis_url) as adapter:
        here = source()
        await declared(adapter, here)
        body = b"x" * MIB
        for _ in range(6):
            assert set(await sent(adapter, here.channel, *(message(body) for _ in range(20)))) == {OK}
        subscription = await adapter.subscribe(here, Window(1000, 8 * MIB), Listening())
        taken = 0
        while taken < 120:
            batch = await take(subscription, 1)
            batch += await subscription.receive(1000, 0.0)
            held = sum(each.size for each in subscription._settling.out.values())
            assert held <= 17 * MIB, f"{held >> 20} MiB are held of a window of 8"
            taken += len(batch)
            assert set(await subscription.settle([(each, ACK) for each in batch])) == {OK}
        await subscription.close()


async def test_a_single_message_above_the_windows_bytes_comes_all_the_same(redis_url: str, source: Sources) -> None:
    async with opened(redis_url) as adapter:
        here = source()
        await declared(adapter, here)
        await sent(adapter, here.channel, *(message(b"x" * MIB) for _ in range(3)))
        subscription = await adapter.subscribe(here, Window(100, MIB // 2), Listening())
        for _ in range(3):
            for each in await take(subscription, 1):
                await subscription.settle([(each, ACK)])
        await subscription.close()


async def test_small_messages_after_large_ones_are_read_in_long_lists_again(redis_url: str, source: Sources) -> None:
    async with opened(redis_url) as adapter:
        here = source()
        await declared(adapter, here)
        await sent(adapter, here.channel, *(message(b"x" * MIB) for _ in range(6)))
        await sent(adapter, here.channel, *(message() for _ in range(3000)))
        subscription = await adapter.subscribe(here, Window(1000, 2 * MIB), Listening())
        longest = taken = 0
        while taken < 3006:
            batch = await subscription.receive(1000, 5.0)
            assert batch
            longest, taken = max(longest, len(batch)), taken + len(batch)
            await subscription.settle([(each, ACK) for each in batch])
        assert longest >= 200
        await subscription.close()


# --------------------------------------------------------------------------------------------- XGROUP DELCONSUMER by hand


@pytest.mark.parametrize("kind", ["queue", "topic"])
async def test_what_fails_after_its_consumer_was_removed_is_retried(
    redis_url: str, raw: Any, source: Sources, kind: str
) -> None:
    here = source() if kind == "queue" else Source(Topic(source().channel.name), "billing")
    async with opened(redis_url, lease=2) as adapter:
        await declared(adapter, here)
        await sent(adapter, here.channel, *(message(id=f"m{n}") for n in range(20)))
        listening = Listening()
        subscription = await adapter.subscribe(here, Window(100, MIB), listening)
        held = await take(subscription, 20)
        assert await remove_consumers(raw, here) == 20
        back = [(each, Retry(0.2) if n % 2 else RELEASE) for n, each in enumerate(held)]
        assert set(await subscription.settle(back)) == {OK}
        again = await take(subscription, 20)
        assert {each.message.id: each.count for each in again} == {f"m{n}": 2 if n % 2 else 1 for n in range(20)}
        assert set(await subscription.settle([(each, ACK) for each in again])) == {OK}
        assert "DELCONSUMER" in listening.conditions[-1][1]
        assert listening.conditions[-1][0] == "connected"
        await subscription.close()


async def test_what_is_being_handled_is_put_back_by_the_next_renewal(redis_url: str, raw: Any, source: Sources) -> None:
    here = Source(Topic(source().channel.name), "billing")
    async with opened(redis_url, lease=1) as adapter:
        await declared(adapter, here)
        await sent(adapter, here.channel, *(message(id=f"m{n}") for n in range(5)))
        async with reading(adapter, here) as subscription:
            held = await take(subscription, 5)
            assert await remove_consumers(raw, here) == 5
            assert list(await subscription.extend(held, 1)) == [OK] * 5
        # It left, as a killed process does: nothing was settled.
        async with reading(adapter, here) as heir:
            again = await take(heir, 5)
            assert {each.count for each in again} == {2}
            await heir.settle([(each, ACK) for each in again])


async def test_of_a_queue_what_a_removed_consumer_held_is_visible_and_comes_again(
    redis_url: str, raw: Any, source: Sources
) -> None:
    """A consumer that died, and was cleared away by hand with what was pending for it."""
    async with opened(redis_url, lease=0.4) as adapter:
        here = source()
        await declared(adapter, here)
        await sent(adapter, here.channel, *(message(id=f"m{n}") for n in range(50)))
        await raw.xreadgroup(here.group_name, "theirs", {here.channel.name: ">"}, count=40)
        assert await remove_consumers(raw, here) == 40
        assert (await adapter.backlog(here)).waiting == 50
        listening = Listening()
        subscription = await adapter.subscribe(here, Window(100, MIB), listening)
        got: list[str] = []
        while len(got) < 50:
            for each in await take(subscription, 1):
                got.append(each.message.id)
                assert list(await subscription.settle([(each, ACK)])) == [OK]
        assert sorted(got) == sorted(f"m{n}" for n in range(50))
        assert any("pending for nobody" in text for _, text in listening.conditions)
        assert list(await subscription.receive(10, 1.5)) == []
        assert (await adapter.backlog(here)).waiting == 0
        await subscription.close()


async def test_what_lies_behind_many_that_wait_is_found_too(redis_url: str, raw: Any, source: Sources) -> None:
    """The search goes by pages: what is pending for good reasons must not hide what is pending for nobody."""
    async with opened(redis_url, lease=0.4) as adapter:
        here = source()
        await declared(adapter, here)
        await sent(adapter, here.channel, *(message(id=f"wait{n}") for n in range(1500)))
        async with reading(adapter, here, window=2000) as subscription:
            held = await take(subscription, 1500)
            assert set(await subscription.settle([(each, Retry(3600)) for each in held])) == {OK}
        await sent(adapter, here.channel, *(message(id=f"m{n}") for n in range(10)))
        await raw.xreadgroup(here.group_name, "theirs", {here.channel.name: ">"})
        assert await remove_consumers(raw, here) == 10
        async with reading(adapter, here) as subscription:
            got: set[str] = set()
            while len(got) < 10:
                for each in await take(subscription, 1):
                    got.add(each.message.id)
                    await subscription.settle([(each, ACK)])
            assert got == {f"m{n}" for n in range(10)}


async def test_what_is_held_by_a_living_reader_is_no_stray(redis_url: str, raw: Any, source: Sources) -> None:
    """It is handled for long, is renewed, and others look for strays meanwhile."""
    async with opened(redis_url, lease=0.6) as adapter:
        here = source()
        await declared(adapter, here)
        await sent(adapter, here.channel, *(message() for _ in range(10)))
        async with reading(adapter, here) as one, reading(adapter, here) as two:
            held = await take(one, 10)
            assert await remove_consumers(raw, here) == 10
            for _ in range(8):
                assert list(await one.extend(held, 0.6)) == [OK] * 10
                assert list(await two.receive(10, 0.2)) == []
            assert set(await one.settle([(each, ACK) for each in held])) == {OK}
            assert list(await two.receive(10, 1.5)) == []


async def test_what_others_acknowledged_before_us_stays_acknowledged(redis_url: str, raw: Any, source: Sources) -> None:
    """A group that was there before: its readers acknowledged and left the entries to a trimming by length."""
    async with opened(redis_url, lease=0.4) as adapter:
        here = source()
        name, group = here.channel.name, here.group_name
        await raw.xgroup_create(name, group, "0", mkstream=True)
        for n in range(20):
            await raw.xadd(name, {"body": str(n)})
        ((_, entries),) = await raw.xreadgroup(group, "theirs", {name: ">"}, count=15)
        await raw.xack(name, group, *(id for id, _ in entries))
        await declared(adapter, here)
        assert (await adapter.backlog(here)).waiting == 5
        async with reading(adapter, here) as subscription:
            got = await take(subscription, 5)
            assert [each.message.body for each in got] == [b"15", b"16", b"17", b"18", b"19"]
            assert set(await subscription.settle([(each, ACK) for each in got])) == {OK}
            assert list(await subscription.receive(10, 2.0)) == []


async def test_a_service_loses_nothing_to_a_removed_consumer(redis_url: str, raw: Any) -> None:
    queue: Queue[dict[str, int]] = Queue("redis.delconsumer")
    here, done, failed = Source(queue), set[int](), asyncio.Event()
    running = 0
    service = Service("worker", broker=f"{redis_url}?lease=2")

    @service.consumer(queue, failure=FailurePolicy(in_place=None, chain=RetryChain("1s")), concurrency=20)
    async def handle(order: dict[str, int]) -> None:
        nonlocal running
        if not failed.is_set():
            running += 1
            await failed.wait()
            raise ValueError("not yet")
        done.add(order["n"])

    async with service:
        await service.broker.publish_many(queue, [{"n": n} for n in range(20)])

        async def all_run() -> bool:
            return running == 20

        await eventually(all_run, "all are being handled")
        assert await remove_consumers(raw, here) >= 20
        failed.set()

        async def all_done() -> bool:
            return len(done) == 20

        await eventually(all_done, "all are handled after their retry")


# ----------------------------------------------------------------------------------------------------- entries of any shape


@pytest.mark.parametrize("options", [{}, {"dedupe": 60}])
async def test_an_entry_of_very_many_fields_becomes_a_dead_letter(
    redis_url: str, raw: Any, source: Sources, options: dict[str, Any]
) -> None:
    """A script can pass on 3500 fields; what a raw producer wrote may have more, and is moved all the same."""
    async with opened(redis_url, **options) as adapter:
        here, dead = source(), source("dead")
        await declared(adapter, here, dead)
        fields = {f"field{n}": str(n) for n in range(20_000)}
        await raw.xadd(here.channel.name, fields)
        async with reading(adapter, here) as subscription:
            (delivery,) = await take(subscription, 1)
            assert list(await sent(adapter, dead.channel, delivery.message)) == [OK]
            ((_, moved),) = await raw.xrange(dead.channel.name)
            assert {name.decode(): value.decode() for name, value in moved.items()} == fields
            await subscription.settle([(delivery, ACK)])
            (outcome,) = await adapter.send([Outgoing(dead.channel, delivery.message, 5.0)])
            assert outcome.status is Status.REJECTED
            assert outcome.fault is not None
            assert outcome.fault.code is Code.INVALID


async def test_one_message_over_the_limit_harms_no_neighbour(redis_url: str, source: Sources) -> None:
    async with opened(redis_url, max_message_bytes=1000) as adapter:
        here = source()
        await declared(adapter, here)
        good, large, more = await sent(adapter, here.channel, message(), message(b"x" * 2000), message())
        assert good == more == OK
        assert large.status is Status.REJECTED
        assert large.fault is not None
        assert large.fault.code is Code.TOO_LARGE


async def test_a_user_who_may_not_publish_is_told_so_for_each_message(
    redis_url: str, raw: Any, source: Sources
) -> None:
    here = source()
    await raw.execute_command("ACL", "SETUSER", "reader", "on", ">pw", "~*", "+@all", "-xadd")
    try:
        async with opened(redis_url.replace("redis://", "redis://reader:pw@")) as adapter:
            await declared(adapter, here)
            for outcome in await sent(adapter, here.channel, message(), message()):
                assert outcome.status is Status.REJECTED
                assert outcome.fault is not None
                assert outcome.fault.code is Code.PERMISSION
                assert "pw" not in outcome.fault.detail
    finally:
        await raw.execute_command("ACL", "DELUSER", "reader")


async def test_a_backlog_that_the_server_does_not_count_is_counted_or_unknown(
    redis_url: str, raw: Any, source: Sources
) -> None:
    """XINFO's lag is nil once something was deleted out of the part that a group has not read."""
    async with opened(redis_url) as adapter:
        here = source()
        await declared(adapter, here)
        await sent(adapter, here.channel, *(message() for _ in range(1200)))
        async with reading(adapter, here) as subscription:
            for each in await take(subscription, 1):
                await subscription.settle([(each, ACK)])
        ids = [id for id, _ in await raw.xrange(here.channel.name)]
        await raw.xdel(here.channel.name, *ids[500:600])
        group = (await raw.xinfo_groups(here.channel.name))[0]
        assert group["lag"] is None
        assert (await adapter.backlog(here)).waiting in (None, 1099)
        await raw.xdel(here.channel.name, *ids[600:900])
        assert (await adapter.backlog(here)).waiting == 799
    there = Source(Topic(source("topic").channel.name), "billing")
    async with opened(redis_url) as adapter:
        await declared(adapter, there)
        await sent(adapter, there.channel, *(message() for _ in range(1200)))
        await raw.xdel(there.channel.name, (await raw.xrange(there.channel.name))[600][0])
        found = await adapter.backlog(there)
        assert found.waiting in (None, 1199)  # never 0
        assert found.waiting is not None or "lag is unknown" in found.detail


# ---------------------------------------------------------------------------------------------------------------- failover


async def test_a_master_that_becomes_a_replica_is_left_for_the_new_one(tmp_path: Path) -> None:
    """A write is answered READONLY, and a blocked read by UNBLOCKED, on a connection that is fine in itself."""
    async with servers(tmp_path, count=2) as (old, new), Redis(port=old) as first, Redis(port=new) as second:
        raw_first: Any = first
        raw_second: Any = second
        await raw_second.execute_command("REPLICAOF", "127.0.0.1", old)
        here, listening = Source(Queue("orders")), Listening()
        async with opened(f"redis://127.0.0.1:{old},127.0.0.1:{new}", lease=2, send_timeout=10) as adapter:
            await declared(adapter, here)
            assert set(await sent(adapter, here.channel, *(message(id=f"m{n}") for n in range(10)))) == {OK}
            subscription = await adapter.subscribe(here, Window(100, MIB), listening)
            held = await take(subscription, 10)

            async def replicated() -> bool:
                return int(await raw_second.xlen("orders")) == 10

            await eventually(replicated, "the replica has it all")
            await raw_second.execute_command("REPLICAOF", "NO", "ONE")
            await raw_first.execute_command("REPLICAOF", "127.0.0.1", new)
            confirmed = set[str]()
            while len(confirmed) < 5:  # unknown ones are the caller's to repeat
                batch = [message(id=f"n{n}") for n in range(5) if f"n{n}" not in confirmed]
                outcomes = await sent(adapter, here.channel, *batch)
                assert all(outcome.ok or outcome.status is Status.UNKNOWN for outcome in outcomes)
                confirmed |= {each.id for each, outcome in zip(batch, outcomes, strict=True) if outcome.ok}
            got = set[str]()

            async def everything_is_done() -> bool:
                # Leases are the group's and went along, so what is out is settled on the new master.
                await subscription.settle([(each, ACK) for each in held])
                for each in await subscription.receive(10, 0.5):
                    got.add(each.message.id)
                    await subscription.settle([(each, ACK)])
                return int(await raw_second.xlen("orders")) == 0

            await eventually(everything_is_done, "all is settled")
            assert got >= {f"n{n}" for n in range(5)}
            await subscription.close()
        assert "disconnected" in {state for state, _ in listening.conditions}


# --------------------------------------------------------------------------------------------- servers that are none for us


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis+sentinel://one:26379,two:26379/mymaster", "servers that it watches, redis://one,two/"),
        ("rediss+sentinel://one", "Sentinel"),
        ("redis+cluster://one,two", "several shards"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(url: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        open_adapter(url)


@asynccontextmanager
async def servers(folder: Path, *arguments: str, count: int = 1) -> AsyncIterator[list[int]]:
    """redis-servers with ``arguments`` of one's own: their ports."""
    binary = (await asyncio.to_thread(install, Silent())) / "redis-server"
    ports = []
    with marked("redis") as mark:
        for number in range(count):
            port, home = free_port(), folder / str(number)
            home.mkdir()
            (home / "conf").write_text("bind 127.0.0.1\n")
            flags = ("--port", str(port), "--dir", str(home), "--save", "", *arguments)
            spawn(Command([str(binary), str(home / "conf"), *flags], {}, str(home)), mark, home / "log")
            ports.append(port)
        for port in ports:

            async def answers(port: int = port) -> bool:
                try:
                    async with Redis(port=port) as client:
                        return bool(await client.ping())
                except OSError:
                    return False
                except Exception:  # noqa: BLE001 - it is starting
                    return False

            await eventually(answers, "the server answers")
        yield ports


async def test_a_sentinel_is_recognized(tmp_path: Path) -> None:
    async with servers(tmp_path, "--sentinel") as (port,):
        adapter = open_adapter(f"redis://127.0.0.1:{port}")
        with pytest.raises(ConfigurationError, match="Sentinel, which stores nothing"):
            await asyncio.wait_for(adapter.open(), PATIENCE)
        await adapter.close()


async def _cluster(ports: list[int], slots: list[tuple[int, int]]) -> None:
    client: Any
    for port, (first, last) in zip(ports, slots, strict=True):
        async with Redis(port=port) as client:
            await client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
            for other in ports:
                if other != port:
                    await client.execute_command("CLUSTER", "MEET", "127.0.0.1", other)
    for port in ports:
        async with Redis(port=port) as client:

            async def formed(client: Any = client) -> bool:
                text = str(await client.execute_command("CLUSTER", "INFO"))
                return "cluster_state:ok" in text and f"cluster_size:{len(ports)}" in text

            await eventually(formed, "the cluster is formed")


async def test_a_cluster_of_several_shards_is_refused_at_once(tmp_path: Path) -> None:
    async with servers(tmp_path, "--cluster-enabled", "yes", count=3) as ports:
        await _cluster(ports, [(0, 5460), (5461, 10922), (10923, 16383)])
        adapter, begun = open_adapter(f"redis://127.0.0.1:{ports[0]}"), time.monotonic()
        with pytest.raises(ConfigurationError, match="Redis Cluster of 3 shards"):
            await adapter.open()
        assert time.monotonic() - begun < 3
        await adapter.close()


async def test_a_cluster_of_one_shard_is_a_server_like_any(tmp_path: Path) -> None:
    """Keys of one channel share a slot; scripts that touched two would be refused here."""
    async with servers(tmp_path, "--cluster-enabled", "yes") as ports:
        await _cluster(ports, [(0, 16383)])
        async with opened(f"redis://127.0.0.1:{ports[0]}", lease=1, dedupe=60) as adapter:
            here = Source(Queue("orders"))
            await declared(adapter, here)
            assert list(await sent(adapter, here.channel, message(id="now"), message(id="later"))) == [OK, OK]
            assert list(await sent(adapter, here.channel, message(id="delayed"), delay=0.2)) == [OK]
            async with reading(adapter, here) as subscription:
                held = await take(subscription, 3)
                await subscription.settle([(held[0], ACK), (held[1], RELEASE), (held[2], Retry(0.1))])
                again = await take(subscription, 2)
                await subscription.settle([(each, ACK) for each in again])
            assert (await adapter.backlog(here)).waiting == 0
