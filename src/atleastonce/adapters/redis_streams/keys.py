"""What a channel's keys are called. The stream has the channel's own name, so that raw clients find it."""

from __future__ import annotations

from typing import Any

from atleastonce.channels import Channel, Source


class Keys:
    """The keys of one channel, and of one group of it: all in one slot of a cluster, by the channel's name as hash tag."""

    __slots__ = ("about", "due", "group", "later", "parked", "readers", "strays", "stream", "tick")

    def __init__(self, source: Source) -> None:
        name = source.channel.name
        self.stream = name
        self.group = source.group_name
        self.about = f"{{{name}}}:about"
        self.later = f"{{{name}}}:later"
        self.due = f"{{{name}}}:due"
        self.parked = f"{{{name}}}:parked:{self.group}"
        self.tick = f"{{{name}}}:tick:{self.group}"
        self.strays = f"{{{name}}}:strays:{self.group}"
        self.readers = f"{{{name}}}:readers:{self.group}"


def about(channel: Channel[Any]) -> str:
    """The hash that says what ``channel`` is."""
    return f"{{{channel.name}}}:about"


def later(channel: Channel[Any]) -> tuple[str, str]:
    """The stream of publishes that wait, and the sorted set of when each is due."""
    return f"{{{channel.name}}}:later", f"{{{channel.name}}}:due"


def seen(channel: Channel[Any], id: str) -> str:
    """What remembers that message ``id`` was published."""
    return f"{{{channel.name}}}:seen:{id}"
