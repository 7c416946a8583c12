"""Queues that share groups read: each record with a lock of its own, and any number of readers for a partition."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("confluent_kafka", reason="confluent-kafka is not installed")

from kafka_kit import WINDOW, Recorder, eventually, fresh, message, numbers, opened, publish
from kafka_servers import Server, sharing

from atleastonce import CircuitBreaker, FailurePolicy, Queue, RetryChain, Service, Source, connect
from atleastonce.adapters.kafka import KafkaAdapter
from atleastonce.adapters.kafka.share import ShareSubscription
from atleastonce.adapters.kafka.share.groups import DELIVERIES, LIMIT, RESET
from atleastonce.brokers import Unavailable
from atleastonce.contract import ACK, RELEASE, Code, Delivery, Topology, Window
from atleastonce.errors import ConfigurationError
from atleastonce.testing.brokers import required

pytestmark = pytest.mark.timeout(120)

LOCK = 6.0
SHARE = {"share_groups": "true", "share_lock": LOCK}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A broker of this file's own, which takes locks of seconds."""
    try:
        with sharing(tmp_path_factory.mktemp("sharing")) as server:
            yield server
    except Unavailable as missing:
        pytest.fail(str(missing)) if required(["kafka"]) else pytest.skip(str(missing))


@pytest.fixture
def url(server: Server) -> str:
    return f"kafka://{server.address}"


class Reader:
    """One subscription with its adapter and listener."""

    def __init__(self, adapter: KafkaAdapter, subscription: ShareSubscription, listener: Recorder) -> None:
        self.adapter = adapter
        self.subscription = subscription
        self.listener = listener

    async def take(self, count: int, seconds: float = 20.0) -> list[Delivery]:
        taken: list[Delivery] = []
        deadline = time.monotonic() + seconds
        while len(taken) < count:
            left = deadline - time.monotonic()
            assert left > 0, f"{len(taken)} of {count} came"
            taken += await self.subscription.receive(count - len(taken), left)
        return taken

    async def nothing(self, seconds: float) -> None:
        came = await self.subscription.receive(10, seconds)
        assert not came, came

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        outcomes = await self.subscription.settle([(each, ACK) for each in deliveries])
        assert all(outcome.ok for outcome in outcomes), outcomes


@asynccontextmanager
async def reader(url: str, source: Source, *, window: Window = WINDOW, **options: Any) -> AsyncIterator[Reader]:
    async with opened(url, **SHARE, **options) as adapter:
        listener = Recorder()
        subscription = await adapter.subscribe(source, window, listener)
        assert isinstance(subscription, ShareSubscription)
        try:
            yield Reader(adapter, subscription, listener)
        finally:
            await subscription.close()


async def filled(url: str, count: int, *, partitions: int = 1, apart: bool = True) -> Source:
    """A queue that was declared, with ``count`` numbered messages; ``apart``: in record batches of their own."""
    source = Source(fresh(partitions))
    async with opened(url, **SHARE, linger_ms=0 if apart else 200) as adapter:
        await adapter.declare(Topology(sources=(source,)))
        if not apart:
            await publish(adapter, source.channel, [message(b"%d" % n) for n in range(count)])
        else:
            for n in range(count):
                await publish(adapter, source.channel, [message(b"%d" % n)])
    return source


async def left(url: str, source: Source) -> list[int]:
    """What is not done: a last message goes in, and all that comes up to it is taken."""
    async with reader(url, source) as last:
        await publish(last.adapter, source.channel, [message(b"-1")])
        came: list[int] = []
        while -1 not in came:
            batch = await last.take(1)
            came += numbers(batch)
            await last.ack(batch)
        for _ in range(3):  # no order: what is there comes within a few looks
            batch = list(await last.subscription.receive(100, 0.5))
            came += numbers(batch)
            await last.ack(batch)
        came.remove(-1)
        return sorted(came)


async def test_each_message_is_done_once_by_several_readers_of_several_partitions(url: str) -> None:
    source = await filled(url, 300, partitions=3, apart=False)
    async with reader(url, source) as one, reader(url, source) as other:
        done: Counter[int] = Counter()

        async def work(each: Reader) -> None:
            while done.total() < 300:
                batch = list(await each.subscription.receive(20, 0.5))
                await each.ack(batch)
                done.update(numbers(batch))

        async with asyncio.timeout(30):
            await asyncio.gather(work(one), work(other))
    assert done == Counter(range(300))
    assert await left(url, source) == []


async def test_more_readers_than_partitions_hold_messages_at_the_same_time(url: str) -> None:
    source = await filled(url, 12)
    few = Window(4, 1 << 20)
    async with (
        reader(url, source, window=few, share_members=1) as one,
        reader(url, source, window=few, share_members=1) as two,
        reader(url, source, window=few, share_members=1) as three,
    ):
        held = await asyncio.gather(*(each.take(4) for each in (one, two, three)))
        together = sorted(number for batch in held for number in numbers(batch))
        assert together == list(range(12)), "one partition, three readers, all at once"
        for each, batch in zip((one, two, three), held, strict=True):
            await each.ack(batch)
    assert await left(url, source) == []


async def test_what_was_published_before_the_first_reader_came_is_read(url: str) -> None:
    source = await filled(url, 10)
    async with reader(url, source) as first:
        assert sorted(numbers(await first.take(10))) == list(range(10))


async def test_a_group_that_would_begin_with_the_latest_is_not_read(url: str) -> None:
    source = Source(fresh(1))
    async with opened(url) as plain:  # makes the topic, and nothing of the share group
        await plain.declare(Topology(sources=(source,)))
    async with opened(url, **SHARE) as adapter:
        drifts = await adapter.declare(Topology(sources=(source,)), create=False)
        assert {drift.setting: (drift.found, drift.breaks) for drift in drifts}[RESET] == ("latest", True)
        with pytest.raises(ConfigurationError, match=r"share\.auto\.offset\.reset=latest"):
            await adapter.subscribe(source, WINDOW, Recorder())
        await adapter.declare(Topology(sources=(source,)))
        assert not await adapter.declare(Topology(sources=(source,)), create=False)
        await (await adapter.subscribe(source, WINDOW, Recorder())).close()


async def test_what_is_unsettled_when_its_reader_leaves_is_free_at_once_and_counted_once(url: str) -> None:
    source = await filled(url, 10)
    for expected in (1, 2, 3):
        async with reader(url, source) as leaving:
            batch = await leaving.take(10)
            assert [each.count for each in batch] == [expected] * 10
            outcomes = await leaving.subscription.settle([(each, RELEASE) for each in batch[:5]])
            assert all(outcome.ok for outcome in outcomes)
        began = time.monotonic()
    async with reader(url, source) as staying:
        await staying.ack(await staying.take(10))
    assert time.monotonic() - began < LOCK, "it waited for its lock"


async def test_a_released_message_comes_again_here_while_its_lock_lasts(url: str) -> None:
    source = await filled(url, 1)
    async with reader(url, source) as one:
        for _ in range(3):
            batch = await one.take(1)
            assert (await one.subscription.settle([(batch[0], RELEASE)]))[0].ok
        await one.ack(again := await one.take(1))
        assert again[0].count == 1
        late = await one.subscription.settle([(batch[0], ACK)])
        assert late[0].ok, "the first verdict wins"
    assert await left(url, source) == []


async def test_what_takes_longer_than_the_lock_is_stale_and_harms_no_neighbour(url: str) -> None:
    source = await filled(url, 3)
    async with reader(url, source, share_members=1) as slow, reader(url, source) as other:
        batch = await slow.take(3)
        await slow.ack(batch[:1])
        again = await other.take(2)
        assert sorted(numbers(again)) == sorted(numbers(batch[1:]))
        assert all(each.count >= 2 for each in again)
        assert all(each.lost for each in batch[1:])
        outcomes = await slow.subscription.settle([(each, ACK) for each in batch[1:]])
        assert [outcome.fault and outcome.fault.code for outcome in outcomes] == [Code.STALE] * 2
        await publish(slow.adapter, source.channel, [message(b"7")])
        fresh_one = await slow.subscription.receive(1, 2.0) or await other.take(1)
        assert numbers(fresh_one) == [7]
        await other.ack(again)
        holder = slow if fresh_one[0].token in slow.subscription._members else other
        await holder.ack(fresh_one)
    assert await left(url, source) == []


async def test_what_a_killed_process_held_comes_to_another(url: str) -> None:
    source = await filled(url, 10)
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOLDER, url, source.channel.name, stdout=asyncio.subprocess.PIPE
    )
    assert child.stdout is not None
    async with asyncio.timeout(30):
        assert (await child.stdout.readline()).strip() == b"5 done, 5 held"
    child.send_signal(signal.SIGKILL)
    await child.wait()
    async with reader(url, source) as heir:
        came = await heir.take(5, seconds=LOCK + 20)
        await heir.ack(came)
    assert await left(url, source) == [], "what was acknowledged came again, or something was lost"


HOLDER = f"""
import asyncio, sys
from atleastonce import Queue, Source
from atleastonce.adapters import open_adapter
from atleastonce.contract import ACK, Window

class Ear:
    async def drain(self, streams, grace): ...
    def lost(self, streams): ...
    def condition(self, state, detail): ...

async def main():
    adapter = open_adapter(sys.argv[1], {{"share.groups": "true", "share.lock": {LOCK}}})
    await adapter.open()
    subscription = await adapter.subscribe(Source(Queue(sys.argv[2])), Window(100, 1 << 20), Ear())
    held = []
    while len(held) < 10:
        held += await subscription.receive(10, 1.0)
    outcomes = await subscription.settle([(each, ACK) for each in held[:5]])
    assert all(outcome.ok for outcome in outcomes)
    print("5 done, 5 held", flush=True)
    await asyncio.sleep(1000)

asyncio.run(main())
"""


async def test_a_record_batch_larger_than_the_window_is_shared_out_and_nothing_of_it_is_dropped(url: str) -> None:
    """A broker hands out whole record batches. A reader that cannot begin all of one in time gives the rest back, which counts;
    it begins with what has counted most."""
    source = await filled(url, 200, apart=False)
    done: Counter[int] = Counter()
    counts: Counter[int] = Counter()

    async def work(each: Reader) -> None:
        while len(done) < 200:
            batch = list(await each.subscription.receive(2, 0.5))
            await asyncio.sleep(0.1)  # work: far too slow for all of it within one lock
            outcomes = await each.subscription.settle([(one, ACK) for one in batch])
            done.update(int(one.message.body) for one, outcome in zip(batch, outcomes, strict=True) if outcome.ok)
            counts.update(one.count for one in batch)

    few = Window(2, 1 << 20)
    async with reader(url, source, window=few) as one, reader(url, source, window=few) as other:
        async with asyncio.timeout(60):
            await asyncio.gather(work(one), work(other))
    assert done == Counter(range(200))
    assert 1 < max(counts) < DELIVERIES - 2, counts
    assert await left(url, source) == []


async def test_readers_that_do_not_receive_do_not_use_up_deliveries(url: str) -> None:
    """Each hand-out counts. Were all processes of a service busy, records would go from one to the next until they are dropped."""
    source = await filled(url, 0)
    async with reader(url, source) as one, reader(url, source) as two, reader(url, source) as three:
        for each in (one, two, three):
            await each.nothing(1.0)  # twelve members have asked
        await publish(one.adapter, source.channel, [message(b"%d" % n) for n in range(5)])
        await asyncio.sleep(LOCK * 3)  # six half locks: nothing but time ends those
    async with reader(url, source) as last:
        batch = await last.take(5)
        # One that leaves at that moment may be handed them once, and so may the next: far from one for each half lock or member.
        assert max(each.count for each in batch) <= 4, [each.count for each in batch]
        await last.ack(batch)
    assert await left(url, source) == []


async def test_a_reader_that_was_paused_for_longer_than_a_lock_hands_out_with_whole_locks(url: str) -> None:
    source = await filled(url, 0)
    async with reader(url, source) as one:
        await one.nothing(1.0)
        await one.subscription.pause()
        await publish(one.adapter, source.channel, [message(b"%d" % n) for n in range(5)])
        await asyncio.sleep(LOCK * 1.5)  # the lock of whatever was fetched meanwhile ends: nothing but time does that
        await one.subscription.resume()
        batch = await one.take(5)
        assert all(each.lease_until - time.monotonic() > LOCK / 3 for each in batch)
        await one.ack(batch)
    assert await left(url, source) == []


async def test_a_service_retries_through_retry_topics_and_buries_in_dead_letters(url: str) -> None:
    name = f"t.{uuid.uuid4().hex[:12]}"
    jobs = Queue[dict[str, int]](name, partitions=2)
    service = Service("worker", broker=f"{url}?share.groups=true&share.lock={LOCK}s")
    runs: Counter[int] = Counter()

    @service.consumer(jobs, failure=FailurePolicy(in_place=None, chain=RetryChain("200ms"), timeout="2s"))
    async def handle(job: dict[str, int]) -> None:
        runs[job["n"]] += 1
        if job["n"] < 3 and runs[job["n"]] == 1:
            raise RuntimeError("not yet")
        if job["n"] == 5:
            raise RuntimeError("never")

    async with service, connect(url) as broker:
        outcomes = await broker.publish_many(jobs, [{"n": n} for n in range(20)])
        assert all(outcome.ok for outcome in outcomes)
        await eventually(lambda: len(runs) == 20 and all(runs[n] == 2 for n in (0, 1, 2, 5)), "all are handled", 60)
        dead = Source(jobs).dead_letter_channel

        async def buried() -> int | None:
            return (await service.broker.adapter.backlog(Source(dead))).waiting

        await until(buried, 1)
    assert runs == Counter({n: 2 if n in (0, 1, 2, 5) else 1 for n in range(20)})
    assert await left(url, Source(jobs)) == []


async def until(count: Callable[[], Any], wanted: int, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while (found := await count()) != wanted:
        assert time.monotonic() < deadline, f"{found}, and not {wanted}"
        await asyncio.sleep(0.1)


async def test_what_hangs_again_and_again_is_moved_aside_before_the_broker_throws_it_away(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Locks that end count. What has counted up runs alone, in a channel that a consumer group reads."""
    source = await filled(url, 1)
    async with reader(url, source, share_members=1) as holder:
        for expected in (1, 2):
            (held,) = await holder.take(1)
            assert held.count == expected
            await eventually(lambda held=held: held.lost, "its lock ends")  # type: ignore[misc]
    service = Service("worker", broker=f"{url}?share.groups=true&share.lock={LOCK}s")
    came: list[str] = []

    @service.consumer(Queue[bytes](source.channel.name))
    async def handle(body: bytes) -> None:
        came.append(body.decode())

    async with service:
        await eventually(lambda: came == ["0"], "it runs", 60)
    assert "was handed out 2 times and not settled; it will run alone" in caplog.text
    assert await left(url, source) == []


@pytest.mark.slow
async def test_an_outage_that_outlasts_the_locks_burns_no_attempts(url: str) -> None:
    """What an open circuit holds is handed out again when its lock ends, and again, until it is a suspect: it waits as one."""
    jobs: Queue[int] = Queue(f"t.{uuid.uuid4().hex[:12]}", int)
    service = Service("worker", broker=f"{url}?share.groups=true&share.lock={LOCK}s")
    down, done = True, Counter[int]()
    circuit = CircuitBreaker(failures=5, within="30s", open_for="1s")

    def counted(name: str) -> int:
        return sum(status.counts.get(name, 0) for status in service.status())

    @service.consumer(jobs, failure=FailurePolicy(in_place=None), circuit=circuit, concurrency=1, max_in_flight=50)
    async def handle(n: int) -> None:
        if down:
            raise ConnectionError("away")
        done[n] += 1

    async with service:
        outcomes = await service.broker.publish_many(jobs, list(range(200)))
        assert all(outcome.ok for outcome in outcomes)
        await eventually(lambda: counted("suspected") > 0, "locks have ended often enough", 60)
        await eventually(lambda: counted("released") > 2, "a suspect was the probe, in vain", 60)
        down = False
        await eventually(lambda: len(done) + counted("dead") == 200, "the others are handled", 60)
        assert counted("dead") == 4, "what failed before the circuit opened"


async def test_a_message_that_ends_its_process_becomes_a_dead_letter(url: str) -> None:
    source = await filled(url, 3)
    dead = source.dead_letter_channel
    async with opened(url, **SHARE) as looking:
        for _ in range(10):
            child = await asyncio.create_subprocess_exec(sys.executable, "-c", KILLED, url, source.channel.name)
            async with asyncio.timeout(60):
                if await child.wait() == 0:
                    break
        letters = await looking.browse(dead, 10)
        assert [letter.message.body for letter in letters] == [b"1"]
        assert letters[0].message.headers.get("alo-error-stage") == "crash-loop"
    assert await left(url, source) == []


KILLED = f"""
import asyncio, os, sys
from atleastonce import FailurePolicy, Queue, Service, Source

async def main():
    options = {{"share.groups": "true", "share.lock": {LOCK}, "session.timeout.ms": 6000}}
    service = Service("worker", broker=sys.argv[1], options=options)

    @service.consumer(Queue[bytes](sys.argv[2]), failure=FailurePolicy(crash_limit=1))
    async def handle(body: bytes) -> None:
        if body == b"1":
            os._exit(9)

    async with service:
        dead = Source(Source(Queue(sys.argv[2])).dead_letter_channel)
        for _ in range(400):
            if (await service.broker.adapter.backlog(dead)).waiting == 1:
                return
            await asyncio.sleep(0.1)
    sys.exit(3)

asyncio.run(main())
"""


async def test_settings_that_lose_messages_are_told_or_refused(url: str) -> None:
    source = await filled(url, 0)
    group = source.group_name
    async with opened(url, **SHARE) as adapter:
        await set_config(url, group, LIMIT, "3")
        drifts = await adapter.declare(Topology(sources=(source,)))
        assert [(drift.setting, drift.wanted, drift.found, drift.breaks) for drift in drifts] == [
            (LIMIT, "10", "3", True)
        ]
        with pytest.raises(ConfigurationError, match=r"delivery\.count\.limit=3"):
            await adapter.subscribe(source, WINDOW, Recorder())


async def set_config(url: str, group: str, name: str, value: str) -> None:
    from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

    entry = ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
    admin = AdminClient({"bootstrap.servers": url.removeprefix("kafka://")})
    futures = admin.incremental_alter_configs([ConfigResource(ResourceType.GROUP, group, incremental_configs=[entry])])
    for future in futures.values():
        await asyncio.to_thread(future.result)


async def test_what_waits_is_unknown_and_never_zero(url: str) -> None:
    source = await filled(url, 3)
    async with opened(url, **SHARE) as adapter:
        found = await adapter.backlog(source)
        assert (found.waiting, found.true_waiting, bool(found.detail)) == (None, None, True)
        with pytest.raises(ConfigurationError, match="read by share groups"):
            await adapter.browse(source.channel, 10)


async def test_a_group_that_is_a_consumer_group_already_is_refused_by_name(url: str) -> None:
    source = Source(fresh(1))
    async with opened(url) as plain:
        await plain.declare(Topology(sources=(source,)))
        subscription = await plain.subscribe(source, WINDOW, Recorder())
        await eventually(lambda: bool(subscription._assignment.live), "it is a member")  # type: ignore[attr-defined]
        async with opened(url, **SHARE) as adapter:
            await adapter.declare(Topology(sources=(source,)))
            other = await adapter.subscribe(source, WINDOW, Recorder())
            with pytest.raises(ConfigurationError, match=source.group_name):
                await other.receive(1, 20)
            await other.close()
        await subscription.close()


async def test_a_restart_of_the_broker_loses_nothing_and_undoes_no_acknowledgement(tmp_path: Path) -> None:
    try:
        with sharing(tmp_path) as server:
            await under_a_restart(server)
    except Unavailable as missing:
        pytest.fail(str(missing)) if required(["kafka"]) else pytest.skip(str(missing))


async def under_a_restart(server: Server) -> None:
    url = f"kafka://{server.address}"
    source = await filled(url, 40)
    async with reader(url, source) as one:
        before = await one.take(20)
        await one.ack(before)
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
        await asyncio.to_thread(server.wait)
        after: set[int] = set()
        deadline = time.monotonic() + 60
        while len(after) < 20:
            assert time.monotonic() < deadline, sorted(after)
            batch = list(await one.subscription.receive(20, 1.0))
            outcomes = await one.subscription.settle([(each, ACK) for each in batch])
            after |= {int(each.message.body) for each, outcome in zip(batch, outcomes, strict=True) if outcome.ok}
        assert after == set(range(40)) - set(numbers(before)), "an acknowledgement was undone"
    assert await left(url, source) == []


async def test_a_cluster_without_share_groups_is_told_in_one_line(tmp_path: Path) -> None:
    try:
        with sharing(tmp_path, features=["share.version=0"]) as server:
            source = Source(fresh(1))
            async with opened(f"kafka://{server.address}", **SHARE) as adapter:
                await adapter.declare(Topology(sources=(source,)))
                subscription = await adapter.subscribe(source, WINDOW, Recorder())
                with pytest.raises(ConfigurationError, match=r"share\.version=1") as told:
                    await subscription.receive(1, 20)
                await subscription.close()
                assert "\n" not in str(told.value)
    except Unavailable as missing:
        pytest.fail(str(missing)) if required(["kafka"]) else pytest.skip(str(missing))
