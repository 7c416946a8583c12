"""Header fields of a Kafka record: text where they are UTF-8, made so when somebody looks."""

from __future__ import annotations

import pytest

pytest.importorskip("confluent_kafka", reason='needs pip install "atleastonce[kafka]"')

from confluent_kafka import Message as Record

from atleastonce import wire
from atleastonce.adapters.kafka.records import TOMBSTONE, RecordDelivery, RecordHeaders, read_headers
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


MARKS = frozenset({wire.ID, wire.GROUP, wire.ORIGIN})
MARK, SHARED = (wire.ORIGIN, "orders/0/7"), Headers({wire.GROUP: "billing", wire.ATTEMPT: "2"})


def record(fields: list[tuple[str, bytes | None]] | None, body: bytes | None = b"{}") -> RecordDelivery:
    found = Record("orders", 0, 7, b"k-1", body, fields, None, (1, 1_700_000_000_000))  # type: ignore[call-arg]
    return RecordDelivery(Source(Topic("orders"), "billing"), "orders/0", 7, 1, None, 2, found)  # type: ignore[arg-type]


def first_copies(*deliveries: RecordDelivery) -> list[Message | None]:
    name, value = MARK
    return RecordDelivery.first_copies(deliveries, MARKS, name, [value] * len(deliveries), SHARED)


@pytest.mark.parametrize("body", [b"{}", b"", None])
@pytest.mark.parametrize(
    "fields",
    [
        None,
        FIELDS,
        [("tenant", b"\xff"), ("none", None)],
        [("alo-id", b"\xff"), ("alo-id", None)],
        [("alo-id", b"m-1"), ("alo-id", b"m-2"), ("alo-reply-to", b"inbox")],
        [("alo-id", b"x" * 257)],
    ],
)
def test_a_first_copy_out_of_the_record_is_the_one_out_of_its_message(
    fields: list[tuple[str, bytes | None]] | None, body: bytes | None
) -> None:
    (out_of_record,) = first_copies(record(fields, body))
    read = record(fields, body)
    message = read.message
    (out_of_message,) = first_copies(read)
    assert out_of_record is not None
    assert out_of_message is not None
    for copy in (out_of_record, out_of_message):
        assert (copy.id, copy.body, copy.key, copy.native) == (message.id, body or b"", b"k-1", message.native)
        kept = [(name, value) for name, value in fields or () if name != wire.ID]
        end = [(wire.ID, message.id), MARK, *SHARED.items()]
        assert list(copy.headers.items()) == [*kept, *end]
        assert copy.headers.size == Headers([*kept, *end]).size
    assert (message.native is TOMBSTONE) == (body is None)


def test_a_record_that_bears_a_mark_or_cannot_be_read_has_no_first_copy() -> None:
    marked = record([("a", b"1"), (wire.GROUP, b"billing")])
    assert first_copies(marked, record([(wire.GROUP, None)])) == [None, None]

    class Broken:
        def headers(self) -> None:
            raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")

        def set_headers(self, _: object) -> None:
            pass

    source = Source(Topic("orders"), "billing")
    broken = RecordDelivery(source, "orders/0", 0, 1, None, 2, Broken())  # type: ignore[arg-type]
    assert first_copies(broken) == [None]
    assert broken._message is None  # whoever makes it is told why it cannot be read


@pytest.mark.parametrize("body", [b"{}", b"", None])
@pytest.mark.parametrize(
    "fields",
    [
        None,
        FIELDS,
        [("alo-id", b"\xff"), ("alo-id", None)],
        [("alo-id", b"m-1"), ("alo-id", b"m-2"), (wire.GROUP, None), ("a", None), (wire.ORIGIN, b"\xff")],
    ],
)
def test_what_is_told_and_copied_out_of_the_record_is_what_its_message_says(
    fields: list[tuple[str, bytes | None]] | None, body: bytes | None
) -> None:
    unread, read = record(fields, body), record(fields, body)
    message = read.message
    for item in (unread, read):
        identity, own, size, gone = item.sifted(MARKS)
        assert identity == message.id
        assert own == [(name, value) for name, value in fields or () if name not in MARKS]
        assert size == Headers(own).size
        assert gone == {name: value for name, value in fields or () if name in MARKS}
        copy = item.copied(identity, SHARED)
        assert copy == Message(message.id, body or b"", b"k-1", SHARED, None, message.native)
    assert unread._message is None, "no message was made"


def test_of_a_record_that_cannot_be_read_no_more_is_told_or_copied_than_its_message_says() -> None:
    class Broken:
        def headers(self) -> None:
            raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")

        def set_headers(self, _: object) -> None:
            pass

        def value(self) -> bytes:
            return b"{}"

        def key(self) -> bytes:
            return b"k-1"

    broken = RecordDelivery(Source(Topic("orders"), "billing"), "orders/0", 7, 1, None, 2, Broken())  # type: ignore[arg-type]
    identity, own, size, gone = broken.sifted(MARKS)
    assert (identity, own, size, gone) == ("orders/0/7", [], 0, {})
    assert broken.copied(identity, SHARED) == Message(identity, b"{}", None, SHARED)
    assert broken.unreadable is not None


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
