"""What arrives in our headers is untrusted: clamped, never raised about."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atleastonce import wire
from atleastonce.message import Headers

FORGED = [
    "",
    "-1",
    "+5",
    "1.5",
    "1e3",
    "0x10",
    " 7",
    "7 ",
    "1_000",
    "five",
    "²",
    "\u0663",
    "\uff19",
    "\x00",
    "9" * 5000,
    "0",
    "32768",
]


def one(name: str, value: str | bytes | None) -> Headers:
    return Headers([(name, value)])


@pytest.mark.parametrize("text", FORGED)
def test_a_forged_attempt_counts_as_the_first(text: str) -> None:
    assert wire.read_attempt(one(wire.ATTEMPT, text)) == 1
    assert wire.read_attempt(one(wire.ATTEMPT, text.encode())) == 1


def test_an_honest_attempt_is_read() -> None:
    assert wire.read_attempt(one(wire.ATTEMPT, "7")) == 7
    assert wire.read_attempt(one(wire.ATTEMPT, b"32767")) == 32767
    assert wire.read_attempt(Headers()) == wire.read_attempt(one(wire.ATTEMPT, None)) == 1
    assert wire.read_attempt(Headers([(wire.ATTEMPT, "2"), (wire.ATTEMPT, "3")])) == 3


@given(st.one_of(st.text(), st.binary(), st.none(), st.integers().map(str)))
def test_nothing_on_the_wire_raises_or_leaves_the_range(value: str | bytes | None) -> None:
    assert 1 <= wire.read_attempt(one(wire.ATTEMPT, value)) <= wire.MAX_ATTEMPT
    assert 0 <= wire.read_due(one(wire.DUE, value), now=1000.0, delay=0.0).at <= 1060.0
    assert wire.read_int(one("n", value), "n", default=3, low=5, high=9) in (3, 5, 6, 7, 8, 9)


@pytest.mark.parametrize("text", ["-1", "soon", "", "1.5", "\u0663"])
def test_a_malformed_due_time_is_now(text: str) -> None:
    assert wire.read_due(one(wire.DUE, text), now=1000.0, delay=0.0).at == 0.0


@pytest.mark.parametrize("text", ["1060001", "9" * 15, "9" * 16, "9" * 18, "9" * 19, "9" * 6000])
def test_a_due_time_too_far_ahead_waits_as_long_as_an_honest_one(text: str) -> None:
    assert wire.read_due(one(wire.DUE, text), now=1000.0, delay=0.0).at == 1060.0


def test_a_due_time_within_reach_is_kept() -> None:
    assert wire.read_due(one(wire.DUE, "1059999"), now=1000.0, delay=0.0).at == 1059.999


@given(st.floats(min_value=0, max_value=4e9))
def test_a_time_travels_as_milliseconds_and_is_never_earlier(moment: float) -> None:
    text = wire.millis(moment)
    assert text.isascii()
    assert text.isdigit()
    assert moment - 1e-6 <= int(text) / 1000 < moment + 0.0011
    assert wire.read_due(one(wire.DUE, text), now=moment, delay=1.0).at >= moment - 1e-6
    assert math.isfinite(float(text))
