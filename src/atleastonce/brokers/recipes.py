"""The brokers there are, by name."""

from __future__ import annotations

from . import kafka, nats, postgres, pubsub, rabbitmq, redis, sqs, toxiproxy
from .model import Recipe

RECIPES: dict[str, Recipe] = {
    each.RECIPE.name: each.RECIPE for each in (kafka, rabbitmq, nats, redis, postgres, sqs, pubsub, toxiproxy)
}

NAMES: tuple[str, ...] = tuple(RECIPES)
"""What can be asked for."""
