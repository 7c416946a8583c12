"""What the polling thread waits for without polling: how long already, for whoever looks from outside."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from atleastonce.silence import Owed, Silence


class Standstill:
    """A broker's answer that is outstanding. Meanwhile the client's own reports are not heard, for they come with polling."""

    def __init__(self) -> None:
        self.what = ""
        self.silence = Silence()
        """What is owed beside, while the thread polls."""
        self._given_up_at = 0.0  # 0: nothing is waited for

    @contextmanager
    def until(self, what: str, limit: float) -> Iterator[None]:
        """Waiting for ``what`` until the end of the block; a wait of more than ``limit`` seconds is in vain."""
        self.what, self._given_up_at = what, time.monotonic() + limit
        try:
            with self.silence.until(what):
                yield
        finally:
            self._given_up_at = 0.0

    @property
    def overdue(self) -> Owed | None:
        """See `Subscription.overdue`. On any thread, as `vain`."""
        return self.silence.look()

    @property
    def vain(self) -> bool:
        """Whether it is not worth waiting any longer."""
        return 0 < self._given_up_at < time.monotonic()
