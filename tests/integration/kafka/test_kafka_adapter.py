"""The Kafka adapter against a real broker."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

pytest.importorskip("confluent_kafka", reason="confluent-kafka is not installed")

from confluent_kafka import Consumer, Producer, TopicPartition
from kafka_kit import Member, declared, eventually, fresh, member, message, numbers, opened, publish

from atleastonce.adapters.kafka import KafkaAdapter
from atleastonce.adapters.kafka import producer as producing
from atleastonce.adapters.kafka.records import TOMBSTONE
from atleastonce.channels import Queue, Source, Topic
from atleastonce.contract import (
    ACK,
    STALE,
    Browses,
    Code,
    DelayChannel,
    Deletes,
    Delivery,
    Outgoing,
    Purges,
    Status,
    Topology,
    Window,
)
from atleastonce.errors import ConfigurationError, NotFound
from atleastonce.message import Headers, Message
from atleastonce.testing.brokers import killable

QUICK = {"commit.interval": 0.05, "session.timeout.ms": 6000, "heartbeat.interval.ms": 300}

PROTOCOLS = [
    pytest.param({**QUICK}, id="cooperative"),
    pytest.param({**QUICK, "partition.assignment.strategy": "range"}, id="eager"),
    pytest.param({"commit.interval": 0.05, "group.protocol": "consumer"}, id="kip-848"),
]


@pytest.fixture
async def adapter(kafka_url: str) -> AsyncIterator[KafkaAdapter]:
    async with opened(kafka_url) as made:
        yield made


def servers(url: str) -> str:
    return url.removeprefix("kafka://")


def produce(url: str, topic: str, *records: tuple[int, bytes | None]) -> None:
    """With the client library alone: (partition, value)."""
    producer = Producer({"bootstrap.servers": servers(url)})
    for partition, value in records:
        producer.produce(topic, value, partition=partition)
    assert producer.flush(10) == 0
    producer.close()


async def committed(adapter: KafkaAdapter, source: Source, partitions: int = 1) -> dict[int, int]:
    assert adapter._admin is not None
    found = await adapter._admin.committed(source.group_name, source.channel.name, partitions)
    return {number: each.offset for number, each in found.items()}


async def commits(adapter: KafkaAdapter, source: Source, wanted: dict[int, int]) -> None:
    deadline = time.monotonic() + 15
    while (found := await committed(adapter, source, len(wanted))) != wanted:
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.02)


# ----------------------------------------------------------------------------------------- records


async def test_headers_keep_order_duplicates_nulls_and_bytes(kafka_url: str, adapter: KafkaAdapter) -> None:
    source = await declared(adapter)
    fields = [
        ("a", "1"),
        ("b", None),
        ("a", "2"),
        ("raw", b"\xff\xfe"),
        ("empty", ""),
        ("text", "gr\u00fc\u00dfe"),
        ("alo-id", "me"),
    ]
    await publish(adapter, source.channel, [Message("me", b"\x00\xff", b"\x00key", Headers(fields))])
    async with member(kafka_url, source) as reader:
        (got,) = await reader.take(1)
    assert got.message.id == "me"
    assert got.message.headers.items() == tuple(fields)
    assert (got.message.body, got.message.key) == (b"\x00\xff", b"\x00key")
    assert got.message.published_at == pytest.approx(time.time(), abs=30)
    assert (got.stream, got.position, got.count) == (f"{source.channel.name}/0", 0, 0)


async def test_raw_clients_and_we_read_each_other(kafka_url: str, adapter: KafkaAdapter) -> None:
    source = await declared(adapter)
    producer = Producer({"bootstrap.servers": servers(kafka_url)})
    producer.produce(source.channel.name, b"raw", b"k", headers=[("h", b"v")])
    assert producer.flush(10) == 0
    producer.close()
    await publish(adapter, source.channel, [Message("x", b"ours", b"k", Headers([("alo-id", "x"), ("n", None)]))])
    async with member(kafka_url, source) as reader:
        raw, ours = await reader.take(2)
        assert raw.message.id == f"{source.channel.name}-0-0"
        assert raw.message.headers == Headers([("h", "v")])
        assert ours.message.id == "x"
        assert raw.raw.value() == b"raw"
    consumer = Consumer({"bootstrap.servers": servers(kafka_url), "group.id": "raw"})
    consumer.assign([TopicPartition(source.channel.name, 0, 1)])
    record = await asyncio.to_thread(consumer.poll, 10)
    consumer.close()
    assert record is not None
    assert record.value() == b"ours"
    assert record.headers() == [("alo-id", b"x"), ("n", None)]


async def test_a_tombstone_stays_one_over_a_hop_and_an_empty_body_does_not_become_one(
    kafka_url: str, adapter: KafkaAdapter
) -> None:
    source, onward = await declared(adapter), await declared(adapter)
    await asyncio.to_thread(produce, kafka_url, source.channel.name, (0, None), (0, b""))
    async with member(kafka_url, source) as reader:
        null, empty = await reader.take(2)
        assert (null.message.body, null.message.native) == (b"", TOMBSTONE)
        assert (empty.message.body, empty.message.native) == (b"", None)
        await publish(adapter, onward.channel, [null.message, empty.message])
    async with member(kafka_url, onward) as reader:
        assert [each.raw.value() for each in await reader.take(2)] == [None, b""]


async def test_keys_go_where_the_java_client_sends_them(kafka_url: str, adapter: KafkaAdapter) -> None:
    source = await declared(adapter, partitions=6)
    # From Apache Kafka's own tests of its default partitioner: murmur2 of the key, positive, modulo partitions.
    murmur2 = {b"21": -973932308, b"foobar": -790332482, b"a-little-bit-long-string": -985981536}
    await publish(adapter, source.channel, [message(b"0", key) for key in murmur2])
    async with member(kafka_url, source) as reader:
        for each in await reader.take(3):
            assert each.message.key is not None
            assert each.stream.endswith(f"/{(murmur2[each.message.key] & 0x7FFFFFFF) % 6}")


# -------------------------------------------------------------------------------------- publishing


async def test_a_message_over_our_limit_is_refused_before_any_io_and_the_largest_allowed_goes(
    kafka_url: str, adapter: KafkaAdapter
) -> None:
    source = await declared(adapter)
    most = adapter.capabilities.max_message_bytes
    assert most is not None
    batch = [message(b"0"), message(b"x" * (most + 1)), message(b"1"), Message("y", b"x" * most)]
    outcomes = await adapter.send([Outgoing(source.channel, each) for each in batch])
    assert [outcome.ok for outcome in outcomes] == [True, False, True, True]
    assert outcomes[1].status is Status.REJECTED
    assert outcomes[1].fault is not None
    assert outcomes[1].fault.code is Code.TOO_LARGE
    async with member(kafka_url, source) as reader:
        assert [len(each.message.body) for each in await reader.take(3)] == [1, 1, most]


async def test_a_message_over_the_topics_own_limit_costs_its_neighbours_nothing(
    kafka_url: str, adapter: KafkaAdapter
) -> None:
    # The broker measures whole batches, and refuses all messages of one that is too large.
    queue = Queue(fresh().name, partitions=1, options={"kafka": {"max.message.bytes": 10_000}})
    await adapter.declare(Topology(channels=(queue,)))
    batch = [message(b"x" * (20_000 if n == 7 else 2_000)) for n in range(30)]
    outcomes = await adapter.send([Outgoing(queue, each) for each in batch])
    assert [n for n, outcome in enumerate(outcomes) if not outcome.ok] == [7]
    assert outcomes[7].fault is not None
    assert (outcomes[7].status, outcomes[7].fault.code) == (Status.REJECTED, Code.TOO_LARGE)
    async with member(kafka_url, Source(queue)) as reader:
        got = await reader.take(29)
        await reader.nothing(0.3)
    assert sorted(each.message.id for each in got) == sorted(each.id for n, each in enumerate(batch) if n != 7)


@pytest.mark.parametrize("options", [{}, {"linger_ms": 7}], ids=["at once", "as the user says"])
async def test_what_was_handed_over_leaves_at_once_unless_the_user_says_for_how_long_to_collect(
    kafka_url: str, monkeypatch: pytest.MonkeyPatch, options: dict[str, int]
) -> None:
    """To be flushed is what tells the client that no more will come now."""
    flushed: list[float] = []

    class Watched(Producer):
        def flush(self, timeout: float = -1) -> int:
            flushed.append(timeout)
            return super().flush(timeout)

    monkeypatch.setattr(producing, "Producer", Watched)
    async with opened(kafka_url, **options) as adapter:
        source = await declared(adapter)
        for count in (1, 300, 1):
            outcomes = await adapter.send([Outgoing(source.channel, Message(f"{n}", b"")) for n in range(count)])
            assert all(outcome.ok for outcome in outcomes)
            if options:
                assert not flushed
            else:
                await eventually(lambda: bool(flushed), "flushed")
            flushed.clear()


async def test_a_missing_topic_is_told_within_seconds_and_is_not_created(adapter: KafkaAdapter) -> None:
    here, nowhere = await declared(adapter), fresh()
    began = time.monotonic()
    outcomes = await adapter.send([Outgoing(here.channel, message(b"0")), Outgoing(nowhere, message(b"1"))])
    assert outcomes[0].ok
    assert outcomes[1].status is Status.REJECTED
    assert outcomes[1].fault is not None
    assert outcomes[1].fault.code is Code.NOT_FOUND
    with pytest.raises(NotFound, match=nowhere.name):
        async with member(str(adapter.url).rstrip("/"), Source(nowhere)):
            pass
    assert time.monotonic() - began < 5
    assert adapter._admin is not None
    assert await adapter._admin.partitions([nowhere.name]) == {nowhere.name: None}


async def test_what_kafka_cannot_do_is_refused_for_that_message_alone(adapter: KafkaAdapter) -> None:
    source = await declared(adapter)
    topic = Source(Topic("some.topic"), "group")
    outcomes = await adapter.send(
        [
            Outgoing(source.channel, message(b"0"), delay=5.0),
            Outgoing(topic, message(b"1")),
            Outgoing(source.channel, message(b"2")),
        ]
    )
    assert [outcome.ok for outcome in outcomes] == [False, False, True]


# ----------------------------------------------------------------------- commits and what they keep


async def test_only_the_holes_come_again(kafka_url: str, adapter: KafkaAdapter) -> None:
    source = await declared(adapter)
    await publish(adapter, source.channel, [message(b"%d" % n) for n in range(100)])
    async with member(kafka_url, source, **QUICK) as reader:
        got = await reader.take(100)
        await reader.ack([each for n, each in enumerate(got) if n not in (3, 50, 51)])
        await commits(adapter, source, {0: 3})
        backlog = await adapter.backlog(source)
        assert (backlog.waiting, backlog.true_waiting, backlog.in_flight) == (97, 3, None)
    async with member(kafka_url, source, **QUICK) as reader:
        again = await reader.take(3)
        assert numbers(again) == [3, 50, 51]
        await reader.nothing(0.2)
        await reader.ack([again[1], again[0]])
        await commits(adapter, source, {0: 51})
    async with member(kafka_url, source, **QUICK) as reader:
        assert numbers(await reader.take(1)) == [51]
        await reader.nothing(0.2)


@pytest.mark.parametrize("reset", ["earliest", "latest"])
async def test_a_partition_that_was_empty_loses_nothing_of_what_comes_after_a_restart(
    kafka_url: str, adapter: KafkaAdapter, reset: str
) -> None:
    """One past the end would be out of range at the next start, and with it a reset of the whole partition."""
    source = await declared(adapter)
    options = {**QUICK, "auto.offset.reset": reset}
    for number in range(3):
        async with member(kafka_url, source, **options) as reader:
            await reader.owns(1)
            if reset == "latest":
                await commits(adapter, source, {0: number})
            await publish(adapter, source.channel, [message(b"%d" % number)])
            got = await reader.take(1)
            assert numbers(got) == [number]
            await reader.ack(got)
            await commits(adapter, source, {0: number + 1})
    async with member(kafka_url, source, **options) as reader:
        await reader.owns(1)
        await reader.nothing(0.3)


async def test_every_other_record_done_is_more_than_a_commit_may_say_and_costs_repeats_alone(
    kafka_url: str, adapter: KafkaAdapter
) -> None:
    """The worst pattern for 4096 characters: a bit for each record. What does not fit is left out, highest offsets first."""
    source, total = await declared(adapter), 30_000
    await asyncio.to_thread(produce, kafka_url, source.channel.name, *[(0, b"%d" % n) for n in range(total)])
    window = Window(total, 1 << 26)
    async with member(kafka_url, source, window=window, **QUICK) as reader:
        got = await reader.take(total, seconds=60)
        await reader.ack([each for n, each in enumerate(got) if n % 2])
    told = total - int((await adapter.backlog(source)).true_waiting or 0)
    assert 10_000 < told < total // 2, "of 15 000 that are done"
    async with member(kafka_url, source, window=window, **QUICK) as reader:
        again = numbers(await reader.take(total - told, seconds=60))
        await reader.nothing(0.3)
    assert again == [n for n in range(total) if n % 2 == 0 or n > 2 * told]


CHILD = """
import asyncio, sys
sys.path.insert(0, sys.argv[3])
from kafka_kit import member, numbers
from atleastonce.channels import Queue, Source

async def main() -> None:
    options = {"commit.interval": 0.05, "session.timeout.ms": 6000}
    async with member(sys.argv[1], Source(Queue(sys.argv[2])), **options) as reader:
        got = await reader.take(200)
        done = [each for n, each in enumerate(got) if n % 7 and n < 150]
        for each in reversed(done):
            await reader.ack([each])
        print("acked", flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_nothing_is_lost_when_a_consumer_with_holes_is_killed(kafka_url: str, adapter: KafkaAdapter) -> None:
    source = await declared(adapter)
    await publish(adapter, source.channel, [message(b"%d" % n) for n in range(200)])
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        CHILD,
        kafka_url,
        source.channel.name,
        str(Path(__file__).parent),
        stdout=asyncio.subprocess.PIPE,
    )
    assert child.stdout is not None
    assert await asyncio.wait_for(child.stdout.readline(), 30) == b"acked\n"
    # The hole at 0 holds the offset back; what is done ahead of it is in the metadata.
    deadline = time.monotonic() + 10
    while (await adapter.backlog(source)).true_waiting != 72:
        assert time.monotonic() < deadline, await adapter.backlog(source)
        await asyncio.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    await child.wait()
    async with member(kafka_url, source, **QUICK) as reader:
        got = numbers(await reader.take(72, seconds=20))
        await reader.nothing(0.2)
    assert got == [n for n in range(200) if n % 7 == 0 or n >= 150]


async def test_a_slow_partition_does_not_hold_up_the_commits_of_the_others(
    kafka_url: str, adapter: KafkaAdapter
) -> None:
    source = await declared(adapter, partitions=3)
    await asyncio.to_thread(produce, kafka_url, source.channel.name, *[(n % 3, b"%d" % n) for n in range(30)])
    async with member(kafka_url, source, **QUICK) as reader:
        got = await reader.take(30)
        await reader.ack([each for each in got if not each.stream.endswith("/1")])
        await commits(adapter, source, {0: 10, 1: 0, 2: 10})


async def test_latest_starts_at_the_end_and_remembers_where_that_was(kafka_url: str, adapter: KafkaAdapter) -> None:
    source = await declared(adapter)
    await publish(adapter, source.channel, [message(b"%d" % n) for n in range(5)])
    options = {**QUICK, "auto.offset.reset": "latest"}
    async with member(kafka_url, source, **options) as reader:
        await reader.owns(1)
        await commits(adapter, source, {0: 5})
    await publish(adapter, source.channel, [message(b"5")])
    async with member(kafka_url, source, **options) as reader:
        assert numbers(await reader.take(1)) == [5]


# -------------------------------------------------------------------------------------- rebalances


async def drain_all(reader: Member, held: list[Delivery]) -> None:
    """Let what the reader holds be finished a moment after it was asked to."""

    async def finish(grace: float) -> None:
        await asyncio.sleep(0.2)
        mine = [each for each in held if each.stream in reader.listener.drained]
        await reader.ack(mine)

    reader.listener.while_draining = finish


@pytest.mark.parametrize("options", PROTOCOLS)
async def test_a_partition_moves_without_loss_or_overlap_when_the_drain_fits(
    kafka_url: str, adapter: KafkaAdapter, options: dict[str, object]
) -> None:
    source = await declared(adapter, partitions=4)
    topic = source.channel.name
    await asyncio.to_thread(produce, kafka_url, topic, *[(n % 4, b"%d" % n) for n in range(400)])
    async with member(kafka_url, source, **options) as first:
        held = await first.take(400)
        await drain_all(first, held)
        async with member(kafka_url, source, **options) as second:
            await second.owns(2)
            await first.owns(2)
            moved = {partition.stream for partition in second.subscription._assignment.live.values()}
            assert moved <= set(first.listener.drained)
            await asyncio.to_thread(produce, kafka_url, topic, *[(n % 4, b"%d" % n) for n in range(400, 408)])
            assert sorted(numbers(await second.take(4))) == sorted(
                n for n in range(400, 408) if f"{topic}/{n % 4}" in moved
            )
            if "partition.assignment.strategy" not in options:  # eager members give up everything, and read it anew
                assert not [each for each in held if each.stream not in moved and each.lost]
                await first.ack([each for each in held if each.stream not in moved])
            await second.ack(second.got)
            rest = await first.take(4)
            assert {each.stream for each in rest}.isdisjoint(moved)
            await first.ack(rest)
            await commits(adapter, source, dict.fromkeys(range(4), 102))
        # The second one has left: its partitions come back, and nothing of theirs is repeated.
        await first.owns(4)
        await first.nothing(0.3)


@pytest.mark.parametrize("options", PROTOCOLS)
async def test_what_does_not_finish_in_the_drain_goes_to_the_next_and_cannot_be_settled_here(
    kafka_url: str, adapter: KafkaAdapter, options: dict[str, object]
) -> None:
    source = await declared(adapter, partitions=2)
    await asyncio.to_thread(produce, kafka_url, source.channel.name, (0, b"0"), (1, b"1"))
    async with member(kafka_url, source, **options) as first:
        held = await first.take(2)
        async with member(kafka_url, source, **options) as second:
            await second.owns(1)
            (again,) = await second.take(1)
            old = next(each for each in held if each.stream == again.stream)
            await eventually(lambda: old.stream in first.listener.gone, "the loss is reported")
            assert old.lost
            assert list(await first.subscription.settle([(old, ACK)])) == [STALE]
            await second.ack([again])


async def test_members_that_come_and_go_lose_nothing(kafka_url: str, adapter: KafkaAdapter) -> None:
    source = await declared(adapter, partitions=4)
    total = 3000
    seen: set[int] = set()
    stop = asyncio.Event()

    async def work(reader: Member) -> None:
        while not stop.is_set():
            batch = await reader.subscription.receive(50, 0.05)
            outcomes = await reader.subscription.settle([(each, ACK) for each in reversed(batch)])
            seen.update(int(d.message.body) for d, o in zip(batch, outcomes, strict=True) if o.ok)

    async def visit() -> None:
        async with member(kafka_url, source, **QUICK) as guest:
            working = asyncio.create_task(work(guest))
            await asyncio.sleep(0.4)
            working.cancel()
            await asyncio.wait([working])

    async with member(kafka_url, source, **QUICK) as resident:
        working = asyncio.create_task(work(resident))
        for n in range(0, total, 500):
            await publish(adapter, source.channel, [message(b"%d" % m, b"%d" % m) for m in range(n, n + 500)])
            if n % 1000 == 0:
                await visit()
        await eventually(lambda: len(seen) == total, "all are done", 30)
        stop.set()
        await working
    assert (await adapter.backlog(source)).true_waiting == 0


# ---------------------------------------------------------------------------- backpressure and life


async def test_after_a_pause_the_first_message_comes_at_once(kafka_url: str, adapter: KafkaAdapter) -> None:
    source = await declared(adapter)
    await publish(adapter, source.channel, [message(b"%d" % n) for n in range(60)])
    waits = []
    async with member(kafka_url, source, window=Window(10, 1 << 20)) as reader:
        for _ in range(5):
            got = await reader.take(10)
            await eventually(lambda: reader.subscription._flow.paused, "the full window pauses")
            began = time.monotonic()
            await reader.ack(got)
            await eventually(lambda: bool(reader.subscription._handover), "the next come")
            waits.append(time.monotonic() - began)
    assert max(waits) < 0.2, waits


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
async def test_a_reader_is_told_when_its_topic_is_deleted(kafka_url: str, adapter: KafkaAdapter, protocol: str) -> None:
    source = await declared(adapter)
    async with member(kafka_url, source, **{"group.protocol": protocol}) as reader:
        await reader.owns(1)
        await adapter.delete(Topology(sources=(source,)))
        with pytest.raises(NotFound):
            await reader.subscription.receive(1, 15)


@pytest.mark.chaos
@pytest.mark.timeout(90)
async def test_a_broker_that_restarts_in_the_middle_costs_nothing() -> None:
    async with killable("kafka") as broker, opened(broker.url) as adapter:
        source = await declared(adapter, partitions=2)
        await publish(adapter, source.channel, [message(b"%d" % n, b"%d" % n) for n in range(500)])
        async with member(broker.url, source, **QUICK) as reader:
            seen = set(numbers(await reader.take(100)))
            await broker.kill()
            await reader.ack(reader.got)
            await broker.start()
            deadline = time.monotonic() + 60
            while len(seen) < 500:
                assert time.monotonic() < deadline, len(seen)
                batch = await reader.subscription.receive(100, 1.0)
                seen |= set(numbers(batch))
                await reader.subscription.settle([(each, ACK) for each in batch])
            await publish(adapter, source.channel, [message(b"500")])
            while 500 not in seen:  # what was settled and not committed yet may come again before it
                seen |= set(numbers(await reader.take(1, 30)))


# ---------------------------------------------------------------------------- topology and queries


async def test_retry_topics_have_the_partitions_of_their_source_and_keep_their_messages(adapter: KafkaAdapter) -> None:
    name = fresh().name
    assert adapter._admin is not None
    await adapter.declare(Topology(channels=(Queue(name, partitions=3),)))
    source = Source(Queue(name))  # says nothing itself
    room = DelayChannel(source.retry_channel(10 * 86400), 10 * 86400, source)
    topology = Topology(sources=(source,), delays=(room,), dead_letters=(source.dead_letter_channel,))
    missing = await adapter.declare(topology, create=False)
    assert {(drift.name, drift.setting, drift.breaks) for drift in missing} == {
        (room.channel.name, "missing", True),
        (source.dead_letter_channel.name, "missing", True),
    }
    assert list(await adapter.declare(topology)) == []
    assert list(await adapter.declare(topology)) == []
    assert (await adapter._admin.partitions([room.channel.name]))[room.channel.name] == 3
    configs = await adapter._admin.configs([room.channel.name, source.dead_letter_channel.name])
    assert configs[room.channel.name]["retention.ms"] == str(20 * 86_400_000)
    assert configs[source.dead_letter_channel.name]["retention.ms"] == str(14 * 86_400_000)


async def test_differences_are_reported_and_nothing_is_changed(adapter: KafkaAdapter) -> None:
    queue = Queue(fresh().name, partitions=2, options={"kafka": {"retention.ms": 1000, "compression.type": "lz4"}})
    await adapter.declare(Topology(channels=(queue,)))
    source = Source(Queue("a.source", partitions=4))
    drifts = await adapter.declare(
        Topology(
            channels=(Queue(queue.name, partitions=4, options={"kafka": {"compression.type": "zstd"}}),),
            delays=(DelayChannel(Queue(queue.name), 60.0, source),),
        ),
        create=False,
    )
    found = {drift.setting: drift for drift in drifts if drift.name == queue.name}
    assert (found["partitions"].wanted, found["partitions"].found, found["partitions"].breaks) == ("4", "2", False)
    assert (found["compression.type"].found, found["compression.type"].breaks) == ("lz4", False)
    assert (found["retention.ms"].found, found["retention.ms"].breaks) == ("1000", True)


async def test_a_setting_that_the_broker_refuses_is_a_configuration_error(adapter: KafkaAdapter) -> None:
    with pytest.raises(ConfigurationError, match=r"no\.such\.setting"):
        await adapter.declare(Topology(channels=(Queue(fresh().name, options={"kafka": {"no.such.setting": 1}}),)))


async def test_backlog_is_unknown_with_a_reason_never_zero(adapter: KafkaAdapter) -> None:
    backlog = await adapter.backlog(Source(fresh()))
    assert backlog.waiting is None
    assert "does not exist" in backlog.detail


async def test_the_age_of_the_oldest_that_nobody_has_handled_is_told_to_who_pays_for_it(
    kafka_url: str, adapter: KafkaAdapter
) -> None:
    source = await declared(adapter, partitions=3)
    producer = Producer({"bootstrap.servers": servers(kafka_url)})
    for partition, seconds in ((0, 7200), (0, 100), (1, 3600), (1, 50)):  # and none in the third
        then = int((time.time() - seconds) * 1000)
        producer.produce(source.channel.name, b"%d" % seconds, partition=partition, timestamp=then)
    assert producer.flush(10) == 0
    producer.close()

    async def age() -> float | None:
        for _ in range(10):  # a commit may come between two looks
            cheap, dear = await adapter.backlog(source), await adapter.dated_backlog(source)
            if same := (cheap.waiting, cheap.true_waiting) == (dear.waiting, dear.true_waiting):
                break
        assert same
        assert cheap.oldest_age is None
        assert "costs a read" in cheap.detail
        return dear.oldest_age

    assert await age() == pytest.approx(7200, abs=60)
    async with member(kafka_url, source, **QUICK) as reader:
        got = {int(each.message.body): each for each in await reader.take(4)}
        await reader.ack([got[100]])  # done ahead of an older one
        assert await age() == pytest.approx(7200, abs=60)
        await reader.ack([got[7200]])
        await commits(adapter, source, {0: 2})
        assert await age() == pytest.approx(3600, abs=60)
        await reader.ack([got[3600], got[50]])
        await commits(adapter, source, {0: 2, 1: 2})
    assert await age() is None
    assert (await adapter.dated_backlog(source)).waiting == 0
    assert (await adapter.dated_backlog(Source(fresh()))).waiting is None


async def test_purge_browse_and_delete(kafka_url: str, adapter: KafkaAdapter) -> None:
    assert isinstance(adapter, Purges)
    assert isinstance(adapter, Deletes)
    assert isinstance(adapter, Browses)
    source = await declared(adapter, partitions=2)
    queue = source.channel
    assert isinstance(queue, Queue)
    await asyncio.to_thread(produce, kafka_url, queue.name, *[(n % 2, b"%d" % n) for n in range(10)])
    assert sorted(numbers(await adapter.browse(queue, 100))) == list(range(10))
    assert len(await adapter.browse(queue, 3)) == 3
    async with member(kafka_url, source, **QUICK) as reader:
        await reader.ack([each for each in await reader.take(10) if int(each.message.body) in (0, 1, 5)])
        await reader.subscription.close()
    assert sorted(numbers(await adapter.browse(queue, 100))) == [2, 3, 4, 6, 7, 8, 9]
    assert sorted(numbers(await adapter.browse(Topic(queue.name), 100))) == list(range(10))
    assert await adapter.purge(queue) == 10
    assert (await adapter.backlog(source)).waiting == 0
    await adapter.delete(Topology(sources=(source,)))
    await adapter.delete(Topology(sources=(source,)))
    assert (await adapter.backlog(source)).waiting is None


async def test_of_many_partitions_the_oldest_are_shown(kafka_url: str, adapter: KafkaAdapter) -> None:
    source = await declared(adapter, partitions=3)
    queue = source.channel
    producer = Producer({"bootstrap.servers": servers(kafka_url)})
    then = int(time.time() * 1000) - 10_000_000
    for n in range(900):  # the first third in one partition, the others in turns
        producer.produce(queue.name, b"%d" % n, partition=0 if n < 300 else 1 + n % 2, timestamp=then + n)
    assert producer.flush(10) == 0
    producer.close()
    assert numbers(await adapter.browse(queue, 10)) == list(range(10))
    assert numbers(await adapter.browse(queue, 500)) == list(range(500))
    assert numbers(await adapter.browse(queue, 2000)) == list(range(900))


async def test_for_a_group_is_shown_what_it_has_not_completed(kafka_url: str, adapter: KafkaAdapter) -> None:
    source = Source(Topic(fresh().name, partitions=1), "one")
    topic = source.channel
    await adapter.declare(Topology(sources=(source,)))
    await asyncio.to_thread(produce, kafka_url, topic.name, *[(0, b"%d" % n) for n in range(10)])
    async with member(kafka_url, source, **QUICK) as reader:
        await reader.ack([each for each in await reader.take(10) if int(each.message.body) in (0, 1, 4, 5, 8)])
        await reader.subscription.close()
    assert numbers(await adapter.browse(topic, 100, "one")) == [2, 3, 6, 7, 9]
    assert numbers(await adapter.browse(topic, 3, "one")) == [2, 3, 6]
    assert numbers(await adapter.browse(topic, 100, "another")) == list(range(10))
    assert numbers(await adapter.browse(topic, 100)) == list(range(10))
    async with opened(kafka_url, **{"auto.offset.reset": "latest"}) as late:
        assert numbers(await late.browse(topic, 100, "another")) == []  # as a new reader of that group would


async def test_deleting_a_topics_group_leaves_what_the_group_has_done_elsewhere(
    kafka_url: str, adapter: KafkaAdapter
) -> None:
    group = fresh().name
    kept, removed = Source(Topic(fresh().name, partitions=1), group), Source(Topic(fresh().name, partitions=1), group)
    await adapter.declare(Topology(sources=(kept, removed)))
    for source in (kept, removed):
        await asyncio.to_thread(produce, kafka_url, source.channel.name, *[(0, b"%d" % n) for n in range(5)])
        async with member(kafka_url, source, **QUICK) as reader:
            await reader.ack(await reader.take(5))
    await adapter.delete(Topology(sources=(removed,)))
    assert (await adapter.backlog(kept)).waiting == 0
    await adapter.delete(Topology(channels=(removed.channel,), sources=(removed,)))
    assert (await adapter.backlog(kept)).waiting == 0
    await adapter.delete(Topology(sources=(kept,)))
    assert (await adapter.backlog(kept)).waiting == 5
