"""The copies that failures make: what is the user's stays as it came, what is ours says what happened, in bounds."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atleastonce import Queue, Source, Topic, wire
from atleastonce.codecs import decoder_for
from atleastonce.contract import Delivery
from atleastonce.errors import DecodeError
from atleastonce.message import Headers, Message
from atleastonce.patterns.failure import Dead, Hop
from atleastonce.patterns.history import History, is_of, origin, read_history
from atleastonce.patterns.hops import (
    brief_copy,
    dead_copy,
    fingerprint,
    one_line,
    redriven_copies,
    redriven_copy,
    retry_copy,
    words,
)

HOME = Source(Topic("orders"), "billing")
NOW = 1_700_000_000.25
OURS = {value for value in vars(wire).values() if isinstance(value, str) and value.startswith("alo-")} - {wire.PREFIX}
FAILURE = OURS - {wire.REPLY_TO, wire.CORRELATION, wire.DEADLINE, wire.RESPONDER, wire.EDITED}


def delivery(message: Message, *, stream: str = "orders/3", position: str | int = 41, count: int = 1) -> Delivery:
    item = Delivery(message, HOME, stream, position, 1, None, count)
    item.returned = True  # as if the broker had brought it back: what is tested here is what follows
    return item


def history(item: Delivery) -> History:
    return read_history(item, HOME, counted=False)


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:  # noqa: BLE001
        return caught


def retried(item: Delivery, error: BaseException | None = None, delay: float = 5.0) -> Message:
    past = history(item)
    return retry_copy(item, HOME, past, Hop(delay, past.attempt + 1), error or ValueError("x"), now=NOW, tier=delay)


def buried(item: Delivery, error: BaseException | None = None) -> Message:
    dead = Dead("handler", error or raised(ValueError("x")))
    return dead_copy(item, HOME, history(item), dead, service="billing", now=NOW)


VALUES = st.none() | st.text() | st.binary()
USERS = st.tuples(st.sampled_from(["tenant", "a", "traceparent", "content-type", "Alo-X", "x"]), VALUES)
FORGED = st.tuples(st.sampled_from(sorted(OURS)), VALUES)
MESSAGES = st.builds(
    Message,
    st.text(min_size=1, max_size=20),
    st.binary(),
    st.none() | st.binary(),
    st.lists(USERS | FORGED, max_size=12).map(Headers),
    st.none() | st.floats(0, 2e9),
    st.just({"native": 1}),
)


def users(message: Message) -> list[Any]:
    return [item for item in message.headers.items() if item[0] not in FAILURE]


@given(MESSAGES, st.text(max_size=50))
def test_body_key_and_the_users_headers_survive_every_hop_byte_for_byte(message: Message, text: str) -> None:
    item = delivery(message)
    for copy in (
        retried(item, ValueError(text)),
        buried(item, raised(ValueError(text))),
        brief_copy(buried(item)),
        redriven_copy(delivery(buried(item)), HOME),
        buried(delivery(retried(delivery(redriven_copy(delivery(buried(item)), HOME))))),
    ):
        assert (copy.id, copy.body, copy.key, copy.native) == (message.id, message.body, message.key, message.native)
        assert users(copy) == users(message)
        assert copy.headers.get_all(wire.ID) == [message.id]
        names = [name for name in copy.headers if name in FAILURE]
        assert len(names) == len(set(names)), "ours are replaced, never appended"


@given(MESSAGES, st.text(max_size=3000))
@settings(max_examples=60)
def test_ours_are_one_line_of_ascii_within_8_kib(message: Message, text: str) -> None:
    error = raised(ExceptionGroup(text or "g", [ValueError(text * 3), caused(KeyError(text), OSError(text))]))
    for copy in (retried(delivery(message), error), buried(delivery(message), error)):
        ours = [(name, value) for name, value in copy.headers.items() if name in FAILURE and name != wire.ID]
        for _, value in ours:
            assert isinstance(value, str)
            assert value.isascii()
            assert value.isprintable() or value == ""
        assert sum(len(name) + len(str(value)) for name, value in ours) <= 8192


def caused(error: BaseException, by: BaseException) -> BaseException:
    error.__cause__ = by
    return error


def test_huge_errors_are_cut_and_the_move_is_not() -> None:
    huge = "é\r\n\x00\x1b[31m" * 300_000
    longest = "x" * 200
    home = Source(Queue(longest))
    item = Delivery(Message("m", b"x"), home, longest + "/9", 10**18, 1, None)
    error = raised(type("E" * 5000, (ValueError,), {})(huge))
    copy = dead_copy(
        item, home, read_history(item, home, counted=False), Dead("handler", error), service="s" * 200, now=NOW
    )
    ours = {name: value for name, value in copy.headers.items() if name in FAILURE}
    assert sum(len(name) + len(str(value)) for name, value in ours.items()) <= 8192
    assert len(str(ours[wire.ERROR_MESSAGE])) == 1024
    assert len(str(ours[wire.ERROR_TYPE])) == 256
    assert len(str(ours[wire.TRACEBACK])) <= 4096
    assert all(str(value).isprintable() for value in ours.values())


def test_a_traceback_keeps_its_end_where_the_cause_is() -> None:
    def deep(n: int) -> None:
        if n:
            deep(n - 1)
        raise_here("the " + "very " * 2000 + "last words")

    def raise_here(text: str) -> None:
        raise ValueError(text)

    with pytest.raises(ValueError, match="last") as caught:
        deep(50)
    trace = buried(delivery(Message("m", b"")), caught.value).headers.get(wire.TRACEBACK) or ""
    assert trace.endswith("last words")
    assert len(trace) == 4096


SECRET = "hunter2SECRET"


@pytest.mark.parametrize(
    "text",
    [
        f"no connection to amqp://user:{SECRET}@h/",
        f"no connection to amqp://user:a@b{SECRET}@h/",
        f"nats://{SECRET}@h refused",
        f"kafka://h?sasl.password={SECRET}&x=1",
        f"host=h password={SECRET}",
        f"{{'sasl.password': '{SECRET}'}}",
        "x" * 16_360 + f" amqp://user:{SECRET}@h/",
        "x " * 40_000 + f"amqp://user:{SECRET * 1000}@h/",
        ("amqp://user:" + SECRET * 60 + "@h/ ") * 3000,
    ],
)
def test_secrets_in_errors_are_masked(text: str) -> None:
    item = delivery(Message("m", b""))
    error = raised(caused(ValueError(text), raised(OSError(text))))
    for copy in (retried(item, error), buried(item, error)):
        for name, value in copy.headers.items():
            assert "SECRET" not in str(value), name


def test_an_error_that_cannot_be_printed_costs_only_itself() -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    error = raised(Broken())
    assert words(error) == "(its text raised RuntimeError)"
    copy = buried(delivery(Message("m", b"")), error)
    assert copy.headers.get(wire.ERROR_MESSAGE) == "(its text raised RuntimeError)"
    assert copy.headers.get(wire.ERROR_TYPE) == "Broken"


def test_the_fields_of_a_retry() -> None:
    item = delivery(Message("m", b"", None, Headers({"tenant": "a"})))
    copy = retried(item, KeyError("sku"), 30.0)
    assert dict(copy.headers.items()) == {
        "tenant": "a",
        wire.ID: "m",
        wire.GROUP: "billing",
        wire.ORIGIN: "orders/3/41",
        wire.FIRST_FAILED: "1700000000250",
        wire.ERROR_TYPE: "KeyError",
        wire.ERROR_MESSAGE: "'sku'",
        wire.ERROR_AT: "1700000000250",
        wire.ATTEMPT: "2",
        wire.DUE: "1700000030250",
    }
    assert copy.published_at is None
    again = retry_copy(delivery(copy), HOME, history(delivery(copy)), Hop(5.0, 3), OSError("y"), now=NOW + 60, tier=5.0)
    assert again.headers.get(wire.FIRST_FAILED) == "1700000000250", "the first failure stays the first"
    assert again.headers.get(wire.ORIGIN) == "orders/3/41"
    assert again.headers.get(wire.ERROR_TYPE) == "OSError"
    assert again.headers.get(wire.ATTEMPT) == "3"


def test_copies_that_fail_at_the_same_moment_say_each_its_own() -> None:
    moments = [NOW, NOW + 0.001]
    errors = [KeyError("a"), KeyError("b"), OSError("a")]
    hops = [Hop(5.0, 2), Hop(5.0, 3), Hop(30.0, 2)]
    for _ in range(2):
        for now, error, hop in itertools.product(moments, errors, hops):
            for identity, place in (("m", 1), ("n", 2)):
                item = delivery(Message(identity, b""), position=place)
                copy = retry_copy(item, HOME, history(item), hop, error, now=now, tier=5.0)
                assert dict(copy.headers.items()) == {
                    wire.ID: identity,
                    wire.GROUP: "billing",
                    wire.ORIGIN: f"orders/3/{place}",
                    wire.FIRST_FAILED: wire.millis(now),
                    wire.ERROR_TYPE: type(error).__name__,
                    wire.ERROR_MESSAGE: str(error),
                    wire.ERROR_AT: wire.millis(now),
                    wire.ATTEMPT: str(hop.attempt),
                    wire.DUE: wire.millis(now + hop.delay),
                } | ({wire.WAIT: "30000"} if hop.delay == 30.0 else {})


@given(st.floats(0, 3e9), st.floats(0.001, 1e7))
def test_a_due_time_is_never_early(now: float, delay: float) -> None:
    item = delivery(Message("m", b""))
    copy = retry_copy(item, HOME, history(item), Hop(delay, 2), ERROR, now=now, tier=delay)
    due = int(copy.headers.get(wire.DUE) or 0) / 1000
    assert now + delay - 1e-6 <= due <= now + delay + 0.002


ERROR = ValueError("x")


def test_the_fields_of_a_dead_letter() -> None:
    item = delivery(retried(delivery(Message("m", b"")), delay=5.0))
    error = raised(ValueError("one\r\n two\x00"))
    copy = dead_copy(item, HOME, history(item), Dead("expired", error), service="shop", now=NOW + 9)
    fields = dict(copy.headers.items())
    trace, host = fields.pop(wire.TRACEBACK), fields.pop(wire.HOST)
    assert fields == {
        wire.ID: "m",
        wire.GROUP: "billing",
        wire.ORIGIN: "orders/3/41",
        wire.FIRST_FAILED: "1700000000250",
        wire.ERROR_TYPE: "ValueError",
        wire.ERROR_MESSAGE: "one | two\\x00",
        wire.ERROR_AT: "1700000009250",
        wire.ATTEMPT: "2",
        wire.ERROR_STAGE: "expired",
        wire.FINGERPRINT: fingerprint(error),
        wire.SERVICE: "shop",
    }
    assert "Traceback (most recent call last)" in str(trace)
    assert host


def test_a_brief_copy_has_no_diagnostics_not_even_earlier_ones() -> None:
    forged = Headers(
        [(wire.TRACEBACK, "x" * 100_000), (wire.ERROR_MESSAGE, "y"), (wire.SERVICE, "z"), (wire.HOST, "h")]
    )
    full = buried(delivery(Message("m", b"", None, forged)))
    copy = brief_copy(full)
    for name in (wire.ERROR_TYPE, wire.FINGERPRINT, wire.ERROR_STAGE):  # of what failed, and not of the refusal
        assert copy.headers.get(name) == full.headers.get(name)
    assert {name for name in copy.headers if name in FAILURE} == {
        wire.ID, wire.GROUP, wire.ORIGIN, wire.FIRST_FAILED, wire.ERROR_TYPE, wire.ERROR_AT, wire.ATTEMPT,
        wire.ERROR_STAGE, wire.FINGERPRINT,
    }  # fmt: skip


def test_a_redriven_copy_forgets_the_failure_and_counts() -> None:
    once = redriven_copy(delivery(buried(delivery(Message("m", b"", None, Headers({"tenant": "a"}))))), HOME)
    assert dict(once.headers.items()) == {
        "tenant": "a",
        wire.GROUP: "billing",
        wire.ORIGIN: "orders/3/41",
        wire.ID: "m",
        wire.ATTEMPT: "1",
        wire.REDRIVES: "1",
    }
    twice = redriven_copy(delivery(buried(delivery(once))), HOME)
    assert twice.headers.get(wire.REDRIVES) == "2"
    most = delivery(Message("m", b"", None, Headers({wire.REDRIVES: "999"})))
    assert redriven_copy(most, HOME).headers.get(wire.REDRIVES) == "999", "a counter that is full stays full"
    forged = delivery(Message("m", b"", None, Headers({wire.REDRIVES: "32767"})))
    assert redriven_copy(forged, HOME).headers.get(wire.REDRIVES) == "1", "one that nobody can have counted is none"
    back = read_history(delivery(once), HOME, counted=False)
    assert (back.attempt, back.first_failed, back.redrives) == (1, None, 1)


PLACES = st.sampled_from(["orders", "orders/3/41", "orders/\xe5", b"orders/\xff", "other/1", "", None])
GROUPS = st.sampled_from(["billing", b"billing", b"billing\xff", "shipping", "", None])
COUNTS = st.sampled_from(["0", "4", b"4", "999", "1000", "9" * 30, "-1", "many", "\u0664", b"\xff", None])
NAMED = (
    st.tuples(st.just(wire.ORIGIN), PLACES)
    | st.tuples(st.just(wire.GROUP), GROUPS)
    | st.tuples(st.just(wire.REDRIVES), COUNTS)
)


@given(
    st.lists(
        st.builds(
            Message, st.text("m1", min_size=1), st.binary(), headers=st.lists(USERS | FORGED | NAMED).map(Headers)
        )
    )
)
def test_a_list_goes_back_with_one_look_at_the_fields_of_each(messages: list[Message]) -> None:
    """What is told of its group, origin and redrives is what `is_of` and `wire.read_redrives` say of its header fields."""
    back = list(redriven_copies([delivery(message) for message in messages], HOME))
    for message, (copy, redrives) in zip(messages, back, strict=True):
        assert redrives == wire.read_redrives(message.headers)
        assert users(copy) == users(message)
        ours = {name: value for name, value in copy.headers.items() if name in FAILURE}
        assert ours == {
            wire.ID: message.id,
            wire.GROUP: "billing",
            wire.ATTEMPT: "1",
            wire.REDRIVES: str(min(redrives + 1, wire.MAX_REDRIVES)),
            wire.ORIGIN: [*message.headers.get_all(wire.ORIGIN)][-1] if is_of(message.headers, HOME) else "orders",
        }
        assert len(copy.headers) == len(users(copy)) + len(ours), "ours are there once"
        assert copy.headers.size == Headers(copy.headers.items()).size


def test_what_others_forged_is_not_believed_after_our_first_hop() -> None:
    forged = Headers(
        [
            (wire.REDRIVES, "99"),
            (wire.FIRST_FAILED, "1"),
            (wire.ATTEMPT, "9"),
            (wire.GROUP, "other"),
            (wire.ORIGIN, "x"),
        ]
    )
    copy = retried(delivery(Message("m", b"", None, forged)))
    past = history(delivery(copy))
    assert (past.attempt, past.first_failed, past.redrives, past.ours) == (2, NOW, 0, True)
    assert copy.headers.get(wire.ORIGIN) == "orders/3/41"


def test_a_fingerprint_tells_places_and_types_and_not_words() -> None:
    def here(error: BaseException) -> BaseException:
        return raised(error)

    def there(error: BaseException) -> BaseException:
        try:
            raise error
        except BaseException as caught:  # noqa: BLE001
            return caught

    prints = {fingerprint(here(ValueError(str(n)))) for n in range(3)} | {fingerprint(raised(ValueError("direct")))}
    assert len(prints) == 1
    assert fingerprint(here(KeyError("0"))) not in prints
    assert fingerprint(there(ValueError("0"))) not in prints
    assert fingerprint(ValueError()) == fingerprint(ValueError("never raised"))
    assert re.fullmatch("[0-9a-f]{12}", prints.pop())


def test_broken_json_and_a_wrong_shape_are_two_failures() -> None:
    decode = decoder_for(dict[str, int])
    prints: dict[str, set[str]] = {}
    for name, bodies in {"broken": [b"{", b"nul"], "shape": [b'{"a":"b"}', b"[]"]}.items():
        for body in bodies:
            with pytest.raises(DecodeError) as caught:
                decode(body)
            prints.setdefault(name, set()).add(fingerprint(caught.value))
    assert {name: len(each) for name, each in prints.items()} == {"broken": 1, "shape": 1}
    assert prints["broken"] != prints["shape"]


def test_a_fingerprint_of_a_deep_recursion_is_quick() -> None:
    def endless() -> None:
        endless()

    with pytest.raises(RecursionError) as caught:
        endless()
    assert fingerprint(caught.value) == fingerprint(caught.value)
    assert len(buried(delivery(Message("m", b"")), caught.value).headers.get(wire.TRACEBACK) or "") <= 4096


@pytest.mark.parametrize(
    ("stream", "position", "expected"),
    [("orders/3", 41, "orders/3/41"), ("orders", 7, "orders/7"), ("orders", "", "orders"), ("q", "a", "orders/q/a")],
)
def test_origins(stream: str, position: str | int, expected: str) -> None:
    assert origin(delivery(Message("m", b""), stream=stream, position=position)) == expected


@pytest.mark.parametrize(
    "text", [" " * 50_000, "\n" * 50_000, "x" * 50_000, "a b" * 20_000, "\x00" * 50_000, "", "://" * 20_000]
)
def test_one_line_of_anything_long(text: str) -> None:
    assert len(one_line(text)) <= 1024
    copy = buried(delivery(Message("m", b"")), raised(ValueError(text)))
    assert len(copy.headers.get(wire.TRACEBACK) or "") <= 4096


@given(st.text(max_size=300), st.integers(1, 60))
def test_one_line(text: str, limit: int) -> None:
    line = one_line(text, limit)
    assert len(line) <= limit
    assert line.isascii()
    assert line == "" or line.isprintable()
