"""What would be made on the broker, and how what is there differs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec

from atleastonce.contract import Drift, Resource

# What hangs on another resource, and by what it does: it is never there alone, and brokers do not tell of it then.
_HANGING = frozenset({"group", "subscription", "consumer", "binding"})
_ON = frozenset({"topic", "queue", "stream", "exchange"})

State = Literal["missing", "there", "differs", "unknown"]


class Planned(msgspec.Struct, frozen=True):
    """A resource, and what was found of it.

    Attributes:
        kind, name, settings, joins: as in `Resource`.
        state: ``"missing"``: to be made; ``"there"``: as it should be; ``"differs"``: there with other settings, which stay;
            ``"unknown"``: the broker has no question for it, so it is made again, which changes nothing.
        differences: of each setting that differs: its name, what is wanted, what is there.
    """

    kind: str
    name: str
    state: State
    settings: Mapping[str, Any]
    joins: Mapping[str, str]
    differences: list[Drift]


def plan(resources: Sequence[Resource], drifts: Iterable[Drift]) -> list[Planned]:
    """``resources`` with what `Adapter.declare` told of them."""
    each = list(dict.fromkeys(drifts))
    absent: set[str] = set()
    found: list[Planned] = []
    for resource in resources:
        found.append(_planned(resource, resources, each, absent))
        if found[-1].state == "missing" and resource.kind not in _HANGING:
            absent.add(resource.name)
    return found


def _planned(resource: Resource, among: Sequence[Resource], drifts: Sequence[Drift], absent: set[str]) -> Planned:
    own = [drift for drift in drifts if _owner(drift, among) is resource]
    state: State = "there" if resource.visible else "unknown"
    hangs_on = {name for what, name in resource.joins.items() if what in _ON} if resource.kind in _HANGING else set()
    if any(drift.setting == "missing" for drift in own) or (not own and hangs_on & absent):
        state = "missing"
    elif own:
        state = "differs"
    return Planned(
        resource.kind,
        resource.name,
        state,
        resource.settings,
        resource.joins,
        [d for d in own if d.setting != "missing"],
    )


def _owner(drift: Drift, among: Sequence[Resource]) -> Resource | None:
    """Of whom ``drift`` tells: names are shared, by a queue and its exchange, or a topic and its subscription."""
    named = [resource for resource in among if (resource.shown or resource.name) == drift.name]
    if drift.setting == "missing":
        close = [resource for resource in named if resource.kind in drift.wanted]
    else:
        close = [resource for resource in named if _has(resource, drift.setting)]
    return next(iter(close or named), None)


def _has(resource: Resource, setting: str) -> bool:
    nested = (value for value in resource.settings.values() if isinstance(value, Mapping))
    return setting in resource.settings or any(setting in value for value in nested)
