"""The circuit breaker: when it opens, what it lets through, and what its calls' ends mean, by an injected clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from atleastonce import ConfigurationError
from atleastonce.patterns.circuit_breaker import Circuit, CircuitBreaker, State


def state_of(circuit: Circuit) -> State:
    return circuit.state  # a call: mypy would believe the last comparison for ever


def opened(at: float = 0.0) -> Circuit:
    circuit = CircuitBreaker(failures=3, within="10s", open_for="5s").circuit()
    for _ in range(3):
        ticket = circuit.admit(at)
        assert ticket is not None
        circuit.failed(ticket, at)
    return circuit


def test_failures_within_the_time_open_it() -> None:
    circuit = opened()
    assert state_of(circuit) is State.OPEN
    assert circuit.admit(4.9) is None
    assert circuit.wait(4.0) == pytest.approx(1.0)


def test_failures_that_lie_apart_do_not() -> None:
    circuit = CircuitBreaker(failures=3, within="10s").circuit()
    for now in range(0, 200, 6):
        ticket = circuit.admit(now)
        assert ticket is not None
        circuit.failed(ticket, now)
    assert state_of(circuit) is State.CLOSED


def test_one_probe_and_its_success_closes_it() -> None:
    circuit = opened()
    probe = circuit.admit(5.0)
    assert probe is not None
    assert state_of(circuit) is State.HALF_OPEN
    assert circuit.admit(5.0) is None
    circuit.succeeded(probe)
    assert state_of(circuit) is State.CLOSED
    assert circuit.admit(5.0) is not None


def test_a_failed_probe_opens_it_for_as_long_again() -> None:
    circuit = opened()
    probe = circuit.admit(6.0)
    assert probe is not None
    circuit.failed(probe, 7.0)
    assert circuit.admit(11.9) is None
    assert circuit.admit(12.0) is not None
    assert circuit.opened == 2


def test_a_probe_that_never_ends_is_given_up() -> None:
    circuit = opened()
    first = circuit.admit(5.0)
    assert circuit.admit(9.9) is None
    second = circuit.admit(10.0)
    assert first is not None
    assert second is not None
    circuit.failed(first, 10.5)  # too late to say anything
    assert state_of(circuit) is State.HALF_OPEN
    circuit.succeeded(second)
    assert state_of(circuit) is State.CLOSED


def test_a_probe_that_was_cut_off_frees_its_place() -> None:
    circuit = opened()
    probe = circuit.admit(5.0)
    assert probe is not None
    circuit.abandoned(probe, 5.5)
    assert circuit.admit(5.5) is not None


def test_calls_from_before_it_opened_say_nothing() -> None:
    circuit = CircuitBreaker(failures=2, within="10s", open_for="5s").circuit()
    tickets = [circuit.admit(0.0) for _ in range(5)]
    for ticket in tickets[:4]:
        assert ticket is not None
        circuit.failed(ticket, 1.0)
    assert circuit.opened == 1
    probe = circuit.admit(6.0)
    last = tickets[4]
    assert probe is not None
    assert last is not None
    circuit.failed(last, 6.1)
    circuit.succeeded(last)
    assert state_of(circuit) is State.HALF_OPEN


def test_a_few_failures_among_many_successes_do_not_open_it() -> None:
    circuit = CircuitBreaker(failures=3, within="10s", share=0.5).circuit()
    for now in range(30):
        for worked in (True, True, False):
            ticket = circuit.admit(now / 10)
            assert ticket is not None
            circuit.succeeded(ticket) if worked else circuit.failed(ticket, now / 10)
    assert state_of(circuit) is State.CLOSED
    for _ in range(3):
        circuit.failed(circuit.admit(3.0) or 0, 3.0)
    assert state_of(circuit) is State.OPEN
    assert circuit.reason.startswith("3 of 5 failed within ")


def test_successes_may_be_counted_elsewhere_and_the_share_left_out() -> None:
    done = 0
    shared = CircuitBreaker(failures=2, share=0.5).circuit(lambda: done)
    alone = CircuitBreaker(failures=2, share=None).circuit(lambda: done)
    for _ in range(2):
        shared.failed(0, 1.0)
        alone.failed(0, 1.0)
        done += 1000
    assert state_of(shared) is State.CLOSED
    assert state_of(alone) is State.OPEN
    alone.reset()
    assert alone.admit(1.0) is not None
    assert alone.reason == ""


def test_only_the_named_errors_count() -> None:
    policy = CircuitBreaker(on=(ConnectionError, TimeoutError))
    assert policy.counts([ValueError(), ConnectionResetError()])
    assert not policy.counts([ValueError()])
    assert CircuitBreaker().counts([ValueError()])


@pytest.mark.parametrize(
    "wrong",
    [
        {"failures": 0},
        {"within": 0},
        {"open_for": "soon"},
        {"share": 0},
        {"share": 1.5},
        {"share": True},
        {"on": ()},
        {"on": (ValueError, "x")},
        {"on": ValueError},
    ],
)
def test_values_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match="CircuitBreaker"):
        CircuitBreaker(**wrong)  # type: ignore[arg-type]


@given(st.lists(st.floats(0, 100), min_size=1, max_size=60))
def test_it_opens_exactly_when_enough_lie_close_enough(times: list[float]) -> None:
    circuit = Circuit(3, 10.0, 5.0)
    times.sort()
    for position, now in enumerate(times):
        ticket = circuit.admit(now)
        assert ticket is not None
        circuit.failed(ticket, now)
        close = position >= 2 and now - times[position - 2] <= 10.0
        assert (state_of(circuit) is State.OPEN) is close
        if close:
            break


class Calls(RuleBasedStateMachine):
    """Any calls in any order: never two probes that count, and never shut for good."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.circuit = Circuit(3, 10.0, 5.0)
        self.out: list[int] = []

    @rule(seconds=st.floats(0, 20))
    def passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def call(self) -> None:
        ticket = self.circuit.admit(self.now)
        if ticket is not None:
            self.out.append(ticket)

    @precondition(lambda self: self.out)
    @rule(position=st.integers(0, 1000), how=st.sampled_from(["succeeded", "failed", "abandoned"]))
    def ends(self, position: int, how: str) -> None:
        ticket = self.out.pop(position % len(self.out))
        if how == "succeeded":
            self.circuit.succeeded(ticket)
        else:
            getattr(self.circuit, how)(ticket, self.now)

    @invariant()
    def is_never_shut_for_longer_than_agreed(self) -> None:
        assert self.circuit.wait(self.now) <= 5.0 + 1e-9  # of adding and subtracting floats


TestCalls = Calls.TestCase
