"""What channels of several parts need on a broker, and whether it has them in another number."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, Protocol, TypeVar

import msgspec

from atleastonce.channels import Channel, Queue, Source, Topic
from atleastonce.contract import Drift, Topology
from atleastonce.errors import PermissionDenied
from atleastonce.parts.names import is_parted, part_at, pieces

T = TypeVar("T", bound="Channel[Any] | Source")

PATIENCE = 1.0
"""Seconds after which somebody who is just making the parts has made them all. Too short: who comes meanwhile finds too few."""
_MOST = 10_000


class Declare(Protocol):
    """`Adapter.declare` of an adapter that knows no parts."""

    async def __call__(self, topology: Topology, /, *, create: bool) -> Sequence[Drift]: ...


def in_parts(topology: Topology) -> Topology:
    """``topology`` with the parts of each channel and source; itself where none has any."""
    if not any(map(is_parted, (*topology.channels, *topology.sources))):
        return topology
    return msgspec.structs.replace(topology, channels=_in_parts(topology.channels), sources=_in_parts(topology.sources))


def _in_parts(each: Iterable[T]) -> tuple[T, ...]:
    return tuple(chain.from_iterable(map(pieces, each)))


async def declare(topology: Topology, one: Declare, *, create: bool) -> Sequence[Drift]:
    """`Adapter.declare`, with channels in parts. Another number of parts than the broker has is a `Drift`: looked at first, for
    once all are made nobody can tell. Nothing is made where it breaks: it would be found by those who are right."""
    channels = dict.fromkeys((*topology.channels, *(source.channel for source in topology.sources)))
    looks = [await _resized(channel, one) for channel in channels if may_have_parts(channel)]
    resized = [drift for drift in looks if drift is not None]
    create = create and not any(drift.breaks for drift in resized)
    return [*resized, *await one(in_parts(topology), create=create)]


def may_have_parts(channel: Channel[Any]) -> bool:
    """Whether it has some, or may have had, or may be thought by somebody to have."""
    return isinstance(channel, Queue | Topic) and channel.single_active and not channel.requests


async def _resized(channel: Channel[Any], one: Declare) -> Drift | None:
    """How the number of parts differs. With fewer than there are, nobody would read the rest, and with any where there were none,
    nobody would read the channel itself. With more, keys move to other parts while messages of theirs wait in the old ones."""
    wanted = len(pieces(channel))

    async def there(what: Channel[Any]) -> bool:
        try:
            drifts = await one(Topology(channels=(what,)), create=False)
        except PermissionDenied:  # who may not even look has nothing there
            return False
        return not any(drift.setting == "missing" for drift in drifts)

    async def count(begin: int) -> int:
        while begin < _MOST and await there(part_at(channel, begin)):
            begin += 1
        return begin

    def differs(found: int, *, breaks: bool) -> Drift:
        return Drift(channel.name, "partitions", str(wanted), str(found), breaks=breaks)

    if wanted == 1:
        return differs(await count(1), breaks=True) if await there(part_at(channel, 0)) else None
    if await there(part_at(channel, wanted)):
        return differs(await count(wanted + 1), breaks=True)
    if await there(replace(channel, partitions=None)):
        return differs(1, breaks=True)
    if await there(part_at(channel, 0)) and not await there(part_at(channel, wanted - 1)):
        await asyncio.sleep(PATIENCE)
        if not await there(part_at(channel, wanted - 1)):
            return differs(await count(1), breaks=False)
    return None
