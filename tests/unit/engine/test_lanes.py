"""Lanes against a model: one delivery of a key at a time, in the order offered, nothing forgotten and nothing kept."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Hashable

import pytest
from engine_kit import ByKey, deliveries, delivery, ids
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from atleastonce.contract import Delivery
from atleastonce.engine.lanes import FreeLanes, KeyedLanes, Lanes


def by_key(item: Delivery) -> bytes | None:
    return item.message.key


def both() -> list[Lanes]:
    return [FreeLanes(), KeyedLanes(ByKey())]


def drained(lanes: Lanes) -> list[Delivery]:
    """Take and finish until nothing is left to take."""
    taken = []
    while (item := lanes.take()) is not None:
        taken.append(item)
        lanes.finish(item)
    return taken


@pytest.mark.parametrize("lanes", both(), ids=["free", "keyed"])
def test_without_keys_everything_starts_in_the_order_offered(lanes: Lanes) -> None:
    batch = deliveries(5)
    lanes.offer(batch[:3])
    lanes.offer(batch[3:])
    assert len(lanes) == 5
    assert [lanes.take() for _ in range(5)] == batch
    assert lanes.take() is None
    assert len(lanes) == 0
    assert [item.tries for item in batch] == [1] * 5


@pytest.mark.parametrize("lanes", both(), ids=["free", "keyed"])
def test_again_comes_ahead_of_everything_queued_in_its_order_and_counts_a_try(lanes: Lanes) -> None:
    batch = [delivery(f"m{n}", key=b"%d" % n) for n in range(6)]
    lanes.offer(batch)
    first, second = lanes.take(), lanes.take()
    assert first is not None
    assert second is not None
    lanes.again([first, second])
    assert len(lanes) == 6
    assert ids(drained(lanes)) == ["m0", "m1", "m2", "m3", "m4", "m5"]
    assert first.tries == 2
    assert batch[5].tries == 1


@pytest.mark.parametrize("lanes", both(), ids=["free", "keyed"])
def test_ready_tells_whether_take_would_give_something(lanes: Lanes) -> None:
    assert not lanes.ready
    lanes.offer(deliveries(1))
    assert lanes.ready
    item = lanes.take()
    assert item is not None
    assert not lanes.ready
    lanes.again([item])
    assert lanes.ready
    lanes.purge(lambda _: True)
    assert not lanes.ready


@pytest.mark.parametrize("lanes", both(), ids=["free", "keyed"])
def test_finish_ignores_what_was_not_started_and_what_is_finished(lanes: Lanes) -> None:
    a, b, c = (delivery(name, key=b"k") for name in "abc")
    lanes.finish(a)
    lanes.offer([a, b, c])
    lanes.finish(b)
    assert lanes.take() is a
    for _ in range(2):
        lanes.finish(c)
        lanes.finish(a)
    assert lanes.take() is b
    lanes.finish(a)  # again, while b of the same key runs
    assert lanes.take() is (c if isinstance(lanes, FreeLanes) else None)


def test_a_key_runs_one_at_a_time_while_others_go_on() -> None:
    lanes = KeyedLanes(ByKey())
    a1, a2, b1 = delivery("a1", key=b"a"), delivery("a2", key=b"a"), delivery("b1", key=b"b")
    lanes.offer([a1, a2, b1])
    assert lanes.take() is a1
    assert lanes.take() is b1
    assert lanes.take() is None
    assert not lanes.ready
    assert len(lanes) == 1
    lanes.finish(a1)
    assert lanes.ready
    assert lanes.take() is a2


def test_a_key_waits_for_a_delivery_that_is_to_run_again() -> None:
    lanes = KeyedLanes(ByKey())
    a1, a2 = delivery("a1", key=b"a"), delivery("a2", key=b"a")
    lanes.offer([a1, a2])
    assert lanes.take() is a1  # fails, and waits for its time in place: nothing is told to the lanes
    assert lanes.take() is None
    lanes.again([a1])
    assert lanes.take() is a1
    assert lanes.take() is None
    lanes.finish(a1)
    assert lanes.take() is a2


def test_purging_a_delivery_that_was_to_run_again_keeps_its_key_until_it_is_finished() -> None:
    """It is being released: until the broker knows, its successor must not overtake it."""
    lanes = KeyedLanes(ByKey())
    a1, a2 = delivery("a1", key=b"a"), delivery("a2", key=b"a")
    lanes.offer([a1, a2])
    assert lanes.take() is a1
    lanes.again([a1])
    assert lanes.purge(lambda item: item is a1) == [a1]
    assert lanes.take() is None
    lanes.finish(a1)
    assert lanes.take() is a2


def test_purging_queued_deliveries_never_releases_a_running_key() -> None:
    lanes = KeyedLanes(ByKey())
    a1, a2, a3 = (delivery(f"a{n}", key=b"a") for n in (1, 2, 3))
    lanes.offer([a1, a2])
    assert lanes.take() is a1
    assert lanes.purge(lambda item: item is not a1) == [a2]
    lanes.finish(a2)  # released, and settled
    lanes.offer([a3])
    assert lanes.take() is None
    lanes.finish(a1)
    assert lanes.take() is a3


def test_keyless_messages_are_not_starved_by_keys_that_are_always_ready() -> None:
    lanes = KeyedLanes(ByKey())
    free = delivery("free")
    lanes.offer([delivery("k0", key=b"0"), free])
    started: list[Delivery | None] = []
    for n in range(1, 20):
        lanes.offer([delivery(f"k{n}", key=b"%d" % n)])
        started.append(lanes.take())
    assert started.index(free) == 1


def test_a_hot_key_does_not_starve_the_others() -> None:
    lanes = KeyedLanes(ByKey())
    lanes.offer([delivery(f"hot{n}", key=b"hot") for n in range(50)] + [delivery(f"k{n}", key=b"k") for n in range(3)])
    assert ids(drained(lanes))[:6] == ["hot0", "k0", "hot1", "k1", "hot2", "k2"]


def test_a_key_is_asked_for_once() -> None:
    """A key function may be slow, or read what changes: its first answer holds until the delivery has ended."""
    asked: list[str] = []

    def key(item: Delivery) -> Hashable:
        asked.append(item.message.id)
        return len(asked)

    lanes = KeyedLanes(ByKey(key))
    a, b = delivery("a"), delivery("b")
    lanes.offer([a, b])
    assert drained(lanes) == [a, b]
    assert asked == ["a", "b"]


def raising(error: type[BaseException]) -> Callable[[Delivery], Hashable]:
    def key(item: Delivery) -> Hashable:
        if item.message.id == "bad":
            raise error
        return b"k"

    return key


@pytest.mark.parametrize(
    "key",
    [
        lambda item: item.message.nothing,
        lambda _: ["unhashable"],
        raising(asyncio.CancelledError),
        raising(GeneratorExit),
    ],
    ids=["raises", "unhashable", "CancelledError", "GeneratorExit"],
)
def test_a_key_that_cannot_be_had_costs_its_own_message_and_nobody_else(key: object) -> None:
    rules = ByKey(lambda item: key(item) if item.message.id == "bad" else b"k")  # type: ignore[operator]
    lanes = KeyedLanes(rules)
    a, bad, b = delivery("a"), delivery("bad"), delivery("b")
    lanes.offer([a, bad, b])
    assert rules.poison == [bad]
    assert len(lanes) == 2
    assert lanes.take() is a
    assert lanes.take() is None
    lanes.finish(a)
    assert lanes.take() is b


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_a_key_function_that_ends_the_process_is_no_flaw_of_its_message(error: type[BaseException]) -> None:
    rules = ByKey(raising(error))
    with pytest.raises(error):
        KeyedLanes(rules).offer([delivery("bad")])
    assert not rules.poison


def test_a_parked_key_starts_nothing_and_keeps_its_lane_until_what_followed_has_ended() -> None:
    rules = ByKey()
    lanes = KeyedLanes(rules)
    a1, a2, b1, a3 = (delivery(name, key=name[:1].encode()) for name in ("a1", "a2", "b1", "a3"))
    lanes.offer([a1, a2, b1])
    assert lanes.take() is a1
    rules.heads.add(b"a")
    lanes.finish(a1)
    assert lanes.take() is b1
    assert lanes.take() is None
    assert rules.following == [a2]
    lanes.offer([a3])
    assert lanes.take() is None, "a3 went by while a2 was on its way"
    rules.heads.clear()
    lanes.finish(a2)
    assert lanes.take() is a3
    assert a2.tries == 0


def test_what_is_behind_something_that_runs_is_let_go_only_after_it() -> None:
    """A queue that hands out again in the order of what was given back would put it first."""
    lanes = KeyedLanes(ByKey())
    a1, a2, a3, b1 = (delivery(name, key=name[:1].encode()) for name in ("a1", "a2", "a3", "b1"))
    lanes.offer([a1, a2, a3, b1])
    assert lanes.take() is a1
    assert lanes.purge(lambda _: True, in_order=True) == [b1]
    assert len(lanes) == 0
    assert lanes.freed() == []
    lanes.finish(a1)
    assert lanes.take() is None
    assert lanes.freed() == [a2, a3]
    assert lanes.freed() == []
    assert_empty(lanes)


def test_what_was_kept_behind_is_let_go_at_once_when_it_is_unwanted_for_itself() -> None:
    lanes = KeyedLanes(ByKey())
    a1, a2, a3 = (delivery(f"a{n}", key=b"a") for n in (1, 2, 3))
    lanes.offer([a1, a2, a3])
    assert lanes.take() is a1
    assert lanes.purge(lambda _: True, in_order=True) == []
    assert lanes.purge(lambda item: item is a2) == [a2]  # it is lost
    lanes.finish(a1)
    assert lanes.freed() == [a3]
    assert_empty(lanes)


def test_purging_many_keys_takes_no_longer_than_a_look_at_each() -> None:
    """A purge runs on the loop, again and again during a drain."""
    lanes = KeyedLanes(ByKey())
    count = 20_000
    lanes.offer(delivery(f"m{n}", key=b"%d" % n) for n in range(count))
    begin = time.perf_counter()
    assert len(lanes.purge(lambda item: int(item.message.id[1:]) >= count // 2)) == count // 2
    assert time.perf_counter() - begin < 0.5
    assert len(lanes) == count // 2
    assert len(drained(lanes)) == count // 2
    assert_empty(lanes)


def assert_empty(lanes: Lanes) -> None:
    assert len(lanes) == 0
    for name in type(lanes).__slots__:  # type: ignore[attr-defined]
        value = getattr(lanes, name)
        if hasattr(value, "__len__"):
            assert len(value) == 0, name
        else:
            assert not isinstance(value, int) or value == 0, name


class LanesAgainstAModel(RuleBasedStateMachine):
    """The model: for each key the queue as offered, and who holds the key."""

    keyed = True

    def __init__(self) -> None:
        super().__init__()
        self.lanes: Lanes = KeyedLanes(ByKey()) if self.keyed else FreeLanes()
        self.queues: dict[bytes | None, deque[Delivery]] = {}
        self.again: deque[Delivery] = deque()  # taken before, queued once more
        self.running: list[Delivery] = []  # started now
        self.waiting: list[Delivery] = []  # started before, waiting in place, or being settled
        self.behind: dict[bytes | None, list[Delivery]] = {}  # purged in order, kept until their key is free
        self.count = 0

    def lane(self, item: Delivery) -> bytes | None:
        return by_key(item) if self.keyed else None

    def held(self) -> set[bytes | None]:
        return {self.lane(item) for item in (*self.running, *self.waiting, *self.again)} - {None}

    @rule(keys=st.lists(st.sampled_from([None, b"a", b"b", b"c"]), min_size=1, max_size=6))
    def offer(self, keys: list[bytes | None]) -> None:
        batch = []
        for key in keys:
            self.count += 1
            item = delivery(f"m{self.count}", key=key)
            batch.append(item)
            self.queues.setdefault(self.lane(item), deque()).append(item)
        self.lanes.offer(batch)

    @rule()
    def take(self) -> None:
        could = [queue[0] for key, queue in self.queues.items() if queue and key not in self.held()]
        item = self.lanes.take()
        if self.again:
            assert item is self.again.popleft()
        elif not could:
            assert item is None
            return
        else:
            assert item in could
            self.queues[self.lane(item)].popleft()
        assert item is not None
        self.running.append(item)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def wait_in_place(self, data: st.DataObject) -> None:
        item = data.draw(st.sampled_from(self.running))
        self.running.remove(item)
        self.waiting.append(item)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def run_again(self, data: st.DataObject) -> None:
        batch = data.draw(st.lists(st.sampled_from(self.waiting), min_size=1, unique_by=id))
        for item in batch:
            self.waiting.remove(item)
        self.again.extendleft(reversed(batch))
        self.lanes.again(batch)

    @precondition(lambda self: self.running or self.waiting)
    @rule(data=st.data(), times=st.integers(1, 2))
    def finish(self, data: st.DataObject, times: int) -> None:
        item = data.draw(st.sampled_from(self.running + self.waiting))
        (self.running if item in self.running else self.waiting).remove(item)
        for _ in range(times):
            self.lanes.finish(item)

    @rule(modulus=st.integers(1, 4), rest=st.integers(0, 3))
    def purge_in_order(self, modulus: int, rest: int) -> None:
        """What is behind what runs comes out when that has finished, in its order, and nothing of it ever starts."""

        def unwanted(item: Delivery) -> bool:
            return int(item.message.id[1:]) % modulus == rest % modulus

        held, now = self.held(), []
        for key, queue in self.queues.items():
            gone = [item for item in queue if unwanted(item)]
            if key in held:
                self.behind.setdefault(key, []).extend(gone)
            else:
                now += gone
            kept = [item for item in queue if item not in gone]
            queue.clear()
            queue.extend(kept)
        again = [item for item in self.again if unwanted(item)]
        self.waiting += again
        self.again = deque(item for item in self.again if item not in again)
        removed = self.lanes.purge(unwanted, in_order=True)
        assert sorted(ids(removed)) == sorted(ids([*now, *again, *self.free()]))

    def free(self) -> list[Delivery]:
        """What is no longer behind anything; forgotten with this."""
        keys = [key for key in self.behind if key not in self.held()]
        return [item for key in keys for item in self.behind.pop(key)]

    @rule()
    def freed(self) -> None:
        found, expected = self.lanes.freed(), self.free()
        for key in {self.lane(item) for item in (*found, *expected)}:  # of each key in its order, of several in any
            mine = [item for item in found if self.lane(item) == key]
            assert ids(mine) == ids(item for item in expected if self.lane(item) == key)

    @rule(modulus=st.integers(1, 4), rest=st.integers(0, 3))
    def purge(self, modulus: int, rest: int) -> None:
        def unwanted(item: Delivery) -> bool:
            return int(item.message.id[1:]) % modulus == rest % modulus

        expected = [item for queue in self.queues.values() for item in queue if unwanted(item)]
        expected += [item for item in self.again if unwanted(item)]
        expected += self.free()
        for key, waiting in self.behind.items():
            expected += [item for item in waiting if unwanted(item)]
            self.behind[key] = [item for item in waiting if not unwanted(item)]
        removed = self.lanes.purge(unwanted)
        assert sorted(ids(removed)) == sorted(ids(expected))
        for queue in self.queues.values():
            kept = [item for item in queue if not unwanted(item)]
            queue.clear()
            queue.extend(kept)
        # What was started before keeps its key until its release is settled, which a later `finish` tells.
        self.waiting += [item for item in self.again if unwanted(item)]
        self.again = deque(item for item in self.again if not unwanted(item))
        for item in removed:
            if not item.tries:
                self.lanes.finish(item)  # settled; it never started, so this says nothing

    @invariant()
    def counted(self) -> None:
        assert len(self.lanes) == sum(len(queue) for queue in self.queues.values()) + len(self.again)

    @invariant()
    def told(self) -> None:
        startable = any(queue and key not in self.held() for key, queue in self.queues.items())
        assert bool(self.lanes.ready) == bool(self.again or startable)

    def teardown(self) -> None:
        """Everything that is left can be run to its end, and then nothing is kept."""
        for item in self.running + self.waiting:
            self.lanes.finish(item)
        left = len(self.lanes)
        assert len(drained(self.lanes)) == left
        self.lanes.freed()  # what was behind those
        assert_empty(self.lanes)


class FreeLanesAgainstAModel(LanesAgainstAModel):
    keyed = False


TestKeyedLanes = LanesAgainstAModel.TestCase
TestFreeLanes = FreeLanesAgainstAModel.TestCase
