"""What a member of a share group has open: settled once, lost as a whole, and never taken for another hand-out."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("confluent_kafka", reason="confluent-kafka is not installed")

from atleastonce.adapters.kafka.share.batch import Batch, ShareDelivery
from atleastonce.channels import Queue, Source

SOURCE = Source(Queue[Any]("q"))


def delivery(offset: int, epoch: int = 1) -> ShareDelivery:
    made = ShareDelivery(SOURCE, "q/0", offset, epoch, object(), 10, None)  # type: ignore[arg-type]
    made.lease_until = 100.0
    return made


def test_each_is_settled_once() -> None:
    batch = Batch()
    batch.add([one := delivery(1), delivery(2)])
    assert (len(batch), batch.live, batch.until) == (2, 2, 100.0)
    assert batch.settled(one)
    assert not batch.settled(one)
    assert (len(batch), batch.live) == (1, 1)


def test_what_is_lost_stays_open_and_is_not_settled() -> None:
    batch = Batch()
    batch.add([one := delivery(1), two := delivery(2)])
    batch.lose([one])
    assert one.lost
    assert not batch.settled(one)
    assert (len(batch), batch.live) == (2, 1)
    assert batch.end(), "one was live"
    assert two.lost
    assert (len(batch), batch.live) == (2, 0)
    assert not batch.end()
    batch.clear()
    assert not batch


def test_a_later_hand_out_of_the_same_record_is_another_one() -> None:
    batch = Batch()
    old, new = delivery(1, epoch=1), delivery(1, epoch=2)
    batch.add([new])
    assert not batch.settled(old)
    batch.lose([old])
    assert not new.lost
    assert not batch.again(old)
    assert batch.settled(new)


def test_what_is_handed_out_again_takes_the_place_of_what_was_given_back() -> None:
    batch = Batch()
    batch.add([first := delivery(1)])
    assert batch.again(second := first.again())
    assert second.lease_until == first.lease_until
    batch.lose([first])
    assert second.lost, "it is the same record"
    assert not batch.again(second.again())
