"""The Kafka adapter against librdkafka's mock cluster: faults that no real broker gives on request."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterable, Iterator

import pytest

pytest.importorskip("confluent_kafka", reason="confluent-kafka is not installed")

from confluent_kafka import Consumer, Producer, TopicPartition
from kafka_kit import MockCluster, eventually, member, message, numbers, opened, publish

from atleastonce.adapters.kafka.admin import Admin
from atleastonce.adapters.kafka.flow import Flow
from atleastonce.adapters.kafka.handover import Handover
from atleastonce.adapters.kafka.partition import Assignment
from atleastonce.channels import Source
from atleastonce.contract import ACK, RELEASE, STALE, Code, Fault, Outgoing, Reject, Retry, Status, Window
from atleastonce.errors import BrokerUnavailable, Closed

ILLEGAL_GENERATION, UNKNOWN_MEMBER, REBALANCE_IN_PROGRESS = 22, 25, 27
METADATA_TOO_LARGE, COORDINATOR_LOADING, NOT_COORDINATOR = 12, 14, 16
TOO_LARGE, NOT_LEADER, OUT_OF_ORDER = 10, 6, 45


@pytest.fixture
def mock(monkeypatch: pytest.MonkeyPatch) -> Iterator[MockCluster]:
    cluster = MockCluster()

    async def partitions(self: Admin, topics: Iterable[str]) -> dict[str, int | None]:
        return {name: cluster.topics.get(name) for name in topics}

    async def usable(self: Admin, topics: Iterable[str], operation: object) -> dict[str, Fault | None]:
        return {name: None if name in cluster.topics else Fault(Code.NOT_FOUND) for name in topics}

    # The mock cluster has no controller, which the client wants to ask about topics.
    monkeypatch.setattr(Admin, "partitions", partitions)
    monkeypatch.setattr(Admin, "usable", usable)
    yield cluster
    cluster.close()


def committed(mock: MockCluster, source: Source, partition: int = 0) -> TopicPartition:
    """As any other client reads it."""
    consumer = Consumer({"bootstrap.servers": mock.url.removeprefix("kafka://"), "group.id": source.group_name})
    try:
        return consumer.committed([TopicPartition(source.channel.name, partition)], timeout=5)[0]
    finally:
        consumer.close()


async def commits(mock: MockCluster, source: Source, offset: int, seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while (found := (await asyncio.to_thread(committed, mock, source)).offset) != offset:
        assert time.monotonic() < deadline, f"committed is {found}, not {offset}"


# The mock lets a group wait for session.timeout.ms less a second whenever it changes.
FAST = {"commit.interval": 0.05, "session.timeout.ms": 1500, "heartbeat.interval.ms": 100}


# ----------------------------------------------------------------------------------------- commits


@pytest.mark.parametrize(
    "error", [REBALANCE_IN_PROGRESS, COORDINATOR_LOADING, NOT_COORDINATOR, ILLEGAL_GENERATION, UNKNOWN_MEMBER]
)
async def test_a_refused_commit_is_repeated_and_never_ends_the_reading(mock: MockCluster, error: int) -> None:
    source = mock.topic()
    async with member(mock.url, source, **FAST) as reader:
        await publish(reader.adapter, source.channel, [message(b"%d" % n) for n in range(10)])
        first = await reader.take(10)
        mock.fail(MockCluster.OFFSET_COMMIT, error, error)
        await reader.ack(first)
        # With some of these errors the client rejoins its group; the records then come again, and are done again.
        deadline = time.monotonic() + 15
        while (await asyncio.to_thread(committed, mock, source)).offset != 10:
            assert time.monotonic() < deadline
            again = await reader.subscription.receive(20, 0.1)
            await reader.subscription.settle([(each, ACK) for each in again])
        if error not in (COORDINATOR_LOADING, NOT_COORDINATOR):  # those the client repeats by itself
            assert reader.subscription._committer.failed or reader.listener.gone
        assert reader.subscription._owner.is_alive()
        await publish(reader.adapter, source.channel, [message(b"10")])
        while 10 not in (got := numbers(await reader.subscription.receive(20, 1.0))):
            assert time.monotonic() < deadline, got


async def test_metadata_that_this_broker_finds_too_large_is_shortened_and_the_offset_kept(mock: MockCluster) -> None:
    source = mock.topic()
    async with member(mock.url, source, **FAST) as reader:
        await publish(reader.adapter, source.channel, [message(b"%d" % n) for n in range(10)])
        got = await reader.take(10)
        mock.fail(MockCluster.OFFSET_COMMIT, METADATA_TOO_LARGE)
        await reader.ack([got[0], got[4]])
        await commits(mock, source, 1)
        assert reader.subscription._committer._metadata_limit < 4096


async def test_one_refusal_of_many_partitions_shortens_what_is_kept_by_a_half(mock: MockCluster) -> None:
    source = mock.topic(partitions=8)
    async with member(mock.url, source, **FAST) as reader:
        await publish(reader.adapter, source.channel, [message(b"%d" % n, key=b"%d" % n) for n in range(200)])
        got = await reader.take(200)
        mock.fail(MockCluster.OFFSET_COMMIT, METADATA_TOO_LARGE)
        await reader.ack(got[1::2])
        await reader.ack([each for each in got if each.position == 0 and each.token is not None])
        await eventually(lambda: reader.subscription._committer.failed > 1, "several are refused")
        assert reader.subscription._committer._metadata_limit == 2048


async def test_a_last_commit_with_too_much_beside_the_offset_is_made_again(mock: MockCluster) -> None:
    source = mock.topic()
    async with member(mock.url, source, **{**FAST, "commit.interval": 60}) as reader:
        await publish(reader.adapter, source.channel, [message(b"%d" % n) for n in range(10)])
        got = await reader.take(10)
        await reader.ack([got[0], got[4]])
        mock.fail(MockCluster.OFFSET_COMMIT, METADATA_TOO_LARGE)
    assert (await asyncio.to_thread(committed, mock, source)).offset == 1


async def test_a_partition_counts_as_committed_only_when_the_broker_has_said_so(mock: MockCluster) -> None:
    source = mock.topic()
    async with member(mock.url, source, **FAST) as reader:
        await publish(reader.adapter, source.channel, [message(b"0")])
        got = await reader.take(1)
        mock.fail(MockCluster.OFFSET_COMMIT, *[COORDINATOR_LOADING] * 3)
        partition = got[0].token
        await reader.ack(got)
        await eventually(lambda: reader.subscription._committer.failed > 0, "the refusal is noticed")
        await eventually(lambda: (partition.committed or (0, ""))[0] == 1, "it is committed in the end")


async def test_committed_offsets_that_cannot_be_read_at_first_are_asked_for_again(mock: MockCluster) -> None:
    source = mock.topic()
    async with member(mock.url, source, **FAST) as reader:
        await publish(reader.adapter, source.channel, [message(b"%d" % n) for n in range(10)])
        await reader.ack((await reader.take(10))[:7])
    mock.fail(MockCluster.OFFSET_FETCH, COORDINATOR_LOADING, COORDINATOR_LOADING)
    async with member(mock.url, source, **FAST) as reader:
        assert numbers(await reader.take(3)) == [7, 8, 9]


async def test_asking_for_offsets_survives_a_coordinator_that_has_moved(mock: MockCluster) -> None:
    # The client library's admin call for it ends the whole process here: https://github.com/confluentinc/librdkafka/issues/5040
    source = mock.topic()
    async with member(mock.url, source, **FAST) as reader:
        await publish(reader.adapter, source.channel, [message(b"%d" % n) for n in range(10)])
        await reader.ack((await reader.take(10))[:7])
        await commits(mock, source, 7)
        for error in (NOT_COORDINATOR, COORDINATOR_LOADING):
            mock.fail(MockCluster.OFFSET_FETCH, error)
            backlog = await reader.adapter.backlog(source)
            assert (backlog.waiting, backlog.true_waiting) == (3, 3)


@pytest.mark.parametrize("text", ["written by another program", "alo1:AAAABBBB", "mp1:xyz"])
async def test_foreign_and_corrupt_metadata_is_ignored(mock: MockCluster, text: str) -> None:
    source = mock.topic()
    async with opened(mock.url) as adapter:
        await publish(adapter, source.channel, [message(b"%d" % n) for n in range(5)])
    servers = mock.url.removeprefix("kafka://")
    other = Consumer({"bootstrap.servers": servers, "group.id": source.group_name})
    other.commit(offsets=[TopicPartition(source.channel.name, 0, 2, metadata=text)], asynchronous=False)
    other.close()
    async with member(mock.url, source, **FAST) as reader:
        assert numbers(await reader.take(3)) == [2, 3, 4]
        assert reader.subscription._rebalancer.foreign == 1


# ----------------------------------------------------------------------------- leases and verdicts


async def test_what_was_delivered_before_the_membership_was_lost_can_no_longer_be_settled(mock: MockCluster) -> None:
    source = mock.topic()
    async with member(mock.url, source, **FAST) as reader:
        await publish(reader.adapter, source.channel, [message(b"%d" % n) for n in range(3)])
        old = await reader.take(3)
        mock.fail(MockCluster.HEARTBEAT, UNKNOWN_MEMBER)
        await eventually(lambda: bool(reader.listener.gone), "the loss is reported")
        assert reader.listener.gone == [f"{source.channel.name}/0"]
        assert not reader.listener.drained
        assert all(each.lost for each in old)
        assert list(await reader.subscription.settle([(each, ACK) for each in old])) == [STALE] * 3
        assert reader.subscription.stale == 3
        new = await reader.take(3)
        assert numbers(new) == [0, 1, 2]
        assert new[0].epoch > old[0].epoch
        await reader.ack(new)
        await commits(mock, source, 3)


async def test_the_first_verdict_wins_and_released_records_come_again(mock: MockCluster) -> None:
    source = mock.topic()
    async with member(mock.url, source, **FAST) as reader:
        await publish(reader.adapter, source.channel, [message(b"%d" % n) for n in range(4)])
        got = await reader.take(4)
        outcomes = await reader.subscription.settle(
            [(got[0], RELEASE), (got[0], ACK), (got[1], ACK), (got[1], RELEASE)]
        )
        assert all(outcome.ok for outcome in outcomes)
        again = await reader.take(1)
        assert numbers(again) == [0]
        assert again[0] is not got[0]
        await reader.ack([got[0]])  # settled before: answered, and of no effect
        assert reader.subscription._assignment.held() == 3
        await reader.ack([again[0], got[2], got[3]])
        await commits(mock, source, 4)
        assert reader.subscription._assignment.held() == 0
        assert reader.subscription._assignment.held_bytes() == 0


async def test_verdicts_that_kafka_does_not_know_are_refused_and_leave_the_record_open(mock: MockCluster) -> None:
    source = mock.topic()
    async with member(mock.url, source, **FAST) as reader:
        await publish(reader.adapter, source.channel, [message(b"0")])
        (got,) = await reader.take(1)
        for verdict in (Retry(1.0), Reject("no")):
            (outcome,) = await reader.subscription.settle([(got, verdict)])
            assert outcome.status is Status.REJECTED
            assert outcome.fault is not None
            assert outcome.fault.code is Code.INVALID
        await reader.ack([got])


# ------------------------------------------------------------------------------------ backpressure


async def test_a_full_window_pauses_and_the_first_message_after_it_comes_at_once(mock: MockCluster) -> None:
    source = mock.topic()
    async with member(mock.url, source, window=Window(10, 1 << 20)) as reader:
        await publish(reader.adapter, source.channel, [message(b"%d" % n) for n in range(40)])
        for turn in range(4):
            got = await reader.take(10)
            assert numbers(got) == list(range(turn * 10, turn * 10 + 10))
            await eventually(lambda: reader.subscription._flow.paused, "the full window pauses")
            assert reader.subscription._assignment.held() == 10
            await reader.nothing(0.1)
            began = time.monotonic()
            await reader.ack(got)
            if turn < 3:
                await eventually(lambda: bool(reader.subscription._handover), "the next ones come")
                assert time.monotonic() - began < 0.2


async def test_flapping_neither_loses_nor_repeats_nor_reorders(mock: MockCluster) -> None:
    source = mock.topic()
    async with member(mock.url, source, window=Window(50, 1 << 20)) as reader:
        await publish(reader.adapter, source.channel, [message(b"%d" % n) for n in range(2000)])
        got: list[int] = []
        began = time.monotonic()
        while len(got) < 2000:
            batch = await reader.subscription.receive(50, 5.0)
            assert batch
            got += numbers(batch)
            await reader.ack(batch)
            await reader.subscription.pause()
            await asyncio.sleep(0.005)
            await reader.subscription.resume()
        assert got == list(range(2000))
        assert time.monotonic() - began < 10


async def test_a_pause_of_an_earlier_assignment_does_not_silence_the_next(mock: MockCluster) -> None:
    # librdkafka keeps the pause of a partition over unassign and assign, and offers no way to ask for it.
    source = mock.topic()
    async with member(mock.url, source, window=Window(5, 1 << 20), **FAST) as reader:
        await publish(reader.adapter, source.channel, [message(b"%d" % n) for n in range(8)])
        await reader.take(5)
        await eventually(lambda: reader.subscription._flow.paused, "the full window pauses")
        mock.fail(MockCluster.HEARTBEAT, UNKNOWN_MEMBER)
        await eventually(lambda: bool(reader.listener.gone), "the assignment is lost")
        again = await reader.take(5)
        assert numbers(again) == [0, 1, 2, 3, 4]
        await reader.ack(again)
        assert numbers(await reader.take(3)) == [5, 6, 7]


async def test_a_user_pause_holds_back_what_is_buffered_and_survives_a_new_assignment(mock: MockCluster) -> None:
    source = mock.topic()
    async with member(mock.url, source, **FAST) as reader:
        await publish(reader.adapter, source.channel, [message(b"%d" % n) for n in range(4)])
        await reader.take(2)
        await reader.subscription.pause()
        await reader.subscription.pause()
        await eventually(lambda: reader.subscription._flow.paused, "paused in the client")
        await reader.nothing(0.2)
        mock.fail(MockCluster.HEARTBEAT, UNKNOWN_MEMBER)
        await eventually(lambda: bool(reader.listener.gone), "the assignment is lost")
        await reader.owns(1)
        await publish(reader.adapter, source.channel, [message(b"4")])
        await reader.nothing(0.3)
        await reader.subscription.resume()
        assert numbers(await reader.take(5)) == [0, 1, 2, 3, 4]


async def test_polling_never_stops_so_slow_work_costs_no_membership(mock: MockCluster) -> None:
    source = mock.topic()
    options = {**FAST, "max.poll.interval.ms": 1600}
    async with member(mock.url, source, window=Window(2, 1 << 20), **options) as reader:
        await publish(reader.adapter, source.channel, [message(b"%d" % n) for n in range(4)])
        got = await reader.take(2)
        with pytest.raises(AssertionError, match="did not happen"):
            await eventually(lambda: bool(reader.listener.gone), "the membership is lost", seconds=4.0)
        await reader.ack(got)
        assert numbers(await reader.take(2)) == [2, 3]


async def test_the_window_is_also_one_of_bytes(mock: MockCluster) -> None:
    source = mock.topic()
    async with member(mock.url, source, window=Window(1000, 100_000)) as reader:
        await publish(reader.adapter, source.channel, [message(b"x" * 10_000) for _ in range(100)])
        await eventually(lambda: reader.subscription._flow.paused, "the full window pauses")
        held = reader.subscription._assignment
        assert 10 <= held.held() <= 12, (
            held.held_bytes(),
            reader.subscription._flow.room(),
            reader.subscription._flow._mean,
        )
        seen = 0
        while seen < 100:
            batch = await reader.subscription.receive(100, 5.0)
            assert batch
            seen += len(batch)
            await reader.ack(batch)


# --------------------------------------------------------------------------------- a window that is shared


async def test_what_waits_in_one_partition_does_not_hide_what_is_in_the_others(mock: MockCluster) -> None:
    source = mock.topic(partitions=3)
    async with member(mock.url, source, window=Window(60, 1 << 20, shared=True)) as reader:
        await reader.owns(3)
        producer = Producer({"bootstrap.servers": mock.url.removeprefix("kafka://")})
        for n in range(500):
            producer.produce(source.channel.name, b"%d" % n, partition=0)
        producer.flush(10)
        waiting = await reader.take(16)  # its share, at least
        for number in (1, 2):
            producer.produce(source.channel.name, b"%d" % (1000 + number), partition=number)
        producer.flush(10)
        while {1001, 1002} - {int(each.message.body) for each in waiting}:
            got = await reader.subscription.receive(60, 5.0)
            assert got, "the others are not read"
            waiting += got
        assert len(waiting) < 60
        assert not reader.subscription._flow.paused
        # And it goes on once some of its share was used, without losing or repeating any.
        seen: list[int] = []
        while waiting:
            seen += numbers(waiting)
            await reader.ack(waiting)
            waiting = list(await reader.subscription.receive(60, 1.0)) if len(seen) < 502 else []
        assert sorted(seen) == [*range(500), 1001, 1002]
        assert [n for n in seen if n < 1000] == list(range(500))


async def test_a_partition_paused_alone_is_heard_again_after_a_new_assignment(mock: MockCluster) -> None:
    source = mock.topic(partitions=2)
    async with member(mock.url, source, window=Window(20, 1 << 20, shared=True), **FAST) as reader:
        await reader.owns(2)
        producer = Producer({"bootstrap.servers": mock.url.removeprefix("kafka://")})
        for n in range(40):
            producer.produce(source.channel.name, b"%d" % n, partition=0)
        producer.flush(10)
        await eventually(lambda: bool(reader.subscription._flow._satisfied), "the full partition pauses alone")
        mock.fail(MockCluster.HEARTBEAT, UNKNOWN_MEMBER)
        await eventually(lambda: bool(reader.listener.gone), "the assignment is lost")
        await reader.owns(2)
        seen: set[int] = set()
        while len(seen) < 40:
            got = [each for each in await reader.subscription.receive(20, 5.0) if not each.lost]
            assert got
            seen.update(numbers(got))
            await reader.subscription.settle([(each, ACK) for each in got])


async def test_cancelling_receive_loses_nothing(mock: MockCluster) -> None:
    source = mock.topic()
    async with member(mock.url, source, **FAST) as reader:
        for n in range(20):
            waiting = asyncio.create_task(reader.subscription.receive(5, 5.0))
            await asyncio.sleep(0)
            await publish(reader.adapter, source.channel, [message(b"%d" % n)])
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                reader.got += await waiting
        await reader.take(20 - len(reader.got))
        assert numbers(reader.got) == list(range(20))


# -------------------------------------------------------------------------------------- publishing


async def test_a_batch_that_is_too_large_for_the_broker_costs_only_the_message_that_is(mock: MockCluster) -> None:
    source = mock.topic()
    async with opened(mock.url) as adapter:
        mock.fail(MockCluster.PRODUCE, TOO_LARGE)
        batch = [Outgoing(source.channel, message(b"%d" % n)) for n in range(20)]
        assert all(outcome.ok for outcome in await adapter.send(batch))


async def test_a_passing_error_of_the_broker_is_not_seen(mock: MockCluster) -> None:
    source = mock.topic()
    async with opened(mock.url) as adapter:
        mock.fail(MockCluster.PRODUCE, NOT_LEADER, NOT_LEADER)
        await publish(adapter, source.channel, [message(b"0")])


async def test_a_broker_that_is_gone_makes_publishes_unknown_in_time_and_a_later_one_succeeds(
    mock: MockCluster,
) -> None:
    source = mock.topic()
    async with opened(mock.url, **{"delivery.timeout.ms": 2500, "request.timeout": 1.0}) as adapter:
        await publish(adapter, source.channel, [message(b"0")])
        mock.stop()
        began = time.monotonic()
        outcomes = await adapter.send(
            [Outgoing(source.channel, message(b"1")), Outgoing(source.channel, message(b"2"))]
        )
        assert time.monotonic() - began < 5
        assert [outcome.status for outcome in outcomes] == [Status.UNKNOWN] * 2
        assert all(outcome.fault is not None and outcome.fault.retryable for outcome in outcomes)
        mock.start()
        deadline = time.monotonic() + 15
        while not (await adapter.send([Outgoing(source.channel, message(b"3"))]))[0].ok:
            assert time.monotonic() < deadline


async def test_a_producer_that_failed_for_good_is_replaced(mock: MockCluster) -> None:
    source = mock.topic()
    async with opened(mock.url) as adapter:
        await publish(adapter, source.channel, [message(b"0")])
        assert adapter._publisher is not None
        pump = adapter._publisher._pump
        mock.fail(MockCluster.PRODUCE, OUT_OF_ORDER)
        (outcome,) = await adapter.send([Outgoing(source.channel, message(b"1"))])
        assert outcome.status is Status.UNKNOWN
        assert pump is not None
        await eventually(lambda: pump.broken, "the client has given up")
        await publish(adapter, source.channel, [message(b"2")])
        assert adapter._publisher._pump is not pump


async def test_a_full_client_queue_is_backpressure_not_loss(mock: MockCluster) -> None:
    source = mock.topic(partitions=2)
    async with opened(mock.url, **{"queue.buffering.max.messages": 50}) as adapter:
        messages = [message(b"%d" % n, key=b"k%d" % (n % 7)) for n in range(3000)]
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0.001)

        counting = asyncio.create_task(count())
        await publish(adapter, source.channel, messages)
        counting.cancel()
        assert turns > 3, "the loop stood still while the queue was full"
        async with member(mock.url, source, window=Window(5000, 1 << 24)) as reader:
            got = await reader.take(3000)
        by_key: dict[bytes | None, list[int]] = {}
        for delivery, number in zip(got, numbers(got), strict=True):
            by_key.setdefault(delivery.message.key, []).append(number)
        assert sorted(numbers(got)) == list(range(3000))
        assert all(each == sorted(each) for each in by_key.values())


async def test_a_cancelled_send_leaves_the_publisher_usable(mock: MockCluster) -> None:
    source = mock.topic()
    async with opened(mock.url) as adapter:
        sending = asyncio.create_task(adapter.send([Outgoing(source.channel, message(b"0"))]))
        await asyncio.sleep(0)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        await publish(adapter, source.channel, [message(b"1")])


# ------------------------------------------------------------------------------------------- lives


async def test_nobody_answers(mock: MockCluster) -> None:
    mock.stop()
    began = time.monotonic()
    with pytest.raises(BrokerUnavailable, match="does not answer"):
        async with opened(mock.url, **{"request.timeout": 1.0}):
            pass
    assert time.monotonic() - began < 3


async def test_closing_is_not_held_up_by_a_broker_that_is_gone(mock: MockCluster) -> None:
    source = mock.topic()
    async with member(mock.url, source, **FAST) as reader:
        await publish(reader.adapter, source.channel, [message(b"0")])
        got = await reader.take(1)
        mock.stop()
        await eventually(lambda: "disconnected" in reader.listener.conditions, "the loss of all brokers is reported")
        await reader.ack(got)
        began = time.monotonic()
        await reader.subscription.close()
        assert time.monotonic() - began < 11


async def test_a_connection_that_comes_back_is_reported_and_reading_goes_on(mock: MockCluster) -> None:
    source = mock.topic()
    async with member(mock.url, source, **FAST) as reader:
        await publish(reader.adapter, source.channel, [message(b"0")])
        await reader.ack(await reader.take(1))
        mock.stop()
        await eventually(lambda: "disconnected" in reader.listener.conditions, "disconnected")
        mock.start()
        await eventually(lambda: reader.listener.conditions[-1] == "connected", "connected again")
        await publish(reader.adapter, source.channel, [message(b"1")])
        await reader.ack(await reader.take(1))
        await commits(mock, source, 2)


async def test_close_commits_what_is_done_ends_the_thread_and_can_be_repeated(mock: MockCluster) -> None:
    source = mock.topic()
    await asyncio.to_thread(int)  # the loop's own pool, which stays
    threads = threading.active_count()
    async with member(mock.url, source, **{**FAST, "commit.interval": 60}) as reader:
        await publish(reader.adapter, source.channel, [message(b"%d" % n) for n in range(10)])
        got = await reader.take(10)
        await reader.ack([*got[:4], got[6]])
        await reader.subscription.close()
        await reader.subscription.close()
        assert committed(mock, source).offset == 4
        assert list(await reader.subscription.settle([(got[5], ACK)])) == [STALE]
        with pytest.raises(Closed):
            await reader.subscription.receive(1, 0)
    await eventually(lambda: threading.active_count() <= threads, "all threads end")
    async with member(mock.url, source, **FAST) as reader:
        assert numbers(await reader.take(5)) == [4, 5, 7, 8, 9]


async def test_records_deleted_by_retention_are_not_waited_for(mock: MockCluster) -> None:
    source = mock.topic()
    async with member(mock.url, source, **FAST) as reader:
        await publish(reader.adapter, source.channel, [message(b"%d" % n) for n in range(10)])
        await reader.ack((await reader.take(10))[:2])
    mock.delete_records(source.channel.name, 0, 6)
    async with member(mock.url, source, **FAST) as reader:
        got = await reader.take(4)
        assert numbers(got) == [6, 7, 8, 9]
        await reader.ack(got)
        await commits(mock, source, 10)


async def test_an_unfinished_drain_is_cut_off_at_its_limit(mock: MockCluster) -> None:
    source = mock.topic(partitions=2)
    options = {**FAST, "drain": 0.3}
    async with member(mock.url, source, **options) as first:
        producer = Producer({"bootstrap.servers": mock.url.removeprefix("kafka://")})
        for partition in range(2):
            producer.produce(source.channel.name, b"%d" % partition, partition=partition)
        producer.flush()
        got = await first.take(2)

        async def forever(grace: float) -> None:
            await asyncio.sleep(60)

        first.listener.while_draining = forever
        async with member(mock.url, source, **options) as second:
            again = await second.take(1)
            await eventually(lambda: bool(first.listener.gone), "the cut-off is reported")
            old = next(each for each in got if each.message.body == again[0].message.body)
            assert list(await first.subscription.settle([(old, ACK)])) == [STALE]
            await second.ack(again)


async def test_a_resume_wakes_each_broker_by_one_partition() -> None:
    """A seek takes its partition out of the next fetch: of six sought one by one, the one with a record came 100 ms late."""
    mock = MockCluster(brokers=3)
    sought: list[int] = []

    class Watched(Consumer):
        def seek(self, partition: TopicPartition) -> None:
            super().seek(partition)
            sought.append(partition.partition)

    topic = mock.topic(6).channel.name
    consumer = Watched({"bootstrap.servers": mock.url.removeprefix("kafka://"), "group.id": "g"})
    try:
        consumer.assign([TopicPartition(topic, number, 0) for number in range(6)])
        consumer.poll(1.0)
        assignment = Assignment(topic)
        for number in range(6):
            assignment.begin(number, 0)
        flow = Flow(Window(10, 1000), assignment, Handover(asyncio.get_running_loop()))
        flow.stopped = True
        flow.pause(consumer)
        flow.resume(consumer)
        partitions = consumer.list_topics(topic, timeout=5).topics[topic].partitions
        leaders = [partitions[number].leader for number in sought]
        assert len(set(leaders)) > 1
        assert sorted(leaders) == sorted({each.leader for each in partitions.values()})
    finally:
        consumer.close()
        mock.close()
