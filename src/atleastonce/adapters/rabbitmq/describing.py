"""What a topology comes to: which queues, exchanges and bindings, and how they are made. Asks nobody."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from atleastonce.adapters.rabbitmq import topology
from atleastonce.adapters.rabbitmq.config import Config
from atleastonce.channels import Queue, Source, Topic
from atleastonce.contract import Resource, Topology
from atleastonce.errors import ConfigurationError


def queues(wanted: Topology, config: Config) -> dict[str, dict[str, Any]]:
    """Every queue with its arguments; the nets first, so that nothing falls through while the rest is made.

    Raises:
        ConfigurationError: one queue is asked for in two ways.
    """
    found: dict[str, dict[str, Any]] = {}

    def add(name: str, arguments: dict[str, Any]) -> None:
        if found.setdefault(name, arguments) != arguments:
            raise ConfigurationError(f"queue {name} is asked for with two different settings")

    kept = {queue.name for queue in wanted.dead_letters}
    for queue in wanted.dead_letters:
        add(queue.name, topology.keeping_arguments() | dict(queue.options.get("rabbitmq", {})))
    rooms = {delay.channel.name for delay in wanted.delays}
    for channel in wanted.channels:
        if isinstance(channel, Queue) and channel.name not in kept | rooms:
            add(channel.name, topology.queue_arguments(Source(channel), config.delivery_limit))
    for source in wanted.sources:
        if source.name not in kept:
            add(source.name, topology.queue_arguments(source, config.delivery_limit))
    for delay in wanted.delays:
        add(delay.channel.name, topology.delay_channel_arguments(delay))
    return found


def exchanges(wanted: Topology) -> dict[str, dict[str, Any]]:
    """Every exchange with its arguments."""
    channels = (*wanted.channels, *(source.channel for source in wanted.sources))
    return {channel.name: topology.exchange_arguments(channel) for channel in channels if isinstance(channel, Topic)}


def bindings(wanted: Topology) -> list[tuple[str, str]]:
    """Every queue of a group, and the exchange from which it gets everything."""
    found = [(source.name, source.channel.name) for source in wanted.sources if source.group is not None]
    return list(dict.fromkeys(found))


def describe(wanted: Topology, config: Config) -> list[Resource]:
    """See `Describes.describe`."""
    found = [
        Resource("exchange", name, {"type": "fanout", "durable": True, "auto_delete": False, "arguments": arguments})
        for name, arguments in exchanges(wanted).items()
    ]
    found += [
        Resource("queue", name, {"durable": True, "auto_delete": False, "arguments": arguments})
        for name, arguments in queues(wanted, config).items()
    ]
    # AMQP has no question for a binding: it is made again, which changes nothing.
    found += [
        Resource("binding", queue, {"routing_key": ""}, {"exchange": exchange, "queue": queue}, visible=False)
        for queue, exchange in bindings(wanted)
    ]
    return found


def server(config: Config) -> dict[str, Any]:
    """See `Describes.server`."""
    found: dict[str, Any] = {
        "servers": [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in config.hosts],
        "virtual_host": config.virtual_host,
        "tls": config.tls is not None,
    }
    if config.management is not None:
        found["management"] = _plain(config.management)
    return found


def _plain(url: str) -> str:
    """``url`` without what may be a password in it."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/")
