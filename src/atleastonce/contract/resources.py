"""What a topology comes to on one broker, in that broker's own words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec


class Resource(msgspec.Struct, frozen=True):
    """One thing of which `Adapter.declare` makes sure.

    Attributes:
        kind: what the broker calls such a thing: ``"queue"``, ``"exchange"``, ``"binding"``, ``"topic"``, ``"subscription"``,
            ``"stream"``, ``"consumer"``, ``"group"``.
        name: as it is called on the broker; of what has no name of its own, that of what it belongs to.
        settings: those that it is made with, by the broker's names, as values of JSON. Never a secret.
        joins: the other resources that it leads to or hangs on: what for, and the name of each.
        shown: what a `Drift` of it is called; "" where that is ``name``.
        visible: whether `Adapter.declare` can tell if it is there, without making it.
    """

    kind: str
    name: str
    settings: Mapping[str, Any] = {}
    joins: Mapping[str, str] = {}
    shown: str = ""
    visible: bool = True
