"""Says of a reader that its broker has fallen silent, long before anything is torn down for it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from atleastonce.silence import Owed

log = logging.getLogger("atleastonce.engine")

# Shorter: a slow answer looks like an outage. Longer: an outage looks like nothing to do.
_TELL_SECONDS = 3.0
# How often is looked, for the log alone: who asks for the state sees what is.
_LOOK_SECONDS = 1.0

State = tuple[str, str]
"""What a reader is doing, and why."""


class Vigil:
    """The state of one reader, as far as silence has a say in it.

    Args:
        name: of the reader, for the log.
        owed: what its broker owes; None where nothing is overdue.
        clock: that of ``owed``.

    Attributes:
        told: the state as it was told: by the adapter, or by who subscribes.
    """

    def __init__(self, name: str, owed: Callable[[], Owed | None], clock: Callable[[], float] = time.monotonic) -> None:
        self.told: State = ("starting", "")
        self._name = name
        self._owed = owed
        self._clock = clock
        self._silent = False

    @property
    def state(self) -> State:
        """As told; or "disconnected", where that is "running" and nothing has come for `_TELL_SECONDS` though it was due."""
        return self._silence() or self.told

    def _silence(self) -> State | None:
        if self.told[0] != "running" or (owed := self._owed()) is None:
            return None
        seconds = self._clock() - owed.since
        return ("disconnected", f"no answer for {seconds:.0f} s: {owed.what}") if seconds >= _TELL_SECONDS else None

    async def run(self) -> None:
        """Write into the log when a silence begins and when it ends, until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            self.look()

    def look(self) -> None:
        """Write down what has changed."""
        silence = self._silence()
        if silence is not None and not self._silent:
            log.warning("%s: %s", self._name, silence[1])
        elif silence is None and self._silent and self.told[0] == "running":
            log.info("%s: the broker answers again", self._name)
        self._silent = silence is not None
