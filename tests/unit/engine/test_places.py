"""Places that pools share: never more than there are, and none that waits is passed by for ever."""

from __future__ import annotations

import random

from atleastonce.engine.places import Places


class Pool:
    def __init__(self) -> None:
        self.woken = 0

    def wake(self) -> None:
        self.woken += 1


def test_as_many_as_there_are_and_whoever_found_none_is_next() -> None:
    places, first, second = Places(2), Pool(), Pool()
    assert places.enter(first)
    assert places.enter(first)
    assert not places.vacant(second)
    assert not places.enter(second)
    assert second.woken == 0
    places.leave()
    assert second.woken == 1
    assert not places.enter(first), "it is kept for who waits"
    assert places.vacant(second)
    assert places.enter(second)
    places.leave()
    assert first.woken == 1
    assert places.enter(first)


def test_a_place_that_is_kept_for_a_pool_that_ends_goes_to_the_others() -> None:
    places, first, second, third = Places(1), Pool(), Pool(), Pool()
    assert places.enter(first)
    assert not places.enter(second)
    assert not places.enter(third)
    places.leave()
    assert (second.woken, third.woken) == (1, 0)
    places.forget(second)
    assert third.woken == 1
    assert places.enter(third)


def test_who_waits_no_more_gets_none() -> None:
    places, first, second = Places(1), Pool(), Pool()
    assert places.enter(first)
    assert not places.enter(second)
    places.forget(second)
    places.leave()
    assert second.woken == 0
    assert places.enter(first)


def test_whatever_comes_and_goes_no_more_are_in_than_may_and_none_is_lost() -> None:
    for seed in range(200):
        chance = random.Random(seed)
        most = chance.randint(1, 4)
        places, pools = Places(most), [Pool() for _ in range(3)]
        inside: list[Pool] = []
        for _ in range(300):
            pool = chance.choice(pools)
            if inside and chance.random() < 0.5:
                inside.remove(chance.choice(inside))
                places.leave()
            elif places.enter(pool):
                inside.append(pool)
            assert len(inside) <= most
        for pool in pools:
            places.forget(pool)
        while inside:
            inside.pop()
            places.leave()
        assert all(places.enter(pools[0]) for _ in range(most))
        assert not places.enter(pools[0])
