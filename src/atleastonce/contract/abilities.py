"""What only some adapters can: asked for with ``isinstance``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from atleastonce.channels import Channel, Queue
from atleastonce.contract.moves import Delivery
from atleastonce.contract.topology import Topology


@runtime_checkable
class Purges(Protocol):
    """Can empty a queue."""

    async def purge(self, channel: Queue[Any]) -> int:
        """Remove all that waits in ``channel``; return how many, -1 where the broker does not say."""


@runtime_checkable
class Deletes(Protocol):
    """Can remove what `Adapter.declare` made: for tests and tools, never called by a running service."""

    async def delete(self, topology: Topology) -> None:
        """Remove the channels and sources of ``topology`` with all their messages; what is not there is fine."""


@runtime_checkable
class Browses(Protocol):
    """Can look at a channel without consuming from it."""

    async def browse(self, channel: Channel[Any], limit: int) -> Sequence[Delivery]:
        """Up to ``limit`` waiting messages, oldest first. The deliveries cannot be settled."""
