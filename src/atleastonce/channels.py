"""Channels: a `Queue` hands each message to one worker, a `Topic` hands each message to every group.

A `Source` is a channel as read by one group. The names of its retry and dead-letter channels are derived from it, with the group in
the name: one group's failures are no other group's business.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from atleastonce.durations import format_duration
from atleastonce.errors import ConfigurationError

T = TypeVar("T")

# Of channels that a `Source` derives.
_DERIVED = re.compile(r".+\.(retry\.[^.]+|redrive|suspects|dlq)")

# What all six brokers take: Kafka allows letters, digits, '.', '_', '-' and 249 characters; ours leaves room for
# suffixes.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


def _check_name(kind: str, name: object) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"{kind} name {name!r}: use 1 to 200 letters, digits, '.', '_' and '-', starting with a letter or digit"
        )


# Without slots, here and below: typing sets __orig_class__ for Topic[Order]("orders"), and a frozen dataclass with slots
# answers that with a TypeError instead of the AttributeError that typing expects.
@dataclass(frozen=True)
class Channel(Generic[T]):
    """What messages are published to. Use `Queue` or `Topic`.

    Args:
        name: 1 to 200 letters, digits, ``.``, ``_``, ``-``. A broker's own spelling is the adapter's affair.
        type: what the payload is: a msgspec Struct, dataclass, TypedDict, pydantic model, dict, bytes ...; None
            leaves it to each handler's annotation.
        partitions: into how many partitions to create it, where the broker has partitions. Too few bound how many
            workers share an ordered channel; too many cost the broker memory and each consumer fetches. None: the
            adapter's default. Where a broker has none (RabbitMQ, Redis, NATS), a channel with ``single_active`` is made of so many
            channels, its parts: ``orders.p0`` to ``orders.p7``. A key is always in the same one.
        options: settings for one broker, by its name: ``{"rabbitmq": {"x-max-length": 10_000}}``. Passed on as they
            are.
        requests: whether it carries requests, whose askers know by the time that passes what became of them: an adapter may
            then take a faster way than the one on which messages survive. Set by `Service.responder` and `Broker.request`.
        whole: of a part, the name of the channel that it is a part of; "" of every other channel. Set by `parts_of`.
    """

    name: str
    type: type[T] | None = None
    partitions: int | None = field(default=None, kw_only=True)
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, kw_only=True, hash=False, repr=False)
    requests: bool = field(default=False, kw_only=True, compare=False, repr=False)
    whole: str = field(default="", kw_only=True, compare=False, repr=False)

    def __post_init__(self) -> None:
        _check_name(type(self).__name__, self.name)
        if self.partitions is not None and not 1 <= self.partitions <= 10_000:
            raise ConfigurationError(f"{self.name}: partitions={self.partitions} is out of range 1 to 10000")


@dataclass(frozen=True)
class Queue(Channel[T]):
    """Each message goes to one worker.

    Args:
        fifo: ask the broker for order per key (SQS FIFO queues).
        single_active: ask the broker for one active consumer at a time (RabbitMQ, NATS, Redis), for order across instances.
    """

    fifo: bool = field(default=False, kw_only=True)
    single_active: bool = field(default=False, kw_only=True)


@dataclass(frozen=True)
class Topic(Channel[T]):
    """Each message goes to every group; the workers of one group compete for it.

    Args:
        fifo: as of a `Queue`.
        single_active: as of a `Queue`, for each group.
    """

    fifo: bool = field(default=False, kw_only=True)
    single_active: bool = field(default=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class Source:
    """A channel as read by one group. A queue has one implied group, its own name, so ``group`` is None for it."""

    channel: Channel[Any]
    group: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.channel, Topic):
            _check_name(f"group of {self.channel.name}", self.group)
        elif self.group is not None:
            raise ConfigurationError(f"queue {self.channel.name} has no groups; leave group={self.group!r} away")

    @property
    def name(self) -> str:
        """``channel.group`` for a topic, ``channel`` for a queue: unique among the sources of a broker."""
        return self.channel.name if self.group is None else f"{self.channel.name}.{self.group}"

    @property
    def home_name(self) -> str:
        """Its `name`; of a part, that of the source that it is a part of, whose failures are kept together."""
        whole = self.channel.whole
        return self.name if not whole else whole if self.group is None else f"{whole}.{self.group}"

    @property
    def group_name(self) -> str:
        """The group, with a queue's implied one: its own name."""
        return self.group if self.group is not None else self.channel.name

    def retry_channel(self, delay: float) -> Queue[Any]:
        """Where this source's failures wait ``delay`` seconds: ``orders.created.billing.retry.5s``."""
        return Queue(f"{self.home_name}.retry.{format_duration(delay)}", partitions=self.channel.partitions)

    @property
    def redrive_channel(self) -> Queue[Any]:
        """The way back to this group alone, where the broker cannot address one: ``orders.created.billing.redrive``."""
        return Queue(f"{self.home_name}.redrive", partitions=self.channel.partitions)

    @property
    def suspects_channel(self) -> Queue[Any]:
        """Where what may have ended a process waits to be run alone: ``orders.created.billing.suspects``."""
        return Queue(f"{self.home_name}.suspects", partitions=1)  # one at a time: more partitions would help nobody

    @property
    def dead_letter_channel(self) -> Queue[Any]:
        """Where this source's given-up messages wait for a person: ``orders.created.billing.dlq``."""
        return Queue(f"{self.home_name}.dlq")

    def __str__(self) -> str:
        return self.name


def is_derived(channel: Channel[Any]) -> bool:
    """Whether ``channel`` has a name as `Source` derives them: what waits in it is held, run alone or kept, and not worked off."""
    return _DERIVED.fullmatch(channel.name) is not None
