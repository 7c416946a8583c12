"""What has to exist on the broker, and how it may differ from what does."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any

import msgspec

from atleastonce.channels import Channel, Queue, Source


class DelayChannel(msgspec.Struct, frozen=True):
    """A channel in which messages wait ``delay`` seconds and then return to ``back_to``.

    Where `Capabilities.delay` is ``EMULATED`` the broker returns them by itself (RabbitMQ: a queue with a TTL that dead-letters
    back); where it is ``NONE`` the engine reads the channel and holds each message until it is due.
    """

    channel: Queue[Any]
    delay: float
    back_to: Source


class Topology(msgspec.Struct, frozen=True):
    """All that a service or publisher needs to exist on the broker.

    Attributes:
        channels: published to; read by others, or by ``sources``.
        sources: read by this service.
        delays: waiting rooms of retries.
        dead_letters: queues that keep what was given up; long retention.
    """

    channels: tuple[Channel[Any], ...] = ()
    sources: tuple[Source, ...] = ()
    delays: tuple[DelayChannel, ...] = ()
    dead_letters: tuple[Queue[Any], ...] = ()

    @classmethod
    def joined(cls, parts: Iterable[Topology]) -> Topology:
        """All of ``parts`` as one, each channel once."""
        each = list(parts)
        return cls(
            channels=tuple(dict.fromkeys(chain.from_iterable(part.channels for part in each))),
            sources=tuple(dict.fromkeys(chain.from_iterable(part.sources for part in each))),
            delays=tuple(dict.fromkeys(chain.from_iterable(part.delays for part in each))),
            dead_letters=tuple(dict.fromkeys(chain.from_iterable(part.dead_letters for part in each))),
        )


class Drift(msgspec.Struct, frozen=True):
    """One difference between what was declared and what the broker has. Nothing is ever destroyed to mend it.

    Attributes:
        name: of the channel or source, as it is called on the broker.
        setting: what differs: ``"missing"``, ``"partitions"``, an argument's name.
        wanted: as declared.
        found: on the broker.
        breaks: whether the declared promise fails with it (delays lost, retention too short), not just a preference.
    """

    name: str
    setting: str
    wanted: str
    found: str
    breaks: bool = False
