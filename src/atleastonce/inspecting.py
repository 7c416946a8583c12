"""Looking at a broker without changing it, and asking for the settings that promises rest on: never the reason why a service does
not start."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence

from atleastonce.broker import Broker
from atleastonce.contract import Adapter, Fact, Inspects, Topology
from atleastonce.errors import AtLeastOnceError, NotFound

log = logging.getLogger("atleastonce")

_PATIENCE = 10.0
"""Seconds. Shorter: a busy broker goes unchecked. Longer: a start waits for what it could do without."""


@contextlib.asynccontextmanager
async def looking(broker: Broker) -> AsyncIterator[None]:
    """``broker`` open, for who only looks. An embedded one that nobody has used yet stays so: there is nothing in it."""
    broker.adapter.may_create = False
    try:
        with contextlib.suppress(NotFound):
            await broker.open()
        yield
    finally:
        await broker.close()


async def inspect(adapter: Adapter, topologies: Sequence[Topology]) -> list[Fact] | None:
    """What ``adapter`` tells of all ``topologies``; nothing where it has nothing to tell, None where it is not allowed to or does
    not answer in time: that is no news about the settings."""
    if not isinstance(adapter, Inspects) or not topologies:
        return []
    try:
        async with asyncio.timeout(_PATIENCE):
            return list(await adapter.inspect(Topology.joined(topologies)))
    except (AtLeastOnceError, TimeoutError) as error:
        log.debug("the broker's settings stay unchecked: %s", error)
        return None
