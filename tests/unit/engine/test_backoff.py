"""Waits that grow, end and are never shortened."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atleastonce.engine.backoff import Backoff
from atleastonce.errors import ConfigurationError


@pytest.mark.parametrize(
    ("backoff", "waits"),
    [
        (Backoff("100ms"), [0.1, 0.2, 0.4, 0.8]),
        (Backoff("1s", factor=3, maximum="5s"), [1.0, 3.0, 5.0, 5.0]),
        (Backoff("2s", factor=1), [2.0, 2.0, 2.0]),
        (Backoff("10s", maximum="1s"), [10.0, 10.0]),  # the first wait is not cut by a maximum below it
        (Backoff(0), [0.0, 0.0]),
        (Backoff("1s", max_attempts=3), [1.0, 2.0, None, None]),
        (Backoff("1s", max_attempts=1), [None]),
    ],
)
def test_waits_without_jitter(backoff: Backoff, waits: list[float | None]) -> None:
    assert [backoff.wait(attempt, lambda: 0.0) for attempt in range(1, len(waits) + 1)] == pytest.approx(waits)


def test_jitter_is_a_share_of_the_wait() -> None:
    backoff = Backoff("1s", jitter=0.5)
    assert backoff.wait(3, lambda: 0.0) == 4.0
    assert backoff.wait(3, lambda: 0.5) == 5.0
    assert backoff.wait(3, lambda: 1.0) == 6.0


@given(
    st.just(0.0) | st.floats(1e-6, 100),
    st.floats(1, 1000),
    st.floats(0, 1000),
    st.floats(0, 1),
    st.integers(1, 10**6),
    st.floats(0, 1),
)
def test_jitter_only_lengthens_and_the_cap_holds_however_late(
    initial: float, factor: float, maximum: float, jitter: float, attempt: int, chance: float
) -> None:
    backoff = Backoff(initial, factor=factor, maximum=maximum, jitter=jitter)
    plain, jittered = backoff.wait(attempt, lambda: 0.0), backoff.wait(attempt, lambda: chance)
    assert plain is not None
    assert jittered is not None
    assert min(initial, plain) == initial
    assert plain <= max(initial, maximum)
    assert plain > 0 or initial == 0
    if initial == 0:
        assert plain == 0
    assert plain <= jittered <= plain * 2
    assert math.isfinite(jittered)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"factor": 0.5}, "factor=0.5 must be at least 1"),
        ({"factor": float("nan")}, "factor=nan must be at least 1"),
        ({"factor": float("inf")}, "factor=inf"),
        ({"max_attempts": 0}, "max_attempts=0 must be at least 1"),
        ({"jitter": -0.1}, "jitter=-0.1 is out of range"),
        ({"jitter": 1.1}, "jitter=1.1 is out of range"),
        ({"initial": "soon"}, '"soon" is no duration'),
        ({"initial": -1}, "out of range"),
        ({"maximum": float("inf")}, "out of range"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(arguments: dict[str, object], complaint: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Backoff(**arguments)  # type: ignore[arg-type]
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_backoff_is_a_value() -> None:
    assert Backoff("1s") == Backoff(1.0)
    assert hash(Backoff("1s")) == hash(Backoff("1000ms"))
