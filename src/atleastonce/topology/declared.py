"""What a service needs on its broker, by the broker's own names: what every export is made of. Asks nobody."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import msgspec

from atleastonce.channels import Channel, Queue, Source
from atleastonce.consumer import Consumer
from atleastonce.contract import Adapter, Capabilities, Describes, Level, Resource, Topology
from atleastonce.parts import is_parted, part_at, pieces

_PUBLISHED = frozenset({"exchange", "topic", "queue", "stream"})

Role = Literal["main", "suspects", "redrive", "retry"]


class Reading(msgspec.Struct, frozen=True):
    """A place from which the service takes messages.

    Attributes:
        source: what is read.
        home: the source of the handler that gets it.
        role: why it is read.
        delay: seconds that each message lies in it before it is due; 0 where it is due at once.
        place: where it can be counted, by the broker's words; None where nothing is kept for it.
        holds_retries: whether messages that wait for a retry are counted with those that wait for their first try.
        among: of how many equal parts of what the handler reads it is one.
    """

    source: Source
    home: Source
    role: Role
    delay: float
    place: Mapping[str, str] | None
    holds_retries: bool
    among: int = 1


class Declared(msgspec.Struct, frozen=True):
    """A service, and all that it needs on one broker.

    Attributes:
        service: its name.
        broker: the URL's scheme.
        server: how the broker is reached, without secrets; see `Describes.server`.
        resources: in an order in which they can be made.
        readings: what the service takes messages from.
        addresses: what each channel that it reads, or keeps dead letters in, is published to, by the channel's name. ``{part}``
            stands for the number of one of its parts.
        dead_letters: where each dead-letter queue can be counted, by its own name.
        consumers: as they were registered.
        drain: seconds that its handlers may go on when it stops.
    """

    service: str
    broker: str
    server: Mapping[str, Any]
    resources: tuple[Resource, ...]
    readings: tuple[Reading, ...]
    addresses: Mapping[str, str]
    dead_letters: Mapping[str, Mapping[str, str]]
    consumers: tuple[Consumer, ...]
    drain: float

    def of_kind(self, kind: str) -> list[Resource]:
        """The resources of one kind."""
        return [each for each in self.resources if each.kind == kind]


def topologies(consumers: Sequence[Consumer], capabilities: Capabilities) -> list[Topology]:
    """What each of ``consumers`` needs.

    Raises:
        ConfigurationError: one of them cannot run on such a broker.
    """
    return [consumer.topology(capabilities) for consumer in consumers]


def declared(service: str, consumers: Sequence[Consumer], adapter: Adapter, drain: float) -> Declared:
    """What ``service`` needs on the broker of ``adapter``, which need not be open.

    Raises:
        ConfigurationError: a consumer cannot run there; or a name that the broker cannot have.
    """
    whole = Topology.joined(topologies(consumers, adapter.capabilities))
    dead: dict[str, Mapping[str, str]] = {}
    if isinstance(adapter, Describes):
        dead = {queue.name: adapter.waiting_in(Source(queue)) or {} for queue in whole.dead_letters}
    return Declared(
        service=service,
        broker=adapter.scheme,
        server=adapter.server() if isinstance(adapter, Describes) else {},
        resources=tuple(resources(adapter, whole)),
        readings=tuple(reading for consumer in consumers for reading in _readings(consumer, adapter)),
        addresses={
            channel.name: _address(adapter, channel)
            for channel in (*(consumer.home.channel for consumer in consumers), *whole.dead_letters)
        },
        dead_letters=dead,
        consumers=tuple(consumers),
        drain=drain,
    )


def resources(adapter: Adapter, topology: Topology) -> Sequence[Resource]:
    """What ``topology`` comes to; of an adapter that does not tell, its channels and groups by our names."""
    if isinstance(adapter, Describes):
        return adapter.describe(topology)
    channels = (*topology.dead_letters, *topology.channels, *(source.channel for source in topology.sources))
    found = [
        Resource("queue" if isinstance(channel, Queue) else "topic", channel.name)
        for channel in dict.fromkeys((*channels, *(delay.channel for delay in topology.delays)))
    ]
    groups = dict.fromkeys(source for source in topology.sources if source.group is not None)
    found += [
        Resource("group", source.group or "", joins={"topic": source.channel.name}, shown=source.name)
        for source in groups
    ]
    return list({(each.kind, each.shown or each.name): each for each in found}.values())


def _address(adapter: Adapter, channel: Channel[Any]) -> str:
    """What ``channel`` is published to, by the broker's own name."""
    if adapter.capabilities.parts and is_parted(channel):
        return _address(adapter, part_at(channel, 0)).removesuffix("0") + "{part}"
    found = [each for each in resources(adapter, Topology(channels=(channel,))) if each.kind in _PUBLISHED]
    own = [each for each in found if (each.shown or each.name) == channel.name] or found
    if not own:
        return channel.name  # a request that nothing keeps
    return str(own[0].settings["subjects"][0]) if own[0].kind == "stream" else own[0].name


def _readings(consumer: Consumer, adapter: Adapter) -> Iterator[Reading]:
    topology, delay = consumer.topology(adapter.capabilities), adapter.capabilities.delay
    # A retry that waits in its own channel is counted there; where the broker delays by itself, or a key is held in its
    # place, it is counted with all else that was handed out.
    mixed = bool(consumer.failure.delays) and (delay.level is Level.NATIVE or consumer.order is not None)
    home = consumer.home

    def reading(source: Source, role: Role, waits: float = 0.0, among: int = 1) -> Reading:
        place = adapter.waiting_in(source) if isinstance(adapter, Describes) else None
        return Reading(source, home, role, waits, place, mixed and role == "main", among)

    for source in topology.sources:
        each = pieces(source) if adapter.capabilities.parts else (source,)
        for one in each:
            yield reading(one, "main" if source == home else "suspects", among=len(each))
    for room in topology.delays:
        if not room.delay:
            yield reading(Source(room.channel), "redrive")
        elif delay.level is not Level.EMULATED:  # else the broker returns them, and nobody reads the waiting room
            yield reading(Source(room.channel), "retry", room.delay)
