"""What the polling thread waits for without polling: how long already, for whoever looks from outside."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

# A wait that nobody need be told of.
TELL_SECONDS = 3.0


class Silence:
    """A broker's answer that is outstanding. Meanwhile the client's own reports are not heard, for they come with polling."""

    def __init__(self) -> None:
        self.what = ""
        self._waiting: tuple[float, float] | None = None

    @contextmanager
    def until(self, what: str, limit: float) -> Iterator[None]:
        """Waiting for ``what`` until the end of the block; a wait of more than ``limit`` seconds is in vain."""
        self.what, self._waiting = what, (time.monotonic(), limit)
        try:
            yield
        finally:
            self._waiting = None

    @property
    def long(self) -> bool:
        """Whether something has been waited for longer than `TELL_SECONDS`. On any thread, as `vain`."""
        waiting = self._waiting
        return waiting is not None and time.monotonic() > waiting[0] + TELL_SECONDS

    @property
    def vain(self) -> bool:
        """Whether it is not worth waiting any longer."""
        waiting = self._waiting
        return waiting is not None and time.monotonic() > waiting[0] + waiting[1]
