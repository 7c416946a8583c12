"""RabbitMQ: a file of definitions, as ``rabbitmqctl import_definitions``, the management API and ``load_definitions`` take it."""

from __future__ import annotations

from atleastonce.topology.declared import Declared
from atleastonce.topology.export import Export
from atleastonce.topology.possible import ensure_possible


def definitions(declared: Declared) -> Export:
    """Virtual host, queues, exchanges and bindings; no users and no permissions.

    Raises:
        ConfigurationError: another broker.
    """
    ensure_possible(declared, "rabbitmq")
    host = str(declared.server["virtual_host"])
    return Export(
        {
            "vhosts": [{"name": host}],
            "exchanges": [
                {"name": each.name, "vhost": host, "internal": False, **each.settings}
                for each in declared.of_kind("exchange")
            ],
            "queues": [{"name": each.name, "vhost": host, **each.settings} for each in declared.of_kind("queue")],
            "bindings": [
                {
                    "source": each.joins["exchange"],
                    "vhost": host,
                    "destination": each.name,
                    "destination_type": "queue",
                    "arguments": {},
                    **each.settings,
                }
                for each in declared.of_kind("binding")
            ],
        }
    )
