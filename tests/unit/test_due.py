"""When what waits in a retry channel may run: absolute, clamped, and never at the cost of those behind it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atleastonce import FailurePolicy, Message, Queue, RetryChain, Service, wire
from atleastonce.bound import Bound
from atleastonce.contract import NONE, Capabilities, Counting, Delivery, Leasing, Ordering, Outgoing
from atleastonce.engine.decision import Decision
from atleastonce.message import Headers

NOW = 1_700_000_000.0
QUEUE = Queue[Any]("orders")


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atleastonce.bound.time", SimpleNamespace(time=lambda: NOW))


def bound() -> Bound:
    """On a broker that does not delay: its retry channels are read by us."""
    service = Service("s")

    @service.consumer(QUEUE, failure=FailurePolicy(chain=RetryChain("5s", "5m")))
    async def handle(body: bytes) -> None: ...

    capabilities = Capabilities(delay=NONE, delivery_count=Counting.NONE, lease=Leasing.SESSION, order=Ordering.STREAM)
    return Bound(service.consumers[0], capabilities, lambda *_, **__: Outgoing(QUEUE, Message("out", b"")), "s")


def waiting(due: float | str, *, wait: float = 0.0, came: float | None = NOW) -> Delivery:
    fields = {wire.DUE: due if isinstance(due, str) else wire.millis(due)}
    if wait:
        fields[wire.WAIT] = wire.millis(wait)
    message = Message("m", b"body", b"k", Headers(fields), came)
    return Delivery(message, bound().consumer.home, "orders.retry.5m/0", 1, 1, None)


def looked_at(item: Delivery, delay: float = 300.0) -> float | Decision:
    return bound().due_in_channel(item, delay)


def test_what_waits_as_long_as_its_channel_runs_when_it_is_due() -> None:
    assert looked_at(waiting(NOW + 300)) == NOW + 300
    assert looked_at(waiting(NOW - 1)) == NOW - 1
    assert looked_at(waiting(NOW + 5), 5.0) == NOW + 5


def test_a_longer_wait_makes_room_after_the_channels_delay() -> None:
    day = 86_400.0
    assert looked_at(waiting(NOW + day, wait=day)) == NOW + 300, "looked at again then"
    parked = looked_at(waiting(NOW + day - 300, wait=day, came=NOW - 300))
    assert isinstance(parked, Decision)
    assert parked.name == "parked"
    (copy,) = parked.copies
    assert copy.destination == bound().consumer.home.retry_channel(300.0)
    assert (copy.message.id, copy.message.body, copy.message.key) == ("m", b"body", b"k")
    assert copy.message.headers.get(wire.DUE) == wire.millis(NOW + day - 300), "the due time is absolute"
    assert copy.message.headers.get(wire.WAIT) == wire.millis(day - 300)
    assert copy.message.published_at is None, "its round begins anew"


def test_a_short_channel_is_not_published_to_all_the_time() -> None:
    assert looked_at(waiting(NOW + 60, wait=60), 0.2) == NOW + 2
    assert looked_at(waiting(NOW + 2.5, wait=60), 0.2) == NOW + 2.5


def test_due_in_2099_waits_as_an_honest_one_might() -> None:
    for text in ("4070908800000", "9" * 400):
        when = looked_at(waiting(text, came=NOW - 300))
        assert isinstance(when, Decision) or when <= NOW + 361
    assert looked_at(waiting("soon")) == 0.0


def test_without_a_time_of_publishing_it_is_held_until_due() -> None:
    assert looked_at(waiting(NOW + 3600, wait=3600, came=None)) == NOW + 3600


def test_what_was_redriven_is_never_parked() -> None:
    assert looked_at(waiting(NOW + 3600, wait=3600, came=NOW - 100), 0.0) == NOW + 3600


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6), st.floats(-1e6, 1e6), st.sampled_from([0.001, 5.0, 300.0]))
def test_never_early_and_never_for_ever(ahead: float, wait: float, age: float, delay: float) -> None:
    """Look, wait, look again: it runs at its due time, or waits once more with the same one; a clock that differs does no harm."""
    item = waiting(max(0.0, NOW + ahead), wait=wait, came=NOW - age)
    when = looked_at(item, delay)
    due = wire.read_due(item.message.headers, now=NOW, delay=delay)
    if isinstance(when, Decision):
        assert due > NOW + 1
        assert when.copies[0].message.headers.get(wire.DUE) == item.message.headers.get(wire.DUE)
    elif when <= NOW:
        assert due <= NOW
    else:
        assert when <= due
        assert when <= NOW + max(delay, 2.0) + 1.001 or when == due
