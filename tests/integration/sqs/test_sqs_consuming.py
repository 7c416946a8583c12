"""Reading from SQS: polls, leases, FIFO groups, the net, and what is declared."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from sqs_kit import Listening, Losing, declared, message, opened, raw_client, raw_url, reading, sent, take, until

from atleastonce.adapters import open_adapter
from atleastonce.adapters.sqs.records import SQSDelivery
from atleastonce.channels import Queue, Source, Topic
from atleastonce.contract import ACK, RELEASE, Code, Retry, Status, Topology
from atleastonce.errors import BrokerUnavailable, ConfigurationError, NotFound

MakeQueue = Callable[..., Queue[Any]]
MakeTopic = Callable[..., Topic[Any]]


async def test_closing_does_not_wait_for_a_poll_and_loses_nothing_that_it_brings(
    sqs_url: str, queue: MakeQueue
) -> None:
    """A poll of twenty seconds is under way; what is sent meanwhile goes to it, and must not wait for its lease."""
    work = queue()
    async with opened(sqs_url) as adapter, declared(adapter, work):
        leaving = open_adapter(sqs_url, {"wait": 20, "lease": 600})
        await leaving.open()
        subscription = await leaving.subscribe(Source(work), _window(), Listening())
        assert await subscription.receive(10, 1.1) == ()  # who asks for less gets no poll that lasts
        begun = time.monotonic()
        await subscription.close()
        await leaving.close()
        assert time.monotonic() - begun < 1.0
        batch = [message() for _ in range(10)]
        await sent(adapter, work, *batch)
        async with reading(adapter, work) as reader:
            came = await take(reader, 10, within=10.0)
        assert {delivery.message.id for delivery in came} == {each.id for each in batch}


async def test_a_failing_poll_ends_nothing_and_what_is_out_is_still_settled(sqs_url: str, queue: MakeQueue) -> None:
    work = queue()
    listener = Listening()
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(Losing(sqs_url))
        adapter = await stack.enter_async_context(opened(proxy.url))
        await stack.enter_async_context(declared(adapter, work))
        reader = await stack.enter_async_context(reading(adapter, work, listener=listener))
        await sent(adapter, work, message())
        (held,) = await take(reader, 1)
        proxy.down = True
        receiving = asyncio.create_task(reader.receive(1, 30.0))
        await asyncio.sleep(0)
        proxy.cut()
        await until(lambda: "disconnected" in listener.conditions)
        (outcome,) = await reader.settle([(held, ACK)])
        assert outcome.status is Status.UNKNOWN
        proxy.down = False
        await until(lambda: listener.conditions[-1] == "connected")
        (outcome,) = await reader.settle([(held, ACK)])
        assert outcome.ok, "the lease has not ended with the connection"
        await sent(adapter, work, after := message())
        assert [delivery.message.id for delivery in await receiving] == [after.id]


async def test_a_peer_that_never_answers_is_unavailable_in_time(unused_tcp_port: int) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", unused_tcp_port)
    adapter = open_adapter(f"sqs://127.0.0.1:{unused_tcp_port}?connect_timeout=1s")
    begun = time.monotonic()
    with pytest.raises(BrokerUnavailable, match="no answer within"):
        await adapter.open()
    assert time.monotonic() - begun < 5.0
    await adapter.close()
    server.close()


async def test_many_adapters_may_be_opened_at_once(sqs_url: str, queue: MakeQueue) -> None:
    """Making boto3's clients in two threads at once is not safe."""
    adapters = [open_adapter(sqs_url) for _ in range(12)]
    await asyncio.gather(*(adapter.open() for adapter in adapters))
    await asyncio.gather(*(adapter.declare(Topology(channels=(queue(),)), create=False) for adapter in adapters))
    await asyncio.gather(*(adapter.close() for adapter in adapters))


async def test_a_lease_is_extended_twelve_hours_and_no_longer(sqs_url: str, queue: MakeQueue) -> None:
    work = queue()
    async with opened(sqs_url) as adapter, declared(adapter, work), reading(adapter, work) as reader:
        await sent(adapter, work, message())
        (held,) = await take(reader, 1)
        assert isinstance(held, SQSDelivery)
        held.received -= 43_200 - 60  # as if it had been received so long ago
        (outcome,) = await reader.extend([held], 600)
        assert outcome.ok
        assert held.lease_until - time.monotonic() < 61
        held.received -= 60
        (outcome,) = await reader.extend([held], 600)
        assert outcome.fault is not None
        assert outcome.fault.code is Code.STALE
        (outcome,) = await reader.settle([(held, Retry(3600))])
        assert outcome.ok, "the longest delay that is left"


async def test_what_lies_behind_a_retried_message_of_its_group_is_not_handed_out(
    sqs_url: str, queue: MakeQueue
) -> None:
    """One poll brought both; the second is still here when the first is given back."""
    work = queue(fifo=True)
    async with opened(sqs_url) as adapter, declared(adapter, work), reading(adapter, work) as reader:
        batch = [message(key=b"a") for _ in range(3)]
        await sent(adapter, work, *batch)
        (first,) = await take(reader, 1, most=1)
        await reader.settle([(first, RELEASE)])
        came = []
        for _ in batch:
            came += (found := await take(reader, 1, most=1))
            await reader.settle([(found[0], ACK)])
        assert [delivery.message.id for delivery in came] == [each.id for each in batch]


async def test_what_crash_loops_falls_into_the_net(sqs_url: str, queue: MakeQueue) -> None:
    work = queue()
    dead = Source(work).dead_letter_channel
    async with opened(sqs_url, net=3) as adapter, declared(adapter, work, dead_letters=(dead,)):
        await sent(adapter, work, poison := message(b"poison", headers=[("h", "v")]))
        async with reading(adapter, work) as reader:
            for count in (1, 2, 3):
                (delivery,) = await take(reader, 1)
                assert delivery.count == count
                await reader.settle([(delivery, RELEASE)])
            assert await reader.receive(1, 0.5) == ()
        async with reading(adapter, dead) as reader:
            (delivery,) = await take(reader, 1)
            assert (delivery.message.id, delivery.body) == (poison.id, b"poison")
            await reader.settle([(delivery, ACK)])


async def test_a_publisher_that_declared_first_leaves_room_for_the_net(sqs_url: str, queue: MakeQueue) -> None:
    work = queue()
    dead = Source(work).dead_letter_channel
    client = raw_client(sqs_url)
    async with opened(sqs_url) as adapter:
        assert list(await adapter.declare(Topology(channels=(work,)))) == []
        async with declared(adapter, work, dead_letters=(dead,)):
            found = client.get_queue_attributes(QueueUrl=raw_url(client, work), AttributeNames=["All"])["Attributes"]
            assert json.loads(found["RedrivePolicy"])["deadLetterTargetArn"].endswith(
                ":" + dead.name.replace(".", "--")
            )
            assert int(json.loads(found["RedrivePolicy"])["maxReceiveCount"]) == 1000


async def test_a_subscription_that_wraps_messages_is_a_drift(sqs_url: str, topic: MakeTopic) -> None:
    source = Source(topic(), "g")
    sns = raw_client(sqs_url, "sns")
    async with opened(sqs_url) as adapter, declared(adapter, source):
        (arn,) = [
            each["SubscriptionArn"]
            for each in sns.list_subscriptions()["Subscriptions"]
            if each["Endpoint"].endswith(":" + source.name.replace(".", "--"))
        ]
        sns.set_subscription_attributes(SubscriptionArn=arn, AttributeName="RawMessageDelivery", AttributeValue="false")
        (drift,) = await adapter.declare(Topology(sources=(source,)))
        assert (drift.setting, drift.breaks) == ("RawMessageDelivery", True)


async def test_the_queue_of_a_group_lets_its_topic_in_and_nobody_else(sqs_url: str, topic: MakeTopic) -> None:
    source = Source(topic(), "g")
    client = raw_client(sqs_url)
    async with opened(sqs_url) as adapter, declared(adapter, source):
        url = raw_url(client, source)
        policy = json.loads(
            client.get_queue_attributes(QueueUrl=url, AttributeNames=["Policy"])["Attributes"]["Policy"]
        )
        (statement,) = policy["Statement"]
        assert statement["Principal"] == {"Service": "sns.amazonaws.com"}
        assert statement["Condition"]["ArnEquals"]["aws:SourceArn"].endswith(source.channel.name.replace(".", "--"))
        # One that others wrote stays, and ours is added beside it.
        other = {"Sid": "theirs", "Effect": "Allow", "Principal": "*", "Action": "sqs:GetQueueUrl", "Resource": "*"}
        client.set_queue_attributes(QueueUrl=url, Attributes={"Policy": json.dumps({"Statement": [other]})})
        assert list(await adapter.declare(Topology(sources=(source,)))) == []
        policy = json.loads(
            client.get_queue_attributes(QueueUrl=url, AttributeNames=["Policy"])["Attributes"]["Policy"]
        )
        assert [each["Sid"] for each in policy["Statement"]] == ["theirs", statement["Sid"]]


async def test_a_prefix_keeps_environments_apart(sqs_url: str, queue: MakeQueue) -> None:
    work = queue()
    async with opened(sqs_url + "?prefix=staging-") as staging, opened(sqs_url) as other, declared(staging, work):
        assert (await sent(staging, work, message()))[0].ok
        with pytest.raises(NotFound):
            await other.subscribe(Source(work), _window(), Listening())
        async with reading(staging, work) as reader:
            await take(reader, 1)


async def test_names_that_sqs_cannot_have_are_refused_with_what_to_change(sqs_url: str) -> None:
    async with opened(sqs_url) as adapter:
        for name, words in (("a--b", "cannot be kept apart"), ("x" * 90, "at most 80"), ("orders.fifo", "fifo=True")):
            with pytest.raises(ConfigurationError, match=words):
                await adapter.declare(Topology(channels=(Queue(name),)))
            (outcome,) = await sent(adapter, Queue(name), message())
            assert outcome.status is Status.REJECTED


def _window() -> Any:
    from atleastonce.contract import Window

    return Window(10, 1 << 20)


LEAVING = """
import asyncio, sys
from atleastonce.adapters import open_adapter
from atleastonce.channels import Queue, Source
from atleastonce.contract import Window

class Deaf:
    def condition(self, state, detail): pass

async def main():
    adapter = open_adapter(sys.argv[1], {"wait": 20, "lease": 600})
    await adapter.open()
    subscription = await adapter.subscribe(Source(Queue(sys.argv[2])), Window(100, 1 << 20), Deaf())
    assert await subscription.receive(10, 1.5) == ()
    await subscription.close()
    await adapter.close()
    print("closed", flush=True)

asyncio.run(main())
"""


async def test_a_process_that_ends_gives_back_what_its_last_poll_brings(sqs_url: str, queue: MakeQueue) -> None:
    """SQS goes on with a poll whose connection is closed: what it takes would be nobody's for ten minutes here."""
    work = queue()
    async with opened(sqs_url) as adapter, declared(adapter, work):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", LEAVING, sqs_url, work.name, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), 60) == b"closed\n"
        await sent(adapter, work, late := message())
        # Its poll takes it; the process ends then, and not when the poll's twenty seconds are over.
        assert await asyncio.wait_for(process.wait(), 10) == 0
        async with reading(adapter, work) as reader:
            (delivery,) = await take(reader, 1)
            assert (delivery.message.id, delivery.count) == (late.id, 2)
            await reader.settle([(delivery, ACK)])
