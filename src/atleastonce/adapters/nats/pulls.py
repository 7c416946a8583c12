"""What was asked of a pull consumer and has not come: requests, heartbeats, and the statuses that end a request."""

from __future__ import annotations

import enum
import time
from typing import Any

from atleastonce.adapters.nats.envelope import fields_of, status_of
from atleastonce.contract import Window
from atleastonce.silence import Owed

_HEARTBEAT = 1.5
"""Seconds between the signs of life that a request asks for: so early, and three seconds, a status can tell silence."""
_PATIENCE = 2.5 * 5.0
"""Seconds of silence until the consumer is looked at and asked anew; fewer where a request is short."""
_PAUSE = 0.25
"""Seconds without a request after one that nobody took: a leader is being elected, or a server shuts down."""


class Said(enum.Enum):
    """What a status means for who asked."""

    ALIVE = "alive"
    ENDED = "ended"
    LARGE = "large"
    """The next message is larger than the request: it has to be asked for alone."""
    SUSPECT = "suspect"
    """Something may be gone: look at the consumer."""
    NOTHING = "nothing"
    """No status at all: somebody publishes to our inbox."""


class Pulls:
    """The requests of one subscription.

    Attributes:
        outstanding: messages asked for and not come.
        heard: when the consumer last said anything, by ``time.monotonic``.
        room: bytes that the last request had room for.
        refusal: what the consumer says to our requests, once it has refused two on end; else "".
        refused: how many on end.
    """

    def __init__(self, window: Window, expires: float, config: dict[str, Any]) -> None:
        self._window = window
        self._longest = expires
        self._least = max(1, window.messages // 4)
        self.limit(config)
        self._not_before = 0.0
        self.outstanding = 0
        self.heard = 0.0
        self.room = 0
        self.refusal = ""
        self.refused = 0
        self._asked = 0.0
        self._came = True
        self._alone = False

    def limit(self, config: dict[str, Any]) -> None:
        """Keep what the consumer's own settings allow; they may change while it is read."""
        limit = int(config.get("max_expires") or 0) / 1e9
        self._expires = min(self._longest, limit) if limit else self._longest
        self._most = int(config.get("max_batch") or 0) or self._window.messages
        self._most_bytes = int(config.get("max_bytes") or 0)
        self.heartbeat = min(_HEARTBEAT, self._expires / 3)
        self._patience = min(_PATIENCE, 2.5 * self._expires / 3)

    def wanted(self, room: int) -> int:
        """How many to ask for now that there is room for ``room`` in all; 0 while it is not worth a request."""
        room -= self.outstanding
        if self._alone and not self.outstanding:
            room = min(room, 1)
        if room <= 0 or (self.outstanding and room < self._least) or time.monotonic() < self._not_before:
            return 0
        return min(room, self._most)

    def question(self, batch: int, room: int) -> bytes:
        """Ask for ``batch`` messages of ``room`` bytes; for the one that no room was enough for, without a limit."""
        self._asked = time.monotonic()
        self._came = False
        alone = self._alone and not self.outstanding
        if not self.outstanding:
            self.heard = self._asked
        self.outstanding += batch
        times = (int(self._expires * 1e9), int(self.heartbeat * 1e9))
        if alone:
            self._alone = False
            self.room = 0
            return b'{"batch":1,"expires":%d,"idle_heartbeat":%d}' % times
        self.room = min(room, self._most_bytes) if self._most_bytes else room
        return b'{"batch":%d,"expires":%d,"idle_heartbeat":%d,"max_bytes":%d}' % (batch, *times, self.room)

    def arrived(self, now: float) -> None:
        """A message came."""
        self.heard = now
        self._came = True
        self._alone = False
        self.refused = 0
        if self.outstanding:
            self.outstanding -= 1

    def status(self, block: bytes) -> Said:
        """A message that is none: what it says."""
        code, text = status_of(block)
        if not code:
            return Said.NOTHING
        now = self.heard = time.monotonic()
        if code == 100:  # idle heartbeat
            self.refused = 0
            return Said.ALIVE
        pending = next((value for name, value in fields_of(block) if name == "Nats-Pending-Messages"), b"")
        known = pending.isdigit() and len(pending) < 10
        self.outstanding = max(0, self.outstanding - int(pending)) if known else 0
        said = text.lower()
        # 404: nothing there. 408: its time is over. 409 is many things: these two are room that was used up.
        full = code == 409 and "maxbytes" in said and "exceeded" not in said
        if code in (404, 408) or full or (code == 409 and "batch completed" in said):
            self.refused = 0
            if full and not self._came and self.room:  # room for nothing else, and still too little
                self._alone = True
                return Said.LARGE
            if not self._came and now - self._asked < _PAUSE:
                self._not_before = now + _PAUSE  # the next one would end as this one has, and at once
            return Said.ENDED
        # 409: consumer deleted, leadership change, server shutdown, over the consumer's limits. 503: nobody listens. 4xx: foreign.
        self._not_before = now + _PAUSE
        self.refused += 1
        if self.refused == 2:
            self.refusal = f"{code} {text}".strip()
        return Said.SUSPECT

    @property
    def recovered(self) -> bool:
        """Whether requests are taken again after a refusal that was told; true once."""
        if self.refusal and not self.refused:
            self.refusal = ""
            return True
        return False

    def forget(self) -> None:
        """The requests are gone: with the connection, or with their inbox."""
        self.outstanding = 0

    @property
    def owed(self) -> Owed | None:
        """The consumer's next sign of life, while something is asked of it."""
        return Owed("a heartbeat of the consumer", self.heard + self.heartbeat) if self.outstanding else None

    def patience(self, now: float) -> float:
        """Seconds until silence is suspicious, or until the next request may go."""
        if self.outstanding:
            return self.heard + self._patience - now
        return self._not_before - now if self._not_before > now else 3600.0
