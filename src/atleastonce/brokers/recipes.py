"""The brokers there are, by name."""

from __future__ import annotations

from . import kafka, rabbitmq
from .model import Recipe

RECIPES: dict[str, Recipe] = {each.RECIPE.name: each.RECIPE for each in (kafka, rabbitmq)}

NAMES: tuple[str, ...] = tuple(RECIPES)
"""What can be asked for."""
