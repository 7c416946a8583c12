"""Asking a broker for the settings that promises rest on: never the reason why a service does not start."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from atleastonce.contract import Adapter, Fact, Inspects, Topology
from atleastonce.errors import AtLeastOnceError

log = logging.getLogger("atleastonce")

_PATIENCE = 10.0
"""Seconds. Shorter: a busy broker goes unchecked. Longer: a start waits for what it could do without."""


async def inspect(adapter: Adapter, topologies: Sequence[Topology]) -> list[Fact]:
    """What ``adapter`` tells of all ``topologies``; nothing where it cannot, is not allowed to or does not answer in time: that is
    no news about the settings."""
    if not isinstance(adapter, Inspects) or not topologies:
        return []
    try:
        async with asyncio.timeout(_PATIENCE):
            return list(await adapter.inspect(Topology.joined(topologies)))
    except (AtLeastOnceError, TimeoutError) as error:
        log.debug("the broker's settings stay unchecked: %s", error)
        return []
