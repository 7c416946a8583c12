"""boto3 by hand: the fastest loop that loses nothing, and the tutorial's."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import boto3
import msgspec
from botocore.config import Config

from loops.common import ID_HEADER, Job, Meter, Order, Result, body, headers, stamped

_THREADS = 4  # with two cores and one interpreter lock more only wait; fewer show the round trip
_TEN = 10


def client(address: str) -> Any:
    parts = urlsplit(address)
    return boto3.client(
        "sqs",
        endpoint_url=f"http://{parts.hostname}:{parts.port}",
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
        config=Config(max_pool_connections=2 * _THREADS, parameter_validation=False, retries={"total_max_attempts": 1}),
    )


def _url(sqs: Any, queue: str) -> str:
    return str(sqs.get_queue_url(QueueName=queue)["QueueUrl"])


def delete(address: str, queue: str) -> None:
    sqs = client(address)
    for name in (queue, f"{queue}--dlq"):
        sqs.delete_queue(QueueUrl=_url(sqs, name))


def remaining(address: str, queue: str) -> int:
    """What waits or is unsettled."""
    sqs = client(address)
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    found = sqs.get_queue_attributes(QueueUrl=_url(sqs, queue), AttributeNames=names)["Attributes"]
    return sum(int(found[name]) for name in names)


def _entries(items: Iterable[tuple[bytes, dict[str, str]]]) -> list[dict[str, Any]]:
    return [
        {
            "Id": str(place),
            "MessageBody": text.decode(),
            "MessageAttributes": {name: {"DataType": "String", "StringValue": value} for name, value in fields.items()},
        }
        for place, (text, fields) in enumerate(items)
    ]


def _send(sqs: Any, url: str, items: list[tuple[bytes, dict[str, str]]]) -> None:
    answer = sqs.send_message_batch(QueueUrl=url, Entries=_entries(items))
    if answer.get("Failed"):
        raise RuntimeError(str(answer["Failed"][0]))


def load(address: str, queue: str, messages: int) -> None:
    """Fill an existing queue."""
    sqs = client(address)
    url = _url(sqs, queue)
    items = [(body(n), dict(headers(n))) for n in range(messages)]
    for begin in range(0, messages, _TEN):
        _send(sqs, url, items[begin : begin + _TEN])


def raw(job: Job) -> Result:
    """Threads around one client, everything in tens."""
    return _publish(job) if job.scenario.startswith("publish") else _consume(job)


def _consume(job: Job) -> Result:
    sqs = client(job.address)
    url = _url(sqs, job.channel)
    meter = Meter(job)
    decode, handled = msgspec.json.Decoder(Order).decode, meter.handled

    def loop() -> None:
        while not meter.done:
            answer = sqs.receive_message(
                QueueUrl=url,
                MaxNumberOfMessages=_TEN,
                WaitTimeSeconds=1,
                MessageAttributeNames=["All"],
                MessageSystemAttributeNames=["ApproximateReceiveCount", "SentTimestamp"],
            )
            batch = answer.get("Messages", ())
            for message in batch:
                _ = message["MessageAttributes"][ID_HEADER]["StringValue"]
                handled(decode(message["Body"]))
            if batch:
                entries = [{"Id": str(n), "ReceiptHandle": each["ReceiptHandle"]} for n, each in enumerate(batch)]
                answer = sqs.delete_message_batch(QueueUrl=url, Entries=entries)
                if answer.get("Failed"):
                    raise RuntimeError(str(answer["Failed"][0]))

    # Settled when the last delete is answered; the last empty poll of the other threads is nobody's work.
    with ThreadPoolExecutor(_THREADS) as pool:
        futures = [pool.submit(loop) for _ in range(_THREADS)]
        while not meter.done:
            for future in futures:
                if future.done():
                    future.result()
            time.sleep(0.001)
        while remaining(job.address, job.channel):
            time.sleep(0.001)
        return meter.result()


def _publish(job: Job) -> Result:
    sqs = client(job.address)
    url = _url(sqs, job.channel)
    orders = [msgspec.json.decode(body(n), type=Order) for n in range(job.messages)]
    meter = Meter(job)
    encode = msgspec.json.encode

    def send(part: list[Order]) -> None:
        _send(
            sqs,
            url,
            [
                (encode(each), {"content-type": "application/json", ID_HEADER: uuid.uuid4().hex, "tenant": "blue"})
                for each in part
            ],
        )

    parts = [orders[begin : begin + _TEN] for begin in range(0, len(orders), _TEN)]
    with ThreadPoolExecutor(_THREADS) as pool:
        meter.begin()
        list(pool.map(send, parts))
        meter.stop()
    return meter.result()


def naive(job: Job) -> Result:
    """The guide's: one message a call, one delete a message."""
    sqs = client(job.address)
    url = _url(sqs, job.channel)
    meter = Meter(job)
    if job.scenario.startswith("publish"):
        orders = [json.loads(body(n)) for n in range(job.messages)]
        meter.begin()
        for order in orders:
            attributes = {ID_HEADER: {"DataType": "String", "StringValue": uuid.uuid4().hex}}
            sqs.send_message(QueueUrl=url, MessageBody=json.dumps(order), MessageAttributes=attributes)
        return meter.result()
    while not meter.done:
        answer = sqs.receive_message(QueueUrl=url, WaitTimeSeconds=1, MessageAttributeNames=["All"])
        for message in answer.get("Messages", ()):
            meter.handled(Order(**json.loads(message["Body"])))
            sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
    return meter.result()


def feed(job: Job) -> None:
    """Publish at ``job.rate`` per second, each with its time in ``order_id``."""
    sqs = client(job.address)
    url = _url(sqs, job.channel)
    step: Callable[[int], float] = lambda n: n / job.rate  # noqa: E731
    begin = time.perf_counter()
    for number in range(job.messages):
        wait = begin + step(number) - time.perf_counter()
        if wait > 0:
            time.sleep(wait)
        _send(sqs, url, [(stamped(number), dict(headers(number)))])
