"""When a relay that does nothing says why."""

from __future__ import annotations

from typing import Any

import pytest

from atleastonce.patterns.outbox.standstill import Standstill
from atleastonce.stores.outbox import SLOTS, OutboxStats


def lag(waiting: int, oldest: float | None, blocked: int = 0) -> OutboxStats:
    return OutboxStats(waiting, oldest, delayed=0, parked=0, relays=1, blocked=blocked)


def after(*counts: OutboxStats, **given: Any) -> str:
    """What it says after these counts, ten seconds apart, by a relay that has nothing."""
    standstill = Standstill()
    for number, each in enumerate(counts):
        standstill.counted(each, 10.0 * number, **{"read": 5, "idle": True, "slots": SLOTS} | given)
    return standstill.detail(5)


def test_rows_that_nobody_is_given() -> None:
    assert (
        after(lag(3, 30.0), lag(4, 40.2))
        == "4 rows wait, the oldest for 40s, and the store gives this relay none of them"
    )
    assert (
        after(lag(3, 30.0), lag(4, 40.2), slots=4)
        == "4 rows wait, the oldest for 40s, and none of them is this relay's"
    )


@pytest.mark.parametrize(
    "counts",
    [
        [lag(3, 30.0)],
        [lag(0, None), lag(3, 5.0)],
        [lag(3, 5.0), lag(0, None)],
        [lag(3, 30.0), lag(3, 12.0)],  # another one's, which goes on
        [lag(3, 30.0), lag(3, 3600.0)],  # one whose delay has ended just now
        [lag(3, 30.0, blocked=3), lag(3, 40.0, blocked=3)],
    ],
)
def test_rows_that_leave_or_wait_for_a_reason(counts: list[OutboxStats]) -> None:
    assert not after(*counts)


def test_a_relay_that_has_rows_or_holds_no_slots_says_nothing() -> None:
    assert not after(lag(3, 30.0), lag(3, 40.0), idle=False)
    assert not after(lag(3, 30.0), lag(3, 40.0), slots=0)


def test_of_blocked_rows_only_who_reads_all_slots_can_tell() -> None:
    assert after(lag(3, 30.0, blocked=2), lag(3, 40.0, blocked=2)).startswith("1 rows wait")
    assert not after(lag(3, 30.0, blocked=2), lag(3, 40.0, blocked=2), slots=4)


def test_it_is_over_when_something_is_read() -> None:
    standstill = Standstill()
    for at in (0.0, 10.0):
        standstill.counted(lag(1, 30.0 + at), at, read=5, idle=True, slots=SLOTS)
    assert standstill.detail(5)
    assert not standstill.detail(6)
    standstill.counted(lag(1, 50.0), 20.0, read=6, idle=True, slots=SLOTS)
    assert not standstill.detail(6)
