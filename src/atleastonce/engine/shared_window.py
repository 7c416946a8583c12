"""One window for several readers: what all of them have in flight together never exceeds what one consumer may have.

What a retry channel's reader has received may wait there for minutes, and so may what a slow handler keeps waiting behind it. So
each reader has a *part* that it may always fill, in the end: the reader of the source takes more while others leave theirs empty,
and takes nothing new while one of them waits for room within its own part.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from atleastonce.contract import Window
from atleastonce.engine.window import ASSUMED_BYTES, WindowMeter


class SharedWindow:
    """Used on the loop alone.

    Args:
        limit: for all readers together. If it has fewer messages than there are readers, each has one.
        readers: how many there will be, the one of the source included.

    Attributes:
        part: what each reader may always have.
        whole: the limit of all.
        meters: the accounts of those that there are.
        largest: the size to reckon with for a message that has not come yet.
    """

    __slots__ = ("largest", "meters", "part", "readers", "whole")

    def __init__(self, limit: Window, readers: int) -> None:
        self.readers = readers
        self.whole = msgspec.structs.replace(limit, messages=max(limit.messages, readers))
        self.part = msgspec.structs.replace(
            limit, messages=self.whole.messages // readers, bytes=max(1, limit.bytes // readers)
        )
        self.meters: list[PartMeter] = []
        self.largest = ASSUMED_BYTES

    def of_source(self, again: Callable[[], None]) -> PartMeter:
        """The account of the source's reader. ``again`` is called when there is room after it had found none."""
        whole = self.whole
        # One message of each other reader always fits: it could not even look for what is due otherwise.
        limit = msgspec.structs.replace(whole, messages=whole.messages - (self.readers - 1))
        return self._joined(PartMeter(self, limit, again, self.part.messages))

    def of_other(self, again: Callable[[], None]) -> PartMeter:
        """The account of another reader, which has no more than its part."""
        return self._joined(PartMeter(self, self.part, again, 1))

    def _joined(self, meter: PartMeter) -> PartMeter:
        self.meters.append(meter)
        return meter

    def look(self, changed: PartMeter) -> None:
        """``changed`` has less in flight: whoever waits for room is told."""
        for meter in self.meters:
            if meter.waits and meter is not changed:
                meter.again()


class PartMeter(WindowMeter):
    """One reader's account of a `SharedWindow`. What it asks for is debited while the answer is awaited: meanwhile others ask, too.

    Args:
        shared: the window.
        limit: of this reader alone.
        again: called when there is room after there was none.
        least: how many it asks for after it has found nothing. What is asked for in vain is room that the others do not have.
    """

    __slots__ = ("_asked", "_known", "_least", "_shared", "_step", "again")

    def __init__(self, shared: SharedWindow, limit: Window, again: Callable[[], None], least: int) -> None:
        super().__init__(limit)
        self.again = again
        self._shared = shared
        self._asked = 0
        self._known = -1  # its largest message of late, as the others reckon with it
        self._least = self._step = least

    def room(self) -> int:
        """See `WindowMeter.room`."""
        free, left = self._free()
        most = min(free, left // self._shared.largest)
        if most <= 0:
            return 0 if self.messages + self._asked else 1  # which the others leave it
        # Never more than the part at once: asked for in vain it is within what is one's own.
        return min(most, self._step, self._shared.part.messages)

    def ask(self, messages: int) -> None:
        """See `WindowMeter.ask`."""
        self._asked = messages

    def answer(self, messages: int) -> None:
        """See `WindowMeter.answer`."""
        fewer, self._asked = messages < self._asked, messages
        self._step = max(self._least, 2 * messages)
        if fewer:
            self._shared.look(self)

    def take(self, messages: int, size: int, largest: int) -> bool:
        """See `WindowMeter.take`."""
        self._asked = 0
        first = super().take(messages, size, largest)
        if (known := self.largest) != self._known:
            self._known = known
            self._shared.largest = max(meter._known for meter in self._shared.meters) or 1
        return first

    def give(self, messages: int, size: int) -> None:
        """See `WindowMeter.give`."""
        super().give(messages, size)
        self._shared.look(self)

    @property
    def low(self) -> bool:
        """See `WindowMeter.low`."""
        free, left = self._free()
        return free > 0 and left > 0 and self.messages <= 3 * free and self.bytes <= 3 * left

    def _free(self) -> tuple[int, int]:
        """Messages and bytes that it may still have, after those that others wait for within their part."""
        shared = self._shared
        largest, waiting = shared.largest, False
        free, left = self._scaled(shared.whole)
        for meter in shared.meters:
            if meter is self:
                continue
            # One message at least; and what one message is larger than its reader's limit is no loss of the others, or a large one
            # that waits until it is due would stop them all.
            free -= meter.messages + meter._asked or 1
            size = meter.bytes + meter._asked * largest
            left -= min(size if size > largest else largest, meter.limit.bytes)
            waiting = waiting or meter.waits
        most, most_bytes = self._scaled(self.limit)
        own = self.messages + self._asked
        own_bytes = self.bytes + self._asked * largest
        free, left = min(free, most) - own, min(left, most_bytes) - own_bytes
        if not waiting:
            return free, left
        part, part_bytes = self._scaled(shared.part)
        others = [meter for meter in shared.meters if meter.waits and meter is not self]
        kept = sum(max(0, part - meter.messages) for meter in others)
        kept_bytes = sum(max(0, part_bytes - meter.bytes) for meter in others)
        # Within its own part it gives way to nobody.
        return min(free, max(part - own, free - kept)), min(left, max(part_bytes - own_bytes, left - kept_bytes))
