"""A process that nears its memory limit: its windows shrink before the kernel kills it.

Killed, it would lose nothing and repeat everything in flight, and then again: what filled the memory comes back. So the more of the
limit is used, the less is received. Handlers go on; only what waits for them becomes less.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from atleastonce.engine.window import WindowMeter

log = logging.getLogger("atleastonce.engine")

# From this share of the limit on windows shrink, and at that one they are at their smallest. Smaller: memory lies idle; larger: one
# burst is enough to be killed.
_BEGIN, _END = 0.80, 0.95
# The smallest share of its window that a reader keeps: it must go on, or nothing would ever become free.
_LEAST: Final = 0.02
# How often it is looked. Rarer: a burst is noticed too late; more often: nothing is gained, since memory is freed slowly.
_LOOK_SECONDS: Final = 0.5
_NO_LIMIT: Final = 1 << 60

CGROUPS: Final = (
    Path("/sys/fs/cgroup/memory.max"),  # version 2
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),  # version 1
)


def container_limit(files: tuple[Path, ...] = CGROUPS) -> int | None:
    """Bytes that this process's control group may use; None where none is set, or it cannot be read."""
    for file in files:
        try:
            text = file.read_text().strip()
        except OSError:
            continue
        if text.isdigit() and int(text) < _NO_LIMIT:
            return int(text)
    return None


def resident(statm: Path = Path("/proc/self/statm")) -> int | None:
    """Bytes of memory that this process occupies; None where the system does not say."""
    try:
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def window_share(used: int, limit: int) -> float:
    """The share of its window that a reader may fill, of 1.0, while ``used`` of ``limit`` bytes are occupied. Pure."""
    over = (used / limit - _BEGIN) / (_END - _BEGIN)
    return min(1.0, max(_LEAST, 1.0 - over))


class MemoryGuard:
    """Looks at the process's memory and sets the share of every window.

    Args:
        limit: bytes that must not be reached.
        meters: of all readers, as they are now.
        used: bytes occupied.

    Attributes:
        share: of each window, as it is now.
    """

    def __init__(
        self, limit: int, meters: Callable[[], list[WindowMeter]], used: Callable[[], int | None] = resident
    ) -> None:
        self.limit = limit
        self.share = 1.0
        self._meters = meters
        self._used = used

    def look(self) -> None:
        """Set the shares by what is occupied now."""
        used = self._used()
        if used is None:
            return
        share = window_share(used, self.limit)
        if share < 1.0 and self.share == 1.0:
            log.warning(
                "%d MiB of %d MiB are occupied: windows shrink until there is more room", used >> 20, self.limit >> 20
            )
        elif share == 1.0 and self.share < 1.0:
            log.info("%d MiB of %d MiB are occupied: windows are whole again", used >> 20, self.limit >> 20)
        self.share = share
        for meter in self._meters():
            meter.share = share

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(_LOOK_SECONDS)
