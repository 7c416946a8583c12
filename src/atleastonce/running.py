"""A service between its start and its stop: a connection, what reads for each handler, relays, and its stores."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from atleastonce import check, preflight
from atleastonce.broker import Broker
from atleastonce.channels import Channel
from atleastonce.consumer import Consumer
from atleastonce.engine.memory import MemoryGuard, container_limit, resident
from atleastonce.engine.quarantine import Quarantine
from atleastonce.engine.supervisor import Supervisor
from atleastonce.engine.turnstile import Turnstile
from atleastonce.engine.worker import Worker
from atleastonce.outbox import Outbox
from atleastonce.relays import Relays
from atleastonce.runtime import ConsumerStatus, Runtime
from atleastonce.stores.contract import LeaseStore

log = logging.getLogger("atleastonce")

# How long a relay's publishes may go on when everything else has ended. More is not needed: what they publish stays a row until
# it is confirmed, so at worst it is published again.
_RELAY_SECONDS = 5.0


class Running:
    """One run of a service.

    Args:
        name: of the service.
        consumers: its handlers.
        broker: not yet open.
        relayed: the outboxes whose rows it publishes.
        create: whether missing channels are created.
        memory_limit: in bytes; None for that of the container.

    Attributes:
        broker: while it is connected; else None.
        runtimes: one for each handler that was started.
        stopping: set when it is to stop, or does.
        fatal_error: what a handler raised to end the service.

    Raises:
        ConfigurationError: the broker cannot keep what a handler asks for.
    """

    def __init__(
        self,
        name: str,
        consumers: Sequence[Consumer],
        broker: Broker,
        relayed: Sequence[Outbox],
        *,
        create: bool,
        memory_limit: int | None,
    ) -> None:
        self.broker: Broker | None = None
        self.runtimes: list[Runtime] = []
        self.stopping = asyncio.Event()
        self.fatal_error: BaseException | None = None
        self._name = name
        self._consumers = consumers
        self._connection = broker
        self._relayed = relayed
        self._create = create
        self._memory_limit = memory_limit
        self._started = False
        self._memory: asyncio.Task[None] | None = None
        self._relays: Relays | None = None
        self._stores: list[LeaseStore] = []  # that we have opened, and so close
        turnstile = Turnstile()
        self._made = [
            Runtime(broker, consumer, name, self._fatal, create=create, turnstile=turnstile) for consumer in consumers
        ]

    # ------------------------------------------------------------------------------------------- life

    async def start(self) -> None:
        """Connect, declare, subscribe. See `Service.start`; nothing is left running if it raises."""
        broker = self._connection
        try:
            await self._open_stores()
            await broker.open()
            self.broker = broker
            await self._ensure_possible(broker)
            made = sorted(self._made, key=lambda each: -each.consumer.priority)
            for runtime in made:
                if self.fatal_error is None:  # else a suspect has ended the service before anything else was read
                    self.runtimes.append(runtime)
                    await runtime.look_for_suspects()
            for runtime in made:
                if self.fatal_error is None:
                    await runtime.start(self._before(runtime))
            self._relays = Relays(self._relayed, broker, self._name)
            await self._relays.start()
            self._guard_memory()
        except BaseException:
            try:
                await self.stop(0)
            finally:
                await broker.close()
            raise
        self._started = True
        homes = ", ".join(str(consumer.home) for consumer in self._consumers)
        log.info("service %s runs on %s: %s", self._name, broker.url, homes)

    def _before(self, runtime: Runtime) -> list[Worker]:
        """The readers, begun by now, that have priority over those of ``runtime``."""
        return [
            other.home
            for other in self.runtimes
            if other.home is not None and other.consumer.priority > runtime.consumer.priority
        ]

    async def _open_stores(self) -> None:
        asked = [consumer.idempotency.store for consumer in self._consumers if consumer.idempotency is not None]
        for store in (*asked, *(outbox.store for outbox in self._relayed)):
            if not store.is_open:
                await store.open()
                self._stores.append(store)

    async def _ensure_possible(self, broker: Broker) -> None:
        """Declare everything, and refuse what cannot be kept with what is there."""
        found = check.together(self._consumers, broker.adapter.capabilities)
        for runtime in self._made:
            drifts = await broker.adapter.declare(runtime.topology, create=self._create)
            found += check.topology(drifts, create=False)
        settings = await preflight.settings(self._consumers, broker.adapter)
        check.enforce(check.merge([*found, *settings.findings]))
        for runtime, memory in zip(self._made, settings.memory, strict=True):
            if memory is not None:
                runtime.remember(memory)

    def _guard_memory(self) -> None:
        limit = self._memory_limit or container_limit()
        if limit is not None and resident() is not None:
            guard = MemoryGuard(limit, lambda: [meter for runtime in self.runtimes for meter in runtime.meters])
            self._memory = asyncio.create_task(guard.run(), name="atleastonce-memory")

    async def stop(self, grace: float) -> bool:
        """Stop receiving, drain for ``grace`` seconds, disconnect. See `Service.stop`."""
        self.stopping.set()
        if self._memory is not None:
            self._memory.cancel()
        for runtime in self.runtimes:
            runtime.stopping()
        supervisors = self.supervisors
        begun = time.monotonic()
        try:
            ends = await asyncio.gather(*(s.stop(grace) for s in supervisors), return_exceptions=True)
        except asyncio.CancelledError:  # no more time: what still runs is given back
            await asyncio.gather(*(s.stop(0) for s in supervisors), return_exceptions=True)
            raise
        finally:
            await self._leave(grace - (time.monotonic() - begun))
        for end in ends:
            if isinstance(end, BaseException):
                log.error("stopping %s: %s", self._name, end)
        return all(end is True for end in ends)

    async def _leave(self, left: float) -> None:
        """End the relays within the seconds that are ``left``, and disconnect from everything."""
        self.runtimes = []
        broker, self.broker = self.broker, None
        stores, self._stores = self._stores, []
        if self._relays is not None:
            await self._relays.stop(max(0.0, min(left, _RELAY_SECONDS)))
            self._relays = None
        if broker is not None:
            await broker.close()
        for store in stores:
            await store.close()

    def _fatal(self, error: BaseException) -> None:
        log.error("service %s stops: %r", self._name, error)
        if self.fatal_error is None:
            self.fatal_error = error
        self.stopping.set()

    # ----------------------------------------------------------------------------------------- asked

    @property
    def supervisors(self) -> list[Supervisor | Quarantine]:
        """What keeps its readers reading."""
        return [supervisor for runtime in self.runtimes for supervisor in runtime.supervisors]

    def reading(self, channel: Channel[Any] | None) -> list[Runtime]:
        """Those that read ``channel``; None: all."""
        return [runtime for runtime in self.runtimes if channel in (None, runtime.consumer.home.channel)]

    def status(self) -> list[ConsumerStatus]:
        """What every reader and relay is doing, and what a start waits for."""
        relays = self._relays.status() if self._relays is not None else []
        found = [status for runtime in self.runtimes for status in runtime.status()]
        if not self._started and not self.stopping.is_set():
            found += [self._waits(made.consumer) for made in self._made if made.home is None]
        if (
            error := self.fatal_error
        ) is not None:  # `serve` stops at once; with `start` that is up to the caller, who looks here
            found = [msgspec.structs.replace(each, state="stopping", detail=repr(error)) for each in found]
        return found + relays

    def _waits(self, consumer: Consumer) -> ConsumerStatus:
        return ConsumerStatus(
            str(consumer.home),
            consumer.binding.name,
            "starting",
            self._connection.trouble,
            in_flight=0,
            bytes=0,
            counts={},
        )
