"""Header fields of a Kafka record: text where they are UTF-8, made so when somebody looks."""

from __future__ import annotations

import pytest

pytest.importorskip("confluent_kafka", reason='needs pip install "atleastonce[kafka]"')

from atleastonce.adapters.kafka.records import RecordDelivery, RecordHeaders, read_headers
from atleastonce.channels import Source, Topic
from atleastonce.message import Headers, Message

FIELDS = [("alo-id", b"m-1"), ("tenant", "blå".encode()), ("raw", b"\xff\xfe"), ("none", None), ("tenant", b"red")]
EXPECTED = (("alo-id", "m-1"), ("tenant", "blå"), ("raw", b"\xff\xfe"), ("none", None), ("tenant", "red"))


def test_fields_come_out_as_text_bytes_and_nulls_in_order() -> None:
    headers, identity = read_headers(FIELDS)
    assert identity == "m-1"
    assert headers.items() == EXPECTED
    assert headers.get_all("tenant") == ["blå", "red"]
    assert list(headers) == [name for name, _ in EXPECTED]
    assert len(headers) == 5
    assert "raw" in headers
    assert "absent" not in headers


def test_one_value_is_had_without_making_text_of_the_others() -> None:
    headers, _ = read_headers(FIELDS)
    assert headers.get("tenant") == "red"
    assert headers.get("raw") == "\ufffd\ufffd"
    assert headers.get("none", "default") == "default"
    assert headers.get("absent") is None
    assert headers.get("tenant") == Headers(EXPECTED).get("tenant")


def test_looking_twice_gives_the_same_and_equals_plain_headers() -> None:
    headers, _ = read_headers(FIELDS)
    assert headers.items() is headers.items()
    assert headers == Headers(EXPECTED)
    assert hash(headers) == hash(Headers(EXPECTED))
    assert repr(headers) == repr(Headers(EXPECTED))


def test_the_size_is_in_bytes_and_known_without_looking() -> None:
    headers, _ = read_headers(FIELDS)
    assert headers.size == sum(len(name) + len(value or b"") for name, value in FIELDS)


def test_copies_are_made_from_any_fields() -> None:
    headers, _ = read_headers(FIELDS)
    assert headers.set({"tenant": "green"}).items()[-1] == ("tenant", "green")
    assert headers.without("alo-").items() == EXPECTED[1:]
    copy = type(headers)(item for item in headers.items() if item[0] != "tenant")
    assert copy.get("alo-id") == "m-1"
    assert copy.items() == (EXPECTED[0], EXPECTED[2], EXPECTED[3])
    assert copy.get("alo-id") == "m-1"
    assert type(headers)({"tenant": "red"}).items() == (("tenant", "red"),)


@pytest.mark.parametrize("value", [b"\xff", b"", None])
def test_an_identity_that_is_no_text_is_none(value: bytes | None) -> None:
    assert read_headers([("alo-id", value)])[1] is None


def test_the_last_identity_counts() -> None:
    assert read_headers([("alo-id", b"a"), ("alo-id", b"b")])[1] == "b"


def test_an_unknown_attribute_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError):
        _ = RecordHeaders([]).nothing


def test_the_key_and_the_body_of_a_delivery_are_had_without_reading_its_headers() -> None:
    """Order asks each record for its key: reading headers for that would cost more than all else on the way to a handler."""

    class Bare:
        def key(self) -> bytes:
            return b"k-1"

        def value(self) -> bytes:
            return b"{}"

        def headers(self) -> None:
            raise AssertionError("the headers were read")

    source = Source(Topic("orders"), "billing")
    delivery = RecordDelivery(source, "orders/0", 0, 1, None, 2, Bare())  # type: ignore[arg-type]
    assert delivery.key == b"k-1"
    assert delivery.body == b"{}"
    delivery.message = Message("m-1", b"{}", b"k-1")
    delivery.shed()
    assert delivery.key is None
