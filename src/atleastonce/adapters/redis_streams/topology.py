"""Streams and groups: made or looked at, compared, removed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from atleastonce.adapters.redis_streams import keys
from atleastonce.adapters.redis_streams.faults import ReplyError
from atleastonce.adapters.redis_streams.keys import Keys
from atleastonce.adapters.redis_streams.link import Command, Link
from atleastonce.adapters.redis_streams.scripts import DECLARE
from atleastonce.channels import Channel, Queue, Topic
from atleastonce.contract import Drift, Resource, Topology
from atleastonce.errors import ConfigurationError


def channels(topology: Topology) -> dict[str, tuple[Channel[Any], set[str]]]:
    """Every channel of a topology with the groups that it needs. A queue needs its one group, read or not: what is published
    before its first reader comes is for that one.

    Raises:
        ConfigurationError: what Redis cannot have.
    """
    found: dict[str, tuple[Channel[Any], set[str]]] = {}

    def add(channel: Channel[Any], group: str | None) -> None:
        if options := channel.options.get("redis"):
            raise ConfigurationError(f"{channel.name}: redis has no channel options, yet it got {', '.join(options)}")
        known, groups = found.setdefault(channel.name, (channel, set()))
        if isinstance(known, Topic) != isinstance(channel, Topic):
            raise ConfigurationError(f"{channel.name} is asked for as a queue and as a topic")
        if isinstance(channel, Queue):
            groups.add(channel.name)
        elif group is not None:
            groups.add(group)

    for source in topology.sources:
        add(source.channel, source.group)
    for delay in topology.delays:
        add(delay.channel, None)
    for channel in (*topology.channels, *topology.dead_letters):
        add(channel, None)
    return found


def describe(topology: Topology) -> list[Resource]:
    """See `Describes.describe`. A stream goes by what it is used as, which is written beside it."""
    found = [Resource(_kind(channel), channel.name, {"type": "stream"}) for channel, _ in channels(topology).values()]
    for channel, groups in channels(topology).values():
        for group in sorted(groups):
            shown = group if group == channel.name else f"{channel.name}.{group}"
            found.append(Resource("group", group, {"id": "0"}, {"stream": channel.name}, shown=shown))
    return found


async def declare(link: Link, topology: Topology, create: bool) -> list[Drift]:
    """Make or look; what differs."""
    wanted = list(channels(topology).values())
    calls = [
        [channel.name, keys.about(channel), _kind(channel), int(create), *sorted(groups)] for channel, groups in wanted
    ]
    drifts: list[Drift] = []
    for (channel, groups), reply in zip(wanted, await link.run(DECLARE, calls), strict=True):
        if isinstance(reply, ReplyError):
            raise reply
        drifts += _compare(channel, sorted(groups), create, reply)
    return drifts


def _compare(channel: Channel[Any], groups: Sequence[str], create: bool, reply: Any) -> list[Drift]:
    name, wanted = channel.name, _kind(channel)
    found, kind, had = reply[0].decode(), reply[1].decode(), reply[2]
    if found not in ("none", "stream"):
        return [Drift(name, "type", "stream", found, breaks=True)]
    if found == "none" and not create:
        return [Drift(name, "missing", wanted, "", breaks=True)]
    if kind and kind != wanted:
        return [Drift(name, "kind", wanted, kind, breaks=True)]
    drifts = []
    if not create:
        for group, there in zip(groups, had, strict=True):
            if not there:
                drifts.append(Drift(name if group == name else f"{name}.{group}", "missing", "group", "", breaks=True))
    if getattr(channel, "fifo", False) and not getattr(channel, "single_active", False):
        text = "unsupported: a stream has one order, not one for each key; use single_active=True"
        drifts.append(Drift(name, "fifo", "True", text, breaks=True))
    return drifts


def _kind(channel: Channel[Any]) -> str:
    return "topic" if isinstance(channel, Topic) else "queue"


async def delete(link: Link, topology: Topology) -> None:
    """Remove channels with all that belongs to them; of a topic that only a source names, the group alone."""
    whole = {channel.name for channel in (*topology.channels, *topology.dead_letters)}
    whole |= {delay.channel.name for delay in topology.delays}
    whole |= {source.channel.name for source in topology.sources if source.group is None}
    commands: list[Command] = []
    for name in sorted(whole):
        groups = await link.call([("XINFO", "GROUPS", name)])
        found = {name} if isinstance(groups[0], ReplyError) else {name, *(each[1].decode() for each in groups[0])}
        gone = [name, keys.about(Queue(name)), *keys.later(Queue(name))]
        for group in found:
            gone += (f"{{{name}}}:{part}:{group}" for part in ("parked", "tick", "strays"))
        commands.append(("DEL", *gone))
    for source in topology.sources:
        if source.channel.name not in whole:
            there = Keys(source)
            commands.append(("XGROUP", "DESTROY", there.stream, there.group))
            commands.append(("DEL", there.parked, there.tick, there.strays))
    for reply in await link.call(commands) if commands else ():
        if isinstance(reply, ReplyError) and "no such key" not in str(reply) and "requires the key" not in str(reply):
            raise reply
