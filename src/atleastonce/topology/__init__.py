"""What a service needs on its broker: planned against what is there, and exported for the tools of others. Pure: no IO.

Everything is made of `Declared`, which is what the adapter itself would declare, by its own names: no name is made up here.
"""

from atleastonce.topology.asyncapi import asyncapi
from atleastonce.topology.cloudwatch import alarms
from atleastonce.topology.declared import Declared, Reading, declared, resources, topologies
from atleastonce.topology.export import Export
from atleastonce.topology.kafka import topics_script
from atleastonce.topology.keda import Scaling, keda
from atleastonce.topology.plan import Planned, plan
from atleastonce.topology.possible import EXPORTS, ensure_possible
from atleastonce.topology.rabbitmq import definitions
from atleastonce.topology.terraform import PROVIDERS, terraform

__all__ = [
    "Declared",
    "EXPORTS",
    "Export",
    "PROVIDERS",
    "Planned",
    "Reading",
    "Scaling",
    "alarms",
    "asyncapi",
    "declared",
    "definitions",
    "ensure_possible",
    "keda",
    "plan",
    "resources",
    "terraform",
    "topics_script",
    "topologies",
]
