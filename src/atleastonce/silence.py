"""What a broker owes us, and since when it has said nothing: written down at the edge, for whoever looks from outside."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

_SOON: Final = 5.0
"""Seconds between a question that was not answered and the next one, within which the two are one silence."""


class Owed(NamedTuple):
    """An answer that is outstanding.

    Attributes:
        what: for people: "an answer to DeleteMessageBatch".
        since: by ``time.monotonic``, when it was due, or when anything at all was last heard, whichever is later.
    """

    what: str
    since: float


class Silence:
    """The answers that are outstanding on one way to a broker. Any thread may write here and look.

    Nothing watches, and nothing is ended by it: a slow network is no reason to tear down what works. A question costs two time
    stamps, however many messages it settles.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._owed: dict[int, Owed] = {}
        self._numbers = itertools.count()
        self._heard = -math.inf
        self._missed: tuple[float, float] | None = None  # since when the last one was owed, and when it was given up

    def asked(self, what: str, *, allowed: float = 0.0) -> int:
        """``what`` is outstanding, and due in ``allowed`` seconds, for which the broker may wait by agreement. Returns what
        `answered`, `missed` and `dropped` want."""
        number, now = next(self._numbers), self._clock()
        since = now + allowed
        if not allowed and (missed := self._missed) is not None and now - missed[1] < _SOON:
            since = missed[0]
        self._owed[number] = Owed(what, since)
        return number

    def answered(self, number: int) -> None:
        """It came, whatever it says."""
        self._owed.pop(number, None)
        self.heard()

    def missed(self, number: int) -> None:
        """It did not come in time. A question that follows soon goes on with this silence."""
        owed = self._owed.pop(number, None)
        if owed is not None and self._missed is None:
            self._missed = (max(owed.since, self._heard), self._clock())
        elif self._missed is not None:
            self._missed = (self._missed[0], self._clock())

    def dropped(self, number: int) -> None:
        """Nobody waits for it any more."""
        self._owed.pop(number, None)

    def heard(self) -> None:
        """Something came, owed or not: the way is open."""
        self._heard = self._clock()
        self._missed = None

    @contextmanager
    def until(self, what: str, *, allowed: float = 0.0) -> Iterator[None]:
        """Waiting for ``what`` in the block, which raises if it does not come."""
        number = self.asked(what, allowed=allowed)
        try:
            yield
        except asyncio.CancelledError:
            self.dropped(number)
            raise
        except BaseException:
            self.missed(number)
            raise
        self.answered(number)

    def look(self, also: Owed | None = None) -> Owed | None:
        """What has been overdue for the longest time; None where nothing is.

        Args:
            also: something that is owed beside, such as a heartbeat.
        """
        owed = list(self._owed.values())  # at once: other threads write meanwhile
        if also is not None:
            owed.append(also)
        if not owed:
            return None
        first = min(owed, key=lambda each: each.since)
        since = max(first.since, self._heard)
        return Owed(first.what, since) if since <= self._clock() else None
