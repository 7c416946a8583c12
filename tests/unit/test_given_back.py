"""What a process gives back unhandled where its broker counts each hand-out: a copy that begins where it stood."""

from __future__ import annotations

from typing import Any

import pytest

from atleastonce import FailurePolicy, Queue, RetryChain, Service, Source, Topic, wire
from atleastonce.bound import Bound
from atleastonce.contract import (
    NONE,
    Ability,
    Capabilities,
    Code,
    Counting,
    Delivery,
    Fault,
    Leasing,
    Level,
    Ordering,
    Outgoing,
)
from atleastonce.engine.decision import GIVE_BACK, Decision
from atleastonce.message import Headers, Message
from atleastonce.patterns.crash_loops import suspect_copy
from atleastonce.patterns.failure import Dead, Hop
from atleastonce.patterns.history import History, read_history
from atleastonce.patterns.hops import dead_copy, redriven_copy, retry_copy

COUNTING = Capabilities(
    delay=Ability(Level.NATIVE),
    delivery_count=Counting.EXACT,
    counts_releases=True,
    lease=Leasing.EXTENDABLE,
    lease_seconds=30.0,
    order=Ordering.NONE,
    addresses_groups=True,
)
JOBS = Topic[Any]("jobs")
HOME = Source(JOBS, "crew")
CHAIN = FailurePolicy(in_place=None, chain=RetryChain("5s", "30s"))


async def handle(body: bytes) -> None: ...


def bound(capabilities: Capabilities = COUNTING, channel: Any = JOBS, **options: Any) -> Bound:
    service = Service("crew", broker="memory://")
    service.consumer(channel, **{"failure": CHAIN, **options})(handle)
    return Bound(service.consumers[0], capabilities, lambda *_, **__: Outgoing(JOBS, Message("out", b"")), "crew")


def handed_out(message: Message, count: int, source: Source = HOME) -> Delivery:
    return Delivery(message, source, "jobs", 7, 1, None, count)


def copy_of(delivery: Delivery, consumer: Bound | None = None) -> Message:
    (copy,) = (consumer or bound()).give_back(delivery).copies
    return copy.message


def attempt_of(message: Message, count: int = 1) -> int:
    return read_history(handed_out(message, count), HOME, counted=True).attempt


def test_however_often_it_is_given_back_it_is_the_attempt_that_it_was() -> None:
    message = Message("m", b"body", b"key", Headers([("tenant", "a"), ("tenant", "b")]))
    for _ in range(5):
        message = copy_of(handed_out(message, 1))
        assert attempt_of(message) == 1
    message = copy_of(handed_out(message, 2))  # it has failed once
    assert attempt_of(message) == 2
    assert attempt_of(message, count=2) == 3  # and once more
    assert (message.id, message.body, message.key) == ("m", b"body", b"key")
    assert message.headers.get_all("tenant") == ["a", "b"]
    assert message.headers.get(wire.ORIGIN) == "jobs/7"


def test_when_it_failed_first_is_kept() -> None:
    policy = FailurePolicy(in_place=None, chain=RetryChain("5s", "30s"), give_up_after="1h")
    message = copy_of(handed_out(Message("m", b"", None, Headers(), published_at=1000.0), 3), bound(failure=policy))
    first = read_history(handed_out(message, 1), HOME, counted=True).first_failed
    again = copy_of(handed_out(message, 1), bound(failure=policy))
    assert first is not None
    assert read_history(handed_out(again, 1), HOME, counted=True).first_failed == first


def test_each_copy_is_another_publish_for_brokers_that_drop_repetitions(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([1000.0, 1000.5])
    monkeypatch.setattr("time.time", lambda: next(clock))
    first = copy_of(handed_out(Message("m", b""), 1))
    second = copy_of(handed_out(first, 1))
    assert first.headers.get(wire.GIVEN_BACK) != second.headers.get(wire.GIVEN_BACK)


def test_it_goes_to_its_own_group_or_to_the_channel_in_which_it_waited() -> None:
    (copy,) = bound().give_back(handed_out(Message("m", b""), 1)).copies
    assert copy.destination == HOME
    room = HOME.retry_channel(3600)
    waits = Message(
        "m", b"", None, Headers({wire.GROUP: "crew", wire.ORIGIN: "jobs", wire.ATTEMPT: "2", wire.DUE: "99"})
    )
    (copy,) = bound().give_back(handed_out(waits, 1, Source(room))).copies
    assert copy.destination == room
    assert (copy.message.headers.get(wire.ATTEMPT), copy.message.headers.get(wire.DUE)) == ("2", "99")


def test_what_cannot_be_read_or_addressed_is_given_back_as_it_is() -> None:
    unread = handed_out(Message("m", b""), 1)
    unread.unreadable = ValueError("no header block")
    assert bound().give_back(unread) is GIVE_BACK
    nowhere = Capabilities(
        delay=COUNTING.delay, delivery_count=Counting.EXACT, lease=Leasing.EXTENDABLE, order=Ordering.NONE
    )
    assert bound(nowhere, dead_letter=None).give_back(handed_out(Message("m", b""), 1)) is GIVE_BACK


def test_a_copy_that_is_refused_makes_no_dead_letter() -> None:
    consumer, delivery = bound(), handed_out(Message("m", b""), 1)
    assert consumer.rejected(delivery, consumer.give_back(delivery), Fault(Code.TOO_LARGE)) is None


def test_a_right_that_is_missing_holds_what_is_on_its_way_and_no_output_of_a_handler() -> None:
    channels = Capabilities(
        delay=NONE, delivery_count=Counting.NONE, lease=Leasing.SESSION, order=Ordering.NONE, addresses_groups=True
    )
    consumer, delivery = bound(channels), handed_out(Message("m", b""), 1)
    (hop, output) = consumer.failed(delivery, ValueError("x")), Decision(copies=(Outgoing(JOBS, Message("o", b"")),))
    assert (hop.name, hop.copies[0].destination) == ("retried", HOME.retry_channel(5.0))
    assert consumer.rejected(delivery, hop, Fault(Code.PERMISSION)) is None
    for decision, code in ((hop, Code.TOO_LARGE), (output, Code.PERMISSION)):
        other = consumer.rejected(delivery, decision, Fault(code))
        assert other is not None
        assert other.name == "dead"


def test_it_says_so_no_more_when_it_goes_on() -> None:
    delivery = handed_out(copy_of(handed_out(Message("m", b""), 2)), 1)
    past, error = read_history(delivery, HOME, counted=True), ValueError("x")
    dead = dead_copy(delivery, HOME, past, Dead("handler", error), service="s", now=1.0)
    assert dead.headers.get(wire.ATTEMPT) == "2"
    copies = [
        dead,
        retry_copy(delivery, HOME, past, Hop(5.0, 3), error, now=1.0, tier=5.0),
        suspect_copy(delivery, HOME, past, now=1.0),
        redriven_copy(delivery, HOME),
    ]
    assert all(wire.GIVEN_BACK not in copy.headers for copy in copies)


def test_what_others_wrote_is_believed_only_where_such_copies_are_made() -> None:
    own = {wire.GROUP: "crew", wire.ORIGIN: "jobs", wire.ATTEMPT: "9999"}
    assert attempt_of(Message("m", b"", None, Headers(own))) == 1  # a dead letter that somebody moved by hand
    forged = Message("m", b"", None, Headers({**own, wire.GIVEN_BACK: "1"}))
    assert read_history(handed_out(forged, 1), HOME, counted=False) == History(1, None, 0, True)
    assert attempt_of(forged) == 9999  # it has had its attempts: its first failure is its last
    decision = bound().failed(handed_out(forged, 1), ValueError("x"))
    assert decision.name == "dead"


@pytest.mark.parametrize(
    ("capabilities", "channel", "options", "copies"),
    [
        (COUNTING, JOBS, {}, True),
        (COUNTING, JOBS, {"failure": FailurePolicy()}, False),
        (COUNTING, JOBS, {"ordered": True}, False),
        (COUNTING, Queue("q", fifo=True), {}, False),
        (COUNTING, Queue("q", single_active=True), {}, False),
    ],
)
def test_it_is_done_where_an_attempt_would_be_lost_and_no_order_is(
    capabilities: Capabilities, channel: Any, options: dict[str, Any], copies: bool
) -> None:
    assert bound(capabilities, channel, **options).consumer.returns_copies(capabilities) is copies
