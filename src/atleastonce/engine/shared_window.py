"""One window for several readers: what all of them have in flight together never exceeds what one consumer may have.

What a retry channel's reader has received may wait there for minutes, and so may what a slow handler keeps waiting behind it. So
each reader has a *part* that it may always fill, in the end: the reader of the source takes more while others leave theirs empty,
and takes nothing new while one of them waits for room within its own part.

A message that there is no room for stands in *line*, and what comes after it takes none of the room that it waits for. What is
held until it is due makes room for it.
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
        readers: how many there will be, the one of the source included, and not who comes as a guest (`Guest`).

    Attributes:
        part: what each reader may always have.
        whole: the limit of all.
        meters: the accounts of those that there are.
        line: who waits for the room of one message, and of how many bytes; who came first is first.
        largest: the size to reckon with for a message that has not come yet.
    """

    __slots__ = ("largest", "line", "meters", "part", "readers", "whole")

    def __init__(self, limit: Window, readers: int) -> None:
        self.readers = readers
        self.whole = msgspec.structs.replace(limit, messages=max(limit.messages, readers))
        self.part = msgspec.structs.replace(
            limit, messages=self.whole.messages // readers, bytes=max(1, limit.bytes // readers)
        )
        self.meters: list[PartMeter] = []
        self.line: dict[PartMeter, int] = {}
        self.largest = ASSUMED_BYTES

    def of_source(self, again: Callable[[], None]) -> PartMeter:
        """The account of the source's reader. ``again`` is called when there is room after it had found none."""
        whole = self.whole
        # One message of each other reader always fits: it could not even look for what is due otherwise.
        limit = msgspec.structs.replace(whole, messages=whole.messages - (self.readers - 1))
        return self._joined(PartMeter(self, limit, again, self.part.messages))

    def of_other(self, again: Callable[[], None]) -> PartMeter:
        """The account of another reader, which has no more than its part."""
        return self._joined(PartMeter(self, self.part, again, 1, reserved=1))

    def _joined(self, meter: PartMeter) -> PartMeter:
        self.meters.append(meter)
        return meter

    def look(self, changed: PartMeter) -> None:
        """``changed`` has less in flight, or wants less: whoever waits for room is told, who came first first."""
        for meter in [*self.line, *(meter for meter in self.meters if meter not in self.line)]:
            if (meter.waits or meter.held_up) and meter is not changed:
                meter.again()

    def besides(self, meter: PartMeter) -> tuple[int, int]:
        """Messages and bytes that are not for ``meter``: what others have, and what they wait for who came before it."""
        messages = size = 0
        for other in self.meters:
            if other is not meter:
                messages += max(other.debit, other.reserved)
                size += other.debit_bytes
        for other, wanted in self.line.items():
            if other is meter:
                break
            messages += not other.reserved
            size += wanted
        return messages, size

    def made(self, meter: PartMeter, size: int) -> bool:
        """Have what is held until it is due make room for ``size`` bytes, if ``meter`` is the first in line. Whether some did."""
        if next(iter(self.line)) is not meter:
            return False
        others = [other for other in self.meters if other is not meter]
        over = sum(other.debit_bytes for other in self.meters) + size - self.whole.bytes
        if size > self.whole.bytes:  # alone, also beside messages without a byte
            over = max(over, 1 + sum(other.debit_bytes for other in others))
        made = False
        for other in others:
            if over > 0 and other.retreat is not None:
                messages, freed = other.retreat(over)
                WindowMeter.give(other, messages, freed)  # not to be told to others: it has been made for one
                over -= freed
                made = made or messages > 0
        return made


class PartMeter(WindowMeter):
    """One reader's account of a `SharedWindow`. The messages that it asks for are debited while the answer is awaited: meanwhile
    others ask, too. Their bytes are not: most of them may never come.

    Args:
        shared: the window.
        limit: of this reader alone.
        again: called when there is room after there was none.
        least: how many it asks for after it has found nothing. What is asked for in vain is room that the others do not have.
        reserved: messages of its own that nobody else has while it has fewer.
    """

    __slots__ = ("_asked", "_known", "_least", "_shared", "_step", "again", "reserved")

    def __init__(
        self, shared: SharedWindow, limit: Window, again: Callable[[], None], least: int, *, reserved: int = 0
    ) -> None:
        super().__init__(limit)
        self.again = again
        self.reserved = reserved
        self._shared = shared
        self._asked = 0
        self._known = -1  # its largest message of late, as the others reckon with it
        self._least = self._step = least

    @property
    def debit(self) -> int:
        """Messages that the others do not have."""
        return self.messages

    @property
    def debit_bytes(self) -> int:
        """Bytes that the others do not have."""
        return self.bytes

    def room(self) -> int:
        """See `WindowMeter.room`."""
        if self.held_up:
            return 0
        if len(self._shared.meters) == 1:
            return super().room()
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
        if fewer and len(self._shared.meters) > 1:
            self._shared.look(self)

    def fits(self, messages: int, size: int) -> bool:
        """See `WindowMeter.fits`."""
        limit, shared = self.limit, self._shared
        if self.messages + messages > limit.messages or self.bytes + size > limit.bytes:
            return False
        if len(shared.meters) == 1:
            return True
        others, their_bytes = shared.besides(self)
        whole = shared.whole
        return self.messages + messages + others <= whole.messages and self.bytes + size + their_bytes <= whole.bytes

    def fits_alone(self, size: int) -> bool:
        """See `WindowMeter.fits_alone`."""
        if not super().fits_alone(size):
            return False
        shared = self._shared
        others, their_bytes = shared.besides(self)
        if size <= shared.whole.bytes:
            return others < shared.whole.messages and size + their_bytes <= shared.whole.bytes
        return not their_bytes and not any(meter.debit for meter in shared.meters)

    def line_up(self, size: int) -> bool:
        """See `WindowMeter.line_up`."""
        shared = self._shared
        if len(shared.meters) == 1:
            return False
        shared.line[self] = size
        return shared.made(self, size)

    def step_out(self) -> None:
        """See `WindowMeter.step_out`."""
        if self._shared.line.pop(self, None) is not None:
            self._shared.look(self)

    def take(self, messages: int, size: int, largest: int) -> bool:
        """See `WindowMeter.take`."""
        self._asked = 0
        if self._shared.line:
            self._shared.line.pop(self, None)  # what it has now is what it waited for
        first = super().take(messages, size, largest)
        if (known := self.largest) != self._known:
            self._known = known
            self._shared.largest = max(meter._known for meter in self._shared.meters) or 1
        return first

    def give(self, messages: int, size: int) -> None:
        """See `WindowMeter.give`."""
        self.messages -= messages
        self.bytes -= size
        if len(self._shared.meters) > 1:
            self._shared.look(self)

    @property
    def low(self) -> bool:
        """See `WindowMeter.low`."""
        if len(self._shared.meters) == 1:
            return super().low
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
            free -= meter.debit + meter._asked or 1
            size = meter.debit_bytes
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
