"""One configuration for a service."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from atleastonce.errors import ConfigurationError
from atleastonce.topology.declared import Declared
from atleastonce.topology.export import Export
from atleastonce.topology.possible import ensure_possible
from atleastonce.topology.terraform.aws import aws
from atleastonce.topology.terraform.blocks import Blocks
from atleastonce.topology.terraform.google import google
from atleastonce.topology.terraform.kafka import confluent, kafka
from atleastonce.topology.terraform.rabbitmq import rabbitmq

_Fill = Callable[[Declared, Blocks], list[str]]

PROVIDERS: Final[Mapping[str, Mapping[str, tuple[str, _Fill]]]] = {
    "kafka": {"kafka": ("Mongey/kafka", kafka), "confluent": ("confluentinc/confluent", confluent)},
    "rabbitmq": {"rabbitmq": ("cyrilgdn/rabbitmq", rabbitmq)},
    "sqs": {"aws": ("hashicorp/aws", aws)},
    "pubsub": {"google": ("hashicorp/google", google)},
}
"""For each broker the providers that make its resources, the default first: where each comes from, and what fills it."""


def terraform(declared: Declared, provider: str | None = None) -> Export:
    """A configuration that makes what the service needs, and refuses to destroy what holds messages.

    Args:
        declared: what it needs.
        provider: one of those for its broker, where there are several.

    Raises:
        ConfigurationError: another broker, no such provider, or an option that the provider does not know.
    """
    ensure_possible(declared, "terraform")
    known = PROVIDERS[declared.broker]
    chosen = provider or next(iter(known))
    if chosen not in known:
        raise ConfigurationError(
            f'--provider "{chosen}": for {declared.broker} there {"are" if len(known) > 1 else "is"} {" and ".join(known)}'
        )
    source, fill = known[chosen]
    blocks = Blocks()
    notes = fill(declared, blocks)
    document: dict[str, Any] = {
        "terraform": {"required_providers": {chosen: {"source": source}}},
        "resource": blocks.resources,
    }
    if blocks.data:
        document["data"] = blocks.data
    return Export(document, tuple(notes))
