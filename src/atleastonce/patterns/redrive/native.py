"""The broker's own way of emptying a dead-letter queue into another."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

from atleastonce.channels import Queue, Source
from atleastonce.contract import Adapter, MovesAll
from atleastonce.errors import ConfigurationError
from atleastonce.patterns.redrive.accounts import Redriven
from atleastonce.patterns.redrive.moves import Progress, way_back


async def redrive_natively(
    adapter: Adapter,
    home: Source,
    *,
    queue: Queue[Any] | None = None,
    to: Queue[Any] | None = None,
    rate: float | None = None,
    progress: Progress | None = None,
    stopping: asyncio.Event | None = None,
) -> Redriven:
    """Have the broker move all dead letters of ``home`` back to it. Nothing passes through this process.

    The broker knows nothing of what a redrive promises: the redrives of a message are not counted, so nothing that goes round
    and round is held back; there is no choice, no audit, no watch; what dies again while it runs may be moved once more.

    Args:
        rate: messages per second.
        progress: told about once a second. The counts are the broker's, and approximate.
        stopping: once it is set, the broker is told to stop.

    Raises:
        ConfigurationError: the broker cannot, or not from this queue to that.
        NotFound: one of the queues does not exist.
        BrokerUnavailable: it gave up.
    """
    if not isinstance(adapter, MovesAll):
        raise ConfigurationError(f"{adapter.scheme} has no move of its own; redrive without native")
    begun = time.monotonic()
    source = queue or home.dead_letter_channel
    moved, stopped = 0, ""
    async with contextlib.aclosing(adapter.move_all(source, to or way_back(home, adapter), rate)) as steps:
        async for moved, total in steps:
            if progress is not None:
                progress(_account(moved, "", begun), moved, total)
            if stopping is not None and stopping.is_set():
                stopped = "interrupted"
                break
    return _account(moved, stopped, begun)


def _account(moved: int, stopped: str, begun: float) -> Redriven:
    return Redriven(moved, moved, stopped=stopped, seconds=time.monotonic() - begun)
