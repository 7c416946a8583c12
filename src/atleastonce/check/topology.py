"""What is there, compared with what would be declared."""

from __future__ import annotations

from collections.abc import Iterable

from atleastonce.check import rules
from atleastonce.check.finding import Finding
from atleastonce.contract import Drift
from atleastonce.errors import ConfigurationError

# What to do about a difference, by its setting; `_CHANGE` for the others.
_REMEDIES = {
    "kind": "two channels cannot share a name: rename one of them",
    "partitions": "write partitions={found} in the code, or drain it and change the broker (keys move to other partitions)",
    "allow_direct": "without it each look at its dead letters asks for them one by one: nats stream edit STREAM --allow-direct",
    "fifo": "a channel cannot change that later: write fifo={found} in the code, or drain, delete and declare it anew",
}
_CHANGE = "change it on the broker or in the code"


def topology(drifts: Iterable[Drift], *, create: bool) -> list[Finding]:
    """What the broker has, compared with what a service needs; each difference once.

    Args:
        drifts: from `Adapter.declare`.
        create: whether what is missing will be created by a start that is still to come.
    """
    return [_difference(drift, create) for drift in dict.fromkeys(drifts)]


def impossible(error: ConfigurationError) -> Finding:
    """A declaration that the adapter refused before it asked the broker."""
    what, _, change = str(error).partition("; ")
    return rules.NAME_IMPOSSIBLE.found("", what, change)


def _difference(drift: Drift, create: bool) -> Finding:
    if drift.setting == "missing":
        what = f"missing on the broker ({drift.wanted})"
        if create:
            return rules.CHANNEL_TO_BE_MADE.found(drift.name, what, "it will be created at the start")
        return rules.CHANNEL_MISSING.found(
            drift.name, what, "create it there, or let the service do it with create=True"
        )
    if drift.found.startswith("unsupported"):  # the adapter says what to write instead
        rule = rules.SETTING_UNSUPPORTED if drift.breaks else rules.SETTING_IGNORED
        state, _, change = drift.found.partition("; ")
        what = f"{drift.setting}={drift.wanted} is {state}"
        return rule.found(drift.name, what, change or f"leave {drift.setting} away", drift.setting)
    remedy = _REMEDIES.get(drift.setting, _CHANGE).format(found=drift.found)
    what = f"{drift.setting} is {drift.found or 'unset'}, wanted {drift.wanted}"
    rule = rules.SETTING_BREAKS if drift.breaks else rules.SETTING_DIFFERS
    return rule.found(drift.name, what, remedy, drift.setting)
