"""Confirms and delivery tags, without a broker."""

from __future__ import annotations

import asyncio
import struct

import pytest

pytest.importorskip("pika", reason="pika is not installed")

from hypothesis import given
from hypothesis import strategies as st

from atleastonce.adapters.rabbitmq.confirms import Batch, Ledger, Pending
from atleastonce.adapters.rabbitmq.strays import Strays
from atleastonce.adapters.rabbitmq.tags import Tags
from atleastonce.channels import Queue, Source
from atleastonce.contract import ACK, RELEASE, Code, Delivery, Reject, Retry, Status, Verdict, unknown
from atleastonce.message import Message


def batch(size: int) -> Batch:
    loop = asyncio.new_event_loop()
    try:
        return Batch(size, loop.create_future())
    finally:
        loop.close()


def filled(*sizes: int) -> tuple[Ledger, list[Batch]]:
    ledger, batches = Ledger(), []
    for size in sizes:
        batches.append(batch(size))
        for position in range(size):
            ledger.add(Pending(batches[-1], position, 10, "", "q", f"m{position}"))
    return ledger, batches


def statuses(of: Batch) -> list[str | None]:
    return [None if outcome is None else outcome.status.value for outcome in of.outcomes]


@given(data=st.data())
def test_every_publish_ends_once_with_its_own_confirm(data: st.DataObject) -> None:
    ledger, (one, two) = filled(5, 4)
    expected: dict[int, str] = {}
    left = set(range(1, 10))
    returned = data.draw(st.sets(st.sampled_from(range(1, 6))))
    for number in sorted(returned):
        ledger.returned("", "q", f"m{number - 1}", "no queue")
    while left:
        tag = data.draw(st.sampled_from(sorted(left)))
        multiple, ok = data.draw(st.booleans()), data.draw(st.booleans())
        for number in sorted(left):
            if number == tag or (multiple and number < tag):
                expected[number] = "unknown" if not ok else "rejected" if number in returned else "ok"
                left.discard(number)
        ledger.confirmed(tag, multiple, ok)
    assert len(ledger) == 0
    assert ledger.bytes == 0
    assert statuses(one) + statuses(two) == [expected[number] for number in range(1, 10)]


def test_a_return_finds_the_first_of_its_like() -> None:
    ledger, (one, two) = filled(2, 2)
    ledger.returned("", "q", "m0", "no queue")
    ledger.returned("", "q", "m0", "no queue")
    ledger.returned("", "elsewhere", "m1", "no queue")
    ledger.confirmed(4, True, True)
    assert statuses(one) + statuses(two) == ["rejected", "ok", "rejected", "ok"]


def test_late_confirms_of_the_abandoned_end_nobody_else() -> None:
    ledger, (one, two) = filled(3, 1)
    ledger.returned("", "q", "m1", "no queue")
    ledger.abandon(one)
    assert (len(ledger), ledger.bytes) == (1, 10)
    one.fill(unknown(Code.TIMEOUT))
    ledger.confirmed(3, True, True)
    ledger.confirmed(4, False, True)
    assert statuses(one) == ["unknown"] * 3
    assert statuses(two) == ["ok"]


def test_a_lost_channel_ends_what_is_pending_and_no_more() -> None:
    ledger, (one, two) = filled(2, 1)
    ledger.confirmed(1, False, True)
    assert ledger.of(one) == {1}
    ledger.fail(lambda _: unknown(Code.UNAVAILABLE))
    assert statuses(one) == ["ok", "unknown"]
    assert statuses(two) == ["unknown"]
    assert one.failed
    assert two.failed
    assert (len(ledger), ledger.bytes) == (0, 0)


def delivery(tag: int, epoch: int = 1) -> Delivery:
    return Delivery(Message(f"m{tag}", b"body"), Source(Queue("q")), "q", "", epoch, tag, 1)


class Broker:
    """Reads settlements as RabbitMQ does: an unknown tag closes the channel."""

    def __init__(self, tags: int) -> None:
        self.unsettled = set(range(1, tags + 1))
        self.ended: dict[int, str] = {}
        self.frames = 0

    def read(self, data: bytes) -> None:
        while data:
            _, _, size = struct.unpack_from(">BHI", data)
            method, tag, bits = struct.unpack_from(">IQB", data, 7)
            data = data[size + 8 :]
            self.frames += 1
            upto = {each for each in self.unsettled if each <= tag} if method == 0x003C0050 and bits else {tag}
            assert upto, "acknowledged nothing"
            assert tag in self.unsettled, f"PRECONDITION_FAILED - unknown delivery tag {tag}"
            for each in upto:
                self.unsettled.discard(each)
                self.ended[each] = {0x003C0050: "ack", 0x003C0078: "release", 0x003C005A: f"reject{bits}"}[method]


NAMES = {ACK: "ack", RELEASE: "release", Retry(0.0): "reject1", Reject(""): "reject0"}


@given(st.lists(st.lists(st.tuples(st.integers(1, 12), st.sampled_from([ACK] * 5 + list(NAMES))), max_size=12)))
def test_the_broker_sees_each_first_verdict_once(batches: list[list[tuple[int, Verdict]]]) -> None:
    broker, tags = Broker(12), Tags(5, 1)
    deliveries = {}
    for tag in range(1, 13):
        tags.arrived(tag, 10)
        deliveries[tag] = delivery(tag)
        tags.handed_out(tag, deliveries[tag])
    expected: dict[int, str] = {}
    for pairs in batches:
        outcomes, frames = tags.settle([(deliveries[tag], verdict) for tag, verdict in pairs], alive=True)
        assert all(outcome.ok for outcome in outcomes)
        broker.read(frames)
        for tag, verdict in pairs:
            expected.setdefault(tag, NAMES[verdict])
    assert broker.ended == expected
    assert len(tags) == 12 - len(expected)
    assert tags.bytes == 10 * len(tags)


def test_a_run_from_the_oldest_is_one_frame() -> None:
    tags = Tags(5, 1)
    for tag in range(1, 101):
        tags.arrived(tag, 1)
    deliveries = [delivery(tag) for tag in range(1, 101)]
    broker = Broker(100)
    broker.read(tags.settle([(d, ACK) for d in deliveries[::-1]], alive=True)[1])
    assert broker.frames == 1
    assert broker.unsettled == set()


def test_other_epochs_are_stale_and_write_nothing() -> None:
    tags = Tags(5, 2)
    tags.arrived(1, 1)
    for old, alive in ((delivery(1, epoch=1), True), (delivery(1, epoch=2), False)):
        ((outcome,), frames) = tags.settle([(old, ACK)], alive=alive)
        assert outcome.status is Status.REJECTED
        assert outcome.fault is not None
        assert outcome.fault.code is Code.STALE
        assert frames == b""
    assert tags.stale == 2
    assert len(tags) == 1


def test_a_retry_with_a_delay_is_no_settlement() -> None:
    tags = Tags(5, 1)
    tags.arrived(1, 1)
    ((outcome,), frames) = tags.settle([(delivery(1), Retry(1.0))], alive=True)
    assert outcome.status is Status.REJECTED
    assert frames == b""
    assert len(tags) == 1


def test_losing_marks_what_is_out() -> None:
    tags, held = Tags(5, 1), delivery(1)
    tags.arrived(1, 1)
    tags.arrived(2, 1)
    tags.handed_out(1, held)
    tags.lose()
    assert held.lost
    assert (len(tags), tags.bytes) == (0, 0)


def test_what_was_given_back_keeps_its_id_and_equal_messages_are_two() -> None:
    strays = Strays()
    one, two = strays.identify(b"tick", False), strays.identify(b"tick", False)
    assert one != two
    strays.returned(Message(one, b"tick"))
    strays.returned(Message(two, b"tick"))
    assert strays.identify(b"tick", False) not in (one, two)
    assert strays.identify(b"tock", True) not in (one, two)
    assert {strays.identify(b"tick", True), strays.identify(b"tick", True)} == {one, two}
    assert strays.identify(b"tick", True) not in (one, two)
