"""Calls with up to ten items, each with an end of its own. Everything here blocks, and runs on a thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from atleastonce.adapters.sqs.faults import classify, never_left, of_code, outcome_of
from atleastonce.contract import OK, Code, Fault, Outcome, Status, unknown

MAX_ENTRIES: Final = 10
"""Of one call."""

Entry = dict[str, Any]
Call = Callable[[list[Entry]], dict[str, Any]]

_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 2.0
_UNSAID: Final = unknown(Code.INTERNAL, "the answer names neither success nor failure")
_ABOUT_ALL: Final = frozenset({Code.TOO_LARGE, Code.INVALID})
"""Refusals of a whole call that one item of it may have caused."""


def run(call: Call, entries: Sequence[Entry], *, until: float = 0.0, repeatable: bool = False) -> list[Outcome]:
    """One call with ``entries``, whose ``Id`` is their place, and what became of each.

    Args:
        until: by ``time.monotonic``: until then what certainly did not happen is tried again.
        repeatable: whether the same call may be made again without harm when its answer was lost.
    """
    outcomes: list[Outcome] = [_UNSAID] * len(entries)
    left = list(range(len(entries)))
    pause = _FIRST_PAUSE
    while True:
        try:
            answer = call([entries[place] for place in left])
        except Exception as error:  # noqa: BLE001 - whatever the client raises ends each item, and no other
            fault = classify(error)
            if fault.code in _ABOUT_ALL and len(left) > 1:
                for place in left:
                    outcomes[place] = run(_alone(call), [entries[place]], until=until, repeatable=repeatable)[0]
                return outcomes
            for place in left:
                outcomes[place] = outcome_of(fault)
            if not (never_left(error) or (repeatable and fault.retryable)):
                return outcomes
        else:
            left = _read(answer, outcomes, repeatable)
            if not left:
                return outcomes
        if time.monotonic() + pause >= until:
            return outcomes
        time.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE)


def _alone(call: Call) -> Call:
    return lambda entries: call([{**entry, "Id": "0"} for entry in entries])


def _read(answer: dict[str, Any], outcomes: list[Outcome], repeatable: bool) -> list[int]:
    """Note how each item ended; return those to try again. Those that can be dropped as repeated are ordered too, and
    one that went later than its successor would break the order: none of them."""
    again: list[int] = []
    for item in answer.get("Successful", ()):
        outcomes[int(item["Id"])] = OK
    for item in answer.get("Failed", ()):
        place = int(item["Id"])
        fault = of_code(str(item.get("Code", "")), str(item.get("Message", "")))
        if not item.get("SenderFault", True) and not fault.retryable:
            fault = Fault(Code.UNAVAILABLE, True, fault.scope, fault.detail)
        outcomes[place] = outcome_of(fault)
        if outcomes[place].status is Status.UNKNOWN and not repeatable:
            again.append(place)
    return again


def in_tens(entries: Sequence[Entry]) -> list[list[Entry]]:
    """``entries`` in parts for one call each, with their places as ``Id``."""
    parts = [list(entries[begin : begin + MAX_ENTRIES]) for begin in range(0, len(entries), MAX_ENTRIES)]
    for part in parts:
        for place, entry in enumerate(part):
            entry["Id"] = str(place)
    return parts
