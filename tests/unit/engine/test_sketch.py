"""The sketch of heavy keys, against exact counts."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atleastonce.engine.sketch import Sketch


class Clock:
    now = 10.0

    def __call__(self) -> float:
        return self.now


@given(st.lists(st.lists(st.integers(0, 40), max_size=60), max_size=30), st.integers(1, 20))
def test_no_heavy_key_is_missed_and_no_estimate_is_too_small(batches: list[list[int]], capacity: int) -> None:
    sketch, exact = Sketch(capacity, Clock()), Counter[int]()
    for batch in batches:
        exact.update(batch)
        sketch.merge(Counter(batch))
    total = sum(exact.values())
    kept = dict(sketch.top(capacity))
    assert sketch.total == total
    assert len(kept) <= capacity
    for key, count in exact.items():
        if count > total / capacity:
            assert key in kept, f"{key} came {count} times of {total}"
        if key in kept:
            assert kept[key] >= count


def test_a_key_that_brings_a_tenth_stands_out_of_a_hundred_thousand() -> None:
    sketch, dice = Sketch(64, Clock()), random.Random(7)
    for _ in range(200):
        sketch.merge(Counter("hot" if dice.random() < 0.1 else f"k{dice.randrange(100_000)}" for _ in range(500)))
    (key, weight), *_ = sketch.top(1)
    assert key == "hot"
    assert 0.09 < weight / sketch.total < 0.13


def test_what_was_hot_cools_down() -> None:
    clock = Clock()
    sketch = Sketch(8, clock)
    sketch.merge({"then": 1000.0})
    clock.now += 600
    sketch.merge({"now": 100.0})
    (first, _), (second, weight) = sketch.top(2)
    assert (first, second) == ("now", "then")
    assert weight == pytest.approx(1000 / 2**10, rel=0.01)


def test_an_empty_one_has_no_keys() -> None:
    assert Sketch().top(5) == []
