"""Durations, sizes and rates as people write them, and what they are told when it is none."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atleastonce.durations import format_duration, per_second, seconds, size_in_bytes, whole
from atleastonce.errors import ConfigurationError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("200ms", 0.2), ("5s", 5), ("1m30s", 90), ("2h", 7200), ("7d", 604800), ("1.5s", 1.5), (" 5s ", 5),
        ("0s", 0), ("1h0m1ms", 3600.001), (5, 5), (0.25, 0.25), ("1s1s", 2),
    ],
)  # fmt: skip
def test_durations(text: str | float, value: float) -> None:
    assert seconds(text) == pytest.approx(value)


@pytest.mark.parametrize(
    "text", ["", " ", "5", "s", "5 s", "5S", "-5s", "1e3s", "5s,", "5m 3s", ".5s", "5.s", "\u0665s", "5s\n5"]
)
def test_what_is_no_duration_is_named(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        seconds(text, name="retry delay")
    assert str(caught.value) == f'retry delay: "{text}" is no duration; write "200ms", "5s", "1m30s", "2h" or "7d"'


@pytest.mark.parametrize("value", [-1, math.nan, math.inf, -math.inf, 10**400, "9" * 400 + "d"])
def test_durations_out_of_range(value: object) -> None:
    with pytest.raises(ConfigurationError, match=r"wait: .* is out of range; it must be at least 0 seconds"):
        seconds(value, name="wait")  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [None, [], {}, True, object, b"5s"])
@pytest.mark.parametrize("function", [seconds, size_in_bytes, per_second])
def test_a_wrong_type_is_named(function: object, value: object) -> None:
    with pytest.raises(ConfigurationError, match=f"wait: .* is a {type(value).__name__}; write"):
        function(value, name="wait")  # type: ignore[operator]


def test_the_minimum_is_said() -> None:
    with pytest.raises(ConfigurationError, match=r"'0ms' is out of range; it must be at least 0\.001 seconds"):
        seconds("0ms", minimum=0.001)


@given(st.floats(min_value=0, max_value=1e8, allow_nan=False))
def test_a_formatted_duration_is_never_shorter_and_less_than_a_millisecond_longer(value: float) -> None:
    back = seconds(format_duration(value))
    assert value - 1e-6 <= back < value + 0.001 + 1e-6
    assert format_duration(back) == format_duration(value), "what names a channel is stable"


@given(st.integers(min_value=0, max_value=10**11))
def test_whole_milliseconds_come_back_exactly(millis: int) -> None:
    assert seconds(format_duration(millis / 1000)) * 1000 == pytest.approx(millis, abs=1e-3)


@pytest.mark.parametrize(
    ("value", "text"),
    [(5, "5s"), (0.2, "200ms"), (90, "90s"), (120, "2m"), (7200, "2h"), (86400, "1d"), (0.0015, "2ms"), (0.0001, "1ms"), (0, "0ms"),
     (0.3, "300ms")],
)  # fmt: skip
def test_the_shortest_exact_text(value: float, text: str) -> None:
    assert format_duration(value) == text


@pytest.mark.parametrize(
    ("text", "value"),
    [("64MiB", 64 << 20), ("10kB", 10_000), ("1GB", 10**9), ("512", 512), ("1.5KiB", 1536), ("1 MiB", 1 << 20), (7, 7), ("3b", 3)],
)  # fmt: skip
def test_sizes(text: str | int, value: int) -> None:
    assert size_in_bytes(text) == value
    assert isinstance(size_in_bytes(text), int)


@pytest.mark.parametrize("value", ["", "MiB", "5XB", "-5", "5 0", "1e3", "\u0665"])
def test_what_is_no_size_is_named(value: str) -> None:
    with pytest.raises(
        ConfigurationError, match=f'^window: "{value}" is no size; write bytes, "512KiB", "64MiB" or "1GB"$'
    ):
        size_in_bytes(value, name="window")


@pytest.mark.parametrize("value", [0, -1, "0", "0.5B", math.inf, math.nan, "9" * 400 + "MiB", 0.5])
def test_sizes_out_of_range(value: object) -> None:
    with pytest.raises(ConfigurationError, match="is out of range; it must be positive"):
        size_in_bytes(value)  # type: ignore[arg-type]


@pytest.mark.parametrize(("text", "value"), [("500/s", 500), ("60/m", 1), ("3600/h", 1), ("86400 / d", 1), (2.5, 2.5)])
def test_rates(text: str | float, value: float) -> None:
    assert per_second(text) == pytest.approx(value)


@pytest.mark.parametrize("value", ["", "500", "500/ms", "/s", "-1/s"])
def test_what_is_no_rate_is_named(value: str) -> None:
    with pytest.raises(ConfigurationError, match='is no rate; write "500/s", "60/m" or "1000/h"'):
        per_second(value)


@pytest.mark.parametrize("value", [0, -1, "0/s", math.inf, math.nan])
def test_rates_out_of_range(value: object) -> None:
    with pytest.raises(ConfigurationError, match="out of range"):
        per_second(value)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [0, 11, 1.5, "4", None, True])
def test_counts_are_whole_numbers_in_range(value: object) -> None:
    assert whole(1, name="n", high=10) == 1
    assert whole(10, name="n", high=10) == 10
    with pytest.raises(ConfigurationError, match=r"^n=.* is out of range; give a whole number from 1 to 10$"):
        whole(value, name="n", high=10)
