"""NATS header blocks: what goes in comes out, whatever it is, and what is read is never believed or raised about."""

from __future__ import annotations

import pytest

pytest.importorskip("nats", reason="nats-py is not installed")

from hypothesis import given
from hypothesis import strategies as st

from atleastonce.adapters.nats.envelope import (
    Refused,
    encode,
    publish_id,
    read_message,
    read_unkept,
    status_of,
)
from atleastonce.message import Headers, HeaderValue, Message

NAMES = st.one_of(
    st.text("abcXYZ-_.09!#$%&'*+^`|~", min_size=1, max_size=20),
    st.sampled_from(["Nats-Msg-Id", "nats-x", "alo-key", "alo-as-x", "alo-b64-x", "alo-attempt", "Status"]),
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
VALUES: st.SearchStrategy[HeaderValue] = st.one_of(TEXT, st.binary(max_size=30).filter(lambda data: not is_utf8(data)))


def is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


@given(st.lists(st.tuples(NAMES, VALUES), max_size=8), st.none() | st.binary(max_size=20), st.none() | st.just("g"))
def test_a_message_comes_out_as_it_went_in(
    fields: list[tuple[str, HeaderValue]], key: bytes | None, group: str | None
) -> None:
    sent = Message("order-1", b"body", key, Headers([("alo-id", "order-1"), *fields]))
    read = read_message(encode(sent, group), b"body", "q-1", None)
    if all(name != "alo-id" for name, _ in fields):
        assert (read.id, read.body, read.key) == (sent.id, sent.body, sent.key)
        assert read.headers.items() == sent.headers.items()


@given(st.lists(st.tuples(NAMES, VALUES), max_size=8), st.none() | st.binary(max_size=20))
def test_nothing_a_message_holds_adds_a_line_to_its_block(
    fields: list[tuple[str, HeaderValue]], key: bytes | None
) -> None:
    block = encode(Message("order-1", b"", key, Headers(fields)), None)
    assert block.endswith(b"\r\n\r\n")
    assert block.count(b"\n") == block.count(b"\r") == 3 + len(fields) + (key is not None)
    acting = [line for line in block.split(b"\r\n")[1:] if line.lower().startswith(b"nats-")]
    assert len(acting) == 1, "a field of the user's acts on the server"


LINES = st.lists(
    st.tuples(
        st.sampled_from(
            [b"alo-b64-x", b"alo-b64-", b"alo-as-x", b"alo-as-", b"alo-key", b"alo-id", b"Nats-Msg-Id", b"x", b""]
        ),
        st.binary(max_size=20).filter(lambda data: b"\r\n" not in data) | st.just(b"[" * 5000) | st.just(b"9" * 5000),
    ),
    max_size=8,
)


@given(LINES)
def test_fields_that_look_like_ours_can_be_read_and_travel_on(lines: list[tuple[bytes, bytes]]) -> None:
    block = b"NATS/1.0\r\n" + b"".join(b"%b: %b\r\n" % line for line in lines) + b"\r\n"
    message = read_message(block, b"", "q-7", 1.0)
    assert read_unkept(block, b"", "c", None).id
    assert encode(message, None).endswith(b"\r\n\r\n")


@given(LINES)
def test_what_is_looked_for_by_name_is_what_is_found_when_all_is_read(lines: list[tuple[bytes, bytes]]) -> None:
    block = b"NATS/1.0\r\n" + b"".join(b"%b:%b\r\n" % line for line in lines) + b"\r\n"
    light, whole = read_unkept(block, b"", "c", None), read_message(block, b"", "c", None)
    for name in ("x", "alo-id", "alo-key", "alo-as-x", "Nats-Msg-Id", "y", "x:y", "NATS/1.0"):
        assert light.headers.get(name, "none") == whole.headers.get(name, "none")
    assert light == whole


@given(
    LINES,
    st.sampled_from([b"o-1", b"o-1/ab", b"o-1@g", b"o-2", b"[", b""]),
    st.sampled_from([b"", b"alo-key: a%41\r\n"]),
)
def test_a_block_as_we_write_it_says_the_same_when_it_is_read_as_anybodys(
    lines: list[tuple[bytes, bytes]], native: bytes, key: bytes
) -> None:
    fields = b"".join(b"%b:%b\r\n" % line for line in lines)
    rest = b"%balo-id: o-1\r\n%b\r\n" % (key, fields)
    light = read_message(b"NATS/1.0\r\nNats-Msg-Id: %b\r\n%b" % (native, rest), b"", "q-7", None)
    whole = read_message(b"NATS/1.0\r\nNats-Msg-Id:%b\r\n%b" % (native, rest), b"", "q-7", None)
    assert ("x" in light.headers, "y" in light.headers) == ("x" in whole.headers, "y" in whole.headers)
    assert light == whole


@given(st.binary(max_size=200))
def test_any_block_can_be_read(block: bytes) -> None:
    message = read_message(block, b"", "q-7", 1.0)
    assert message.id
    status_of(block)


def test_a_null_value_is_refused() -> None:
    with pytest.raises(Refused, match="null"):
        encode(Message("a", b"", None, Headers([("h", None)])), None)


def copy(**fields: str) -> Message:
    return Message("a", b"", None, Headers([("alo-id", "a"), *((f"alo-{n}", v) for n, v in fields.items())]))


def test_a_first_publish_is_known_by_its_id() -> None:
    assert publish_id(copy(), None) == b"a"
    assert encode(copy(), None).startswith(b"NATS/1.0\r\nNats-Msg-Id: a\r\n")


def test_every_hop_is_known_by_another_id_and_a_repeated_one_by_the_same() -> None:
    ids = [
        publish_id(each, group)
        for each in (
            copy(),
            copy(redrives="1"),
            copy(redrives="2"),
            copy(attempt="2", due="1"),
            copy(attempt="2", due="2"),
        )
        for group in (None, "g", "h")
    ]
    assert len(set(ids)) == len(ids)
    assert publish_id(copy(redrives="1"), None) == publish_id(copy(redrives="1"), None)


def test_an_id_that_no_line_can_carry_is_known_by_its_digest() -> None:
    identity = publish_id(Message("a\r\nb", b""), None)
    assert len(identity) == 64
    assert identity.isalnum()


@pytest.mark.parametrize(
    ("block", "status"),
    [
        (b"NATS/1.0\r\na: b\r\n\r\n", (0, "")),
        (b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 1\r\n\r\n", (100, "Idle Heartbeat")),
        (b"NATS/1.0 503\r\n\r\n", (503, "")),
        (b"NATS/1.0 what is this\r\n\r\n", (0, "is this")),
    ],
)
def test_the_status_of_a_block(block: bytes, status: tuple[int, str]) -> None:
    assert status_of(block) == status


def test_an_answer_is_taken_apart_when_somebody_looks() -> None:
    fields = [("content-type", "text/plain"), ("Nats-x", "y"), ("twice", "1"), ("twice", "2"), ("raw", b"\xff")]
    sent = Headers(fields)
    block = b"NATS/1.0\r\ncontent-type: text/plain\r\nalo-as-Nats-x: y\r\ntwice: 1\r\ntwice:2\r\nraw: \xff\r\n\r\n"
    message = read_unkept(block, b"b", "c", None)
    assert (message.id, message.key, message.headers.get("alo-error-type")) == ("c", None, None)
    assert message.headers.get("twice") == "2"
    assert message.headers.get("Nats-x") == "y"
    assert message.headers.get("wice") is None  # in the block, and no field's name
    assert message.headers.items() == sent.items()
    assert message.headers.fields() == sent.items()
    assert len(message.headers) == 5
    assert "raw" in message.headers
    assert message.size == Message("c", b"b", None, sent).size
    assert read_unkept(b"", b"b", "c", None).headers == Headers()


@pytest.mark.parametrize("field", [("alo-id", "o-1"), ("alo-key", "k"), ("Nats-Msg-Id", "o-1")])
def test_an_answer_that_says_who_it_is_is_read_as_a_message(field: tuple[str, str]) -> None:
    block = b"NATS/1.0\r\n%b: %b\r\n\r\n" % (field[0].encode(), field[1].encode())
    assert read_unkept(block, b"b", "c", None) == read_message(block, b"b", "c", None)
