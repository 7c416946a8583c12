"""Reading: nothing is lost with a reply, a connection, a consumer or a trim; and who holds what is told truly."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from redis_kit import PATIENCE, Listening, Proxy, declared, eventually, message, opened, reading, sent, take

from atleastonce import FailurePolicy, Queue, Service
from atleastonce.channels import Source, Topic
from atleastonce.contract import ACK, OK, RELEASE, Code, Retry, Status, Topology, Window
from atleastonce.errors import NotFound, PermissionDenied

Sources = Callable[..., Source]


async def pending(raw: Any, source: Source) -> dict[str, tuple[str, int]]:
    """Id -> consumer and delivery count."""
    rows = await raw.xpending_range(source.channel.name, source.group_name, "-", "+", 1000)
    return {row["message_id"].decode(): (row["consumer"].decode(), row["times_delivered"]) for row in rows}


async def test_waiting_longer_than_any_timeout_of_a_command_is_no_error(redis_url: str, source: Sources) -> None:
    """A socket timeout shorter than the wait of a read ends it, again and again (redis-py's default is five seconds)."""
    async with opened(redis_url, operation_timeout=0.3, connect_timeout=0.3, poll=0.5) as adapter:
        here = source()
        await declared(adapter, here)
        listening = Listening()
        subscription = await adapter.subscribe(here, Window(10, 1 << 20), listening)
        begun = time.monotonic()
        assert list(await subscription.receive(10, 1.6)) == []
        assert time.monotonic() - begun >= 1.5
        assert [state for state, _ in listening.conditions] == ["connected"]
        await subscription.close()


async def test_a_cancelled_command_leaves_its_reply_to_nobody(redis_url: str, source: Sources) -> None:
    """CVE-2023-28858: the next user of the connection got the reply of the cancelled command."""
    async with opened(redis_url) as adapter:
        one, two = source("one"), source("two")
        await declared(adapter, one, two)
        await sent(adapter, one.channel, *(message(id=f"one-{n}") for n in range(40)))
        async with reading(adapter, one) as first, reading(adapter, two) as second:
            held = await take(first, 40)
            for n, delivery in enumerate(held[:30]):
                cancelled = [
                    asyncio.create_task(work)
                    for work in (
                        first.settle([(delivery, ACK)]),
                        sent(adapter, two.channel, message(id=f"two-{n}")),
                        adapter.backlog(one),
                    )
                ]
                for _ in range(n % 5):
                    await asyncio.sleep(0)
                for task in cancelled:
                    task.cancel()
                await asyncio.gather(*cancelled, return_exceptions=True)
                assert list(await sent(adapter, two.channel, message(id=f"after-{n}"))) == [OK]
                backlog = await adapter.backlog(two)
                assert backlog.detail == ""
            assert list(await first.settle([(each, ACK) for each in held[30:]])) == [OK] * 10
            seen: set[str] = set()
            while not {f"after-{n}" for n in range(30)} <= seen:
                got = await take(second, 1)
                seen |= {each.message.id for each in got}
                await second.settle([(each, ACK) for each in got])


async def test_what_was_read_by_a_command_whose_reply_was_lost_comes_at_once_and_uncounted(
    redis_url: str, raw: Any, source: Sources
) -> None:
    """It is pending under our name, and without a second look it would wait for its lease."""
    options = {"poll": 8, "lease": 60, "client_name": f"lost-{uuid.uuid4().hex[:8]}"}
    async with (
        Proxy.before(redis_url) as proxy,
        opened(redis_url) as outside,
        opened(proxy.url, **options) as adapter,
    ):
        here = source()
        await declared(outside, here)
        async with reading(adapter, here) as subscription:
            await sent(outside, here.channel, message(id="seen"))
            (seen,) = await take(subscription, 1)
            receiving = asyncio.create_task(subscription.receive(10, 10.0))

            async def it_waits() -> bool:
                rows = await raw.client_list()
                return any(row["name"] == f"{options['client_name']}-reader" and "b" in row["flags"] for row in rows)

            await eventually(it_waits, "the read waits on the server")
            proxy.deaf = True
            await sent(outside, here.channel, *(message(id=f"lost-{n}") for n in range(3)))

            async def some_are_pending() -> bool:
                return len(await pending(raw, here)) > 1

            await eventually(some_are_pending, "the server has handed them out")
            proxy.cut()
            proxy.deaf = False
            again = list(await asyncio.wait_for(receiving, PATIENCE))
            again += await take(subscription, 3 - len(again), within=5.0)
            assert [each.message.id for each in again] == ["lost-0", "lost-1", "lost-2"]
            assert [each.count for each in again] == [1, 1, 1]
            # What was handed out before is still held under the same lease, over the lost connection.
            outcomes = list(await subscription.settle([(each, ACK) for each in (seen, *again)]))
            if outcomes != [OK] * 4:  # the other connection was cut, too; unknown is repeated
                outcomes = list(await subscription.settle([(each, ACK) for each in (seen, *again)]))
            assert outcomes == [OK] * 4
            assert await pending(raw, here) == {}


async def test_killed_connections_repeat_nothing(redis_url: str, raw: Any, source: Sources) -> None:
    async with opened(redis_url, client_name="killed") as adapter:
        here = source()
        await declared(adapter, here)
        await sent(adapter, here.channel, *(message(id=f"m{n}") for n in range(20)))
        async with reading(adapter, here) as subscription:
            held = await take(subscription, 10)
            for row in await raw.client_list():
                if row["name"].startswith("killed-"):
                    await raw.client_kill_filter(_id=row["id"])
            outcomes = await subscription.settle([(each, ACK) for each in held])
            if not all(outcome.ok for outcome in outcomes):  # the engine's part: unknown is repeated
                outcomes = await subscription.settle([(each, ACK) for each in held])
            assert list(outcomes) == [OK] * 10
            rest = await take(subscription, 10)
            assert [each.message.id for each in rest] == [f"m{n}" for n in range(10, 20)]
            assert {each.count for each in rest} == {1}
            await subscription.settle([(each, ACK) for each in rest])


async def test_the_acknowledgement_of_a_zombie_leaves_the_heirs_message_alone(
    redis_url: str, raw: Any, source: Sources
) -> None:
    """XACK takes it from anybody."""
    async with opened(redis_url, lease=0.3) as holder, opened(redis_url) as heir:
        here = source()
        await declared(holder, here)
        await sent(holder, here.channel, message())
        async with reading(holder, here) as first, reading(heir, here) as second:
            (old,) = await take(first, 1)
            (new,) = await take(second, 1)
            (outcome,) = await first.settle([(old, ACK)])
            assert outcome.fault is not None
            assert outcome.fault.code is Code.STALE
            assert [count for _, count in (await pending(raw, here)).values()] == [2]
            assert new.count == 2
            assert list(await second.settle([(new, ACK)])) == [OK]


async def test_extending_a_lease_does_not_count_as_a_delivery(redis_url: str, raw: Any, source: Sources) -> None:
    async with opened(redis_url, lease=0.6) as adapter:
        here = source()
        await declared(adapter, here)
        await sent(adapter, here.channel, *(message() for _ in range(5)))
        async with reading(adapter, here) as subscription:
            held = await take(subscription, 5)
            for _ in range(4):
                assert list(await subscription.extend(held, 0.6)) == [OK] * 5
            assert {count for _, count in (await pending(raw, here)).values()} == {1}
            await subscription.settle([(each, ACK) for each in held])
            (late,) = await subscription.extend(held[:1], 0.6)
            assert not late.ok


async def test_a_long_lease_is_not_cut_short_by_a_peer_with_a_short_one(redis_url: str, source: Sources) -> None:
    async with opened(redis_url, lease=30) as patient, opened(redis_url, lease=0.2) as hasty:
        here = source()
        await declared(patient, here)
        await sent(patient, here.channel, message())
        async with reading(patient, here) as first, reading(hasty, here) as second:
            (held,) = await take(first, 1)
            assert list(await second.receive(10, 0.8)) == []
            assert list(await first.settle([(held, ACK)])) == [OK]


async def test_a_retry_waits_where_it_is_and_concerns_its_own_group_alone(
    redis_url: str, raw: Any, source: Sources
) -> None:
    topic: Topic[object] = Topic(source().channel.name)
    failing, other = Source(topic, "failing"), Source(topic, "other")
    async with opened(redis_url) as adapter:
        await declared(adapter, failing, other)
        await sent(adapter, topic, message(id="m"))
        async with reading(adapter, failing) as first, reading(adapter, other) as second:
            for count in (1, 2, 3):
                (delivery,) = await take(first, 1)
                assert delivery.count == count
                assert list(await first.settle([(delivery, Retry(0.1))])) == [OK]
            assert await raw.xlen(topic.name) == 1, "a retry made a copy"
            (theirs,) = await take(second, 1)
            assert theirs.count == 1
            await second.settle([(theirs, ACK)])
            assert list(await second.receive(10, 0.3)) == []
            (last,) = await take(first, 1)
            await first.settle([(last, ACK)])


async def test_a_retry_whose_answer_was_lost_is_repeated_and_keeps_its_time(
    redis_url: str, raw: Any, source: Sources
) -> None:
    async with Proxy.before(redis_url) as proxy, opened(proxy.url, operation_timeout=0.5) as adapter:
        here = source()
        await declared(adapter, here)
        await sent(adapter, here.channel, message())
        async with reading(adapter, here) as subscription:
            (delivery,) = await take(subscription, 1)
            proxy.deaf = True
            (outcome,) = await subscription.settle([(delivery, Retry(3600))])
            assert outcome.status is Status.UNKNOWN
            proxy.cut()
            proxy.deaf = False
            assert list(await subscription.settle([(delivery, Retry(3600))])) == [OK]
            assert (await adapter.backlog(here)).delayed == 1


async def test_a_retry_whose_due_time_was_lost_is_due_now(redis_url: str, raw: Any, source: Sources) -> None:
    async with opened(redis_url, lease=1) as adapter:
        here = source()
        await declared(adapter, here)
        await sent(adapter, here.channel, message())
        async with reading(adapter, here) as subscription:
            (delivery,) = await take(subscription, 1)
            await subscription.settle([(delivery, Retry(3600))])
            assert (await adapter.backlog(here)).delayed == 1
            assert await raw.delete(f"{{{here.channel.name}}}:parked:{here.group_name}") == 1
            (again,) = await take(subscription, 1)
            assert again.count == 2
            await subscription.settle([(again, ACK)])


async def test_what_is_given_back_wakes_a_reader_that_waits(redis_url: str, source: Sources) -> None:
    """Nothing in Redis wakes a blocked XREADGROUP for an entry that is pending already."""
    async with opened(redis_url, poll=8, lease=60) as adapter:
        here = source()
        await declared(adapter, here)
        async with reading(adapter, here) as subscription:
            await sent(adapter, here.channel, message())
            (delivery,) = await take(subscription, 1)
            receiving = asyncio.create_task(subscription.receive(10, 10.0))
            await asyncio.sleep(0.2)  # the read waits on the server by now; if not yet, this test shows less
            begun = time.monotonic()
            await subscription.settle([(delivery, RELEASE)])
            (again,) = await asyncio.wait_for(receiving, PATIENCE)
            assert time.monotonic() - begun < 4
            assert again.count == 1, "a release was counted"
            await subscription.settle([(again, ACK)])


async def test_a_queue_keeps_nothing_that_was_acknowledged(redis_url: str, raw: Any, source: Sources) -> None:
    async with opened(redis_url, lease=5) as adapter:
        here = source()
        await declared(adapter, here)
        await sent(adapter, here.channel, *(message() for _ in range(300)))
        async with reading(adapter, here) as subscription:
            held = await take(subscription, 100)
            await subscription.settle([(each, ACK) for each in held[1:]])
            assert await raw.xlen(here.channel.name) == 201
            assert (await adapter.backlog(here)).waiting == 200
            await subscription.settle([(held[0], ACK)])
            assert await raw.xlen(here.channel.name) == 200


async def test_a_topic_is_trimmed_behind_its_slowest_group_and_no_further(
    redis_url: str, raw: Any, source: Sources
) -> None:
    topic: Topic[object] = Topic(source().channel.name)
    fast, slow = Source(topic, "fast"), Source(topic, "slow")
    async with opened(redis_url, lease=0.5) as adapter:
        await declared(adapter, fast, slow)
        await sent(adapter, topic, *(message(id=f"m{n}") for n in range(1000)))
        async with reading(adapter, fast, window=1000) as first:
            await first.settle([(each, ACK) for each in await take(first, 1000)])
            assert list(await first.receive(1, 0.5)) == []  # turns with trims in them
            assert await raw.xlen(topic.name) == 1000
            async with reading(adapter, slow, window=1000) as second:
                held = await take(second, 1000)
                assert [each.message.id for each in held] == [f"m{n}" for n in range(1000)]
                await second.settle([(each, ACK) for each in held])

                async def is_short() -> bool:
                    await second.receive(1, 0.1)
                    return bool(await raw.xlen(topic.name) <= 200)  # whole blocks of about a hundred go at once

                await eventually(is_short, "what all groups have acknowledged is trimmed")


async def test_trimming_tells_ids_apart_that_a_double_cannot(redis_url: str, raw: Any, source: Sources) -> None:
    """Ids of nanoseconds or snowflakes: as numbers, 256 neighbours are one."""
    topic: Topic[object] = Topic(source().channel.name)
    fast, slow = Source(topic, "fast"), Source(topic, "slow")
    base = 1_860_000_000_000_000_000 - 128
    async with opened(redis_url, lease=0.5) as adapter:
        await declared(adapter, fast, slow)
        async with raw.pipeline(transaction=False) as pipeline:
            for number in range(250):
                pipeline.xadd(topic.name, {"body": str(number)}, id=f"{base + number}-0")
            await pipeline.execute()
        async with reading(adapter, slow, window=1) as second:
            bodies = {each.body for each in await take(second, 1)}  # its place is below all others
            async with reading(adapter, fast, window=1000) as first:
                await first.settle([(each, ACK) for each in await take(first, 250)])
                for _ in range(4):
                    assert list(await first.receive(1, 0.3)) == []  # turns with trims in them
            assert len(bodies) == 1
        async with reading(adapter, slow, window=1000) as third:
            bodies |= {each.body for each in await take(third, 250)}
        assert len(bodies) == 250


async def test_an_entry_that_somebody_trimmed_while_it_was_pending_harms_nobody(
    redis_url: str, raw: Any, source: Sources
) -> None:
    """MAXLEN takes pending entries too; a reader then gets them without fields."""
    async with opened(redis_url, lease=0.3) as adapter:
        here = source()
        await declared(adapter, here)
        await sent(adapter, here.channel, *(message(id=f"m{n}") for n in range(4)))
        async with reading(adapter, here) as subscription:
            held = await take(subscription, 4)
            await subscription.settle([(held[0], Retry(0.1)), (held[1], RELEASE)])
            await raw.xtrim(here.channel.name, maxlen=0, approximate=False)
            await sent(adapter, here.channel, message(id="after"))
            (after,) = await take(subscription, 1)
            assert after.message.id == "after"
            await subscription.settle([(after, ACK)])
            assert list(await subscription.receive(10, 0.8)) == []


async def test_a_consumer_leaves_only_what_it_has_not_settled(redis_url: str, raw: Any, source: Sources) -> None:
    """XGROUP DELCONSUMER takes the pending entries of the consumer with it."""
    async with opened(redis_url, lease=0.5) as adapter:
        here = source()
        await declared(adapter, here)
        await sent(adapter, here.channel, message(), message())
        async with reading(adapter, here) as subscription:
            one, two = await take(subscription, 2)
            await subscription.settle([(one, ACK)])
        names = [row["name"] for row in await raw.xinfo_consumers(here.channel.name, here.group_name)]
        assert len(names) == 1, "it holds an entry"
        async with reading(adapter, here) as subscription:
            (again,) = await take(subscription, 1)
            assert (again.message.id, again.count) == (two.message.id, 2)
            await subscription.settle([(again, ACK)])

            async def is_alone() -> bool:
                await subscription.receive(1, 0.1)
                return len(await raw.xinfo_consumers(here.channel.name, here.group_name)) == 1

            await eventually(is_alone, "the consumer that is gone is removed by a peer")
        assert await raw.xinfo_consumers(here.channel.name, here.group_name) == []


async def test_a_group_that_vanishes_is_told_and_made_again_by_a_service(redis_url: str, raw: Any) -> None:
    """FLUSHALL, or a failover to a replica that had not heard of it: NOGROUP for ever, in loops that only log it."""
    here = Source(Queue("redis.flushed"))
    await raw.select(7)
    seen: list[bytes] = []
    service = Service("worker", broker=f"{redis_url}/7")

    @service.consumer(here.channel, failure=FailurePolicy(in_place=None))
    async def handle(body: bytes) -> None:
        seen.append(body)

    async with service:
        await service.broker.publish(here.channel, b"before")

        async def handled() -> bool:
            return b"before" in seen

        await eventually(handled, "it works")
        await raw.flushdb()

        async def back() -> bool:
            return bool(await raw.exists(here.channel.name) == 1)

        await eventually(back, "the stream and its group are there again")
        await service.broker.publish(here.channel, b"after")

        async def again() -> bool:
            return b"after" in seen

        await eventually(again, "it works again")
        assert {status.state for status in service.status()} == {"running"}
    await raw.flushdb()


async def test_a_deleted_stream_ends_a_waiting_read_at_once(redis_url: str, raw: Any, source: Sources) -> None:
    async with opened(redis_url, poll=8, lease=60) as adapter:
        here = source()
        await declared(adapter, here)
        subscription = await adapter.subscribe(here, Window(10, 1 << 20), Listening())
        receiving = asyncio.create_task(subscription.receive(10, 10.0))
        await asyncio.sleep(0.2)  # the read waits by now, or begins after the stream is gone: either way it is told
        await raw.delete(here.channel.name)
        with pytest.raises(NotFound):
            await asyncio.wait_for(receiving, 5)
        await subscription.close()


async def test_entries_that_another_program_gave_back_are_taken(redis_url: str, raw: Any, source: Sources) -> None:
    """XNACK leaves them pending with no consumer at all."""
    if b"xnack" not in await raw.command_list():
        pytest.skip("this server has no XNACK")
    async with opened(redis_url, lease=1) as adapter:
        here = source()
        await declared(adapter, here)
        await sent(adapter, here.channel, message(id="m"))
        ((_, ((id, _),)),) = await raw.xreadgroup(here.group_name, "theirs", {here.channel.name: ">"})
        await raw.execute_command("XNACK", here.channel.name, here.group_name, "FAIL", "IDS", 1, id)
        async with reading(adapter, here) as subscription:
            (delivery,) = await take(subscription, 1)
            assert delivery.message.id == "m"
            await subscription.settle([(delivery, ACK)])


async def test_what_a_raw_consumer_left_behind_is_taken_after_our_lease(
    redis_url: str, raw: Any, source: Sources
) -> None:
    async with opened(redis_url, lease=0.4) as adapter:
        here = source()
        await declared(adapter, here)
        await sent(adapter, here.channel, message(id="m"))
        await raw.xreadgroup(here.group_name, "theirs", {here.channel.name: ">"})
        async with reading(adapter, here) as subscription:
            (delivery,) = await take(subscription, 1)
            assert (delivery.message.id, delivery.count) == ("m", 2)
            await subscription.settle([(delivery, ACK)])


async def test_a_user_who_may_not_read_is_told_so(redis_url: str, raw: Any, source: Sources) -> None:
    here = source()
    await raw.execute_command("ACL", "SETUSER", "writer", "on", ">pw", "~*", "+@all", "-xreadgroup")
    try:
        async with opened(redis_url.replace("redis://", "redis://writer:pw@")) as adapter:
            await declared(adapter, here)
            subscription = await adapter.subscribe(here, Window(10, 1 << 20), Listening())
            with pytest.raises(PermissionDenied, match="xreadgroup"):
                await asyncio.wait_for(subscription.receive(10, 5.0), PATIENCE)
            await subscription.close()
    finally:
        await raw.execute_command("ACL", "DELUSER", "writer")


async def test_declaring_looks_at_what_is_there(redis_url: str, raw: Any, source: Sources) -> None:
    async with opened(redis_url) as adapter:
        taken, fifo = source("taken"), source("fifo", fifo=True)
        await raw.set(taken.channel.name, "text")
        (drift,) = await adapter.declare(Topology(sources=(taken,)))
        assert (drift.setting, drift.found, drift.breaks) == ("type", "string", True)
        (drift,) = await adapter.declare(Topology(sources=(fifo,)))
        assert (drift.setting, drift.breaks) == ("fifo", True)
        await raw.delete(taken.channel.name)


async def test_one_reader_at_a_time_where_that_was_asked_for(redis_url: str, source: Sources) -> None:
    """What one leaves in good order comes in its order before anything new. (Ids of one millisecond do not sort as text: -10 comes
    before -9.)"""
    async with opened(redis_url) as adapter, opened(redis_url) as other:
        here = source(single_active=True)
        await declared(adapter, here)
        messages = [message(id=f"m{n:03}") for n in range(60)]
        await sent(adapter, here.channel, *messages)
        async with reading(adapter, here, window=200) as first, reading(other, here, window=200) as second:
            held = await take(first, 30)
            assert list(await second.receive(10, 0.5)) == []
            await first.settle([(delivery, ACK) for delivery in held[:10]])
            assert list(await second.receive(10, 0.3)) == [], "some of it is still out"
            await first.settle([(delivery, RELEASE) for delivery in reversed(held[10:])])
            await first.close()
            came = []
            while len(came) < 50:
                got = await take(second, 1)
                came += got
                await second.settle([(delivery, ACK) for delivery in got])
            assert [each.message.id for each in came] == [each.id for each in messages[10:]]


async def test_what_a_dead_reader_held_is_taken_when_all_of_its_leases_are_over(
    redis_url: str, source: Sources
) -> None:
    """Regression: a message whose lease was renewed last was overtaken by those behind it, whose leases ended first."""
    async with opened(redis_url, lease=0.6) as adapter, opened(redis_url, lease=30) as other:
        here = source(single_active=True)
        await declared(adapter, here)
        messages = [message(id=f"m{n:03}") for n in range(20)]
        await sent(adapter, here.channel, *messages)
        async with reading(other, here, window=200) as second:
            first = await adapter.subscribe(here, Window(5, 1 << 20), Listening())
            held = await take(first, 5)
            await asyncio.sleep(0.3)  # half of the lease
            await first.extend(held[:1], 0.6)
            begun = time.monotonic()
            came = await take(second, 1)
            assert time.monotonic() - begun > 0.4, "taken while one of them was still held"
            while len(came) < 20:
                came += await take(second, 1)
            ids = [each.message.id for each in came]
            assert ids == [each.id for each in messages]
            await second.settle([(delivery, ACK) for delivery in came])
