"""The relays of a service: one for each outbox that it was given, or into which its handlers publish."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Sequence
from typing import Literal

from atleastonce.broker import Broker
from atleastonce.consumer import Consumer
from atleastonce.errors import ConfigurationError
from atleastonce.outbox import Outbox
from atleastonce.patterns.once.options import Inbox
from atleastonce.patterns.outbox import Relay
from atleastonce.runtime import ConsumerStatus
from atleastonce.stores.outbox import OutboxStore

_START_SECONDS = 2.0


def outboxes(consumers: Sequence[Consumer], given: Outbox | Literal[False] | None) -> list[Outbox]:
    """Whose rows this service relays: the one that it was given, and those of its handlers' inboxes. False: none.

    Raises:
        ConfigurationError: what was given is no outbox.
    """
    if given is False:
        return []
    if not isinstance(given, Outbox | None):
        raise ConfigurationError(f"Service outbox={given!r}: give an Outbox(store), or False for no relay")
    found = {} if given is None else {id(given.store): given}
    for consumer in consumers:
        asked = consumer.idempotency
        # Who cannot ask for a Context cannot publish through it.
        if isinstance(asked, Inbox) and isinstance(asked.store, OutboxStore) and consumer.binding.context is not None:
            found.setdefault(id(asked.store), Outbox(asked.store))
    return list(found.values())


class Relays:
    """Running, on one broker.

    Args:
        found: from `outboxes`; their stores are open.
        broker: open.
        service: its name, for the list of relays.
    """

    def __init__(self, found: Sequence[Outbox], broker: Broker, service: str) -> None:
        name = f"{service} on {socket.gethostname()}, process {os.getpid()}"
        self._relays = [Relay(each.store, broker.send, name=name, options=each.relay) for each in found]

    async def start(self) -> None:
        """In the background. Returns when each has its slots, or a while later: a store that is away holds up no consumer."""
        for relay in self._relays:
            relay.start()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_START_SECONDS):
                for relay in self._relays:
                    await relay.started.wait()

    async def stop(self, grace: float) -> bool:
        """End what is under way within ``grace`` seconds. Returns whether all of it ended."""
        return all(await asyncio.gather(*(relay.stop(grace) for relay in self._relays)))

    def status(self) -> list[ConsumerStatus]:
        """What each of them is doing."""
        found = []
        for relay in self._relays:
            status = relay.status()
            counts = dict(status.counts)
            if status.lag is not None:
                counts |= {
                    "waiting": status.lag.waiting,
                    "delayed": status.lag.delayed,
                    "parked now": status.lag.parked,
                }
            found.append(
                ConsumerStatus(
                    f"outbox ({status.store})", "relay", status.state, status.detail, status.in_flight, 0, counts
                )
            )
        return found
