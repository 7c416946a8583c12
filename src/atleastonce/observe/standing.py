"""How a service stands: what its readers say of themselves, what waits for them, and whether it lives and is ready."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Final

import msgspec

from atleastonce.errors import AtLeastOnceError
from atleastonce.lag import Lag, measure, places
from atleastonce.runtime import ConsumerStatus
from atleastonce.service import Service

# What waits is asked for no more often. Shorter: whoever reads the status often keeps the broker busy, most of all Kafka, where the
# age of the oldest costs a read. Longer: it is old.
_LAG_SECONDS: Final = 15.0
# How long an answer waits for it; it then goes on without, and the next one has it. Shorter: the first answer never has it. Longer:
# a broker that is away holds up every answer.
_LAG_PATIENCE: Final = 2.0

# Only a new start helps: see `ConsumerStatus`.
_ENDED: Final = frozenset({"stopped", "stopping"})
# It does not read, and is not meant to rest.
_UNREADY: Final = _ENDED | {"starting", "disconnected", "draining"}


class Status(msgspec.Struct, frozen=True):
    """A service as it is now.

    Attributes:
        service: its name.
        ready: see `Standing.unready`.
        readers: of every reader and relay; empty where it does not run.
        lag: what waits in its sources, retry channels and dead letters; None while nobody knows.
        lag_age_s: seconds since that was asked for.
    """

    service: str
    ready: bool
    readers: list[ConsumerStatus]
    lag: Sequence[Lag] | None
    lag_age_s: float | None


class Standing:
    """Of one service, running or not. Loop thread only."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._lag: Sequence[Lag] | None = None
        self._lag_at = 0.0
        self._asking: asyncio.Task[Sequence[Lag] | None] | None = None

    def readers(self) -> list[ConsumerStatus]:
        """See `Service.status`."""
        return self._service.status()

    def ended(self) -> list[str]:
        """A line for each reader that only a new start lets read again. Of a service that does not run (yet, or any more) there is
        none."""
        return [_line(reader) for reader in self.readers() if reader.state in _ENDED]

    def unready(self) -> list[str]:
        """A line for each reader that does not read although it should. A circuit that is open, a pause by hand and a broker that
        blocks its clients are no reason: another process in its place would do no more."""
        readers = self.readers()
        if not readers:
            return [f"service {self._service.name} does not run"]
        return [_line(reader) for reader in readers if reader.state in _UNREADY]

    async def status(self) -> Status:
        """All of it. Never waits long."""
        lag = await self._known()
        age = None if lag is None else round(time.monotonic() - self._lag_at, 3)
        return Status(self._service.name, not self.unready(), self.readers(), lag, age)

    async def close(self) -> None:
        """Ask no more."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])

    async def _known(self) -> Sequence[Lag] | None:
        if self._asking is None and (self._lag is None or time.monotonic() - self._lag_at >= _LAG_SECONDS):
            self._asking = asyncio.get_running_loop().create_task(self._ask(), name="atleastonce-status-lag")
        asking = self._asking
        if asking is not None:
            await asyncio.wait([asking], timeout=_LAG_PATIENCE)
            if asking.done() and self._asking is asking:
                self._asking = None
                if not asking.cancelled():
                    self._lag, self._lag_at = asking.result(), time.monotonic()
        return self._lag

    async def _ask(self) -> Sequence[Lag] | None:
        try:
            adapter = self._service.broker.adapter
            capabilities = adapter.capabilities
            where = [place for consumer in self._service.consumers for place in places(consumer, capabilities)]
            return await measure(adapter, where)
        except AtLeastOnceError:  # it does not run, or has no connection yet
            return None


def _line(reader: ConsumerStatus) -> str:
    return f"{reader.source} ({reader.handler}): {reader.state}{f', {reader.detail}' if reader.detail else ''}"
