"""The token bucket, on a clock of the test's own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atleastonce.engine.rate import TokenBucket


class Clock:
    now = 50.0

    def __call__(self) -> float:
        return self.now


def test_a_tenth_of_a_second_at_once_then_as_time_passes() -> None:
    clock = Clock()
    bucket = TokenBucket(500.0, clock)
    assert bucket.take(1000) == 50
    assert bucket.take(1000) == 0
    assert bucket.wait == pytest.approx(0.002)
    clock.now += 0.01
    assert bucket.take(1000) == 5
    clock.now += 60
    assert bucket.take(1000) == 50


def test_slow_rates_grant_one_at_a_time() -> None:
    clock = Clock()
    bucket = TokenBucket(0.5, clock)
    assert bucket.take(10) == 1
    assert bucket.wait == pytest.approx(2.0)
    clock.now += 2.0
    assert bucket.wait == 0.0
    assert bucket.take(10) == 1


def test_what_was_not_used_comes_back_but_never_more_than_a_burst() -> None:
    bucket = TokenBucket(100.0, Clock())
    assert bucket.take(10) == 10
    bucket.give_back(4)
    assert bucket.take(10) == 4
    bucket.give_back(1000)
    assert bucket.take(1000) == 10


def test_a_clock_that_goes_back_grants_nothing() -> None:
    clock = Clock()
    bucket = TokenBucket(10.0, clock)
    bucket.take(10)
    clock.now -= 3600
    assert bucket.take(10) == 0


@given(st.floats(0.1, 10_000), st.lists(st.tuples(st.floats(0, 3), st.integers(1, 1000)), max_size=60))
def test_never_more_than_the_rate_and_one_burst(rate: float, steps: list[tuple[float, int]]) -> None:
    clock = Clock()
    bucket = TokenBucket(rate, clock)
    begin, granted = clock.now, 0
    for passed, wanted in steps:
        clock.now += passed
        granted += bucket.take(wanted)
        assert granted <= max(1.0, rate / 10) + rate * (clock.now - begin) + 1e-6
