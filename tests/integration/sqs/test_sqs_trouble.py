"""What goes wrong for other reasons than a bug here: rights, queues that vanish, peers that stall, crashes with much in flight."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from sqs_kit import (
    Guarded,
    Listening,
    Losing,
    declared,
    message,
    opened,
    raw_client,
    raw_url,
    reading,
    sent,
    take,
    until,
)

from atleastonce import FailurePolicy, Service
from atleastonce.adapters import open_adapter
from atleastonce.adapters.sqs import names
from atleastonce.adapters.sqs.records import SQSDelivery
from atleastonce.channels import Queue, Source
from atleastonce.contract import ACK, Code, Reject, Retry, Status, Topology, Window
from atleastonce.errors import BrokerUnavailable, NotFound, PermissionDenied
from atleastonce.testing.brokers import can_kill, killable

MakeQueue = Callable[..., Queue[Any]]


async def test_wrong_credentials_are_denied_at_the_start(guarded: Guarded) -> None:
    for key, secret in (("AKIAIOSFODNN7EXAMPLE", "wrong"), (guarded.user("liar", "sqs:*")[0], "not-its-secret")):
        adapter = open_adapter(guarded.url_of(key, secret))
        with pytest.raises(PermissionDenied) as raised:
            await adapter.open()
        assert secret not in str(raised.value)
        assert "\n" not in str(raised.value)
        await adapter.close()


async def test_the_rights_that_the_docs_name_are_enough_to_publish_and_to_read(guarded: Guarded) -> None:
    """Batches have names of their own among this emulator's rights; AWS has one right for a call and its batch."""
    work = guarded.queue("enough")
    publisher = guarded.login("publisher", "sqs:GetQueueUrl", "sqs:SendMessage*")
    reader_may = ("sqs:GetQueueUrl", "sqs:GetQueueAttributes", "sqs:ReceiveMessage")
    consumer = guarded.login("consumer", *reader_may, "sqs:DeleteMessage*", "sqs:ChangeMessageVisibility*")
    async with opened(publisher) as out, opened(consumer) as into:
        assert out._clients._made["direct"].ready, "who may not list queues is still asked where the service is"
        assert all(outcome.ok for outcome in await sent(out, work, message(), message()))
        async with reading(into, work) as reader:
            first, second = await take(reader, 2)
            outcomes = await reader.settle([(first, ACK), (second, Retry(60.0))])
            assert all(outcome.ok for outcome in outcomes)


async def test_who_may_not_send_is_told_what_is_missing(guarded: Guarded) -> None:
    work = guarded.queue("closed")
    async with opened(guarded.login("mute", "sqs:GetQueueUrl")) as adapter:
        (outcome,) = await sent(adapter, work, message())
        assert outcome.status is Status.REJECTED
        assert outcome.fault is not None
        assert outcome.fault.code is Code.PERMISSION
        assert "SendMessage" in outcome.fault.detail


async def test_who_may_not_receive_ends_with_permission_denied(guarded: Guarded) -> None:
    work = guarded.queue("unread")
    url = guarded.login("blind", "sqs:GetQueueUrl", "sqs:GetQueueAttributes", *SETTLING)
    async with opened(url) as adapter, reading(adapter, work) as reader:
        with pytest.raises(PermissionDenied, match=r"unread.*ReceiveMessage"):
            await reader.receive(1, 10.0)


SETTLING = ("sqs:DeleteMessage*", "sqs:ChangeMessageVisibility*")


@pytest.mark.parametrize("missing", SETTLING)
async def test_who_may_not_settle_is_handed_nothing(guarded: Guarded, missing: str) -> None:
    """It would run the same messages for ever."""
    name = missing[4:-1]
    work = guarded.queue(f"kept-from-{name}")
    rights = ("sqs:GetQueueUrl", "sqs:GetQueueAttributes", "sqs:ReceiveMessage", *(set(SETTLING) - {missing}))
    async with opened(guarded.admin_url) as admin:
        await sent(admin, work, message())
        async with opened(guarded.login(f"no-{name}", *rights)) as adapter:
            with pytest.raises(PermissionDenied, match=f"reading {work.name}.*{name}"):
                await adapter.subscribe(Source(work), Window(10, 1 << 20), Listening())
        async with reading(admin, work) as reader:
            (delivery,) = await take(reader, 1)
            assert delivery.count == 1


@pytest.mark.parametrize(
    ("missing", "said"), [("sqs:DeleteMessage*", "may not ack"), ("sqs:ChangeMessageVisibility*", "may not renew")]
)
async def test_a_service_whose_right_is_taken_away_ends_and_copies_nothing(
    guarded: Guarded, missing: str, said: str
) -> None:
    user = f"revoked-{missing[4:-1]}"
    work: Queue[bytes] = Queue(user)
    suspects = names.queue_name(Source(Source(work).suspects_channel), "")
    rights = (*SETTLING, "sqs:GetQueueUrl", "sqs:GetQueueAttributes", "sqs:ReceiveMessage", "sqs:SendMessage*")
    rights += ("sqs:CreateQueue", "sqs:SetQueueAttributes")
    url = f"{guarded.login(user, *rights)}&lease=2s&wait=1s"
    runs: list[bytes] = []

    async def handle(body: bytes) -> None:
        guarded.allow(user, *(set(rights) - {missing}))
        runs.append(body)
        if said == "may not renew":
            await asyncio.sleep(30)

    service = Service("worker", broker=url)
    service.consumer(work, failure=FailurePolicy(in_place=None))(handle)
    async with opened(guarded.admin_url) as admin:
        await admin.declare(Topology(channels=(work,)))
        await sent(admin, work, message(b"once"))
        with pytest.raises(PermissionDenied, match=said):
            await asyncio.wait_for(service.serve(), 30)
        for _ in range(
            7
        ):  # as a platform starts it again; more often than a message is handed out before it is suspected
            with pytest.raises(PermissionDenied, match=missing[4:-1]):
                await asyncio.wait_for(service.serve(), 30)
        assert runs == [b"once"]
        found = raw_client(guarded.admin_url)
        queue_url = found.get_queue_url(QueueName=suspects)["QueueUrl"]
        counted = found.get_queue_attributes(QueueUrl=queue_url, AttributeNames=["All"])["Attributes"]
        assert counted["ApproximateNumberOfMessages"] == counted["ApproximateNumberOfMessagesNotVisible"] == "0"

        guarded.allow(user, *rights)
        done = asyncio.Event()

        async def again(body: bytes) -> None:
            done.set()

        healed = Service("worker", broker=url)
        healed.consumer(work)(again)
        await healed.start()
        await asyncio.wait_for(done.wait(), 30)
        await healed.stop()


async def test_a_missing_queue_is_named_and_nothing_is_made(sqs_url: str, queue: MakeQueue) -> None:
    work = queue()
    async with opened(sqs_url) as adapter:
        topology = Topology(channels=(work,), sources=(Source(work),), dead_letters=(Source(work).dead_letter_channel,))
        drifts = await adapter.declare(topology, create=False)
        assert {(drift.setting, drift.breaks) for drift in drifts} == {("missing", True)}
        with pytest.raises(NotFound, match=work.name):
            await adapter.subscribe(Source(work), Window(10, 1 << 20), Listening())


async def test_a_queue_that_others_made_is_looked_at_though_it_has_no_dead_letters(
    sqs_url: str, queue: MakeQueue
) -> None:
    """As they are before their first service is checked: no redrive policy, and nothing beneath."""
    work = queue()
    dead = Source(work).dead_letter_channel
    topology = Topology(channels=(work,), sources=(Source(work),), dead_letters=(dead,))
    client = raw_client(sqs_url)
    name = names.queue_name(Source(work), "")
    url = client.create_queue(QueueName=name)["QueueUrl"]
    try:
        async with opened(sqs_url) as adapter:
            drifts = await adapter.declare(topology, create=False)
            assert [(drift.setting, drift.name, drift.found) for drift in drifts] == [
                ("missing", names.queue_name(Source(dead), ""), ""),
                ("MessageRetentionPeriod", name, "345600"),  # SQS' own default
            ]
            found = client.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
            assert "RedrivePolicy" not in found
            assert [drift.setting for drift in await adapter.declare(topology)] == ["MessageRetentionPeriod"]
            found = client.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
            assert names.queue_name(Source(dead), "") in found["RedrivePolicy"]
            await adapter.delete(topology)
    finally:
        if url in client.list_queues(QueueNamePrefix=name).get("QueueUrls", ()):
            client.delete_queue(QueueUrl=url)


async def test_attributes_that_differ_are_a_drift_and_stay(sqs_url: str, queue: MakeQueue) -> None:
    work = queue(options={"sqs": {"DelaySeconds": 0, "VisibilityTimeout": 45}})
    client = raw_client(sqs_url)
    async with opened(sqs_url) as adapter, declared(adapter, work):
        url = raw_url(client, work)
        client.set_queue_attributes(QueueUrl=url, Attributes={"VisibilityTimeout": "7"})
        (drift,) = await adapter.declare(Topology(channels=(work,)))
        assert (drift.setting, drift.wanted, drift.found) == ("VisibilityTimeout", "45", "7")
        found = client.get_queue_attributes(QueueUrl=url, AttributeNames=["VisibilityTimeout"])["Attributes"]
        assert found["VisibilityTimeout"] == "7"
        # The lease asked for with every poll counts, and not the queue's own.
        await sent(adapter, work, message())
        async with reading(adapter, work) as reader:
            (delivery,) = await take(reader, 1)
            assert delivery.lease_until > time.monotonic() + 20


async def test_a_queue_that_keeps_less_takes_less_or_waits_longer_is_a_drift(sqs_url: str, queue: MakeQueue) -> None:
    """Though the code says nothing about it: such a queue loses, refuses or delays what ours would not."""
    work, dead = queue("w"), queue("d")
    wanted = Topology(channels=(work,), dead_letters=(dead,))
    client = raw_client(sqs_url)
    async with opened(sqs_url) as adapter, declared(adapter, work, dead):
        assert list(await adapter.declare(wanted)) == [], "what we have made ourselves is as we want it"
        less = {"MessageRetentionPeriod": "60", "MaximumMessageSize": "2048", "DelaySeconds": "30"}
        for each in (work, dead):
            client.set_queue_attributes(QueueUrl=raw_url(client, each), Attributes=less)
        for create in (True, False):
            drifts = await adapter.declare(wanted, create=create)
            found = {(drift.name, drift.setting): (drift.found, drift.breaks) for drift in drifts}
            assert found == {
                (names.of_queue(each, ""), setting): (value, False)
                for each in (work, dead)
                for setting, value in less.items()
            }
        told: Queue[Any] = Queue(work.name, options={"sqs": dict(less)})
        assert list(await adapter.declare(Topology(channels=(told,)))) == [], "what the code asks for is no drift"
        more = {"MessageRetentionPeriod": "1209600", "MaximumMessageSize": "262144", "DelaySeconds": "0"}
        client.set_queue_attributes(QueueUrl=raw_url(client, work), Attributes=more)
    async with opened(sqs_url, max_message_bytes="64KiB") as adapter, declared(adapter, work):
        assert list(await adapter.declare(Topology(channels=(work,)))) == [], "more is no less"


@pytest.mark.parametrize("verdict", [ACK, Retry(1.0), Reject("no")])
async def test_an_expired_receipt_is_stale_and_takes_nothing_from_who_has_the_message_now(
    verdict: Any, sqs_url: str, queue: MakeQueue
) -> None:
    work = queue()
    dead = Source(work).dead_letter_channel
    async with (
        opened(sqs_url, lease=1) as adapter,
        declared(adapter, work, dead_letters=(dead,)),
        reading(adapter, work, 1) as slow,  # nothing is read ahead: what is read ahead grows old, and counts
        reading(adapter, work) as next_one,
    ):
        await sent(adapter, work, message())
        (late,) = await take(slow, 1)
        (mine,) = await take(next_one, 1)
        assert mine.count == 2
        assert isinstance(late, SQSDelivery)
        (outcome,) = await slow.settle([(late, verdict)])
        assert outcome.fault is not None
        assert outcome.fault.code is Code.STALE
        (outcome,) = await next_one.settle([(mine, ACK)])
        assert outcome.ok


async def test_a_queue_deleted_in_mid_run_ends_its_reader_and_refuses_its_verdicts(
    sqs_url: str, queue: MakeQueue
) -> None:
    work = queue()
    async with opened(sqs_url, wait=2) as adapter, declared(adapter, work), reading(adapter, work) as reader:
        await sent(adapter, work, message())
        (held,) = await take(reader, 1)
        client = raw_client(sqs_url)
        client.delete_queue(QueueUrl=raw_url(client, work))
        with pytest.raises(NotFound, match=work.name):
            await asyncio.wait_for(_until_it_ends(reader), 15)
        (outcome,) = await reader.settle([(held, ACK)])
        assert outcome.fault is not None
        assert outcome.fault.code is Code.NOT_FOUND
        (outcome,) = await sent(adapter, work, message())
        assert outcome.fault is not None
        assert outcome.fault.code is Code.NOT_FOUND


async def test_bytes_that_are_no_text_in_foreign_attributes_are_bytes(sqs_url: str, queue: MakeQueue) -> None:
    work = queue()
    client = raw_client(sqs_url)
    strange = {
        "raw": {"DataType": "Binary", "BinaryValue": b"\xff\xfe\x00"},
        "alo-id": {"DataType": "Binary", "BinaryValue": b"\xff"},
        "alo-headers": {"DataType": "Binary", "BinaryValue": b"\xff"},
        "alo-attempt": {"DataType": "Number", "StringValue": "-3"},
    }
    async with opened(sqs_url) as adapter, declared(adapter, work), reading(adapter, work) as reader:
        client.send_message(QueueUrl=raw_url(client, work), MessageBody="x", MessageAttributes=strange)
        await sent(adapter, work, neighbour := message(b"y"))
        came = {each.body: each for each in await take(reader, 2)}
        assert ("raw", b"\xff\xfe\x00") in came[b"x"].message.headers.items()
        assert came[b"x"].message.id == came[b"x"].raw["MessageId"]
        assert came[b"y"].message.id == neighbour.id
        assert all(outcome.ok for outcome in await reader.settle([(each, ACK) for each in came.values()]))


async def test_one_message_over_the_limit_leaves_its_neighbours_alone(sqs_url: str, queue: MakeQueue) -> None:
    work = queue()
    async with opened(sqs_url) as adapter, declared(adapter, work):
        batch = [message(b"a" * 600_000), message(b"x" * 1_100_000), message(b"b" * 600_000), message(b"c")]
        outcomes = await sent(adapter, work, *batch)
        assert [outcome.ok for outcome in outcomes] == [True, False, True, True]
        assert outcomes[1].fault is not None
        assert outcomes[1].fault.code is Code.TOO_LARGE


async def test_ten_seconds_of_silence_end_nothing_and_lose_nothing(sqs_url: str, queue: MakeQueue) -> None:
    """Connections stay and nothing passes; then everything does."""
    work = queue()
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(Losing(sqs_url))
        adapter = await stack.enter_async_context(opened(proxy.url, send_timeout=30, lease=30))
        await stack.enter_async_context(declared(adapter, work))
        reader = await stack.enter_async_context(reading(adapter, work))
        await sent(adapter, work, message())
        (held,) = await take(reader, 1)
        proxy.flowing.clear()
        running = [
            asyncio.create_task(sent(adapter, work, *[message() for _ in range(20)])),
            asyncio.create_task(reader.settle([(held, ACK)])),
        ]
        done, _ = await asyncio.wait(running, timeout=10.0)
        assert not done
        proxy.flowing.set()
        for outcomes in await asyncio.wait_for(asyncio.gather(*running), 20):
            assert all(outcome.ok for outcome in outcomes)
        came = await take(reader, 20)
        assert len({each.message.id for each in came}) == 20


async def test_a_failing_message_holds_up_its_own_group_alone(sqs_url: str, queue: MakeQueue) -> None:
    work = queue(fifo=True)
    async with opened(sqs_url) as adapter, declared(adapter, work), reading(adapter, work) as reader:
        await sent(adapter, work, *[message(f"{key}{n}".encode(), key=key.encode()) for n in range(3) for key in "ab"])
        first = {each.body[:1]: each for each in await take(reader, 2, most=1) if each.body.endswith(b"0")}
        if b"a" not in first:
            first |= {each.body[:1]: each for each in await take(reader, 1, most=1)}
        (outcome,) = await reader.settle([(first[b"a"], Retry(4.0))])
        assert outcome.ok
        given, seen = time.monotonic(), []
        if b"b" in first:
            seen.append(b"b0")
            await reader.settle([(first[b"b"], ACK)])
        while len(seen) < 6:
            for each in await take(reader, 1, most=1):
                if each.body == b"a0":
                    assert time.monotonic() - given > 3.5
                seen.append(each.body)
                await reader.settle([(each, ACK)])
        assert [body for body in seen if body[:1] == b"a"] == [b"a0", b"a1", b"a2"]
        assert [body for body in seen if body[:1] == b"b"] == [b"b0", b"b1", b"b2"]


HOLDING = """
import asyncio, sys
from atleastonce.adapters import open_adapter
from atleastonce.channels import Queue, Source
from atleastonce.contract import Window

class Deaf:
    def condition(self, state, detail): pass

async def main():
    adapter = open_adapter(sys.argv[1], {"lease": 8})
    await adapter.open()
    subscription = await adapter.subscribe(Source(Queue(sys.argv[2])), Window(20_000, 1 << 30), Deaf())
    held = []
    while len(held) < int(sys.argv[3]):
        held += await subscription.receive(1000, 1.0)
        if len(held) % 1000 < 10 and held:
            await subscription.extend(held[-1000:], 8)
    print("holding", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.chaos
@pytest.mark.slow
async def test_ten_thousand_in_flight_come_again_after_kill_9(sqs_url: str, queue: MakeQueue) -> None:
    work, count = queue(), 10_000
    async with opened(sqs_url) as adapter, declared(adapter, work):
        expected = set()
        for _ in range(count // 2000):
            batch = [message() for _ in range(2000)]
            assert all(outcome.ok for outcome in await sent(adapter, work, *batch))
            expected |= {each.id for each in batch}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", HOLDING, sqs_url, work.name, "6000", stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), 90) == b"holding\n"
        process.send_signal(signal.SIGKILL)
        await process.wait()
        found: set[str] = set()
        async with reading(adapter, work, 2000) as reader:
            deadline = time.monotonic() + 80
            while found != expected:
                assert time.monotonic() < deadline, f"{len(found)} of {count}"
                came = await reader.receive(1000, 1.0)
                found |= {each.message.id for each in came}
                await reader.settle([(each, ACK) for each in came])


@pytest.mark.chaos
async def test_a_restarted_emulator_is_an_empty_one_and_readers_say_so() -> None:
    """It forgets its queues: a reader must end with NotFound, for its service to declare them anew."""
    if not can_kill("sqs"):
        pytest.skip("the service named by ALO_SQS_URL cannot be killed")
    work = Queue[Any]("sqs.restart")
    async with killable("sqs") as broker, opened(broker.url, wait=1) as adapter:
        await adapter.declare(Topology(channels=(work,), sources=(Source(work),)))
        listener = Listening()
        async with reading(adapter, work, listener=listener) as reader:
            receiving = asyncio.create_task(_until_it_ends(reader))
            await broker.kill()
            await until(lambda: "disconnected" in listener.conditions)
            await broker.start()
            with pytest.raises(NotFound):
                await asyncio.wait_for(receiving, 30)
        await adapter.declare(Topology(channels=(work,), sources=(Source(work),)))
        assert (await sent(adapter, work, message()))[0].ok


async def test_who_cannot_be_reached_is_unavailable(unused_tcp_port: int) -> None:
    adapter = open_adapter(f"sqs://127.0.0.1:{unused_tcp_port}?connect_timeout=2s")
    with pytest.raises(BrokerUnavailable):
        await adapter.open()
    await adapter.close()


async def _until_it_ends(reader: Any) -> None:
    while True:
        await reader.receive(1, 5.0)
