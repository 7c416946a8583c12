"""Dead letters that raw clients, other libraries and brokers' own nets left behind: listed, shown and sent back from the command
line, with no application code, and read again by a raw client."""

from __future__ import annotations

import asyncio
import json
import struct
import time
import uuid
from typing import Any

import confluent_kafka
import confluent_kafka.admin
import pika
import pytest
import redis

from atleastonce import Queue, connect
from atleastonce.adapters.sqs.clients import Clients
from atleastonce.adapters.sqs.config import Config
from atleastonce.cli.app import run
from atleastonce.urls import BrokerUrl

BODIES = [b'{"n":%d}' % n for n in range(4)]
DEADLINE = 40.0


class Shell:
    """The command line, on one broker."""

    def __init__(self, capsys: pytest.CaptureFixture[str], url: str, channel: str, dlq: str) -> None:
        self._capsys = capsys
        self._place = ["--broker", url, "--channel", channel, "--dlq", dlq, "--json"]

    def dlq(self, command: str, *words: str) -> Any:
        """What it reports."""
        self._capsys.readouterr()
        code = run(["dlq", command, *self._place, *words])
        out, err = self._capsys.readouterr()
        assert code == 0, err
        lines = [json.loads(line) for line in out.splitlines()]
        return lines[0] if len(lines) == 1 else lines

    def go_through(self, to: str, error_type: str) -> None:
        """Every command once: they are one group, one is shown, one goes alone, then the rest."""
        (row,) = self.dlq("list")
        assert (row["count"], row["error_type"]) == (len(BODIES), error_type)
        assert self.dlq("list", "--where", "n >= `2`")[0]["count"] == 2
        shown = self.dlq("show", "--max", "1")
        assert shown["dead"]["error_type"] == error_type
        chosen = ("--to", to, "--outside", "--where", "n == `1`")
        assert self.dlq("redrive", *chosen, "--dry-run")["matched"] == 1
        assert self.dlq("redrive", *chosen)["redriven"] == 1
        assert self.dlq("list")[0]["count"] == len(BODIES) - 1
        assert self.dlq("redrive", "--to", to, "--outside")["redriven"] == len(BODIES) - 1
        assert self.dlq("list") == []


@pytest.fixture
def name() -> str:
    return f"orders-{uuid.uuid4().hex[:8]}"


# ------------------------------------------------------------------------------------------------------ Kafka


SPRING: dict[str, bytes] = {
    "kafka_dlt-original-partition": struct.pack(">i", 0),
    "kafka_dlt-original-offset": struct.pack(">q", 0xF0F1F2),
    "kafka_dlt-original-consumer-group": b"billing",
    "kafka_dlt-exception-fqcn": b"org.springframework.kafka.listener.ListenerExecutionFailedException",
    "kafka_dlt-exception-cause-fqcn": b"java.lang.IllegalStateException",
    "kafka_dlt-exception-message": b"Listener failed; boom",
    "kafka_dlt-exception-stacktrace": b"java.lang.IllegalStateException: boom\n\tat com.shop.Orders.charge(Orders.java:12)",
}


def test_springs_dead_letter_topic(kafka_url: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    address = {"bootstrap.servers": kafka_url.removeprefix("kafka://")}
    topics = [name, f"{name}-dlt", f"{name}-retry-0"]
    admin = confluent_kafka.admin.AdminClient(address)
    for future in admin.create_topics([confluent_kafka.admin.NewTopic(each, 1, 1) for each in topics]).values():
        future.result(DEADLINE)
    try:
        producer = confluent_kafka.Producer(address)
        headers = [("tenant", b"a"), ("kafka_dlt-original-topic", name.encode()), *SPRING.items()]
        for body in BODIES:
            producer.produce(f"{name}-dlt", body, key=b"k", headers=headers)
        assert producer.flush(DEADLINE) == 0
        Shell(capsys, kafka_url, name, f"{name}-dlt").go_through(f"{name}-retry-0", "java.lang.IllegalStateException")
        found = _records(address, f"{name}-retry-0")
    finally:
        for future in admin.delete_topics(topics).values():
            future.result(DEADLINE)
    assert sorted(record.value() for record in found) == BODIES
    for record in found:
        assert record.key() == b"k"
        kept = dict(record.headers())
        assert {name: kept[name] for name, _ in headers} == dict(headers), "a field of others did not survive"
        assert kept["alo-redrives"] == b"1"


def _records(address: dict[str, str], topic: str) -> list[Any]:
    consumer = confluent_kafka.Consumer({**address, "group.id": uuid.uuid4().hex})
    consumer.assign([confluent_kafka.TopicPartition(topic, 0, 0)])
    found: list[Any] = []
    end = time.monotonic() + DEADLINE
    while len(found) < len(BODIES) and time.monotonic() < end:
        found += consumer.consume(10, 0.5)
    consumer.close()
    return found


# --------------------------------------------------------------------------------------------------- RabbitMQ


MASSTRANSIT = {
    "MT-Reason": "fault",
    "MT-Fault-ExceptionType": "System.InvalidOperationException",
    "MT-Fault-Message": "no",
    "MT-Fault-StackTrace": "   at Shop.Charge(Order o) in Charge.cs:line 12",
    "MT-Fault-Timestamp": "2026-01-02T03:04:05.0000000Z",
    "MT-Fault-InputAddress": "rabbitmq://localhost/shop/orders?temporary=true",
}
NSERVICEBUS = {
    "NServiceBus.FailedQ": "orders@box",
    "NServiceBus.TimeOfFailure": "2026-01-02 03:04:05:000000 Z",
    "NServiceBus.ExceptionInfo.ExceptionType": "System.Exception",
    "NServiceBus.ExceptionInfo.Message": "no",
    "NServiceBus.ProcessingEndpoint": "Billing",
}


class Rabbit:
    """A raw client."""

    def __init__(self, url: str) -> None:
        self._connection = pika.BlockingConnection(pika.URLParameters(url.replace("rabbitmq://", "amqp://")))
        self.channel = self._connection.channel()

    def __enter__(self) -> Rabbit:
        self.channel.confirm_delivery()
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def publish(self, queue: str, headers: dict[str, str]) -> None:
        for body in BODIES:
            self.channel.basic_publish("", queue, body, pika.BasicProperties(headers=headers, delivery_mode=2))

    def take(self, queue: str) -> list[tuple[bytes, dict[str, Any]]]:
        found: list[tuple[bytes, dict[str, Any]]] = []
        while (got := self.channel.basic_get(queue, auto_ack=True))[0] is not None:
            found.append((got[2], got[1].headers))
        return found

    def refuse(self, queue: str, count: int) -> None:
        end = time.monotonic() + DEADLINE
        while count and time.monotonic() < end:
            method, _, _ = self.channel.basic_get(queue)
            if method is not None:
                self.channel.basic_reject(method.delivery_tag, requeue=False)
                count -= 1


@pytest.mark.parametrize(
    ("fields", "dlq", "error_type", "kind"),
    [
        pytest.param(MASSTRANSIT, "{}_error", "System.InvalidOperationException", "classic", id="masstransit"),
        pytest.param(NSERVICEBUS, "error.{}", "System.Exception", "quorum", id="nservicebus"),
    ],
)
def test_error_queues_of_dotnet(
    rabbitmq_url: str,
    name: str,
    capsys: pytest.CaptureFixture[str],
    fields: dict[str, str],
    dlq: str,
    error_type: str,
    kind: str,
) -> None:
    dead = dlq.format(name)
    with Rabbit(rabbitmq_url) as rabbit:
        for queue in (name, dead):
            rabbit.channel.queue_declare(queue, durable=True, arguments={"x-queue-type": kind})
        rabbit.publish(dead, {"tenant": "a", **fields})
        Shell(capsys, rabbitmq_url, name, dead).go_through(name, error_type)
        found = rabbit.take(name)
        for queue in (name, dead):
            rabbit.channel.queue_delete(queue)
    assert sorted(body for body, _ in found) == BODIES
    for _, headers in found:
        assert {key: headers[key] for key in ("tenant", *fields)} == {"tenant": "a", **fields}
        assert headers["alo-redrives"] in (1, "1")


def test_what_rabbitmq_itself_moves(rabbitmq_url: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A queue of others, with a dead-letter exchange, whose consumer rejects."""
    dead = f"{name}.dead"
    with Rabbit(rabbitmq_url) as rabbit:
        rabbit.channel.queue_declare(dead, durable=True)
        arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead}
        rabbit.channel.queue_declare(name, durable=True, arguments=arguments)
        rabbit.publish(name, {"tenant": "a"})
        rabbit.refuse(name, len(BODIES))
        shell = Shell(capsys, rabbitmq_url, name, dead)
        (row,) = shell.dlq("list")
        shell.go_through(name, row["error_type"])
        assert "rejected" in json.dumps(row)
        rabbit.refuse(name, len(BODIES))  # a second life and death: no cycle that the broker would cut
        (row,) = shell.dlq("list")
        assert row["count"] == len(BODIES)
        assert shell.dlq("redrive", "--to", name, "--outside")["redriven"] == len(BODIES)
        found = rabbit.take(name)
        for queue in (name, dead):
            rabbit.channel.queue_delete(queue)
    assert sorted(body for body, _ in found) == BODIES
    assert all(headers["tenant"] == "a" for _, headers in found)


# -------------------------------------------------------------------------------------------------------- SQS


def test_a_raw_sqs_dead_letter_queue(sqs_url: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Queues of others, a redrive policy, a consumer that receives and never deletes."""
    client = Clients(Config.build(BrokerUrl.parse(sqs_url), {})).sqs
    dead = client.create_queue(QueueName=f"{name}-dead")["QueueUrl"]
    arn = client.get_queue_attributes(QueueUrl=dead, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    policy = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": "1"})
    home = client.create_queue(QueueName=name, Attributes={"RedrivePolicy": policy, "VisibilityTimeout": "0"})[
        "QueueUrl"
    ]
    tenant = {"tenant": {"DataType": "String", "StringValue": "a"}}
    for body in BODIES:
        client.send_message(QueueUrl=home, MessageBody=body.decode(), MessageAttributes=tenant)
    _until_dead(client, home, dead)
    shell = Shell(capsys, sqs_url, name, f"{name}-dead")
    (row,) = shell.dlq("list")
    assert name in json.dumps(shell.dlq("show", "--max", "1")), "it does not say where it failed"
    client.set_queue_attributes(QueueUrl=home, Attributes={"VisibilityTimeout": "30"})
    shell.go_through(name, row["error_type"])
    found: list[Any] = []
    end = time.monotonic() + DEADLINE
    while len(found) < len(BODIES) and time.monotonic() < end:
        got = client.receive_message(QueueUrl=home, MaxNumberOfMessages=10, MessageAttributeNames=["All"])
        found += got.get("Messages", [])
    for queue in (home, dead):
        client.delete_queue(QueueUrl=queue)
    assert sorted(each["Body"].encode() for each in found) == BODIES
    assert all(each["MessageAttributes"]["tenant"]["StringValue"] == "a" for each in found)


def _until_dead(client: Any, home: str, dead: str) -> None:
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        client.receive_message(QueueUrl=home, MaxNumberOfMessages=10)
        told = client.get_queue_attributes(QueueUrl=dead, AttributeNames=["ApproximateNumberOfMessages"])
        if int(told["Attributes"]["ApproximateNumberOfMessages"]) == len(BODIES):
            return
    pytest.fail("the redrive policy moved nothing")


# ------------------------------------------------------------------------------------------------------ Redis


def test_header_names_that_are_no_text_are_shown_and_move(
    redis_url: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names as a producer in another language may write them: bytes that are no UTF-8, and what colours a terminal."""
    queue = Queue[Any](name)

    async def declare() -> None:
        async with connect(redis_url) as broker:
            await broker.declare(queue, Queue(f"{name}.dlq"))

    asyncio.run(declare())
    fields = {b"body": b"{}", b"n\xe4me": b"caf\xe9", b"\x1b[31mred": b"1"}
    client = redis.Redis.from_url(redis_url)
    client.xadd(f"{name}.dlq", fields)
    place = ["--broker", redis_url, "--channel", name]

    def told(*words: str) -> str:
        code = run([*words])
        out, err = capsys.readouterr()
        assert code == 0, err
        return out

    shown = told("dlq", "show", *place)
    assert "n\\udce4me: caf\\xe9" in shown
    assert "\x1b" not in shown
    tailed = told("tail", f"{name}.dlq", "--queue", "--broker", redis_url)
    assert "n\\udce4me=caf\\xe9" in tailed
    assert "\x1b" not in tailed
    for words in (("dlq", "show", "--json"), ("dlq", "export")):
        names = [name for name, _ in json.loads(told(*words, *place))["headers"]]
        assert names[:2] == ["n\\udce4me", "\x1b[31mred"]
    assert json.loads(told("dlq", "redrive", "--json", *place))["redriven"] == 1
    ((_, moved),) = client.xrange(name)
    assert dict(moved).items() >= fields.items(), "the bytes changed on their way"
