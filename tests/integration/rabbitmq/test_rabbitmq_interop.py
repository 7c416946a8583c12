"""Raw clients and ours on a real RabbitMQ: what one writes the other reads, types that pika cannot express included."""

from __future__ import annotations

import datetime as dt
import struct
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pika
import pytest
from rabbitmq_kit import all_of, message, opened, outgoing, prepared, raw, reading, take

from atleastonce.adapters.rabbitmq.envelope import parse
from atleastonce.channels import Source
from atleastonce.contract import ACK, RELEASE, Outgoing
from atleastonce.message import Headers

Sources = Callable[..., Source]


class RawProperties(pika.BasicProperties):  # type: ignore[misc]
    """Properties whose header table is given in bytes."""

    def __init__(self, table: bytes, **others: Any) -> None:
        super().__init__(headers={"?": 1}, **others)
        self._table = table

    def encode(self) -> list[bytes]:
        encoded = b"".join(super().encode())
        placeholder = struct.pack(">I", 7) + b"\x01?I" + struct.pack(">i", 1)
        assert placeholder in encoded
        return [encoded.replace(placeholder, struct.pack(">I", len(self._table)) + self._table)]


def field(name: str, kind: str, value: bytes) -> bytes:
    return bytes((len(name),)) + name.encode() + kind.encode() + value


# Milliseconds in a timestamp, as many producers write them, are the year 55840: pika's decoder raises, and the connection ends.
WEIRD = b"".join(
    [
        field("array", "A", struct.pack(">I", 5) + b"I" + struct.pack(">i", 7)),
        field("bool", "t", b"\1"),
        field("byte", "b", b"\xff"),
        field("decimal", "D", b"\2" + struct.pack(">i", 314)),
        field("double", "d", struct.pack(">d", 2.5)),
        field("far", "T", struct.pack(">Q", 1_700_000_000_000)),
        field("float", "f", struct.pack(">f", 0.25)),
        field("latin", "S", struct.pack(">I", 2) + b"\xe4\xf6"),
        field("long", "l", struct.pack(">q", -(2**40))),
        field("nothing", "V", b""),
        field("raw", "x", struct.pack(">I", 3) + b"\0\1\2"),
        field("table", "F", struct.pack(">I", 8) + field("in", "I", struct.pack(">i", 5))),
        field("text", "S", struct.pack(">I", 4) + b"\xe2\x82\xac!"),
        field("when", "T", struct.pack(">Q", 1_700_000_000)),
    ]
)


async def test_a_raw_message_with_every_type_is_read_and_handed_on_unchanged(
    rabbitmq_url: str, source: Sources
) -> None:
    async with opened(rabbitmq_url) as adapter:
        queue, other = source(), source("other")
        await prepared(adapter, queue, other)
        properties = RawProperties(
            WEIRD,
            content_type="text/plain",
            content_encoding="gzip",
            correlation_id="c-1",
            reply_to="answers",
            expiration="600000",
            message_id="m-1",
            timestamp=1_700_000_000,
            type="order",
            app_id="shop",
            priority=3,
            user_id="guest",
        )

        def publish(channel: Any) -> None:
            channel.confirm_delivery()
            channel.basic_publish("", queue.name, b"body", properties, mandatory=True)

        await raw(rabbitmq_url, publish)
        subscription = await reading(adapter, queue)
        (delivery,) = await take(subscription, 1)
        got = delivery.message
        assert (got.id, got.body, got.key, got.published_at) == ("m-1", b"body", None, 1_700_000_000.0)
        assert got.headers.items() == (
            ("content-type", "text/plain"),
            ("bool", "true"),
            ("byte", "-1"),
            ("decimal", "3.14"),
            ("double", "2.5"),
            ("far", "1700000000000"),
            ("float", "0.25"),
            ("latin", b"\xe4\xf6"),
            ("long", "-1099511627776"),
            ("nothing", None),
            ("raw", b"\0\1\2"),
            ("text", "€!"),
            ("when", "1700000000"),
        )
        # A hop as the engine makes it: the same message with more headers, to another queue.
        moved = message(got.body, headers=got.headers.items(), id=got.id, native=got.native)
        outcomes = await adapter.send([Outgoing(other, moved), *outgoing(other)])
        assert all(outcome.ok for outcome in outcomes)
        await subscription.settle([(delivery, ACK)])
        came = await take(await reading(adapter, other), 2)  # RabbitMQ 4 serves by priority
        (copy,) = [each for each in came if each.message.id == "m-1"]
        assert copy.message.headers == moved.headers
        theirs, ours = table_of(delivery.raw.encoded), table_of(copy.raw.encoded)
        for name, value in theirs.items():
            if not name.startswith("x-"):
                assert ours[name] == value, f"{name} was altered on the way"
        before, after = short_of(delivery.raw.encoded), short_of(copy.raw.encoded)
        assert before.pop(8) == b"600000"  # the expiration is not for the copy: a retry or dead letter would vanish
        assert after.pop(12) == b"\2", "not persistent"
        assert after == before


def table_of(encoded: bytes) -> dict[str, bytes | Any]:
    return {f.name: f.raw if f.raw is not None else f.value for f in parse(encoded).table}


def short_of(encoded: bytes) -> dict[int, bytes]:
    return dict(parse(encoded).short)


async def test_what_pika_can_send_is_read(rabbitmq_url: str, source: Sources) -> None:
    async with opened(rabbitmq_url) as adapter:
        queue = source()
        await prepared(adapter, queue)
        fields = {
            "dec": Decimal("1.50"),
            "int": 7,
            "big": 2**40,
            "no": False,
            "when": dt.datetime(2024, 1, 2, tzinfo=dt.UTC),
            "list": [1, "two"],
            "map": {"a": 1},
            "none": None,
            "text": "ü",
        }

        def publish(channel: Any) -> None:
            channel.confirm_delivery()  # both are in the queue before the probe that tells its end
            channel.basic_publish("", queue.name, b"", pika.BasicProperties(headers=fields, delivery_mode=1))
            channel.basic_publish("", queue.name, b"no properties")

        await raw(rabbitmq_url, publish)
        first, second = await all_of(adapter, queue)
        assert dict(first.message.headers.items()) == {
            "dec": "1.5",
            "int": "7",
            "big": str(2**40),
            "no": "false",
            "when": "1704153600",
            "none": None,
            "text": "ü",
        }
        assert first.raw.properties.headers["list"] == [1, "two"]
        assert second.message.headers == Headers()
        assert second.message.published_at is None


async def test_ours_is_read_by_pika(rabbitmq_url: str, source: Sources) -> None:
    async with opened(rabbitmq_url) as adapter:
        queue = source()
        await prepared(adapter, queue)
        sent = message(b'{"a": 1}', key=b"c-7", headers=[("content-type", "application/json"), ("traceparent", "00-x")])
        await adapter.send([Outgoing(queue, sent)])
        method, properties, body = await raw(rabbitmq_url, lambda channel: channel.basic_get(queue.name, auto_ack=True))
        assert method is not None
        assert body == sent.body
        assert properties.content_type == "application/json"
        assert properties.message_id == sent.id
        assert properties.delivery_mode == 2
        assert {k: v for k, v in properties.headers.items() if not k.startswith(("x-", "alo-order"))} == {
            "traceparent": "00-x",
            "alo-id": sent.id,
            "alo-key": "c-7",
        }


async def test_a_message_without_an_id_keeps_the_one_it_got_when_given_back(rabbitmq_url: str, source: Sources) -> None:
    """And two equal ones are two."""
    async with opened(rabbitmq_url) as adapter:
        queue = source()
        await prepared(adapter, queue)

        def publish(channel: Any) -> None:
            for _ in range(2):
                channel.basic_publish("", queue.name, b"tick")

        await raw(rabbitmq_url, publish)
        subscription = await reading(adapter, queue)
        first = await take(subscription, 2)
        assert len({delivery.message.id for delivery in first}) == 2
        await subscription.settle([(delivery, RELEASE) for delivery in first])
        again = await take(subscription, 2, ack=True)
        assert {d.message.id for d in again} == {d.message.id for d in first}


@pytest.mark.parametrize("size", [0, 1, 131_063, 131_064, 131_065, 1_000_000])
async def test_bodies_around_the_size_of_a_frame(rabbitmq_url: str, source: Sources, size: int) -> None:
    async with opened(rabbitmq_url) as adapter:
        queue = source()
        await prepared(adapter, queue)
        body = (bytes(range(251)) * (size // 251 + 1))[:size]
        batch = [Outgoing(queue, message(body)), Outgoing(queue, message(b"after"))]
        assert all(outcome.ok for outcome in await adapter.send(batch))
        assert [d.message.body for d in await all_of(adapter, queue)] == [body, b"after"]
