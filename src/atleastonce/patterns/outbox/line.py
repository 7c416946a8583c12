"""The rows that a relay has read and not yet seen removed. Pure: no IO, no clock."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from atleastonce.stores.outbox import OutboxRow

Key: TypeAlias = tuple[str, bytes]


class Line:
    """Hands out rows in order, and of each key the next one only when the one before has ended. What has no key goes by its
    destination: any number at once, and more only when all of those have ended, for two lists that are published at one time mix.

    A row is *waiting* until `take` hands it out, then *out* until `end` or `again`; what has ended is still *held*, that is not
    to be read again, until it was `forget`-ed because the store has removed it.

    A `look` at the store takes time, and leaves out what is held when it begins. What is let go of meanwhile is then missing from
    the answer, which may have later rows of its key: `add` does not believe it for those, and the next look finds all of them.

    Args:
        ordered: False: no row has a key.
    """

    def __init__(self, *, ordered: bool = True) -> None:
        self._ordered = ordered
        self._ready: deque[OutboxRow] = deque()
        # For each key with a row that is ready or out: what waits behind that row, as a rule nothing.
        self._behind: dict[Key, deque[OutboxRow] | None] = {}
        self._held: dict[int, OutboxRow] = {}
        self._out: set[int] = set()
        self._keyless: set[int] = set()  # of what is held
        self._keyless_out: Counter[str] = Counter()  # for each destination
        self._waiting = 0
        self._looking = False
        # Since the look began.
        self._keys_let_go: set[Key] = set()
        self._dropped: list[Callable[[OutboxRow], bool]] = []

    def __len__(self) -> int:
        """How many rows are waiting."""
        return self._waiting

    @property
    def ready(self) -> bool:
        """Whether `take` would hand something out."""
        return bool(self._ready) if not self._keyless_out else any(self._may_go(row) for row in self._ready)

    @property
    def out(self) -> int:
        """How many rows are out."""
        return len(self._out)

    @property
    def held(self) -> list[int]:
        """The numbers of all rows that are not to be read again."""
        return list(self._held)

    def slots(self) -> set[int]:
        """Of what is out, or has ended and not been removed."""
        waiting = {row.seq for row in self._all_waiting()}
        return {row.slot for seq, row in self._held.items() if seq not in waiting}

    def look(self) -> list[int]:
        """Begin a look, whose answer is given to `add`; return the numbers that it leaves out. One that failed is begun anew."""
        self._end_look()
        self._looking = True
        return self.held

    def _end_look(self) -> None:
        self._looking = False
        self._keys_let_go.clear()
        self._dropped.clear()

    def add(self, rows: Iterable[OutboxRow]) -> int:
        """Queue what was read; return how many of them are new, and believed."""
        if self._dropped or self._keys_let_go:
            rows = [row for row in rows if not self._is_doubtful(row)]
        self._end_look()
        held, behind, ready, ordered = self._held, self._behind, self._ready, self._ordered
        before = len(held)
        for row in rows:
            seq = row.seq
            if seq in held:
                continue
            held[seq] = row
            if row.key is None or not ordered:
                self._keyless.add(seq)
                ready.append(row)
            elif (key := (row.destination, row.key)) not in behind:
                behind[key] = None
                ready.append(row)
            elif (waiting := behind[key]) is None:
                behind[key] = deque((row,))
            else:
                waiting.append(row)
        fresh = len(held) - before
        self._waiting += fresh
        return fresh

    def _is_doubtful(self, row: OutboxRow) -> bool:
        return self._key(row) in self._keys_let_go or any(unwanted(row) for unwanted in self._dropped)

    def take(self, most: int) -> list[OutboxRow]:
        """The next rows, at most ``most``."""
        ready = self._ready
        rows: list[OutboxRow] = []
        if not self._keyless_out:
            rows = [ready.popleft() for _ in range(min(most, len(ready)))]
        else:
            staying: list[OutboxRow] = []
            while ready and len(rows) < most:
                row = ready.popleft()
                (rows if self._may_go(row) else staying).append(row)
            ready.extendleft(reversed(staying))
        self._out.update([row.seq for row in rows])
        self._waiting -= len(rows)
        if self._keyless:
            self._keyless_out.update(row.destination for row in rows if row.seq in self._keyless)
        return rows

    def _may_go(self, row: OutboxRow) -> bool:
        return row.destination not in self._keyless_out or row.seq not in self._keyless

    def _come_back(self, row: OutboxRow) -> None:
        self._out.discard(row.seq)
        if row.seq in self._keyless:
            self._keyless.discard(row.seq)
            self._keyless_out[row.destination] -= 1
            if not self._keyless_out[row.destination]:
                del self._keyless_out[row.destination]

    def end(self, row: OutboxRow) -> None:
        """``row`` has ended; the next of its key may go. It is held until `forget`."""
        self.end_all((row,))

    def end_all(self, rows: Sequence[OutboxRow]) -> None:
        """`end`, for each of ``rows``."""
        self._out.difference_update([row.seq for row in rows])
        if self._keyless:
            for row in rows:
                self._come_back(row)
        if not self._ordered:
            return
        let_go = self._behind.pop
        for row in rows:
            if row.key is None:
                continue
            key = (row.destination, row.key)
            if waiting := let_go(key, None):
                self._ready.append(waiting.popleft())
                self._behind[key] = waiting or None

    def again(self, row: OutboxRow) -> None:
        """``row`` is to be read again, and with it what waits behind it."""
        self._come_back(row)
        self._held.pop(row.seq, None)
        key = self._key(row)
        if key is not None:
            if self._looking:
                self._keys_let_go.add(key)
            for each in self._behind.pop(key, None) or ():
                self._waiting -= 1
                del self._held[each.seq]

    def forget(self, seqs: Iterable[int]) -> None:
        """The store has removed or parked these."""
        for seq in seqs:
            self._held.pop(seq, None)

    def drop(self, unwanted: Callable[[OutboxRow], bool]) -> None:
        """Let go of what waits and is ``unwanted``: of a destination that is away, of a slot that is another's. What is out or has
        ended is not touched. A key whose rows are unwanted is dropped as a whole, for all are of one destination and slot."""
        if self._looking:
            self._dropped.append(unwanted)
        gone = [row for row in self._all_waiting() if unwanted(row)]
        if not gone:
            return
        numbers = {row.seq for row in gone}
        self._ready = deque(row for row in self._ready if row.seq not in numbers)
        for row in gone:
            del self._held[row.seq]
        self._keyless -= numbers
        self._waiting -= len(gone)
        out = {self._key(self._held[seq]) for seq in self._out if seq in self._held}
        for key in {key for row in gone if (key := self._key(row)) is not None}:
            if key in out:  # whose end finds nothing behind it
                self._behind[key] = None
            else:
                del self._behind[key]

    def _all_waiting(self) -> Iterable[OutboxRow]:
        yield from self._ready
        for waiting in self._behind.values():
            if waiting:
                yield from waiting

    def _key(self, row: OutboxRow) -> Key | None:
        if not self._ordered or row.key is None:
            return None
        return row.destination, row.key
