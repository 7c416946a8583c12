"""`Transacts` on a real broker: what is published and what is settled, in one step or not at all."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

pytest.importorskip("confluent_kafka", reason="confluent-kafka is not installed")

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from kafka_kit import Member, declared, eventually, fresh, member, message, numbers, opened, publish

from atleastonce.adapters.kafka import KafkaAdapter
from atleastonce.adapters.kafka.transactor import is_member
from atleastonce.channels import Channel, Queue, Source
from atleastonce.contract import STALE, Code, Delivery, Outcome, Outgoing, Status, Topology, Transacts, Window
from atleastonce.errors import ConfigurationError, ConnectionLost

QUICK = {"commit.interval": 0.05, "session.timeout.ms": 6000, "heartbeat.interval.ms": 300}
TOGETHER = Window(1000, 64 << 20, transactional=True)

PROTOCOLS = [
    pytest.param({**QUICK}, id="cooperative"),
    pytest.param({**QUICK, "partition.assignment.strategy": "range"}, id="eager"),
    pytest.param({"commit.interval": 0.05, "group.protocol": "consumer"}, id="kip-848"),
]


@pytest.fixture
async def adapter(kafka_url: str) -> AsyncIterator[KafkaAdapter]:
    async with opened(kafka_url) as made:
        yield made


def copies(deliveries: Sequence[Delivery], to: Channel[Any]) -> list[tuple[Delivery, list[Outgoing]]]:
    """Each with a copy of itself."""
    return [(each, [Outgoing(to, message(each.body))]) for each in deliveries]


async def hand_off(reader: Member, batch: Sequence[tuple[Delivery, list[Outgoing]]]) -> Sequence[Outcome]:
    assert isinstance(reader.subscription, Transacts)
    return await reader.subscription.hand_off(batch)


async def handed(reader: Member, batch: Sequence[tuple[Delivery, list[Outgoing]]]) -> None:
    outcomes = await hand_off(reader, batch)
    assert all(outcome.ok for outcome in outcomes), outcomes


async def committed(adapter: KafkaAdapter, source: Source) -> int:
    assert adapter._admin is not None
    return (await adapter._admin.committed(source.group_name, source.channel.name, 1))[0].offset


async def read(adapter: KafkaAdapter, channel: Queue[Any]) -> list[int]:
    """What a reader of committed messages finds now."""
    return [number async for found in adapter.scan(channel) for number in numbers(found)]


async def test_copies_and_settlements_are_one_step(kafka_url: str, adapter: KafkaAdapter) -> None:
    source, onward = await declared(adapter), await declared(adapter)
    await publish(adapter, source.channel, [message(b"%d" % n) for n in range(10)])
    async with member(kafka_url, source, window=TOGETHER, **QUICK) as reader:
        got = await reader.take(10)
        # What is done ahead of the first one is in the transaction's metadata.
        await handed(reader, copies(got[3:], onward.channel))
        assert await read(adapter, onward.channel) == [3, 4, 5, 6, 7, 8, 9]
        assert await committed(adapter, source) == 0
    async with member(kafka_url, source, window=TOGETHER, **QUICK) as reader:
        got = await reader.take(3)
        assert numbers(got) == [0, 1, 2]
        await reader.nothing(0.2)
        await handed(reader, [(each, []) for each in got])
        assert await committed(adapter, source) == 10
        assert all(outcome.ok for outcome in await hand_off(reader, [(each, []) for each in got]))  # settled before
    assert await read(adapter, onward.channel) == [3, 4, 5, 6, 7, 8, 9]


async def test_marks_of_transactions_are_no_messages_that_wait(kafka_url: str, adapter: KafkaAdapter) -> None:
    source, onward = await declared(adapter), await declared(adapter)
    await publish(adapter, source.channel, [message(b"0")])
    async with member(kafka_url, source, window=TOGETHER, **QUICK) as reader:
        await handed(reader, copies(await reader.take(1), onward.channel))
    async with member(kafka_url, onward, **QUICK) as reader:
        await reader.ack(await reader.take(1))
        deadline = time.monotonic() + 10
        while (await adapter.backlog(onward)).waiting != 0:
            assert time.monotonic() < deadline, await adapter.backlog(onward)
            await reader.nothing(0.05)


async def test_nobody_sees_what_is_not_committed(kafka_url: str, adapter: KafkaAdapter) -> None:
    source, onward = await declared(adapter), await declared(adapter)
    await publish(adapter, source.channel, [message(b"%d" % n) for n in range(5)])
    outcomes: list[Outcome] = []
    async with member(kafka_url, source, window=TOGETHER, **QUICK) as reader:
        got = await reader.take(5)
        assert reader.subscription._transactor is not None
        transactions = reader.subscription._transactor._transactions
        insist = transactions._insist

        def fail(call: Any, deadline: float) -> None:
            """The data is sent, and the broker does not take the offsets."""
            if "send_offsets" in str(call):
                time.sleep(0.3)
                raise KafkaException(KafkaError(KafkaError.ILLEGAL_GENERATION, txn_requires_abort=True))
            insist(call, deadline)

        transactions._insist = fail  # type: ignore[method-assign]
        outcomes += await hand_off(reader, copies(got, onward.channel))
        assert await read(adapter, onward.channel) == []
        transactions._insist = insist  # type: ignore[method-assign]
        await handed(reader, copies(got, onward.channel))
    assert {outcome.status for outcome in outcomes} == {Status.UNKNOWN}
    assert await read(adapter, onward.channel) == [0, 1, 2, 3, 4]


async def test_a_message_too_large_costs_its_neighbours_nothing(kafka_url: str, adapter: KafkaAdapter) -> None:
    # The broker measures whole batches, and refuses all messages of one that is too large.
    source = await declared(adapter)
    onward = Queue[Any](fresh().name, partitions=1, options={"kafka": {"max.message.bytes": 10_000}})
    await adapter.declare(Topology(channels=(onward,)))
    await publish(adapter, source.channel, [message(b"%d" % n) for n in range(20)])
    async with member(kafka_url, source, window=TOGETHER, **QUICK) as reader:
        got = await reader.take(20)
        big = message(b"x" * 20_000)
        batch = [(each, [Outgoing(onward, big if n == 7 else message(b"%d" % n))]) for n, each in enumerate(got)]
        outcomes = await hand_off(reader, batch)
        assert [n for n, outcome in enumerate(outcomes) if not outcome.ok] == [7]
        assert outcomes[7].fault is not None
        assert (outcomes[7].status, outcomes[7].fault.code) == (Status.REJECTED, Code.TOO_LARGE)
        assert await read(adapter, onward) == [n for n in range(20) if n != 7]
        # Nothing of it happened: it may still end another way.
        await handed(reader, [(got[7], [Outgoing(onward, message(b"7"))])])
        # What is refused before any IO is refused alone, too.
        assert await committed(adapter, source) == 20
    assert await read(adapter, onward) == [*(n for n in range(20) if n != 7), 7]


async def test_what_is_refused_before_any_io_is_refused_alone(kafka_url: str, adapter: KafkaAdapter) -> None:
    source, onward = await declared(adapter), await declared(adapter)
    await publish(adapter, source.channel, [message(b"%d" % n) for n in range(4)])
    async with member(kafka_url, source, window=TOGETHER, **QUICK) as reader:
        batch = copies(await reader.take(4), onward.channel)
        batch[1][1].insert(0, Outgoing(fresh(), message(b"x")))
        batch[2][1].append(Outgoing(onward.channel, message(b"x"), delay=5.0))
        outcomes = await hand_off(reader, batch)
    assert [outcome.status for outcome in outcomes] == [Status.OK, Status.REJECTED, Status.REJECTED, Status.OK]
    assert outcomes[1].fault is not None
    assert outcomes[1].fault.code is Code.NOT_FOUND
    assert await read(adapter, onward.channel) == [0, 3]


async def test_a_member_without_a_generation_commits_nothing(kafka_url: str, adapter: KafkaAdapter) -> None:
    """Brokers take transactional offsets without a generation from anybody (seen on 4.3): only we can refuse."""
    source = await declared(adapter)
    stranger = Consumer({"bootstrap.servers": kafka_url.removeprefix("kafka://"), "group.id": source.group_name})
    outside = stranger.consumer_group_metadata()
    assert not is_member(outside)
    await publish(adapter, source.channel, [message(b"0")])
    async with member(kafka_url, source, window=TOGETHER, **QUICK) as reader:
        got = await reader.take(1)
        inside = reader.subscription._consumer
        assert reader.subscription._transactor is not None

        class Outside:
            def consumer_group_metadata(self) -> bytes:
                return outside

        reader.subscription._transactor._consumer = Outside()  # type: ignore[assignment]
        (outcome,) = await hand_off(reader, [(got[0], [])])
        assert outcome.status is Status.UNKNOWN
        reader.subscription._transactor._consumer = inside
        await handed(reader, [(got[0], [])])
    stranger.close()


@pytest.mark.parametrize("options", PROTOCOLS)
async def test_a_rebalance_lets_transactions_end_first(
    kafka_url: str, adapter: KafkaAdapter, options: dict[str, object]
) -> None:
    source = Source(fresh(4))
    onward = await declared(adapter)
    await adapter.declare(Topology(sources=(source,)))
    await publish(adapter, source.channel, [message(b"%d" % n, b"%d" % n) for n in range(200)])
    async with member(kafka_url, source, window=TOGETHER, **options) as first:
        got = await first.take(200)

        async def finish(grace: float) -> None:
            moving = [each for each in got if each.stream in first.listener.drained]
            await handed(first, copies(moving, onward.channel))

        first.listener.while_draining = finish
        async with member(kafka_url, source, window=TOGETHER, **options) as second:
            await second.owns(2)
            left = [each for each in got if each.stream not in first.listener.drained]
            await handed(first, copies(left, onward.channel))
            await second.nothing(0.5)
    assert sorted(await read(adapter, onward.channel)) == list(range(200))


async def alone(adapter: KafkaAdapter, group: str) -> None:
    """Until the group has one member, which has a partition."""
    assert adapter._admin is not None
    deadline = time.monotonic() + 30
    while True:
        answer = await adapter._admin.ask(
            "the group", lambda client, seconds: client.describe_consumer_groups([group], request_timeout=seconds)
        )
        found = [each.assignment.topic_partitions for each in answer[group].members]
        if len(found) == 1 and found[0]:
            return
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.1)


@pytest.mark.parametrize("options", PROTOCOLS[:2])
@pytest.mark.parametrize("sent", ["before the offsets", "after the offsets"])
async def test_a_zombie_is_fenced_by_its_group(
    kafka_url: str, adapter: KafkaAdapter, options: dict[str, object], sent: str
) -> None:
    """It stands still in the middle of a transaction until its partition is another one's, and then goes on."""
    source, onward = await declared(adapter), await declared(adapter)
    await publish(adapter, source.channel, [message(b"%d" % n) for n in range(10)])
    slow = {**options, "max.poll.interval.ms": 6000, "transaction.timeout.ms": 30_000}
    async with member(kafka_url, source, window=TOGETHER, **slow) as zombie:
        got = await zombie.take(10)
        assert zombie.subscription._transactor is not None
        transactions = zombie.subscription._transactor._transactions
        insist, stuck = transactions._insist, asyncio.Event()
        loop, onwards = asyncio.get_running_loop(), asyncio.Event()

        def stand_still(call: Any, deadline: float) -> None:
            mine = "commit_transaction" in str(call) if sent == "after the offsets" else "send_offsets" in str(call)
            if mine and not stuck.is_set():
                loop.call_soon_threadsafe(stuck.set)
                asyncio.run_coroutine_threadsafe(onwards.wait(), loop).result(60)
                time.sleep(0.1)
            insist(call, deadline)

        transactions._insist = stand_still  # type: ignore[method-assign]
        late = asyncio.create_task(hand_off(zombie, copies(got, onward.channel)))
        await stuck.wait()
        async with member(kafka_url, source, window=TOGETHER, **options) as successor:
            if sent == "before the offsets":
                mine = await successor.take(10, seconds=30)
                onwards.set()
                assert all(not outcome.ok for outcome in await late)
            else:
                # Its offsets are in the transaction already, so the successor waits for that to end, and it ends well.
                await alone(adapter, source.group_name)
                onwards.set()
                assert all(outcome.ok for outcome in await late)
                parts = [
                    each.subscription._assignment for each in (zombie, successor)
                ]  # it may come back and be given it
                await eventually(lambda: any(part.live for part in parts), "assigned", 30)
                await successor.nothing(0.3)
                await zombie.nothing(0.3)
                mine = []
            await handed(successor, copies(mine, onward.channel))
    assert await read(adapter, onward.channel) == list(range(10))


async def test_a_transaction_that_timed_out_is_begun_again(kafka_url: str, adapter: KafkaAdapter) -> None:
    source, onward = await declared(adapter), await declared(adapter)
    await publish(adapter, source.channel, [message(b"%d" % n) for n in range(5)])
    options = {**QUICK, "transaction.timeout.ms": 1000}
    async with member(kafka_url, source, window=TOGETHER, **options) as reader:
        got = await reader.take(5)
        assert reader.subscription._transactor is not None
        transactions = reader.subscription._transactor._transactions
        insist, times = transactions._insist, 0

        def stand_still(call: Any, deadline: float) -> None:
            nonlocal times
            if "send_offsets" in str(call) and not times:
                times += 1
                time.sleep(12)  # the broker looks every ten seconds for transactions that are over
            insist(call, deadline + 20)

        transactions._insist = stand_still  # type: ignore[method-assign]
        outcomes = await hand_off(reader, copies(got, onward.channel))
        if not all(outcome.ok for outcome in outcomes):
            await handed(reader, copies(got, onward.channel))
        assert times == 1
    assert await read(adapter, onward.channel) == [0, 1, 2, 3, 4]


def lose_the_end(reader: Member, *, committed: bool) -> None:
    """The next transaction is committed, or left open, and no answer comes: as when the process dies, or nobody is there to give
    the answer for longer than anybody waits."""
    assert reader.subscription._transactor is not None
    transactions = reader.subscription._transactor._transactions
    insist = transactions._insist

    def lose(call: Any, deadline: float) -> None:
        if "commit_transaction" not in str(call):
            insist(call, deadline)
            return
        if committed:
            insist(call, deadline)
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT))

    transactions._insist = lose  # type: ignore[method-assign]


async def test_after_an_end_that_is_not_known_the_committed_offsets_decide(
    kafka_url: str, adapter: KafkaAdapter
) -> None:
    source, onward = await declared(adapter), await declared(adapter)
    await publish(adapter, source.channel, [message(b"%d" % n) for n in range(5)])
    async with member(kafka_url, source, window=TOGETHER, **QUICK) as reader:
        got = await reader.take(5)
        lose_the_end(reader, committed=True)
        late = asyncio.create_task(hand_off(reader, copies(got, onward.channel)))
        with pytest.raises(ConnectionLost, match="not known"):
            await reader.subscription.receive(1, 10)
        assert all(outcome.status is Status.UNKNOWN for outcome in await late)
    assert await committed(adapter, source) == 5, "the last commit of the dying reader must not take it back"
    async with member(kafka_url, source, window=TOGETHER, **QUICK) as reader:
        await reader.nothing(1.0)
    assert await read(adapter, onward.channel) == [0, 1, 2, 3, 4]


async def test_what_a_named_member_left_open_ends_when_it_comes_back(kafka_url: str, adapter: KafkaAdapter) -> None:
    """A static member is back at once; its transaction must not hold it up until that times out."""
    source, onward = await declared(adapter), await declared(adapter)
    await publish(adapter, source.channel, [message(b"%d" % n) for n in range(3)])
    options = {**QUICK, "group.instance.id": "one", "transaction.timeout.ms": 60_000}
    async with member(kafka_url, source, window=TOGETHER, **options) as reader:
        got = await reader.take(3)
        lose_the_end(reader, committed=False)
        await hand_off(reader, copies(got, onward.channel))
    began = time.monotonic()
    async with member(kafka_url, source, window=TOGETHER, **options) as reader:
        got = await reader.take(3, seconds=30)
        await handed(reader, copies(got, onward.channel))
    assert time.monotonic() - began < 20
    assert await read(adapter, onward.channel) == [0, 1, 2]


async def test_readers_see_what_is_committed_unless_they_ask_for_more(kafka_url: str, adapter: KafkaAdapter) -> None:
    source = await declared(adapter)
    options = {"bootstrap.servers": kafka_url.removeprefix("kafka://"), "transactional.id": fresh().name}
    producer = Producer(options)

    def begin() -> None:
        producer.init_transactions(20)
        producer.begin_transaction()
        producer.produce(source.channel.name, b"0")
        assert producer.flush(10) == 0

    await asyncio.to_thread(begin)
    async with member(kafka_url, source, **QUICK) as reader:
        await reader.owns(1)
        await reader.nothing(0.5)
    async with member(kafka_url, source, **QUICK, **{"isolation.level": "read_uncommitted"}) as reader:
        assert numbers(await reader.take(1)) == [0]  # and does not settle it
    await asyncio.to_thread(producer.commit_transaction, 20)
    async with member(kafka_url, source, **QUICK) as reader:
        assert numbers(await reader.take(1)) == [0]


async def test_reading_the_uncommitted_and_transactions_exclude_each_other(
    kafka_url: str, adapter: KafkaAdapter
) -> None:
    source = await declared(adapter)
    with pytest.raises(ConfigurationError, match=r"isolation\.level"):
        async with member(kafka_url, source, window=TOGETHER, **{"isolation.level": "read_uncommitted"}):
            pass


async def test_a_lost_delivery_is_stale(kafka_url: str, adapter: KafkaAdapter) -> None:
    source = await declared(adapter)
    await publish(adapter, source.channel, [message(b"0")])
    async with member(kafka_url, source, window=TOGETHER, **QUICK) as reader:
        (got,) = await reader.take(1)
    async with member(kafka_url, source, window=TOGETHER, **QUICK) as again:
        assert list(await hand_off(again, [(got, [])])) == [STALE]
        assert got.lost
        await eventually(lambda: len(again.subscription._assignment.live) == 1, "assigned")
