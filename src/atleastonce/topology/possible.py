"""Which exports there are, and for which brokers."""

from __future__ import annotations

from collections.abc import Mapping

from atleastonce.errors import ConfigurationError
from atleastonce.topology.declared import Declared

EXPORTS: Mapping[str, tuple[str, ...]] = {
    "keda": ("kafka", "rabbitmq", "sqs", "nats", "pubsub", "redis"),
    "terraform": ("kafka", "rabbitmq", "sqs", "pubsub"),
    "rabbitmq": ("rabbitmq",),
    "kafka": ("kafka",),
    "cloudwatch": ("sqs",),
    "asyncapi": (),
}
"""Every export, and the brokers that it is for; none named: all."""


def ensure_possible(declared: Declared, export: str) -> None:
    """Refuse an export that the service's broker does not have.

    Raises:
        ConfigurationError: says what is possible instead.
    """
    brokers = EXPORTS[export]
    if not brokers or declared.broker in brokers:
        return
    possible = [name for name, those in EXPORTS.items() if not those or declared.broker in those]
    raise ConfigurationError(
        f"service {declared.service} is on {declared.broker}, for which there is no export {export}: it is for "
        f"{', '.join(brokers)}; possible here: {', '.join(possible)}"
    )
