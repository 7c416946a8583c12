"""Messages as SQS entries and back, without a broker."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atleastonce.adapters.sqs.entries import FIELDS, MAX_ATTRIBUTES, deduplication_of, encode, group_of
from atleastonce.adapters.sqs.records import SQSDelivery, read_message
from atleastonce.channels import Queue, Source
from atleastonce.message import Headers, HeaderValue, Message
from atleastonce.wire import ID


def received(message: Message, *, grouped: bool = False, as_text: bool = False) -> dict[str, Any]:
    """What a poll brings of ``message``: AWS sorts attributes as it likes."""
    text, attributes, _ = encode(message, grouped=grouped, as_text=as_text)
    system = {"ApproximateReceiveCount": "1", "SentTimestamp": "1700000000123"}
    if grouped:
        system["MessageGroupId"] = group_of(message)
    return {
        "MessageId": "native",
        "ReceiptHandle": "r",
        "Body": text,
        "Attributes": system,
        "MessageAttributes": dict(reversed(attributes.items())),
    }


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**30) | st.floats() | st.text() | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)
DEEP = st.sampled_from(["[" * 100_000, '[["a",' * 50_000, "9" * 5000, "1e999", '{"a":' * 50_000])
FORGED = (
    st.text()
    | st.just("\ud800")
    | JSON.map(json.dumps)
    | st.lists(st.lists(JSON, max_size=3), max_size=3).map(json.dumps)
    | DEEP
)
ATTRIBUTES = st.dictionaries(
    st.sampled_from(["alo-headers", "alo-key", "alo-body", "alo-id", "alo-redrives", "x"]),
    st.fixed_dictionaries(
        {
            "DataType": st.sampled_from(["String", "String.base64", "String.empty", "Number", "Weird"]),
            "StringValue": FORGED,
        }
    )
    | st.fixed_dictionaries({"DataType": st.sampled_from(["Binary", "Binary.png"]), "BinaryValue": st.binary()}),
)


@given(ATTRIBUTES, st.text(min_size=1))
def test_whatever_others_wrote_is_read_and_can_travel_on(attributes: dict[str, Any], text: str) -> None:
    raw = {
        "MessageId": "native",
        "ReceiptHandle": "r",
        "Body": text,
        "Attributes": {"ApproximateReceiveCount": "1", "SentTimestamp": "1700000000123"},
        "MessageAttributes": attributes,
    }
    delivery = SQSDelivery(raw, Source(Queue("q")), "q", 1, 0.0, 30.0)
    assert delivery.message.body == delivery.body
    assert delivery.unreadable is None
    for grouped in (False, True):
        encode(delivery.message, grouped=grouped)
    assert deduplication_of(delivery.message)
    assert group_of(delivery.message)


names = st.from_regex(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,20}", fullmatch=True) | st.sampled_from(
    ["alo-key", "alo-body", "a"]
)
values: st.SearchStrategy[HeaderValue] = st.none() | st.binary(max_size=30) | st.text(max_size=30)
fields = st.lists(st.tuples(names, values).filter(lambda item: item[0] not in (ID, FIELDS)), max_size=25)


@given(
    body=st.binary(max_size=50) | st.text(max_size=50).map(lambda text: text.encode("utf-8", "replace")),
    key=st.none() | st.binary(max_size=200) | st.just(b"customer-7"),
    headers=fields,
    grouped=st.booleans(),
    as_text=st.booleans(),
)
def test_every_message_comes_back_as_it_was(
    body: bytes, key: bytes | None, headers: list[tuple[str, HeaderValue]], grouped: bool, as_text: bool
) -> None:
    headers = [(name, value) for name, value in headers if not isinstance(value, str) or value.isprintable()]
    message = Message("m-1", body, key, Headers([*headers, (ID, "m-1")]))
    raw = received(message, grouped=grouped, as_text=as_text)
    assert len(raw["MessageAttributes"]) <= MAX_ATTRIBUTES
    assert raw["Body"]
    got = read_message(raw)
    assert (got.id, got.body, got.key) == ("m-1", body, key)
    assert got.headers == message.headers
    assert got.published_at == 1700000000.123


def test_an_ordinary_message_is_plain_to_a_raw_consumer() -> None:
    message = Message(
        "m", b'{"n": 1}', None, Headers([("tenant", "a"), ("content-type", "application/json"), (ID, "m")])
    )
    text, attributes, size = encode(message, grouped=False)
    assert text == '{"n": 1}'
    assert attributes == {name: {"DataType": "String", "StringValue": value} for name, value in message.headers.items()}
    assert size == 8 + sum(len(name) + 6 + len(str(value)) for name, value in message.headers.items())


def test_bytes_go_as_a_binary_attribute_or_as_text_through_sns() -> None:
    message = Message("m", b"\xff\x00", None, Headers([(ID, "m")]))
    assert encode(message, grouped=False).attributes["alo-body"] == {"DataType": "Binary", "BinaryValue": b"\xff\x00"}
    attribute = encode(message, grouped=False, as_text=True).attributes["alo-body"]
    assert attribute == {"DataType": "String.base64", "StringValue": base64.b64encode(b"\xff\x00").decode()}


def test_a_foreign_message_has_an_id_and_its_group_as_key() -> None:
    raw = {
        "MessageId": "native",
        "ReceiptHandle": "r",
        "Body": "hello",
        "Attributes": {"ApproximateReceiveCount": "3", "MessageGroupId": "customer-7", "SequenceNumber": "18"},
    }
    delivery = SQSDelivery(raw, Source(Queue("q", fifo=True)), "q.fifo", 1, 10.0, 30.0)
    assert (delivery.count, delivery.stream, delivery.position) == (3, "q.fifo/customer-7", "18")
    assert (delivery.message.id, delivery.message.key, delivery.message.published_at) == ("native", b"customer-7", None)
    assert delivery.size == 5


@pytest.mark.parametrize("id", ["with space", "x" * 200])
def test_ids_that_sqs_refuses_are_hashed_for_its_deduplication(id: str) -> None:
    assert len(deduplication_of(Message(id, b""))) == 64


def test_a_redrive_is_another_message_to_sqs() -> None:
    first = Message("m", b"", None, Headers([(ID, "m")]))
    again = Message("m", b"", None, Headers([(ID, "m"), ("alo-redrives", "1")]))
    assert deduplication_of(first) == "m"
    assert deduplication_of(again) != "m"
