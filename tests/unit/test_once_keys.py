"""What makes two messages the same one."""

from __future__ import annotations

import enum
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atleastonce.errors import InvalidIdempotencyKey
from atleastonce.message import Message
from atleastonce.patterns.once.keys import KeyReader

MESSAGE = Message("m", b"")
VALUES = st.one_of(st.integers(-(10**30), 10**30), st.text('\x0109-a[],"', min_size=1, max_size=4))


def key_of(*values: Any) -> str:
    names = tuple(f"f{place}" for place in range(len(values)))
    return KeyReader(names, "handler", Any)(dict(zip(names, values, strict=True)), MESSAGE)


def test_a_text_is_its_own_key() -> None:
    assert [key_of(text) for text in ("1", "a b", "żółw")] == ["1", "a b", "żółw"]
    assert key_of("t1", "o1") == '["t1","o1"]'


@given(st.lists(VALUES, min_size=1, max_size=3), st.lists(VALUES, min_size=1, max_size=3))
def test_keys_of_other_values_are_other_keys(one: list[Any], other: list[Any]) -> None:
    if len(one) == len(other):
        assert (key_of(*one) == key_of(*other)) == (one == other)


def test_a_number_is_another_key_than_the_text_of_its_digits() -> None:
    assert len({key_of(1), key_of("1"), key_of("01"), key_of("\x011"), key_of(-1)}) == 5
    assert len({key_of(1, "2"), key_of("1", 2), key_of("1", "2"), key_of(1, 2)}) == 4


def test_what_travels_as_text_or_number_in_json_is_that_key() -> None:
    """A payload's type may become stricter without forgetting what was handled."""
    some, number = uuid.uuid4(), enum.IntEnum("number", {"ONE": 1})
    assert key_of(some) == str(some)
    assert key_of(number.ONE) == key_of(1)


@pytest.mark.parametrize("value", [True, 1.0, None, [1], pytest.param(10**5000, id="huge")])
def test_what_could_be_taken_for_another_key_is_none(value: Any) -> None:
    for values in [(value,), (value, "a")]:
        with pytest.raises(InvalidIdempotencyKey):
            key_of(*values)
