"""What a topology comes to: which streams and consumers, and how they are made. Asks nobody."""

from __future__ import annotations

from typing import Any

from atleastonce.adapters.nats.config import Config
from atleastonce.adapters.nats.names import durable_of, is_core, stream_of, subject_of
from atleastonce.adapters.nats.topology import consumer_config, stream_config
from atleastonce.channels import Channel, Source
from atleastonce.contract import Resource, Topology


def channels(wanted: Topology) -> list[Channel[Any]]:
    """Every channel of a topology, each once."""
    found: dict[str, Channel[Any]] = {}
    for channel in (
        *wanted.dead_letters,
        *wanted.channels,
        *(source.channel for source in wanted.sources),
        *(delay.channel for delay in wanted.delays),
    ):
        if not is_core(channel):
            found.setdefault(subject_of(channel), channel)
    return list(found.values())


def sources(wanted: Topology) -> list[Source]:
    """Every source of a topology, each once. What is only published to gets no consumer of ours: somebody else may read it."""
    found = {source.name: source for source in wanted.sources if not is_core(source.channel)}
    for channel in (*wanted.dead_letters, *(delay.channel for delay in wanted.delays)):
        found.setdefault(channel.name, Source(channel))
    return list(found.values())


def describe(wanted: Topology, config: Config) -> list[Resource]:
    """See `Describes.describe`. Requests, which take the way of core NATS, need nothing."""
    found = [
        Resource("stream", stream_of(each), stream_config(each, config), shown=each.name) for each in channels(wanted)
    ]
    found += [
        Resource(
            "consumer",
            durable_of(each),
            consumer_config(each, config),
            {"stream": stream_of(each.channel)},
            shown=each.name,
        )
        for each in sources(wanted)
    ]
    return found


def server(config: Config) -> dict[str, Any]:
    """See `Describes.server`. ``clustered``: whether what one server says is certainly not all."""
    return {
        "servers": [each.partition("://")[2] for each in config.servers],
        "tls": config.tls is not None,
        "clustered": len(config.servers) > 1 or config.replicas > 1,
    }
