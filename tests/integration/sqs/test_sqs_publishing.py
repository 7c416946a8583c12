"""Publishing to SQS and SNS: attributes, sizes, lost answers, FIFO."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest
from sqs_kit import Losing, declared, message, opened, raw_client, raw_url, reading, sent, take

from atleastonce import wire
from atleastonce.channels import Queue, Source, Topic
from atleastonce.contract import ACK, Code, Outgoing, Status
from atleastonce.message import Headers, Message
from atleastonce.wire import ID

MakeQueue = Callable[..., Queue[Any]]
MakeTopic = Callable[..., Topic[Any]]


async def test_eleven_headers_arrive_and_a_raw_consumer_reads_nine(sqs_url: str, queue: MakeQueue) -> None:
    """SQS takes ten attributes."""
    work = queue()
    client = raw_client(sqs_url)
    many = message(b"text", headers=[(f"h{n:02}", f"v{n}") for n in range(11)])
    async with opened(sqs_url) as adapter, declared(adapter, work):
        assert (await sent(adapter, work, many, many))[0].ok
        async with reading(adapter, work) as reader:
            (delivery,) = await take(reader, 1, most=1)
            assert delivery.message.headers == many.headers
            await reader.settle([(delivery, ACK)])
        answer = await asyncio.to_thread(
            client.receive_message, QueueUrl=raw_url(client, work), WaitTimeSeconds=5, MessageAttributeNames=["All"]
        )
        (found,) = answer["Messages"]
        readable = {name: field["StringValue"] for name, field in found["MessageAttributes"].items()}
        assert found["Body"] == "text"
        assert len(readable) == 10
        assert readable[ID] == many.id
        assert {f"h{n:02}" for n in range(8)} <= readable.keys()


async def test_attributes_of_a_raw_producer_keep_their_types_on_a_hop(sqs_url: str, queue: MakeQueue) -> None:
    work, other = queue("one"), queue("two")
    client = raw_client(sqs_url)
    theirs = {
        "n": {"DataType": "Number", "StringValue": "42"},
        "f": {"DataType": "Number.float", "StringValue": "1.5"},
        "b": {"DataType": "Binary.png", "BinaryValue": b"\xff\x00"},
        "s": {"DataType": "String", "StringValue": "x"},
    }
    async with opened(sqs_url) as adapter, declared(adapter, work, other):
        url = raw_url(client, work)
        await asyncio.to_thread(client.send_message, QueueUrl=url, MessageBody="hello", MessageAttributes=theirs)
        async with reading(adapter, work) as reader:
            (delivery,) = await take(reader, 1)
            got = delivery.message
            assert dict(got.headers.items()) == {"n": "42", "f": "1.5", "b": b"\xff\x00", "s": "x"}
            copy = Message(got.id, got.body, got.key, got.headers.set({ID: got.id}), None, got.native)
            assert (await sent(adapter, other, copy))[0].ok
            await reader.settle([(delivery, ACK)])
        answer = await asyncio.to_thread(
            client.receive_message, QueueUrl=raw_url(client, other), WaitTimeSeconds=5, MessageAttributeNames=["All"]
        )
        (found,) = answer["Messages"]
        assert {name: found["MessageAttributes"][name]["DataType"] for name in theirs} == {
            name: field["DataType"] for name, field in theirs.items()
        }


@pytest.mark.parametrize(
    "body", [b"", b"\x00", b"\xff\xfe", "\ufffe".encode(), b"\x0b tab", b"\r\n", "\U0001f600".encode()]
)
async def test_bodies_that_xml_has_no_characters_for_arrive_through_queue_and_topic(
    body: bytes, sqs_url: str, queue: MakeQueue, topic: MakeTopic
) -> None:
    work, source = queue(), Source(topic(), "g")
    async with opened(sqs_url) as adapter, declared(adapter, work, source):
        for destination, read in ((work, Source(work)), (source.channel, source)):
            assert (await sent(adapter, destination, message(body, key=b"\x00k")))[0].ok
            async with reading(adapter, read) as reader:
                (delivery,) = await take(reader, 1)
                assert (delivery.body, delivery.message.key) == (body, b"\x00k")
                await reader.settle([(delivery, ACK)])


async def test_one_message_over_a_queues_own_limit_is_refused_and_its_neighbours_go(
    sqs_url: str, queue: MakeQueue
) -> None:
    """HTTP 200 with `Failed` entries."""
    work = queue(options={"sqs": {"MaximumMessageSize": 1024}})
    async with opened(sqs_url) as adapter, declared(adapter, work):
        outcomes = await sent(adapter, work, message(b"a"), message(b"x" * 2000), message(b"b"))
        assert [outcome.status for outcome in outcomes] == [Status.OK, Status.REJECTED, Status.OK]
        assert outcomes[1].fault is not None
        assert outcomes[1].fault.code is Code.TOO_LARGE


async def test_a_lost_answer_is_unknown_on_a_standard_queue_and_nothing_is_sent_twice(
    sqs_url: str, queue: MakeQueue
) -> None:
    """The client's own retry would have put it into the queue twice, and said nothing."""
    work = queue()
    async with Losing(sqs_url) as proxy, opened(proxy.url) as adapter, declared(adapter, work):
        assert (await sent(adapter, work, first := message()))[0].ok
        proxy.lose = b"AmazonSQS.SendMessageBatch"
        (outcome,) = await sent(adapter, work, lost := message())
        assert outcome.status is Status.UNKNOWN
        assert proxy.lost == 1
        assert (await sent(adapter, work, last := message()))[0].ok
        async with reading(adapter, work) as reader:
            came = [delivery.message.id for delivery in await take(reader, 3)]
            assert sorted(came) == sorted([first.id, lost.id, last.id])
            assert await reader.receive(10, 0.5) == ()


async def test_a_lost_answer_is_repeated_on_a_fifo_queue_which_drops_the_repetition(
    sqs_url: str, queue: MakeQueue
) -> None:
    work = queue(fifo=True)
    async with Losing(sqs_url) as proxy, opened(proxy.url) as adapter, declared(adapter, work):
        proxy.lose = b"AmazonSQS.SendMessageBatch"
        batch = [message(key=b"k") for _ in range(15)]
        outcomes = await sent(adapter, work, *batch)
        assert {outcome.status for outcome in outcomes} == {Status.OK}
        assert proxy.lost == 1
        async with reading(adapter, work) as reader:
            came = await take(reader, 10)
            await reader.settle([(delivery, ACK) for delivery in came])
            came += await take(reader, 5)
            assert [delivery.message.id for delivery in came] == [each.id for each in batch]
            assert await reader.receive(10, 0.5) == ()


async def test_a_redriven_message_is_no_repetition_of_its_first_publish(sqs_url: str, queue: MakeQueue) -> None:
    """Within five minutes SQS answers it with success and drops it: it would be lost."""
    work = queue(fifo=True)
    first = message(b"x", key=b"k")
    again = Message(first.id, first.body, first.key, first.headers.set({wire.REDRIVES: "1"}))
    async with opened(sqs_url) as adapter, declared(adapter, work), reading(adapter, work) as reader:
        for each in (first, again):
            assert (await sent(adapter, work, each))[0].ok
            (delivery,) = await take(reader, 1)
            assert delivery.message.id == first.id
            await reader.settle([(delivery, ACK)])


async def test_delays_that_sqs_does_not_know_are_refused(sqs_url: str, queue: MakeQueue, topic: MakeTopic) -> None:
    work, fifo, source = queue("a"), queue("b", fifo=True), Source(topic(), "g")
    async with opened(sqs_url) as adapter, declared(adapter, work, fifo, source):
        for destination in (fifo, source.channel):
            (outcome,) = await sent(adapter, destination, message(key=b"k"), delay=5)
            assert outcome.status is Status.REJECTED
            assert outcome.fault is not None
            assert "delay" in outcome.fault.detail
        mixed = [Outgoing(fifo, message(key=b"k"), 5.0), Outgoing(fifo, message(key=b"k"))]
        assert [outcome.ok for outcome in await adapter.send(mixed)] == [False, True]


async def test_messages_without_a_key_do_not_wait_for_each_other_on_a_fifo_queue(
    sqs_url: str, queue: MakeQueue
) -> None:
    work = queue(fifo=True)
    async with opened(sqs_url) as adapter, declared(adapter, work), reading(adapter, work) as reader:
        await sent(adapter, work, *[message() for _ in range(3)])
        (held,) = await take(reader, 1, most=1)
        assert held.message.key is None
        await take(reader, 2)


async def test_keys_that_are_no_message_group_travel_beside_it(sqs_url: str, queue: MakeQueue) -> None:
    work = queue(fifo=True)
    keys = [b"plain", b"with space", b"\xff\x00", b"x" * 300, b"alo-unkeyed-1", b""]
    async with opened(sqs_url) as adapter, declared(adapter, work), reading(adapter, work) as reader:
        await sent(adapter, work, *[message(key=key) for key in keys])
        assert {delivery.message.key for delivery in await take(reader, len(keys))} == set(keys)


async def test_many_senders_and_readers_stay_within_the_connections_of_one_client(
    sqs_url: str, queue: MakeQueue, caplog: pytest.LogCaptureFixture
) -> None:
    """`max_pool_connections` of ten, boto3's default, throws connections away and says so in a log."""
    work = queue()
    caplog.set_level(logging.WARNING, "urllib3")
    async with opened(sqs_url) as adapter, declared(adapter, work), reading(adapter, work, 1000) as reader:
        batches = [[message() for _ in range(20)] for _ in range(30)]
        await asyncio.gather(*(sent(adapter, work, *batch) for batch in batches))
        found = await take(reader, 600)
        outcomes = await reader.settle([(delivery, ACK) for delivery in found])
        assert all(outcome.ok for outcome in outcomes)
    assert "pool is full" not in caplog.text


async def test_a_header_that_only_looks_like_ours_is_a_header(sqs_url: str, queue: MakeQueue) -> None:
    work = queue()
    client = raw_client(sqs_url)
    forged = {
        "alo-headers": {"DataType": "String", "StringValue": '[["x"], 7]'},
        "alo-body": {"DataType": "String", "StringValue": "no"},
    }
    async with opened(sqs_url) as adapter, declared(adapter, work), reading(adapter, work) as reader:
        url = raw_url(client, work)
        await asyncio.to_thread(client.send_message, QueueUrl=url, MessageBody="hello", MessageAttributes=forged)
        (delivery,) = await take(reader, 1)
        assert delivery.body == b"hello"
        assert delivery.message.headers == Headers([("alo-body", "no"), ("alo-headers", '[["x"], 7]')])


async def test_what_every_message_takes_part_in_goes_past_the_clients_own_reading_and_writing(sqs_url: str) -> None:
    """The parts of the client that are used for it are not public: a release without them is slower, and this says so."""
    async with opened(sqs_url) as adapter:
        direct = adapter._clients._made["direct"]
        assert direct.ready
        assert "atleastonce" in direct._headers["User-Agent"]


async def test_answers_and_errors_are_those_of_the_client(sqs_url: str, queue: MakeQueue) -> None:
    work = queue()
    client = raw_client(sqs_url)
    async with opened(sqs_url) as adapter, declared(adapter, work):
        url, call = raw_url(client, work), adapter._clients.call
        binary = {"b": {"DataType": "Binary", "BinaryValue": bytes(range(256))}}
        entry = {"Id": "0", "MessageBody": "\U0001f600", "MessageAttributes": binary}
        answer = await asyncio.to_thread(call, "SendMessageBatch", QueueUrl=url, Entries=[entry])
        assert [item["Id"] for item in answer["Successful"]] == ["0"]
        asked = {"QueueUrl": url, "WaitTimeSeconds": 5, "VisibilityTimeout": 0, "MessageAttributeNames": ["All"]}
        ours = await asyncio.to_thread(call, "ReceiveMessage", **asked)
        theirs = await asyncio.to_thread(client.receive_message, **asked)
        for found in (ours, theirs):
            (message,) = found["Messages"]
            assert (message["Body"], message["MessageAttributes"]["b"]["BinaryValue"]) == (
                "\U0001f600",
                bytes(range(256)),
            )
        for ask in (call, client._make_api_call):
            args = ("DeleteMessageBatch",) if ask is call else ("DeleteMessageBatch", {"QueueUrl": url, "Entries": []})
            more = {"QueueUrl": url, "Entries": []} if ask is call else {}
            with pytest.raises(client.exceptions.ClientError) as raised:
                await asyncio.to_thread(ask, *args, **more)
            assert raised.value.operation_name == "DeleteMessageBatch"
            assert "EmptyBatchRequest" in raised.value.response["Error"]["Code"]
        with pytest.raises(Exception, match="does not exist") as gone:
            await asyncio.to_thread(call, "ReceiveMessage", QueueUrl=f"{url}-gone")
        assert adapter.classify(gone.value).code is Code.NOT_FOUND
