"""Places that several pools share: so many handlers of one consumer run at once, whichever of its readers they run for."""

from __future__ import annotations

from typing import Protocol


class Waits(Protocol):
    """A pool, as far as places go."""

    def wake(self) -> None:
        """See `Pool.wake`."""


class Places:
    """Used on the loop alone. Who finds none is woken when there is one for it, in the order of asking: without that, whoever has
    a backlog would take each place that it gives up itself.

    Args:
        most: at once.

    Attributes:
        waiting: pools that found none.
    """

    __slots__ = ("_kept", "_left", "waiting")

    def __init__(self, most: int) -> None:
        self._left = most
        self.waiting: dict[Waits, None] = {}
        self._kept: dict[Waits, int] = {}  # for those that were woken and have not come yet

    def enter(self, pool: Waits) -> bool:
        """Take a place, to be given up with `leave`; False if there is none, and ``pool`` is woken later."""
        if self._kept and (kept := self._kept.get(pool)):
            if kept > 1:
                self._kept[pool] = kept - 1
            else:
                del self._kept[pool]
        elif self._left:
            self._left -= 1
        else:
            self.waiting[pool] = None
            return False
        if self.waiting:
            self.waiting.pop(pool, None)  # whatever else it has, it asks for anew
        return True

    def leave(self) -> None:
        """Give a place up."""
        self._left += 1
        if self.waiting:
            self._share_out()

    def forget(self, pool: Waits) -> None:
        """``pool`` has ended, and enters no more."""
        self.waiting.pop(pool, None)
        self._left += self._kept.pop(pool, 0)
        self._share_out()

    def vacant(self, pool: Waits) -> bool:
        """Whether ``pool`` would find a place now."""
        return self._left > 0 or pool in self._kept

    def _share_out(self) -> None:
        while self._left and self.waiting:
            pool = next(iter(self.waiting))
            del self.waiting[pool]
            self._left -= 1
            self._kept[pool] = self._kept.get(pool, 0) + 1
            pool.wake()
