"""A process that nears its memory limit: its windows shrink before the kernel kills it.

Killed, it would lose nothing and repeat everything in flight, and then again: what filled the memory comes back. So the more of the
limit is used, the less is received. Handlers go on; only what waits for them becomes less.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path, PurePosixPath
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

ROOT: Final = Path("/sys/fs/cgroup")
OWN: Final = Path("/proc/self/cgroup")


def container_limit(root: Path = ROOT, own: Path = OWN) -> int | None:
    """Bytes that this process's control group, or one that it is in, may use; None where none is set, or it cannot be read."""
    limits = [limit for file in _files(root, own) if (limit := _limit(file)) is not None]
    return min(limits, default=None)


def _files(root: Path, own: Path) -> list[Path]:
    """Where limits may be written: of the process's own group and all around it. In a container the group that is mounted at the
    root is its own; a service of systemd sees the whole tree, and is in a branch of it."""
    found = [root / "memory.max", root / "memory" / "memory.limit_in_bytes"]
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return found
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:  # version 2
            base, name = root, "memory.max"
        elif "memory" in controllers.split(","):  # version 1
            base, name = root / "memory", "memory.limit_in_bytes"
        else:
            continue
        group = PurePosixPath(path.lstrip("/"))
        if ".." not in group.parts:
            found += [base / each / name for each in (group, *group.parents)]
    return found


def _limit(file: Path) -> int | None:
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() and int(text) < _NO_LIMIT else None


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
