"""When what waits in a retry channel may run: absolute, clamped, and never at the cost of those behind it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atleastonce import FailurePolicy, Message, Queue, RetryChain, Service, wire
from atleastonce.bound import Bound
from atleastonce.contract import NONE, Ability, Capabilities, Counting, Delivery, Leasing, Level, Ordering, Outgoing
from atleastonce.engine.decision import Decision
from atleastonce.message import Headers

NOW = 1_700_000_000.0
QUEUE = Queue[Any]("orders")


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atleastonce.bound.time", SimpleNamespace(time=lambda: NOW))


def bound(delay: Ability = NONE) -> Bound:
    """On a broker that does not delay: its retry channels are read by us. Or on one that empties them: ``delay``."""
    service = Service("s")

    @service.consumer(QUEUE, failure=FailurePolicy(chain=RetryChain("5s", "5m")))
    async def handle(body: bytes) -> None: ...

    capabilities = Capabilities(delay=delay, delivery_count=Counting.NONE, lease=Leasing.SESSION, order=Ordering.STREAM)
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


class Waiter:
    """One message that waits: looked at whenever it is to be, on clocks that the test sets.

    Attributes:
        passed: seconds that it has waited.
        rounds: copies that were made of it.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, emptied: bool, fields: dict[str, str], delay: float) -> None:
        self.here = bound(Ability(Level.EMULATED, 1e9) if emptied else NONE)
        self.emptied = emptied
        self.delay = delay
        self.passed = self.offset = 0.0
        self.rounds = 0
        ours = {wire.GROUP: self.here.consumer.home.group_name, wire.ORIGIN: QUEUE.name}
        monkeypatch.setattr("atleastonce.bound.time", SimpleNamespace(time=lambda: self.now))
        self.item = self.sent(Message("m", b"body", b"k", Headers(fields | ours)), f"orders.retry.{delay:g}s")

    @property
    def now(self) -> float:
        return NOW + self.passed + self.offset

    def sent(self, message: Message, channel: str) -> Delivery:
        came = Message(message.id, message.body, message.key, message.headers, self.now)
        item = Delivery(came, self.here.consumer.home, channel, 1, 1, None)
        if self.emptied:
            self.passed += 300.0 if channel.endswith(("5m", "300s")) else 5.0
            item.returned = True
        return item

    def runs(self, back_after: float | None = None) -> float:
        """Seconds until it runs. ``back_after`` so many of them the clock goes back ten minutes."""
        while self.rounds < 1000:
            when = self.here.due_at_home(self.item) if self.emptied else self.here.due_in_channel(self.item, self.delay)
            if isinstance(when, Decision):
                self.rounds += 1
                self.item = self.sent(when.copies[0].message, when.copies[0].destination.name)
            elif when <= self.now:
                return self.passed
            elif back_after is not None:  # it is held: the engine has it looked at anew
                self.passed, self.offset, back_after = max(self.passed, back_after), -600.0, None
            else:
                self.passed += when - self.now
        pytest.fail(f"it waits for ever: {self.passed:g} s, {self.rounds} copies")


@pytest.mark.parametrize("emptied", [False, True], ids=["read", "emptied"])
@pytest.mark.parametrize("text", ["4070908800000", "9" * 18, "9" * 400])
@pytest.mark.parametrize("delay", [5.0, 300.0])
@pytest.mark.parametrize("wait", [0.0, 3600.0])
def test_due_in_2099_waits_as_an_honest_one_might(
    monkeypatch: pytest.MonkeyPatch, emptied: bool, text: str, delay: float, wait: float
) -> None:
    fields = {wire.DUE: text} | ({wire.WAIT: wire.millis(wait)} if wait else {})
    waiter = Waiter(monkeypatch, emptied=emptied, fields=fields, delay=delay)
    # What the broker empties does not say which channel it was in: it may have been the longest. And it has been there already.
    longest = max(300.0 + delay if emptied else delay, wait + (delay if emptied else 0.0))
    assert longest <= waiter.runs() <= longest + wire.CLOCK_SLACK + 2.0
    assert waiter.rounds <= longest / 5.0 + 30  # a copy each round


@pytest.mark.parametrize("emptied", [False, True], ids=["read", "emptied"])
@pytest.mark.parametrize("delay", [5.0, 300.0])
def test_a_clock_that_is_put_back_costs_no_more_than_the_slack(
    monkeypatch: pytest.MonkeyPatch, emptied: bool, delay: float
) -> None:
    waiter = Waiter(monkeypatch, emptied=emptied, fields={wire.DUE: wire.millis(NOW + delay)}, delay=delay)
    if emptied:
        waiter.offset = -600.0
        assert waiter.runs() <= delay + 300.0 + wire.CLOCK_SLACK + 2.0
    else:
        assert delay <= waiter.runs(back_after=1.0) <= 1.0 + delay + wire.CLOCK_SLACK + 2.0


def test_what_was_redriven_waits_no_longer_either(monkeypatch: pytest.MonkeyPatch) -> None:
    waiter = Waiter(monkeypatch, emptied=False, fields={wire.DUE: "4070908800000"}, delay=0.0)
    parked = waiter.here.due_in_channel(waiter.item, 0.0)
    assert isinstance(parked, Decision)
    assert parked.copies[0].destination == waiter.here.consumer.home.redrive_channel
    assert waiter.runs() <= wire.CLOCK_SLACK + 2.0


def test_malformed_is_due_now() -> None:
    assert looked_at(waiting("soon")) == 0.0


def test_without_a_time_of_publishing_it_is_held_until_due() -> None:
    assert looked_at(waiting(NOW + 3600, wait=3600, came=None)) == NOW + 3600


def test_what_was_redriven_and_is_believed_is_never_parked() -> None:
    assert looked_at(waiting(NOW + 3600, wait=3600, came=NOW - 100), 0.0) == NOW + 3600


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6), st.floats(-1e6, 1e6), st.sampled_from([0.001, 5.0, 300.0]))
def test_never_early_and_never_for_ever(ahead: float, wait: float, age: float, delay: float) -> None:
    """Look, wait, look again: it runs at its due time, or waits once more with the same one, or with what is believed of it; a
    clock that differs does no harm."""
    item = waiting(max(0.0, NOW + ahead), wait=wait, came=NOW - age)
    when = looked_at(item, delay)
    due = wire.read_due(item.message.headers, now=NOW, delay=delay)
    if isinstance(when, Decision):
        assert due.at > NOW + 1
        said = when.copies[0].message.headers.get(wire.DUE)
        assert said == (wire.millis(due.at) if due.clamped else item.message.headers.get(wire.DUE))
    elif when <= NOW:
        assert due.at <= NOW
    else:
        assert when <= due.at
        assert when <= NOW + max(delay, 2.0) + 1.001 or when == due.at
