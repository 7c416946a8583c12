"""The account of who reads one message now and then, and has no room of its own in the window: it asks for it before it reads."""

from __future__ import annotations

import asyncio
import time

from atleastonce.engine.shared_window import PartMeter, SharedWindow


class Guest(PartMeter):
    """Room for one message at a time in a `SharedWindow`, between `reserve` and `release`.

    How large the message will be is not known before it is there. So as much is kept free as the largest of late has had; if the
    message is larger and does not fit, its size is what is reserved the next time.

    Attributes:
        lacks: bytes of the message that did not fit the last time; 0 if it did.
    """

    __slots__ = ("_kept", "_made", "lacks")

    def __init__(self, shared: SharedWindow) -> None:
        self._made = asyncio.Event()
        super().__init__(shared, shared.whole, self._made.set, 1)
        self._kept: int | None = None
        self.lacks = 0

    async def reserve(self, within: float) -> bool:
        """Keep room for one message free. Whether there is some, after ``within`` seconds at the latest; if not, nothing is kept.
        Others take none of it meanwhile."""
        shared = self._shared
        deadline = time.monotonic() + within
        size = self.lacks or min(shared.largest, shared.whole.bytes)
        self._join()
        self.held_up = True
        try:
            while not self._keep(size):
                self._made.clear()
                if self.line_up(size):
                    continue
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                    await self._made.wait()
        except TimeoutError:
            pass
        finally:
            self.held_up = False
            if self._kept is None:
                self.release()
            else:
                self.step_out()
        return self._kept is not None

    def release(self) -> None:
        """Keep nothing any more but what has not ended."""
        self._kept = None
        self.step_out()
        self._go()

    def _keep(self, size: int) -> bool:
        """Keep ``size`` bytes, if nobody else has or waits for them."""
        shared = self._shared
        others, their_bytes = shared.besides(self)
        if size > shared.whole.bytes:
            free = not their_bytes and not any(meter.debit for meter in shared.meters if meter is not self)
        else:
            free = others < shared.whole.messages and their_bytes + size <= shared.whole.bytes
        if free:
            self._kept, self.lacks = size, 0
        return free

    def _join(self) -> None:
        if self not in self._shared.meters:
            self._shared.meters.append(self)

    def _go(self) -> None:
        shared = self._shared
        if self._kept is None and not self.messages and self in shared.meters:
            shared.look(self)
            shared.meters.remove(self)

    @property
    def debit(self) -> int:
        """See `PartMeter.debit`."""
        return self.messages if self._kept is None else 1

    @property
    def debit_bytes(self) -> int:
        """See `PartMeter.debit_bytes`."""
        return self.bytes if self._kept is None else max(self.bytes, self._kept)

    def fits(self, messages: int, size: int) -> bool:
        """See `WindowMeter.fits`: of one message, within what is kept or what can be had besides at once."""
        if self._kept is not None and (size <= self._kept or self._keep(size)):
            return True
        self.lacks = size
        return False

    def give(self, messages: int, size: int) -> None:
        """See `WindowMeter.give`."""
        super().give(messages, size)
        self._go()
