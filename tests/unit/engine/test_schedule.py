"""The schedule against a plain list: never early, stable, nothing lost, purge takes exactly what it should."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from atleastonce.engine.schedule import Schedule


def test_never_early_and_due_at_the_very_moment() -> None:
    schedule: Schedule[str] = Schedule()
    schedule.add(10.0, "a")
    assert schedule.next_due() == 10.0
    assert schedule.pop_due(9.999999) == []
    assert len(schedule) == 1
    assert schedule.pop_due(10.0) == ["a"]
    assert schedule.next_due() is None
    assert schedule.pop_due(1e9) == []


@pytest.mark.parametrize("due", [[1.0] * 50, [float(n // 10) for n in range(50)]])
def test_equal_times_come_out_as_they_went_in(due: list[float]) -> None:
    schedule: Schedule[int] = Schedule()
    for n, when in enumerate(due):
        schedule.add(when, n)
    assert schedule.pop_due(100.0) == list(range(50))


def test_items_need_no_order_of_their_own() -> None:
    schedule: Schedule[object] = Schedule()
    first, second = object(), object()
    schedule.add(1.0, first)
    schedule.add(1.0, second)
    assert schedule.purge(lambda _: True) == [first, second]


class ScheduleAgainstAList(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.schedule: Schedule[int] = Schedule()
        self.model: list[tuple[float, int]] = []
        self.items = 0

    @rule(due=st.one_of(st.integers(0, 5).map(float), st.floats(0, 5)))
    def add(self, due: float) -> None:
        self.schedule.add(due, self.items)
        self.model.append((due, self.items))
        self.items += 1

    @rule(now=st.floats(-1, 6))
    def pop(self, now: float) -> None:
        due = sorted(entry for entry in self.model if entry[0] <= now)
        self.model = [entry for entry in self.model if entry[0] > now]
        assert self.schedule.pop_due(now) == [item for _, item in due]

    @rule(modulus=st.integers(1, 4))
    def purge(self, modulus: int) -> None:
        gone = sorted(entry for entry in self.model if entry[1] % modulus == 0)
        self.model = [entry for entry in self.model if entry[1] % modulus]
        assert self.schedule.purge(lambda item: item % modulus == 0) == [item for _, item in gone]

    @invariant()
    def same(self) -> None:
        assert len(self.schedule) == len(self.model)
        assert self.schedule.next_due() == (min(self.model)[0] if self.model else None)


TestScheduleAgainstAList = ScheduleAgainstAList.TestCase
