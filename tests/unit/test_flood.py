"""The flood guard, on a clock of its own: when it shuts, what it holds, and what opens it again."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atleastonce import ConfigurationError
from atleastonce.patterns.flood import DeadLetterPolicy, FloodGuard, Gate


class Desk:
    """A guard with a clock and a count of successes."""

    def __init__(self, **limits: Any) -> None:
        self.now = 1000.0
        self.done = 7  # it need not begin at zero
        self.trips = 0
        self.guard = FloodGuard(DeadLetterPolicy(**limits), lambda: self.done, lambda: self.now, self._trip)

    def _trip(self) -> None:
        self.trips += 1

    def dies(self) -> float | None:
        return self.guard.given_up("ValueError: x")


def test_so_many_in_a_row_and_no_more() -> None:
    desk = Desk(max_share=None, max_consecutive=3, probe_after="30s")
    assert [desk.dies() for _ in range(3)] == [None] * 3
    desk.done += 1
    assert [desk.dies() for _ in range(3)] == [None] * 3, "a success begins a new row"
    assert desk.guard.gate is Gate.OPEN
    assert desk.dies() == 30.0
    assert (desk.guard.gate, desk.trips) == (Gate.SHUT, 1)
    assert desk.guard.detail == ("more than 3 in a row would be dead, the last one by ValueError: x; probing in 30s")
    desk.now += 12
    assert desk.dies() == 18.0, "held until the probe"
    assert desk.trips == 1


def test_a_share_of_the_last_ones() -> None:
    desk = Desk(max_share=0.5, over=10, max_consecutive=None)
    for _ in range(5):
        assert desk.dies() is None
    desk.done += 5  # 10 have ended, half of them dead
    assert desk.dies() is None, "the first of the dead has fallen out of the last ten"
    desk.done += 1000
    assert [desk.dies() for _ in range(5)] == [None] * 5
    assert desk.dies() == 30.0, "six of the last ten"


def test_a_share_of_few_says_nothing() -> None:
    desk = Desk(max_share=0.1, over=100, max_consecutive=None)
    assert [desk.dies() for _ in range(99)] == [None] * 99
    assert desk.dies() is not None


def test_no_limits_never_shut() -> None:
    desk = Desk(max_share=None, max_consecutive=None)
    assert [desk.dies() for _ in range(10_000)] == [None] * 10_000


def shut(**limits: Any) -> Desk:
    desk = Desk(max_share=None, max_consecutive=1, **limits)
    desk.dies()
    assert desk.dies() is not None
    return desk


def test_a_probe_that_succeeds_opens_and_counts_from_nothing() -> None:
    desk = shut()
    assert desk.guard.look() is Gate.SHUT
    desk.done += 5  # what ran already
    desk.now += 29.9
    assert desk.guard.look() is Gate.SHUT, "no probe, no answer"
    desk.now += 0.1
    assert desk.guard.look() is Gate.PROBING
    assert desk.guard.look() is Gate.PROBING
    desk.done += 1
    assert desk.guard.look() is Gate.OPEN
    assert desk.guard.detail == ""
    assert desk.dies() is None
    assert desk.dies() is not None
    assert desk.trips == 2


@pytest.mark.parametrize("final", [True, False])
def test_a_probe_that_fails_keeps_it_shut(final: bool) -> None:
    desk = shut()
    desk.now += 30
    assert desk.guard.look() is Gate.PROBING
    if final:
        assert desk.dies() == 30.0
    else:
        desk.guard.failed()
    assert desk.guard.look() is Gate.SHUT
    assert desk.trips == 1, "it was paused already"
    desk.done += 1
    assert desk.guard.look() is Gate.SHUT, "too late: the first answer counts"
    desk.now += 30
    assert desk.guard.look() is Gate.PROBING


def test_the_first_answer_of_a_probe_counts() -> None:
    desk = shut()
    desk.now += 30
    desk.guard.look()
    desk.done += 1
    assert desk.dies() is None, "a success came before: open, and this is the first in a new row"
    assert desk.guard.gate is Gate.OPEN


def test_what_was_held_may_come_before_anybody_has_looked() -> None:
    desk = shut()
    for _ in range(3):
        desk.now += 30
        assert desk.dies() == 30.0, "the probe's answer, and not one more that is held"
    desk.now += 30
    desk.guard.failed()
    assert desk.guard.look() is Gate.PROBING, "it had not begun when that failed"


def test_failures_that_are_no_end_change_nothing_while_it_is_open_or_shut() -> None:
    desk = Desk(max_share=None, max_consecutive=1)
    for _ in range(10):
        desk.guard.failed()
    assert desk.dies() is None
    assert desk.dies() is not None
    desk.guard.failed()
    assert desk.guard.look() is Gate.SHUT


def test_few_of_the_held_are_tried_at_each_probe() -> None:
    desk = shut()  # holds one
    waits = [desk.dies() for _ in range(20)]
    assert waits == [30.0] * 9 + [300.0] * 11


def test_without_a_probe_only_a_hand_opens_it() -> None:
    desk = shut(probe_after=None)
    assert desk.dies() == 300.0
    desk.now += 1e6
    desk.done += 1000
    assert desk.guard.look() is Gate.SHUT
    assert desk.guard.detail.endswith("service.resume() goes on")
    desk.guard.reset()
    assert desk.guard.look() is Gate.OPEN
    assert desk.dies() is None


EVENTS = st.lists(st.sampled_from(["done", "dead"]), max_size=300)


@given(EVENTS, st.integers(1, 20), st.integers(1, 40), st.floats(0.05, 1))
def test_it_shuts_exactly_when_a_limit_is_broken(events: list[str], most: int, over: int, share: float) -> None:
    desk = Desk(max_share=share, over=over, max_consecutive=most)
    ends: deque[str] = deque(maxlen=over)
    row = total = 0
    for event in events:
        ends.append(event)
        total += 1
        if event == "done":
            desk.done += 1
            row = 0
            continue
        row += 1
        broken = row > most or (total >= over and ends.count("dead") > share * over)
        assert (desk.dies() is not None) is broken
        if broken:
            assert desk.guard.gate is Gate.SHUT
            return
    assert desk.guard.gate is Gate.OPEN


@given(st.lists(st.sampled_from(["done", "dead", "retried", "wait", "look"]), max_size=200))
def test_while_it_is_not_open_nothing_is_given_up(events: list[str]) -> None:
    desk = Desk(max_share=None, max_consecutive=2, probe_after=5)
    done_since_look = False
    for event in events:
        before = desk.guard.gate
        if event == "done":
            desk.done += 1
            done_since_look = True
        elif event == "wait":
            desk.now += 2.5
        elif event == "retried":
            desk.guard.failed()
        elif event == "look":
            desk.guard.look()
            done_since_look = False
        else:
            wait = desk.dies()
            assert wait is None or 0 < wait <= 300
            if before is Gate.SHUT or (before is Gate.PROBING and not done_since_look):
                assert wait is not None


@pytest.mark.parametrize(
    ("limits", "sentence"),
    [
        ({"max_share": 0}, "max_share=0 is out of range"),
        ({"max_share": 1.1}, "max_share=1.1"),
        ({"max_share": float("nan")}, "max_share=nan"),
        ({"max_share": "half"}, "max_share='half'"),
        ({"max_share": True}, "max_share=True"),
        ({"over": 0}, "over=0"),
        ({"max_consecutive": 0}, "max_consecutive=0"),
        ({"max_consecutive": 1.5}, "max_consecutive=1.5"),
        ({"probe_after": "soon"}, "probe_after"),
        ({"probe_after": 0}, "probe_after"),
    ],
)
def test_limits_that_cannot_be_are_refused(limits: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        DeadLetterPolicy(**limits)
