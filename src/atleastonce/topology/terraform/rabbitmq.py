"""RabbitMQ queues, exchanges and bindings, with ``cyrilgdn/rabbitmq``."""

from __future__ import annotations

import json

from atleastonce.topology.declared import Declared
from atleastonce.topology.terraform.blocks import Blocks, literal


def rabbitmq(declared: Declared, blocks: Blocks) -> list[str]:
    """Resources of ``cyrilgdn/rabbitmq``."""
    host = literal(str(declared.server["virtual_host"]))
    for exchange in declared.of_kind("exchange"):
        settings = {name: value for name, value in exchange.settings.items() if name != "arguments"}
        if exchange.settings["arguments"]:
            settings["arguments"] = literal(exchange.settings["arguments"])
        blocks.add("rabbitmq_exchange", exchange.name, {"name": exchange.name, "vhost": host, "settings": [settings]})
    for queue in declared.of_kind("queue"):
        settings = {name: value for name, value in queue.settings.items() if name != "arguments"}
        # A map's values are all text there, and a queue's arguments have types.
        settings["arguments_json"] = literal(json.dumps(queue.settings["arguments"], sort_keys=True))
        blocks.add("rabbitmq_queue", queue.name, {"name": queue.name, "vhost": host, "settings": [settings]})
    for binding in declared.of_kind("binding"):
        exchange_at = blocks.address("rabbitmq_exchange", binding.joins["exchange"])
        queue_at = blocks.address("rabbitmq_queue", binding.name)
        body = {
            "source": f"${{{exchange_at}.name}}",
            "vhost": host,
            "destination": f"${{{queue_at}.name}}",
            "destination_type": "queue",
            "routing_key": binding.settings["routing_key"],
        }
        blocks.add("rabbitmq_binding", binding.name, body, keep=False)
    return ['give the provider the management API: provider "rabbitmq" { endpoint, username, password }']
