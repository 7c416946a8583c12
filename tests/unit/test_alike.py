"""Failures that are alike: whatever is remembered of one, each copy says of its own failure what a copy made anew would say."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from atleastonce import FailurePolicy, Queue, RetryChain, RetryLater, Source, wire
from atleastonce.contract import Delivery
from atleastonce.engine.decision import Decision
from atleastonce.message import Composed, Headers, Message
from atleastonce.patterns.alike import Alike
from atleastonce.patterns.failure import Hop
from atleastonce.patterns.history import read_history
from atleastonce.patterns.hops import retry_copy

HOME = Source(Queue[Any]("orders"))
WAITING = HOME.retry_channel(5.0)
HOP = Hop(5.0, 2)
NOW = 1_700_000_000.0
POLICY = FailurePolicy(in_place=None, chain=RetryChain("5s", "30s"))


class Gone(Exception):
    pass


def delivery(identity: str = "m1", headers: dict[str, str] | None = None, tries: int = 1) -> Delivery:
    fields = Headers({"trace": "t", wire.ID: identity, **(headers or {})})
    found = Delivery(Message(identity, b"{}", b"k", fields), HOME, "orders/0", 17, 1, None)
    found.tries = tries
    return found


def alike(error: BaseException, policy: FailurePolicy = POLICY) -> Alike | None:
    return Alike.to(policy, delivery(), 1, error, HOP, HOME, WAITING, 5.0, drafts=True)


def test_each_copy_is_the_one_that_would_be_made_anew() -> None:
    known = alike(Gone("x"))
    assert known is not None
    ours = {wire.GROUP: HOME.group_name, wire.ORIGIN: "orders/0/3"}
    pasts: list[dict[str, str]] = [
        {},
        {**ours, wire.FIRST_FAILED: "1600000000000"},
        {**ours, wire.FIRST_FAILED: "9999999999999"},
    ]
    texts, times = ("x", "x", "y"), (NOW, NOW, NOW + 0.0004, NOW + 0.001, NOW + 7)
    for number, (text, now, past) in enumerate(itertools.product(texts, times, pasts)):
        item, error = delivery(f"m{number}", past), Gone(text)
        item.returned = bool(past)  # else its fields are anybody's
        history = read_history(item, HOME, counted=False)
        copy = known.copy(item, history, error, now)
        expected = retry_copy(item, HOME, history, HOP, error, now=now, tier=5.0)
        assert dict(copy.headers.items()) == dict(expected.headers.items())
        assert copy.headers.size == Headers(list(copy.headers.items())).size
        assert (copy.id, copy.body, copy.key) == (item.message.id, b"{}", b"k")
        first = min(int(past.get(wire.FIRST_FAILED, "0")) or 10**15, int(wire.millis(now)))
        assert copy.headers.get(wire.FIRST_FAILED) == str(first)
        assert copy.headers.get(wire.ERROR_MESSAGE) == text
        assert copy.headers.get(wire.DUE) == str(int(wire.millis(now)) + 5000)


@pytest.mark.parametrize(
    "fields", [{}, {"none": None, "raw": b"\xff"}, {wire.REPLY_TO: "inbox", wire.CORRELATION: "c"}]
)
def test_what_never_failed_before_has_the_same_copy(fields: dict[str, Any]) -> None:
    known, item, error = alike(Gone("x")), delivery("m1", fields), Gone("x")
    assert known is not None
    for now in (NOW, NOW + 0.0004, NOW + 0.001, NOW, NOW - 0.001):  # clocks are set back, too
        (copy,) = written(known.first(item, error, now), item)
        expected = known.copy(item, read_history(item, HOME, counted=False), error, now)
        assert copy == expected
        assert copy.headers.items()[-7:] == expected.headers.items()[-7:]
        assert copy.headers.size == Headers(list(copy.headers.items())).size
        assert copy.headers.get(wire.ERROR_AT) == wire.millis(now)


def written(decision: Decision | None, *items: Delivery) -> list[Message]:
    assert decision is not None
    assert decision.draft is not None
    copies, unread = decision.draft.written(items)
    assert not unread
    assert {copy.destination for copy in copies} == {decision.draft.destination} == {WAITING}
    return [copy.message for copy in copies]


@pytest.mark.parametrize("name", sorted({wire.GROUP, wire.ORIGIN, wire.REDRIVES, wire.ATTEMPT, wire.DEATHS, wire.DUE}))
@pytest.mark.parametrize("ours", [{}, {wire.GROUP: HOME.group_name, wire.ORIGIN: "orders/0/3"}])
def test_what_bears_a_mark_of_ours_has_the_copy_that_its_past_asks_for(name: str, ours: dict[str, str]) -> None:
    known, error = alike(Gone("x")), Gone("x")
    assert known is not None
    marked = delivery("m2", {name: "1", **ours})
    copies = written(known.first(marked, error, NOW), delivery("m1"), marked, delivery("m3"))
    expected = retry_copy(marked, HOME, read_history(marked, HOME, counted=False), HOP, error, now=NOW, tier=5.0)
    assert copies[1] == expected
    assert [copy.id for copy in copies] == ["m1", "m2", "m3"]


def test_what_came_back_or_waited_in_a_channel_is_not_decided_before_its_fields_are_read() -> None:
    known, back, away = alike(Gone("x")), delivery(), delivery()
    assert known is not None
    back.returned, away.source = True, Source(WAITING)
    for item in (back, away, delivery(tries=2)):
        assert known.first(item, Gone("x"), NOW) is None
    of_channel = Alike.to(POLICY, away, 1, Gone("x"), HOP, HOME, WAITING, 5.0, drafts=True)
    assert of_channel is not None
    assert of_channel.first(away, Gone("x"), NOW) is None
    assert of_channel.covers(away, 1, Gone("x"))


def test_where_copies_leave_with_their_settlement_none_is_left_to_a_list() -> None:
    known = Alike.to(POLICY, delivery(), 1, Gone("x"), HOP, HOME, WAITING, 5.0, drafts=False)
    assert known is not None
    assert known.first(delivery(), Gone("x"), NOW) is None


def test_what_cannot_be_read_has_no_copy_and_its_neighbours_have() -> None:
    known, unread = alike(Gone("x")), delivery("m2")
    assert known is not None
    decision = known.first(unread, Gone("x"), NOW)
    assert decision is not None
    assert decision.draft is not None
    unread.unreadable = ValueError("broken")
    copies, left = decision.draft.written([delivery("m1"), unread, delivery("m3")])
    assert [copy.message.id for copy in copies] == ["m1", "m3"]
    assert left == [unread]


def test_a_text_that_is_no_plain_one_is_read_for_each_failure() -> None:
    texts = iter(("one", "two"))

    class Fickle(str):
        __slots__ = ()

        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = str.__hash__

    class Speaks(Exception):
        def __str__(self) -> str:
            return Fickle(next(texts))

    known = alike(Speaks())
    assert known is not None
    item = delivery()
    history = read_history(item, HOME, counted=False)
    assert [known.copy(item, history, Speaks(), NOW).headers.get(wire.ERROR_MESSAGE) for _ in range(2)] == [
        "one",
        "two",
    ]


def _caused(error: Exception) -> Exception:
    error.__cause__ = RetryLater("1h")
    return error


@pytest.mark.parametrize(
    "make",
    [
        lambda: (delivery(), 2, Gone("x")),  # another attempt
        lambda: (delivery(tries=2), 1, Gone("x")),  # another try in place
        lambda: (delivery(), 1, ValueError("x")),  # another class
        lambda: (delivery(), 1, _caused(Gone("x"))),  # its cause may say what follows
    ],
)
def test_what_could_be_decided_otherwise_is_not_alike(make: Callable[[], tuple[Delivery, int, BaseException]]) -> None:
    known = alike(Gone("x"))
    assert known is not None
    assert known.covers(delivery("m2"), 1, Gone("another text"))
    assert not known.covers(*make())


@pytest.mark.parametrize(
    ("error", "policy"),
    [
        (RetryLater("1m"), POLICY),
        (ExceptionGroup("g", [Gone("x")]), POLICY),
        (_caused(Gone("x")), POLICY),
        (Gone("x"), FailurePolicy(in_place=None, chain=RetryChain("5s"), give_up_after="1m")),
    ],
)
def test_what_followed_from_more_than_the_class_is_not_remembered(error: BaseException, policy: FailurePolicy) -> None:
    assert alike(error, policy) is None


def test_fields_that_are_said_alike_are_fields_like_others() -> None:
    shared = Headers([("b", "2"), ("a", "3"), ("none", None)])
    composed = Composed([("a", "1"), ("x", b"\xff")], 4, [("m", "mark")], shared)
    plain = Headers([("a", "1"), ("x", b"\xff"), ("m", "mark"), ("b", "2"), ("a", "3"), ("none", None)])
    assert composed == plain
    assert composed.size == plain.size
    assert composed.get("a") == "3"
    assert composed.get_all("a") == ["1", "3"]
    assert "x" in composed
    assert composed.fields() == plain.fields()
    assert composed.set({"b": "4"}) == plain.set({"b": "4"})
    assert composed.without("a") == plain.without("a")
