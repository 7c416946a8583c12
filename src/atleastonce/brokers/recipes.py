"""The brokers there are, by name."""

from __future__ import annotations

from . import elasticmq, kafka, mysql, nats, postgres, pubsub, pubsub_google, rabbitmq, redis, sqs, toxiproxy
from .model import Recipe

RECIPES: dict[str, Recipe] = {
    each.RECIPE.name: each.RECIPE
    for each in (kafka, rabbitmq, nats, redis, postgres, mysql, sqs, elasticmq, pubsub, pubsub_google, toxiproxy)
}

NAMES: tuple[str, ...] = tuple(RECIPES)
"""What can be asked for."""
