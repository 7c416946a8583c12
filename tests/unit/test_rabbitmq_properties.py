"""Messages as AMQP properties and back, without a broker."""

from __future__ import annotations

import struct
from typing import Any

import pytest

pytest.importorskip("pika", reason="pika is not installed")

import pika
from hypothesis import given
from hypothesis import strategies as st

from atleastonce.adapters.rabbitmq.envelope import Envelope, Properties, delivery_count, identity, parse
from atleastonce.adapters.rabbitmq.lists import Encoder
from atleastonce.adapters.rabbitmq.properties import MAX_HEADER_BYTES, Refused, encode, to_message
from atleastonce.adapters.rabbitmq.table import encode_name, encode_table, encode_value, read_table
from atleastonce.contract import Code
from atleastonce.message import Headers, HeaderValue, Message

LIMIT = 2**20


def written(message: Message, user: str = "guest") -> bytes:
    return encode(message, LIMIT, user=user, now=1_700_000_000.5)


def read(encoded: bytes, body: bytes = b"") -> Message:
    parsed = parse(encoded)
    return to_message(identity(parsed) or "?", parsed, Envelope(b"", b"q", False, encoded), body)


def sorted_by_the_broker(encoded: bytes) -> bytes:
    """The same properties with the table as RabbitMQ leaves it: by name, and one field of each."""
    parsed = parse(encoded)
    fields = {}
    for field in parsed.table:
        fields.setdefault(field.name, field)
    content = b"".join(
        encode_name(name) + (fields[name].raw or encode_value(fields[name].value)) for name in sorted(fields)
    )
    begin = encoded.index(table_of(parsed.table))
    return encoded[:begin] + encode_table(content) + encoded[begin + len(table_of(parsed.table)) :]


def table_of(fields: list[Any]) -> bytes:
    return encode_table(b"".join(encode_name(f.name) + (f.raw or encode_value(f.value)) for f in fields))


NAMES = st.text("ab-CZ_.09", min_size=1, max_size=6).filter(lambda name: not name.startswith(("alo-", "x-")))
VALUES: st.SearchStrategy[HeaderValue] = st.one_of(
    st.text(max_size=20), st.binary(max_size=10), st.none(), st.just("application/json")
)
FIELDS = st.lists(
    st.tuples(st.one_of(NAMES, st.sampled_from(["content-type", "CC", "BCC", "alo-id", "a", "b"])), VALUES), max_size=8
)


@given(fields=FIELDS, key=st.one_of(st.none(), st.binary(max_size=20), st.text(max_size=5).map(str.encode)))
def test_every_message_comes_back_as_it_was_even_after_the_broker_has_sorted_it(
    fields: list[tuple[str, HeaderValue]], key: bytes | None
) -> None:
    sent = Message("m-1", b"body", key, Headers(fields))
    encoded = written(sent)
    for wire in (encoded, sorted_by_the_broker(encoded)):
        got = read(wire, b"body")
        assert (got.key, got.headers, got.body) == (key, sent.headers, b"body")
        assert got.published_at == 1_700_000_000.0
    # A hop writes the same again.
    again = Message(sent.id, b"body", key, got.headers, got.published_at, got.native)
    assert read(written(again)).headers == sent.headers


@given(data=st.binary(max_size=200))
def test_no_bytes_make_the_reader_fail(data: bytes) -> None:
    read(data)
    for begin in range(min(len(data), 20)):
        read_table(data, begin, len(data))


@given(
    fields=st.dictionaries(
        st.text(min_size=1, max_size=10),
        st.recursive(
            st.one_of(
                st.text(max_size=5), st.integers(-(2**62), 2**62), st.booleans(), st.none(), st.binary(max_size=5)
            ),
            lambda inner: st.one_of(
                st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)
            ),
        ),
        max_size=5,
    )
)
def test_what_pika_encodes_is_read_and_written_back_byte_for_byte(fields: dict[str, Any]) -> None:
    encoded = b"".join(pika.BasicProperties(headers=fields, message_id="m").encode())
    parsed = parse(encoded)
    if not fields:
        assert parsed.table == []
        return
    assert [field.name for field in parsed.table] == list(fields)
    assert table_of(parsed.table) in encoded
    for field in parsed.table:
        value = fields[field.name]
        if isinstance(value, bool):
            assert field.value == str(value).lower()
        elif isinstance(value, int):
            assert field.value == str(value)
        elif isinstance(value, str | bytes) or value is None:
            assert field.value == value
        else:
            assert field.nested
            assert field.value is None


def test_pika_reads_ours() -> None:
    sent = Message("m-1", b"", b"k", Headers([("content-type", "text/plain"), ("a", "1"), ("b", b"\xff")]))
    properties = pika.BasicProperties()
    properties.decode(written(sent))
    assert properties.content_type == "text/plain"
    assert properties.delivery_mode == 2
    assert properties.message_id == "m-1"
    assert properties.timestamp == 1_700_000_000
    assert properties.headers == {"a": "1", "b": b"\xff", "alo-key": "k"}


def test_the_last_of_equal_fields_keeps_its_name_for_raw_clients() -> None:
    properties = pika.BasicProperties()
    properties.decode(written(Message("m", b"", None, Headers([("a", "1"), ("a", "2")]))))
    assert properties.headers["a"] == "2"


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ([("x-death", "v")], Code.INVALID),
        ([("x-delivery-count", "v")], Code.INVALID),
        ([("x-first-death-queue", "v")], Code.INVALID),
        ([("x-opt-delivery-time", "v")], Code.INVALID),
        ([("alo-key", "v")], Code.INVALID),
        ([("alo-order", "v")], Code.INVALID),
        ([("alo-cc", "v")], Code.INVALID),
        ([("n" * 256, "v")], Code.INVALID),
        ([("n", "\ud800")], Code.INVALID),
        ([("n", "v" * MAX_HEADER_BYTES)], Code.TOO_LARGE),
        ([(f"n{n}", "v") for n in range(14_000)], Code.TOO_LARGE),
    ],
)
def test_what_amqp_or_the_broker_cannot_take_is_refused(headers: list[tuple[str, str]], code: Code) -> None:
    with pytest.raises(Refused) as caught:
        written(Message("m", b"", None, Headers(headers)))
    assert caught.value.code is code


def test_a_body_over_the_limit_is_refused_with_the_option_to_change() -> None:
    with pytest.raises(Refused, match="max_message_bytes is 10"):
        encode(Message("m", b"x" * 11), 10, user="guest", now=0.0)


def test_a_copy_of_the_largest_message_has_room_for_our_headers() -> None:
    came = read(encode(Message("m", b"x" * 10, None, Headers([("n", "v")])), 20, user="guest", now=0.0), b"x" * 10)
    ours = Headers([("n", "v"), ("alo-attempt", "2")])
    encode(Message(came.id, came.body, came.key, ours, None, came.native), 10, user="guest", now=0.0)
    with pytest.raises(Refused, match="11 bytes; max_message_bytes is 10"):
        encode(Message(came.id, b"x" * 11, came.key, ours, None, came.native), 10, user="guest", now=0.0)


def test_an_id_longer_than_a_property_travels_in_its_header() -> None:
    id = "i" * 256
    encoded = written(Message(id, b"", None, Headers([("alo-id", id)])))
    assert read(encoded).id == id


def test_a_hop_keeps_what_is_the_messages_and_drops_what_is_the_hand_outs() -> None:
    death = [{"queue": "q", "reason": "expired", "count": 1, "exchange": "", "routing-keys": ["q"]}]
    theirs = pika.BasicProperties(
        headers={
            "x-death": death,
            "x-first-death-queue": "q",
            "x-delivery-count": 3,
            "CC": ["elsewhere"],
            "n": 7,
            "list": [1],
        },
        correlation_id="c",
        expiration="5",
        user_id="somebody",
        reply_to="amq.rabbitmq.reply-to",
        app_id="shop",
        priority=4,
    )
    got = read(b"".join(theirs.encode()))
    assert got.headers == Headers([("n", "7")])
    moved = pika.BasicProperties()
    moved.decode(written(Message("m", b"", None, Headers([*got.headers.items(), ("more", "1")]), native=got.native)))
    assert moved.headers == {"n": 7, "more": "1", "alo-cc": ["elsewhere"], "list": [1], "alo-order": "1 0"}
    assert (moved.correlation_id, moved.app_id, moved.priority) == ("c", "shop", 4)
    assert (moved.expiration, moved.user_id, moved.reply_to) == (None, None, None)


def test_a_changed_value_is_written_as_text() -> None:
    got = read(b"".join(pika.BasicProperties(headers={"n": 7}).encode()))
    moved = pika.BasicProperties()
    moved.decode(written(Message("m", b"", None, Headers([("n", "8")]), native=got.native)))
    assert moved.headers == {"n": "8"}


@pytest.mark.parametrize(
    ("headers", "redelivered", "count"),
    [
        ({}, False, 1),  # 4.x
        ({"x-delivery-count": 0}, False, 1),  # 3.10
        ({"x-delivery-count": 2}, True, 3),
        ({"x-acquired-count": 1}, True, 1),  # given back on 4.3
        ({}, True, 0),  # a classic queue
        ({"x-delivery-count": 2, "x-acquired-count": 4}, True, 3),  # 4.3
        # What a producer had written, as 3.10.8 and 4.3.6 hand it out:
        ({"x-delivery-count": 9}, False, 1),
        ({"x-delivery-count": 9, "x-acquired-count": 4}, False, 1),
        ({"x-delivery-count": 9, "x-acquired-count": 1}, True, 1),
    ],
)
def test_deliveries_are_counted_alike_on_every_version(headers: dict[str, int], redelivered: bool, count: int) -> None:
    encoded = b"".join(pika.BasicProperties(headers=headers or None).encode())
    assert delivery_count(parse(encoded), redelivered) == count


def test_a_queue_that_does_not_count_has_no_count_that_a_producer_wrote() -> None:
    encoded = b"".join(pika.BasicProperties(headers={"x-delivery-count": 9}).encode())
    assert delivery_count(parse(encoded), True, counts=False) == 0
    assert delivery_count(parse(encoded), False, counts=False) == 1


def test_an_order_that_does_not_fit_is_ignored() -> None:
    for order in ("1 0 2", "0 0", "1 x", "-1 0", "9 0", ""):
        content = b"".join(
            encode_name(name) + encode_value(value) for name, value in (("a", "1"), ("b", "2"), ("alo-order", order))
        )
        encoded = struct.pack(">H", 1 << 13) + encode_table(content)
        assert read(encoded).headers.items() == (("a", "1"), ("b", "2"))


@pytest.mark.parametrize("forged", ["--5", "-1", "\u00b2", "\u0663", "9" * 5000, "", "1.5", b"3", None])
def test_a_count_that_is_none_is_not_believed(forged: HeaderValue) -> None:
    """A classic queue leaves ``x-delivery-count`` as its producer wrote it; one that raised would end the reader of all others."""
    content = encode_name("x-delivery-count") + encode_value(forged)
    properties = Properties({}, read_table(content, 0, len(content)), None)
    assert delivery_count(properties, redelivered=False) == 1
    assert delivery_count(properties, redelivered=True) == 0


@given(
    fields=FIELDS,
    ids=st.lists(st.one_of(st.text(max_size=8), st.text("ab", min_size=250, max_size=260)), min_size=2, max_size=4),
    keys=st.lists(st.one_of(st.none(), st.binary(max_size=9), st.just(b"k" * 9000)), min_size=4, max_size=4),
)
def test_a_list_is_written_as_its_messages_are_one_by_one(
    fields: list[tuple[str, HeaderValue]], ids: list[str], keys: list[bytes | None]
) -> None:
    base = Headers(fields)
    messages = [Message(id, b"body", key, base.plus("alo-id", id)) for id, key in zip(ids, keys, strict=False)]
    others = [Message("m", b"", None, base), Message("n", b"", None, base.plus("other", "n"))]
    listed = [*messages, *others, *messages, Message("z", b"", None, Headers([("z", "1")]).plus("alo-id", "z"))]
    encoder = Encoder(LIMIT, user="guest", now=1_700_000_000.5)
    assert [encoder.encode(each) for each in listed] == [written(each) for each in listed]


def test_what_is_refused_in_a_list_is_refused_each_time() -> None:
    encoder = Encoder(1000, user="guest", now=0)
    bad, good = Headers([("x-death", "1")]), Headers([("a", "1")])
    for each in (
        Message("1", b"", None, bad.plus("alo-id", "1")),
        Message("2", b"", None, bad.plus("alo-id", "2")),
        Message("3", b"", None, Headers([("a", "\ud800")]).plus("alo-id", "3")),
        Message("4", b"", None, Headers([("a", "\ud800")]).plus("alo-id", "3")),
    ):
        with pytest.raises(Refused):
            encoder.encode(each)
    encoder.encode(Message("5", b"", None, good.plus("alo-id", "5")))
    with pytest.raises(Refused, match="1000"):
        encoder.encode(Message("6", b"x" * 1000, None, good.plus("alo-id", "6")))
    with pytest.raises(Refused):
        encoder.encode(Message("7", b"", None, good.plus("alo-id", "\ud800")))
