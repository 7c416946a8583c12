"""Messages as fields of an entry, and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("redis", reason="redis is not installed")

from atleastonce.adapters.redis_streams.entries import BODYLESS, EntryDelivery, Layout
from atleastonce.adapters.redis_streams.faults import ReplyError, classify
from atleastonce.channels import Queue, Source
from atleastonce.contract import Code
from atleastonce.message import Headers, Message

NAMES = st.one_of(st.sampled_from(["body", "alo-key", "~body", "~~alo-key", "alo-id", "x"]), st.text(min_size=1))
VALUES = st.one_of(st.text(), st.binary())


def wire(fields: list[object]) -> list[bytes]:
    return [each if isinstance(each, bytes) else str(each).encode("utf-8", "surrogateescape") for each in fields]


@given(body=st.binary(), key=st.none() | st.binary(), items=st.lists(st.tuples(NAMES, VALUES), max_size=8))
def test_what_is_written_is_read(body: bytes, key: bytes | None, items: list[tuple[str, str | bytes]]) -> None:
    layout = Layout("body")
    try:
        fields = wire(layout.fields(Message("m", body, key, Headers(items))))
    except UnicodeEncodeError:  # half of a surrogate pair, which is refused
        return
    read = layout.message("q", b"17-1", fields)
    assert (read.body, read.key, read.native) == (body, key, None)
    wanted = [(name, value.encode() if isinstance(value, str) else value) for name, value in items]
    found = [(name, v.encode() if isinstance(v, str) else v or b"") for name, v in read.headers.items()]
    assert found == wanted


FORGED = st.sampled_from([b"body", b"alo-key", b"~body", b"~~alo-key", b"alo-id", b"~", b"", b"\xff"]) | st.binary()


@given(st.lists(st.tuples(FORGED, st.binary() | st.just(b"[" * 5000) | st.just(b"9" * 5000)), min_size=1, max_size=8))
def test_whatever_others_wrote_is_read_and_can_travel_on(pairs: list[tuple[bytes, bytes]]) -> None:
    fields = [part for pair in pairs for part in pair]
    layout = Layout("body")
    delivery = EntryDelivery(layout, Source(Queue("q")), "q", 1, b"17-1", fields, 1, 0.0)
    assert delivery.message.body == delivery.body
    assert delivery.unreadable is None
    assert layout.fields(delivery.message)


@given(st.lists(st.tuples(st.binary(), st.binary()), min_size=1, max_size=8))
def test_a_raw_entry_is_written_again_as_it_came(pairs: list[tuple[bytes, bytes]]) -> None:
    fields = [part for pair in pairs for part in pair]
    layout = Layout("body")
    message = layout.message("q", b"17-1", fields)
    assert message.id
    again = wire(layout.fields(message))
    written = list(zip(again[::2], again[1::2], strict=True))
    # The body and the key go first; the others keep their order.
    assert sorted(written) == sorted(pairs)
    if message.native is BODYLESS and message.key is None:
        assert written == pairs


def test_an_entry_without_a_body_is_an_object_of_its_fields() -> None:
    message = Layout("body").message("q", b"17-1", [b"order", b"17", b"raw", b"\xff", b"alo-id", b"m"])
    assert (message.id, message.body) == ("m", '{"order": "17", "raw": "\ufffd"}'.encode())
    assert message.headers.get("order") == "17"
    assert message.published_at == 0.017


def test_a_delivery_makes_its_message_when_it_is_looked_at() -> None:
    fields = [b"body", b"{}", b"alo-id", b"m"]
    delivery = EntryDelivery(Layout("body"), Source(Queue("q")), "q", 1, b"17-1", fields, 1, 5.0)
    assert (delivery.body, delivery.size) == (b"{}", 13)
    assert (delivery.message.id, delivery.position) == ("m", "17-1")
    assert delivery.message is delivery.message
    with pytest.raises(AttributeError):
        _ = delivery.nothing


@pytest.mark.parametrize(
    ("text", "code", "retryable"),
    [
        ("OOM command not allowed when used memory > 'maxmemory'.", Code.OVERLOADED, True),
        ("NOGROUP No such key 'q' or consumer group 'g'", Code.NOT_FOUND, False),
        ("UNBLOCKED the stream key no longer exists", Code.NOT_FOUND, False),
        ("ERR no such key script: 1, on @user_script:3.", Code.NOT_FOUND, False),
        ("NOPERM this user has no permissions to run the 'xadd' command", Code.PERMISSION, False),
        ("READONLY You can't write against a read only replica.", Code.UNAVAILABLE, True),
        ("MOVED 1234 127.0.0.1:7001", Code.UNAVAILABLE, True),
        ("ERR syntax error", Code.INVALID, False),
    ],
)
def test_error_replies_are_told_apart(text: str, code: Code, retryable: bool) -> None:
    fault = classify(ReplyError(text))
    assert (fault.code, fault.retryable) == (code, retryable)


def test_an_unknown_error_is_internal() -> None:
    assert classify(ZeroDivisionError("x")).code is Code.INTERNAL
