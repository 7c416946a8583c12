"""Adapters, one per broker, found by URL scheme. Importing this imports no client library.

Third parties register theirs through the entry-point group ``atleastonce.adapters``: the name is the scheme, the value a class with
a ``from_url(BrokerUrl, options)`` class method, as `Adapter` says.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from atleastonce.contract import Adapter
from atleastonce.errors import ConfigurationError, MissingExtra
from atleastonce.urls import BrokerUrl


class _Entry(NamedTuple):
    module: str
    cls: str
    extra: str | None
    client: str | None


# One place that knows which adapter serves a scheme, and which extra brings its client.
BUILT_IN: Mapping[str, _Entry] = {
    "memory": _Entry("atleastonce.adapters.memory", "MemoryAdapter", None, None),
    "sqlite": _Entry("atleastonce.adapters.sqlite", "SQLiteAdapter", None, None),
    "kafka": _Entry("atleastonce.adapters.kafka", "KafkaAdapter", "kafka", "confluent_kafka"),
    "rabbitmq": _Entry("atleastonce.adapters.rabbitmq", "RabbitMQAdapter", "rabbitmq", "pika"),
    "nats": _Entry("atleastonce.adapters.nats", "NatsAdapter", "nats", "nats"),
    "pubsub": _Entry("atleastonce.adapters.pubsub", "PubSubAdapter", "pubsub", "google"),
    "redis": _Entry("atleastonce.adapters.redis_streams", "RedisAdapter", "redis", "redis"),
    "sqs": _Entry("atleastonce.adapters.sqs", "SQSAdapter", "sqs", "boto3"),
}
ALIASES: Mapping[str, str] = {
    "amqp": "rabbitmq",
    "amqps": "rabbitmq",
    "rabbitmqs": "rabbitmq",
    "tls": "nats",
    "natss": "nats",
    "rediss": "redis",
    **dict.fromkeys(
        ("redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster"), "redis"
    ),  # it says what to write
    "valkey": "redis",
    "valkeys": "redis",
}


def open_adapter(url: str, options: Mapping[str, Any] | None = None) -> Adapter:
    """The adapter for ``url``, not yet connected. ``options`` go to the client as they are.

    Raises:
        ConfigurationError: no such scheme, a bad URL, or an option that the adapter refuses.
        MissingExtra: the client library is not installed.
    """
    parsed = BrokerUrl.parse(url)
    scheme = ALIASES.get(parsed.scheme, parsed.scheme)
    entry = BUILT_IN.get(scheme)
    if entry is None:
        # Here, and not above: together they are a sixth of what importing the library takes.
        from difflib import get_close_matches
        from importlib.metadata import entry_points

        for point in entry_points(group="atleastonce.adapters"):
            if point.name == scheme:
                adapter: Adapter = point.load().from_url(parsed, dict(options or {}))
                return adapter
        close = get_close_matches(scheme, BUILT_IN, n=1)
        hint = f' did you mean "{close[0]}://"?' if close else f" known: {', '.join(sorted(BUILT_IN))}"
        raise ConfigurationError(f'broker URL "{parsed}": unknown scheme "{parsed.scheme}";{hint}')
    try:
        module = importlib.import_module(entry.module)
    except ModuleNotFoundError as error:
        if entry.client is None or (error.name or "").split(".")[0] != entry.client:
            raise
        raise MissingExtra(entry.extra or scheme, entry.client) from None
    built: Adapter = getattr(module, entry.cls).from_url(parsed, dict(options or {}))
    return built
