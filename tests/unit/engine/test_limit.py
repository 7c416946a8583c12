"""Adaptive concurrency: what lets it grow, what shrinks it, and lanes behind it."""

from __future__ import annotations

from typing import Any

import pytest
from engine_kit import ByKey, delivery
from hypothesis import given
from hypothesis import strategies as st

from atleastonce.contract import Delivery
from atleastonce.engine.decision import DONE, Decision
from atleastonce.engine.lanes import FreeLanes, KeyedLanes
from atleastonce.engine.limit import AdaptiveConcurrency, Limit
from atleastonce.engine.limited import LimitedLanes
from atleastonce.errors import ConfigurationError


class World:
    def __init__(self, **given: Any) -> None:
        self.now = 10.0
        self.limit = Limit(AdaptiveConcurrency(**given), lambda: self.now)

    def window(self, took: float, *, running: int | None = None, overload: bool = False, windows: int = 1) -> None:
        """So many windows of twenty runs that took so long."""
        for _ in range(windows):
            if overload:
                self.limit.overload()
            for _ in range(20):
                self.now += 0.0051
                self.limit.ran(took, self.limit.value if running is None else running)


def test_it_grows_while_it_is_used_up_and_all_is_well() -> None:
    world = World(min=4, max=100)
    world.window(0.01, windows=40)
    assert world.limit.value == 100
    assert world.limit.overloads == 0


def test_it_does_not_grow_while_nobody_needs_it() -> None:
    world = World(min=4, max=100)
    world.window(0.01, running=3, windows=40)
    assert world.limit.value == 4


def test_an_overload_shrinks_it_by_a_factor_and_never_below_the_least() -> None:
    world = World(min=4, max=100, initial=100)
    world.window(0.01, running=1)
    world.window(0.01, overload=True)
    assert world.limit.value == 80
    world.window(0.01, overload=True, windows=50)
    assert world.limit.value == 4


def test_runs_that_take_much_longer_than_usual_are_an_overload() -> None:
    world = World(min=4, max=100, initial=50)
    world.window(0.01, running=1, windows=5)
    world.window(0.05)
    assert world.limit.value == 40


def test_what_takes_longer_for_good_becomes_usual() -> None:
    world = World(min=4, max=100, initial=50)
    world.window(0.01, running=1, windows=5)
    world.window(0.05, windows=2000)
    assert world.limit.value == 100


def test_a_single_overload_counts_however_few_runs_there_are() -> None:
    world = World(min=1, max=100, initial=10)
    world.limit.overload()
    world.now += 1.0
    world.limit.ran(30.0, 10)
    assert world.limit.value == 8


def test_a_share_of_it_keeps_within_its_places() -> None:
    policy = AdaptiveConcurrency(min=8, max=100, initial=50).at_most(4)
    assert (policy.min, policy.max, policy.initial) == (4, 4, 4)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"min": 0}, "AdaptiveConcurrency min"),
        ({"min": 10, "max": 5}, "AdaptiveConcurrency max"),
        ({"initial": 1000}, "AdaptiveConcurrency initial"),
        ({"backoff": 1.0}, "AdaptiveConcurrency backoff=1.0 is out of range"),
        ({"backoff": "x"}, "AdaptiveConcurrency backoff='x'"),
        ({"tolerance": 1}, "AdaptiveConcurrency tolerance"),
        ({"tolerance": True}, "AdaptiveConcurrency tolerance"),
    ],
)
def test_values_out_of_range_are_refused(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        AdaptiveConcurrency(**wrong)


@given(st.lists(st.tuples(st.floats(0.0001, 10), st.booleans(), st.integers(0, 300)), max_size=200))
def test_it_keeps_within_its_bounds_whatever_happens(runs: list[tuple[float, bool, int]]) -> None:
    world = World(min=3, max=50)
    for took, overload, running in runs:
        world.now += took / 10
        if overload:
            world.limit.overload()
        world.limit.ran(took, running)
        assert 3 <= world.limit.value <= 50


def limited(value: int, lanes: Any = None) -> LimitedLanes:
    return LimitedLanes(FreeLanes() if lanes is None else lanes, Limit(AdaptiveConcurrency(min=value, max=value)))


def test_no_more_start_than_the_limit_says() -> None:
    lanes = limited(2)
    batch = [delivery() for _ in range(4)]
    lanes.offer(batch)
    first, second = lanes.take(), lanes.take()
    assert first is batch[0]
    assert second is batch[1]
    assert lanes.take() is None
    assert not lanes.ready
    lanes.finish(batch[0])
    assert lanes.ready
    assert lanes.take() is batch[2]


async def test_a_run_leaves_its_place_however_it_ends() -> None:
    lanes = limited(1)
    batch = [delivery() for _ in range(3)]
    lanes.offer(batch)

    async def process(one: Delivery) -> Decision:
        if one is batch[0]:
            raise ValueError("policy")
        return Decision(again=1.0) if one is batch[1] else DONE

    run = lanes.around(process)
    one = lanes.take()
    assert one is not None
    with pytest.raises(ValueError, match="policy"):
        await run(one)
    for _ in range(2):
        one = lanes.take()
        assert one is not None
        await run(one)
    assert lanes.take() is None
    lanes.again([batch[1]])
    assert lanes.take() is batch[1]


def test_keyed_lanes_stay_keyed_behind_it() -> None:
    lanes = limited(2, KeyedLanes(ByKey(lambda _: "a")))
    batch = [delivery() for _ in range(2)]
    lanes.offer(batch)
    assert lanes.take() is batch[0]
    assert lanes.take() is None
    lanes.finish(batch[0])
    assert lanes.take() is batch[1]


def test_what_a_thread_gives_back_leaves_its_place() -> None:
    lanes = limited(1)
    batch = [delivery() for _ in range(2)]
    lanes.offer(batch)
    assert lanes.take() is batch[0]
    lanes.finish(batch[0])  # reclaimed and released: the worker tells
    assert lanes.take() is batch[1]
    assert len(lanes) == 0
