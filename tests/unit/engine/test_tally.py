"""Counting by name."""

from __future__ import annotations

from atleastonce.engine.tally import Tally


def test_what_was_never_counted_is_zero_and_stays_away() -> None:
    tally = Tally()
    assert tally["done"] == 0
    assert dict(tally) == {}
    tally["done"] += 2
    tally["done"] += 1
    assert dict(tally) == {"done": 3}
