"""What an unclean end leaves behind in a partition's commit, and what the next reader makes of it. Pure; no clock of its own.

Kafka does not count deliveries. So a reader notes in the commit's metadata that it begins, *before* it hands out the first
record, and takes the note back when it leaves in good order. A note that is found tells of a reader that died. One such end
may be an accident: the next reader goes on at full speed, but reserves what it hands out, a window at a time, so that after a
second one it is known which records were in flight. They are handed out with a count, and what is done with them is decided
where such counts are judged.

A record that is known to have ended its process in good order (`SystemExit`) leaves a note as well, up to itself.

A reader whose window is counted has one message out at a time, reserves each, and its counts are exact.
"""

from __future__ import annotations

from atleastonce.contract import Window
from atleastonce.offsets import Mark

CAREFUL_RECORDS = 100_000
"""How far beyond an unclean end records are reserved. Fewer than run between two commits: a message that ends the process takes
more processes with it before it is suspected. More: a reservation for each window, a round trip, for longer."""

CAREFUL_SECONDS = 300.0
"""The longest that records are reserved after an unclean end, for partitions on which little comes."""


class Vigil:
    """One assignment of one partition.

    Args:
        start: the committed offset; None where nothing was committed.
        prior: the mark found beside it.
        window: what may be in flight.
        now: seconds, of any clock.
    """

    __slots__ = (
        "_carefully_below",
        "_carefully_until",
        "_count",
        "_counted",
        "_died",
        "_out",
        "_prior",
        "_suspects_below",
        "_window",
        "reserved",
    )

    def __init__(self, start: int | None, prior: Mark | None, window: Window, now: float) -> None:
        self.reserved: int | None = None
        """Offsets below this may be handed out; None before the first reservation."""
        self._prior = prior
        self._window = window.messages
        self._counted = window.counted
        self._out: tuple[int, int] | None = None  # if counted: the offset that is out, and its count
        self._died = -1  # the last offset that ended a process in good order
        self._carefully_until = now + CAREFUL_SECONDS
        self._carefully_below = self._suspects_below = 0
        self._count = 1
        if prior is not None and start is not None:
            self._count += prior.begun
            self._carefully_below = start + CAREFUL_RECORDS
            # An end that is not known: as much as can have been in flight.
            self._suspects_below = prior.end if prior.end > start else start + window.messages

    def count(self, offset: int) -> int:
        """`Delivery.count` of the record at ``offset``; 0 where nothing is known."""
        if self._counted:
            return self._count if offset < self._suspects_below else 1
        return self._count if offset < self._suspects_below else 0

    @property
    def suspects_below(self) -> int:
        """Records below this have a count."""
        return 2**63 if self._counted else self._suspects_below

    def unreserved(self, last: int) -> bool:
        """Whether the record at ``last`` may not be handed out before `reserve` is confirmed."""
        return self.reserved is None or last >= self.reserved

    def reserve(self, offset: int, last: int, now: float) -> tuple[Mark, int]:
        """The mark to commit with ``offset`` before the records up to ``last`` are handed out, and the value of `reserved` once
        that is confirmed."""
        if self._counted:
            self._out = (last, self.count(last))
            return Mark(self._out[1], last + 1), last + 1
        if not self._careful(offset, now):
            return Mark(1, offset), 2**63
        end = max(last + 1 + self._window, self._suspects_below)
        return Mark(self._running(offset), end), end

    def died(self, offset: int) -> None:
        """The record at ``offset`` ends the process, and is given back: the mark that the reader leaves with tells of it."""
        self._died = max(self._died, offset)

    def mark(self, offset: int, now: float, *, clean: bool) -> Mark | None:
        """The mark of a commit of ``offset``; ``clean`` if the reader leaves in good order."""
        if clean and offset <= self._died:
            # Of several that end processes in turns none may take the other's count back: those of before stay in.
            again = offset < self._suspects_below
            end = self._died + 1
            return Mark(self._count, max(end, self._suspects_below)) if again else Mark(1, end)
        if self._counted:
            return self._mark_counted(offset, clean)
        if self.reserved is None or clean:  # nothing was handed out, or what was ended well: as it was found
            below = max(self._suspects_below, self._carefully_below)
            if offset >= below or now >= self._carefully_until:
                return None
            # Once all that is known to have been in hand is done, the ends in a row are over. As found, its own end behind it, the
            # mark would be read as one whose end is not known, and make suspects of a window.
            return self._prior if self._count <= 2 or offset < self._suspects_below else Mark(1, offset)
        if not self._careful(offset, now):
            return Mark(1, offset)
        return Mark(self._running(offset), self.reserved)

    def _mark_counted(self, offset: int, clean: bool) -> Mark | None:
        if self._out is None or offset > self._out[0]:
            return self._prior if offset < self._suspects_below else None
        count = self._out[1] - 1 if clean else self._out[1]
        return Mark(count, self._out[0] + 1) if count else None

    def _careful(self, offset: int, now: float) -> bool:
        return offset < self._carefully_below and now < self._carefully_until

    def _running(self, offset: int) -> int:
        """How many ends in a row this reader's own would be, at ``offset``."""
        known = self._prior is not None and self._count > 2
        return self._count if offset < (self._suspects_below if known else self._carefully_below) else 1
