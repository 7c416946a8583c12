"""Where messages of a consumer may wait."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from atleastonce.channels import Source
from atleastonce.contract import Capabilities
from atleastonce.patterns.ordering import KeyOf

if TYPE_CHECKING:
    from atleastonce.consumer import Consumer

Role = Literal["main", "retry", "dead-letter"]


class Place(msgspec.Struct, frozen=True):
    """Where something may wait.

    Attributes:
        source: what is read.
        group: by whom, as people name it.
        role: what it is to its consumer.
        key_of: the key of a message there; None where nobody asks for it.
    """

    source: Source
    group: str | None
    role: Role
    key_of: KeyOf | None = None


def places(consumer: Consumer, capabilities: Capabilities) -> list[Place]:
    """Where messages of ``consumer`` may wait on a broker with ``capabilities``.

    Raises:
        ConfigurationError: it cannot run there.
    """
    home = consumer.home
    found = [Place(home, home.group, "main", consumer.key_of())]
    found += [
        Place(Source(delay.channel), home.group, "retry")
        for delay in consumer.topology(capabilities).delays
        if delay.delay
    ]
    if consumer.dead_letter:
        found.append(Place(Source(home.dead_letter_channel), home.group, "dead-letter"))
    return found
