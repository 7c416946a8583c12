"""Which answers count, and what travels: the pure parts of request-reply."""

from __future__ import annotations

from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from atleastonce import Queue, RemoteError, wire
from atleastonce.contract import AskingHeaders, Outgoing, ReplyTo
from atleastonce.message import Headers, Message, check_headers
from atleastonce.patterns.replies import Answer, Failure, Table, failure_of, reply_of
from atleastonce.patterns.replies.letters import correlation_of, error_in, request_of


class Waiting(RuleBasedStateMachine):
    """Any requests, answers, time-outs and forgeries in any order, against a model that remembers everything."""

    def __init__(self) -> None:
        super().__init__()
        self.table: Table[int] = Table(5)
        self.waiting: dict[str, int] = {}
        self.answered: list[str] = []
        self.given_up: list[str] = []
        self.ends: dict[str, float] = {}  # of those who wait and were not told that their time is over
        self.now = 0.0
        self.asked = self.satisfied = 0

    @precondition(lambda self: not self.table.full)
    @rule(within=st.integers(0, 5))
    def ask(self, within: int) -> None:
        self.asked += 1
        correlation = self.table.add(self.asked, self.now + within)
        assert correlation not in {*self.waiting, *self.answered, *self.given_up}
        self.waiting[correlation] = self.asked
        self.ends[correlation] = self.now + within

    @rule(seconds=st.integers(0, 5))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds
        over = [correlation for correlation, end in self.ends.items() if end <= self.now]
        assert sorted(self.table.due(self.now)) == sorted(self.waiting[correlation] for correlation in over)
        for correlation in over:
            del self.ends[correlation]

    @precondition(lambda self: self.waiting)
    @rule(at=st.integers(0, 99))
    def answer(self, at: int) -> None:
        correlation = list(self.waiting)[at % len(self.waiting)]
        assert self.table.answered(correlation) == self.waiting.pop(correlation)
        self.ends.pop(correlation, None)
        self.answered.append(correlation)

    @precondition(lambda self: self.waiting)
    @rule(at=st.integers(0, 99), satisfied=st.booleans())
    def give_up(self, at: int, satisfied: bool) -> None:
        correlation = list(self.waiting)[at % len(self.waiting)]
        del self.waiting[correlation]
        self.ends.pop(correlation, None)
        self.table.gone(correlation, satisfied=satisfied)
        self.given_up.append(correlation)
        self.satisfied += satisfied

    @precondition(lambda self: self.answered)
    @rule(at=st.integers(0, 99), final=st.booleans())
    def answer_again(self, at: int, final: bool) -> None:
        before = self.table.counts["duplicate"]
        correlation = self.answered[at % len(self.answered)]
        assert (self.table.answered if final else self.table.get)(correlation) is None
        assert self.table.counts["duplicate"] == before + 1
        self.table.gone(correlation)  # says nothing any more

    @precondition(lambda self: self.given_up)
    @rule(at=st.integers(0, 99))
    def answer_too_late(self, at: int) -> None:
        before = self.table.counts["late"]
        assert self.table.answered(self.given_up[at % len(self.given_up)]) is None
        assert self.table.counts["late"] == before + 1

    @rule(forged=st.text(max_size=40))
    def forge(self, forged: str) -> None:
        before = self.table.counts["unknown"]
        assert self.table.get(forged) is None
        assert self.table.counts["unknown"] == before + 1

    @invariant()
    def keeps_count(self) -> None:
        assert len(self.table) == len(self.waiting)
        assert self.table.next_end() == min(self.ends.values(), default=None)
        assert sorted(self.table.waiting()) == sorted(self.waiting.values())
        assert self.table.full is (len(self.waiting) >= 5)
        assert self.table.counts["answered"] == len(self.answered) + self.satisfied
        assert self.table.counts["expired"] == len(self.given_up) - self.satisfied


TestWaiting = Waiting.TestCase


def test_what_is_over_is_forgotten_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atleastonce.patterns.replies.table._REMEMBERED", 3)
    table: Table[int] = Table(1)
    names = []
    for _ in range(5):
        names.append(table.add(1, 0.0))
        table.answered(names[-1])
    for name in names:
        table.get(name)
    assert (table.counts["unknown"], table.counts["duplicate"]) == (2, 3)


def test_what_has_its_answer_is_not_kept_until_its_time_is_over() -> None:
    table: Table[int] = Table(10)
    slow = [table.add(n, 1e9 + n) for n in range(5)]
    for _ in range(10_000):
        table.answered(table.add(0, 30.0))
    assert len(table._ends) < 200
    assert table.due(2e9) == [0, 1, 2, 3, 4]
    assert table.next_end() is None
    assert len(table) == len(slow)


def test_correlations_are_128_random_bits() -> None:
    table: Table[int] = Table(1000)
    names = {table.add(1, 0.0) for _ in range(1000)}
    assert len(names) == 1000
    assert all(len(name) == 32 and int(name, 16) >= 0 for name in names)


def test_an_address_is_made_in_either_way() -> None:
    made, same = ReplyTo.waiting("inbox", 3.0), ReplyTo("inbox", until=3.0)
    assert made == same
    assert hash(made) == hash(same)
    for field in fields(ReplyTo):
        assert getattr(made, field.name) == getattr(same, field.name)


TEXT = st.text(st.characters(codec="utf-8"), max_size=300)


@given(TEXT, TEXT, st.booleans())
def test_an_error_comes_out_as_it_went_in(kind: str, text: str, retryable: bool) -> None:
    from atleastonce.patterns.hops import one_line

    failure = Failure(one_line(kind, 256) or "Error", one_line(text), retryable)
    item = failure_of(failure, ReplyTo("inbox"), "c" * 32, "quotes")
    check_headers(item.message.headers)
    found = error_in(item.message)
    assert isinstance(found, RemoteError)
    assert (found.type, found.message, found.retryable) == (failure.type, failure.message, retryable)
    assert correlation_of(item.message) == "c" * 32


@given(st.binary(max_size=200), st.text(max_size=30))
def test_a_foreign_error_is_read_defensively(body: bytes, kind: str) -> None:
    found = error_in(Message("m", body, None, Headers([(wire.ERROR_TYPE, kind)])))
    assert found is not None
    assert len(found.type) <= 256
    assert len(found.message) <= 2048


@given(st.binary(max_size=200), st.sampled_from(["application/json", "application/octet-stream"]))
def test_an_answer_is_remembered_as_it_is(body: bytes, kind: str) -> None:
    answer = Answer(body, kind)
    assert Answer.unpacked(answer.packed()) == answer
    assert Answer.unpacked(b"") is None
    item = reply_of(answer, ReplyTo("inbox"), "", "quotes")
    assert error_in(item.message) is None
    assert item.message.body == body
    assert correlation_of(item.message) == ""


def test_a_request_says_where_and_until_when() -> None:
    item = Outgoing(Queue("quotes"), Message("m", b"1", b"k", Headers([("tenant", "a"), (wire.ID, "m")])))
    asked = request_of(item, "alo.reply.x", "c" * 32, 1_700_000_000.5).message
    assert (asked.id, asked.body, asked.key) == ("m", b"1", b"k")
    assert asked.headers.get(wire.REPLY_TO) == "alo.reply.x"
    assert wire.read_deadline(asked.headers) == 1_700_000_000.5
    assert asked.headers.get("tenant") == "a"
    assert asked.headers.get(wire.ID) == "m"
    ours = [name for name in asked.headers if name.startswith(wire.PREFIX)]
    assert ours == sorted(ours)  # a broker that keeps no order need not be told of one


@pytest.mark.parametrize("correlation", ["", "c"])
def test_the_fields_of_a_question_are_those_it_shares_and_its_own(correlation: str) -> None:
    asking = AskingHeaders(Headers([("tenant", "a")]), "m", correlation, "5", "inbox")
    own = [(wire.CORRELATION, correlation)] if correlation else []
    fields = Headers([("tenant", "a"), *own, (wire.DEADLINE, "5"), (wire.ID, "m"), (wire.REPLY_TO, "inbox")])
    assert asking.size == fields.size
    assert asking.get(wire.ID) == "m"
    assert asking == fields
    assert list(asking) == list(fields)


def test_a_correlation_that_the_address_ends_with_is_not_said_twice() -> None:
    item = Outgoing(Queue("quotes"), Message("m", b"1", None, Headers([(wire.ID, "m")])))
    asked = request_of(item, f"_INBOX.x.{'c' * 32}", "c" * 32, 1.0).message
    assert list(asked.headers) == [wire.DEADLINE, wire.ID, wire.REPLY_TO]


def test_answers_without_a_correlation_share_their_fields_and_nothing_else() -> None:
    one, two = (reply_of(Answer(body, "application/json"), ReplyTo("inbox"), "", "quotes") for body in (b"1", b"2"))
    assert one.message.headers is two.message.headers
    assert one.message.headers.get(wire.RESPONDER) == "quotes"
    assert (one.message.body, two.message.body) == (b"1", b"2")
    assert one.message.id != two.message.id


@pytest.mark.parametrize("text", ["0", "-1", "-1700000000000", "-" + "9" * 30])
def test_a_deadline_at_or_before_the_epoch_is_past(text: str) -> None:
    assert wire.read_deadline(Headers([(wire.DEADLINE, text)])) == 0.0


@given(st.binary(min_size=1, max_size=255))
def test_a_raw_clients_correlation_goes_back_as_it_came(came: bytes) -> None:
    item = reply_of(
        Answer(b"1", "application/json"), ReplyTo("inbox"), came.decode("utf-8", "surrogateescape"), "quotes"
    )
    (back,) = item.message.headers.get_all(wire.CORRELATION)
    assert back is not None
    assert (back.encode() if isinstance(back, str) else back) == came
    assert wire.read_id(item.message.id) == item.message.id


@pytest.mark.parametrize("text", ["", "soon", "-", "--1", "- 1", "-1.5", "-٣", "1e9", "9" * 30, "٣"])
def test_a_deadline_that_makes_no_sense_is_none(text: str) -> None:
    assert wire.read_deadline(Headers([(wire.DEADLINE, text)])) is None
