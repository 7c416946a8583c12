"""What a topology comes to: which queues, topics and subscriptions, and with which attributes. Asks nobody."""

from __future__ import annotations

from typing import Any

from atleastonce.adapters.sqs import names
from atleastonce.adapters.sqs.config import Config
from atleastonce.adapters.sqs.topology import plan
from atleastonce.contract import Resource, Topology


def describe(wanted: Topology, config: Config) -> list[Resource]:
    """See `Describes.describe`. Settings are attributes of ``CreateQueue``, ``CreateTopic`` and ``Subscribe`` but for those
    that hold addresses: what a queue ``joins`` is its ``dead-letter`` queue, and the ``topic`` that may send to it."""
    made = plan(wanted, config)
    found = [
        Resource("topic", name, {**({"FifoTopic": "true"} if name.endswith(names.FIFO) else {}), **given})
        for name, given in made.topics.items()
    ]
    queues = sorted(made.queues.values(), key=lambda each: not each.keeps)  # the nets first
    for queue in queues:
        settings: dict[str, Any] = {"MessageRetentionPeriod": str(config.retention)}
        if queue.fifo:
            settings["FifoQueue"] = "true"
        joins: dict[str, str] = {}
        if queue.net is not None:
            joins["dead-letter"] = queue.net
            settings["maxReceiveCount"] = str(config.net)
        if queue.topic is not None:
            joins["topic"] = queue.topic
        found.append(Resource("queue", queue.name, {**settings, **queue.given}, joins))
    found += [
        Resource(
            "subscription",
            queue.name,
            {"Protocol": "sqs", "RawMessageDelivery": "true"},
            {"topic": queue.topic, "queue": queue.name},
            shown=f"{queue.topic} -> {queue.name}",
        )
        for queue in queues
        if queue.topic is not None
    ]
    return found


def server(config: Config) -> dict[str, Any]:
    """See `Describes.server`. ``keys``: whether an access key was given, in place of a role."""
    return {
        "region": config.region,
        "endpoint": config.endpoint,
        "keys": config.key is not None and not config.emulated,
    }
