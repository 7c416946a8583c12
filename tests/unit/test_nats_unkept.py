"""What goes past all streams on NATS: blocks, written and read once for messages that have them in common, and questions."""

from __future__ import annotations

import re

import msgspec
import pytest

pytest.importorskip("nats", reason="nats-py is not installed")

from hypothesis import example, given
from hypothesis import strategies as st

from atleastonce import Queue, wire
from atleastonce.adapters.nats.core import is_inbox
from atleastonce.adapters.nats.envelope import read_message
from atleastonce.adapters.nats.question import Question
from atleastonce.adapters.nats.unkept import Reader, Writer
from atleastonce.channels import Source
from atleastonce.contract import AskingHeaders, Delivery
from atleastonce.message import Headers, Message

JSON = Headers([("content-type", "application/json")])
TRACED = Headers([("content-type", "application/json"), ("trace", "1")])
BINARY = Headers([("trace", b"\xff")])
MESSAGES = st.builds(
    Message,
    id=st.sampled_from(["a", "b"]),
    body=st.just(b""),
    key=st.sampled_from([None, b"k"]),
    headers=st.one_of(
        st.sampled_from([JSON, TRACED, BINARY, Headers()]),
        st.builds(
            AskingHeaders,
            st.sampled_from([JSON, TRACED, BINARY, Headers()]),
            st.sampled_from(["a", "b", "a\r\nNats-Msg-Id: b", "\xe4"]),
            st.sampled_from(["", "c"]),
            st.sampled_from(["1", "2"]),
            st.sampled_from(["_INBOX.x.1", "_INBOX.x.2"]),
        ),
    ),
)


@given(st.lists(MESSAGES, max_size=8))
def test_what_was_written_before_changes_no_block(messages: list[Message]) -> None:
    writer = Writer()
    for message in messages:
        plain = msgspec.structs.replace(message, headers=Headers(message.headers.items()))
        assert writer.block(message) == Writer().block(message) == Writer().block(plain)


def test_the_block_of_equal_fields_is_written_once() -> None:
    writer = Writer()
    assert writer.block(Message("a", b"1", None, JSON)) is writer.block(Message("b", b"2", None, JSON))


BLOCKS = st.sampled_from(
    [
        b"",
        b"NATS/1.0\r\n\r\n",
        b"NATS/1.0\r\ncontent-type: application/json\r\n\r\n",
        b"NATS/1.0\r\nalo-id: x\r\n\r\n",
        b"NATS/1.0\r\nalo-key: k\r\n\r\n",
        b"NATS/1.0\r\nname: \xff\r\n\r\n",
    ]
)


@given(st.lists(st.tuples(BLOCKS, st.binary(max_size=3), st.sampled_from(["c", "d"])), max_size=8))
def test_what_was_read_before_changes_no_message(came: list[tuple[bytes, bytes, str]]) -> None:
    reader = Reader()
    for block, body, position in came:
        assert reader.read(block, body, position) == read_message(block, body, position, None)


def question(block: bytes, reply: bytes = b"_INBOX.x.1", number: int = 1) -> Question:
    return Question(Source(Queue("quotes")), "5" * 20, number, reply, block, b"1")


def test_where_a_question_is_answered_is_a_field_of_its_message_as_on_every_broker() -> None:
    asked = question(b"NATS/1.0\r\nalo-id: q\r\nalo-deadline: 5\r\n\r\n")
    assert asked.raw == "_INBOX.x.1"
    assert asked.message.id == "q"
    assert asked.message.headers.get(wire.REPLY_TO) == "_INBOX.x.1"
    assert asked.message.headers.get(wire.DEADLINE) == "5"


def test_what_nobody_waits_for_and_what_a_stream_is_to_confirm_is_no_question() -> None:
    for asked in (
        question(b"", b""),
        question(b"NATS/1.0\r\nNats-Msg-Id: q\r\nalo-reply-to: a\r\n\r\n", b"_INBOX.confirm.1"),
    ):
        assert asked.raw is None
    assert asked.message.headers.get(wire.REPLY_TO) == "a"


def test_a_question_without_an_id_has_one_of_its_own_that_stays() -> None:
    first, second = question(b""), question(b"", number=2)
    assert first.message.id != second.message.id
    assert len(first.message.id) == 32
    again = first.once_more()
    assert (again.message.id, again.count, again.raw) == (first.message.id, 2, first.raw)
    assert again.message.published_at == first.message.published_at


def test_where_it_is_answered_is_written_once() -> None:
    fields = [("content-type", "application/json"), (wire.ID, "q"), (wire.REPLY_TO, "_INBOX.x.1")]
    assert b"alo-reply-to" not in Writer().block(Message("q", b"", None, Headers(fields)))
    kept = Writer().block(Message("q", b"", None, Headers([*fields, ("binary", b"\xff")])))
    assert b"alo-reply-to" in kept  # what takes a stream's form is asked for it


# What a block may be made of, and what in it says until when somebody waits, or seems to.
LINES = st.sampled_from(
    [
        b"content-type: application/json",
        b"name: alo-deadline: 7",
        b"alo-deadline: 1700000000500",
        b"alo-deadline: 5",
        b"alo-deadline:6",
        b"alo-deadline: -5",
        b"alo-deadline: 123456789012345678",
        b"alo-deadline: soon",
        b"alo-id: q",
        b"alo-id: \xff",
        b"alo-redrives: 1",
        b"ALO-deadline: 3",
        b"alo-key: k",
        b"alo-as-alo-deadline: 9",
        b"Nats-Msg-Id: q",
        b"name: \xff",
        b"no field",
        b"",
    ]
)


@given(st.lists(LINES, max_size=6))
@example([b"content-type: application/json", b"alo-deadline: 1700000000500", b"alo-id: q"])
@example([b"alo-redrives: 1", b"alo-deadline: 5", b"alo-id: q"])
@example([b"alo-deadline: 5", b"alo-id: q", b"alo-deadline: 6"])
def test_until_when_somebody_waits_is_the_same_however_it_is_read(lines: list[bytes]) -> None:
    asked = question(b"".join([b"NATS/1.0\r\n", *[line + b"\r\n" for line in lines], b"\r\n"]))
    whole = Delivery(asked.message, asked.source, "quotes", "", 0, None)
    assert asked.waited_until == whole.waited_until


TOKENS = st.sampled_from(["_INBOX", "in", "inbox", "a1", "a-b", "a" * 64, "a" * 65, "", "\xe4", "*", ">", "a b"])
PREFIXES = st.sampled_from(["_INBOX", "in", "in.inbox"])
INBOX = re.compile(r"[A-Za-z0-9_=-]{1,64}(\.[A-Za-z0-9_=-]{1,64}){0,7}")


@given(st.lists(TOKENS, max_size=12), PREFIXES)
@example(["_INBOX", *"12345678"], "in")
@example(["_INBOX", *"123456789"], "in")
def test_an_inbox_is_below_one_of_the_prefixes_in_tokens_without_wildcards(tokens: list[str], prefix: str) -> None:
    address = ".".join(tokens)
    below = [address.removeprefix(f"{each}.") for each in ("_INBOX", prefix) if address.startswith(f"{each}.")]
    assert is_inbox(address, prefix) is any(INBOX.fullmatch(each) is not None for each in below)
