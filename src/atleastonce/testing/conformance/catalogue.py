"""The cases of the plan that have no test (yet), each with its reason: the plan's numbers are 1 to 68.

`ABSENT` and the written cases together are all of them; a case leaves the list when it is written. Numbers above 68 came
later.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

PLANNED = range(1, 69)

State = Literal["not built yet", "not applicable"]


class Absent(msgspec.Struct, frozen=True):
    """A case without a test.

    Attributes:
        name: the sentence that its test would bear.
        section: where it will be listed.
        state: ``"not built yet"``: what it tests does not exist; ``"not applicable"``: it tests what the library does not
            offer, by decision.
        reason: why.
    """

    name: str
    section: str
    state: State
    reason: str


ABSENT: dict[str, Absent] = {
    "25": Absent(
        "a subscription by pattern gets every channel that matches",
        "C. Subscribing and isolation",
        "not applicable",
        "a source is one channel by its name: retry and dead-letter channels, lag and redrive are named after it, and most of "
        "the brokers cannot match patterns; register one consumer for each channel",
    ),
}


def numbers(ids: Iterable[str]) -> set[int]:
    """The plan's numbers among case ids: the letter tells the sides of one case apart."""
    return {int(id[:2]) for id in ids} & set(PLANNED)
