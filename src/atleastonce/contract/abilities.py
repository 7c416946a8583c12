"""What only some adapters can: asked for with ``isinstance``."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from atleastonce.channels import Channel, Queue, Source
from atleastonce.contract.facts import Fact
from atleastonce.contract.moves import Backlog, Delivery, HandOff
from atleastonce.contract.outcomes import Outcome
from atleastonce.contract.resources import Resource
from atleastonce.contract.topology import Topology


@runtime_checkable
class Purges(Protocol):
    """Can empty a queue."""

    async def purge(self, channel: Queue[Any]) -> int:
        """Remove all that waits in ``channel``; return how many, -1 where the broker does not say."""


@runtime_checkable
class MovesAll(Protocol):
    """Can have the broker itself move everything from one queue to another."""

    def move_all(
        self, queue: Queue[Any], to: Channel[Any] | Source, rate: float | None
    ) -> AsyncGenerator[tuple[int, int | None]]:
        """Move what is in dead-letter queue ``queue``, ``rate`` a second at most (None: as fast as the broker likes). Gives, now
        and then and once at the end, how many were moved, of how many; None where nobody knows. Closed early, it stops
        the broker; what was moved stays moved.

        Raises:
            ConfigurationError: the broker does not do that from this queue to that, or at this rate.
            NotFound: no such queue.
            BrokerUnavailable: it gave up, or does not answer.
        """


@runtime_checkable
class Deletes(Protocol):
    """Can remove what `Adapter.declare` made: for tests and tools, never called by a running service."""

    async def delete(self, topology: Topology) -> None:
        """Remove the channels and sources of ``topology`` with all their messages; what is not there is fine."""


@runtime_checkable
class Browses(Protocol):
    """Can look at a channel without consuming from it."""

    async def browse(self, channel: Channel[Any], limit: int, group: str | None = None) -> Sequence[Delivery]:
        """Up to ``limit`` waiting messages, oldest first. The deliveries cannot be settled.

        Args:
            channel: what to look at.
            limit: how many at most, at least 1. All of them lie in memory together.
            group: of a topic, whose messages: what nobody of this group was handed yet is among them, what it has settled is
                not. What it was handed and has not settled is, where the broker can tell it from the rest. None: of a queue
                what waits, of a topic what waits for any group or is kept for none.

        Raises:
            NotFound: no such channel, or no such group where the broker has them.
            ConfigurationError: a queue has no groups, or the broker cannot say what is settled.
            BrokerUnavailable, PermissionDenied: as named.
        """


@runtime_checkable
class Scans(Protocol):
    """Can read through a queue of any length and leave everything in it: for dead letters, which nobody consumes."""

    def scan(self, queue: Queue[Any]) -> AsyncGenerator[Sequence[Delivery]]:
        """All that waits now, in lists that fit into memory, each message once, up to the end as it is at the first step:
        what arrives meanwhile does not prolong it. The deliveries cannot be settled.

        Where the broker shows a message only by handing it out, everything is held until the iteration ends, is closed or
        is abandoned, and then given back; nobody else gets it meanwhile.

        Raises:
            NotFound: no such queue.
            BrokerUnavailable: it went away, or does not hand out the rest.
        """


@runtime_checkable
class Dates(Protocol):
    """Can tell how old the oldest message is that waits, at a price that `Adapter.backlog` does not pay: it is asked often."""

    async def dated_backlog(self, source: Source) -> Backlog:
        """As `Adapter.backlog`, with ``oldest_age``. Joins nothing and takes nothing from anybody."""


@runtime_checkable
class Inspects(Protocol):
    """Can tell the settings on which promises rest, beyond how they differ from what `Adapter.declare` would make."""

    async def inspect(self, topology: Topology) -> Sequence[Fact]:
        """What is known of the channels and sources of ``topology`` that exist, and of the broker. Changes nothing. What may not
        be asked, or is not to be found out, is left out.

        Raises:
            BrokerUnavailable: it does not answer.
        """


@runtime_checkable
class Describes(Protocol):
    """Can say what `Adapter.declare` would make, and where messages wait, by the broker's own names. Asks nobody, and works before
    `Adapter.open`."""

    def describe(self, topology: Topology) -> Sequence[Resource]:
        """Everything that ``topology`` needs, in an order in which it can be made: what others lead to comes first.

        Raises:
            ConfigurationError: a name or option that this broker cannot have.
        """

    def waiting_in(self, source: Source) -> Mapping[str, str] | None:
        """Where what waits for ``source`` can be counted, by the broker's own words for it: ``{"queue": ...}``,
        ``{"topic": ..., "group": ...}``. None where it cannot: nothing is kept for it.
        """

    def server(self) -> Mapping[str, Any]:
        """How the broker is reached, as values of JSON, and without anything secret: addresses, virtual host, region, whether with
        TLS, whether with a password (never which)."""


@runtime_checkable
class Transacts(Protocol):
    """What a subscription to a `Window.transactional` can, on brokers with `Capabilities.transactions`: publish and settle in one
    step."""

    async def hand_off(self, batch: Sequence[HandOff]) -> Sequence[Outcome]:
        """Publish all copies of ``batch`` and `Ack` its deliveries, in one transaction. Whoever reads only what is committed sees
        all of it or nothing; whoever gets the deliveries if this process dies, likewise.

        For each item, in order: ``ok``: it is committed, now and for good. ``rejected``: nothing of it happened and would not if
        repeated, since one of its copies is refused, or its lease is over (`Code.STALE`); the others went on without it.
        ``unknown``: nothing of it happened, for a passing reason: repeat it. What may have been committed is never ``unknown``:
        the subscription ends then, and the broker tells the next one how it was.
        """


@runtime_checkable
class Annotated(Protocol):
    """What `Delivery.raw` or `Message.native` may be: an object that knows what the broker itself wrote about a message,
    beside what its producer did."""

    def annotations(self) -> Mapping[str, Any]:
        """The broker's own fields by their own names, as its client shows them: RabbitMQ's ``x-death``, SQS'
        ``DeadLetterQueueSourceArn``. Never raises; empty where there are none."""
