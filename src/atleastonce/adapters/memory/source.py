"""One source's messages and their life: ready, delayed, leased, blocked behind their key, gone. No IO, no clock."""

from __future__ import annotations

import enum
import math
from collections import deque
from collections.abc import Callable
from heapq import heapify, heappop, heappush

from atleastonce.contract import OK, STALE, Ack, Backlog, Code, Outcome, Release, Retry, Verdict, rejected
from atleastonce.message import Message

_SLACK = 64
"""Dead heap items tolerated beyond as many as live ones. Smaller only compacts tiny heaps more often."""


class State(enum.Enum):
    READY = enum.auto()
    DELAYED = enum.auto()
    LEASED = enum.auto()
    BLOCKED = enum.auto()
    """Behind an earlier message of its key, on a FIFO channel."""
    GONE = enum.auto()


class Entry:
    """A message as one source holds it.

    Attributes:
        due: when it first may be received; its place in the queue, to which a release returns it.
        visible: when it may be received next: ``due``, the end of a retry's delay, or of a lease.
        claim: rises with each hand-out, and tells the current lease from an earlier one.
    """

    __slots__ = ("claim", "count", "due", "message", "published", "seq", "state", "visible")

    def __init__(self, seq: int, message: Message, published: float, due: float) -> None:
        self.seq = seq
        self.message = message
        self.published = published
        self.due = due
        self.visible = due
        self.count = 0
        self.claim = 0
        self.state = State.READY


class Lease:
    """The token of one delivery: the entry, which claim of it, and how it was settled."""

    __slots__ = ("claim", "entry", "outcome")

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.claim = entry.claim
        self.outcome: Outcome | None = None

    @property
    def current(self) -> bool:
        """Whether nobody else was given the message since. A lease that has merely ended is still ours to settle."""
        return self.entry.claim == self.claim and self.entry.state is not State.GONE


class SourceState:
    """All messages of one source.

    Attributes:
        watchers: called when a waiting reader should look again.
        alarm: when waiting readers will look again by themselves: whatever comes earlier has to wake them. Minus
            infinity while nobody waits, so that a batch of messages wakes readers once.
    """

    def __init__(self, name: str, fifo: bool) -> None:
        self.name = name
        self.fifo = fifo
        self.deleted = False
        self.watchers: set[Callable[[], None]] = set()
        self.alarm = -math.inf
        self._live: dict[int, Entry] = {}
        self._ready: list[tuple[float, int, Entry]] = []
        self._timed: list[tuple[float, int, Entry]] = []
        self._lanes: dict[bytes, deque[Entry]] = {}
        self._leased = 0
        self._delayed = 0

    # ------------------------------------------------------------------------------------------------ coming and going

    def add(self, entry: Entry, now: float) -> None:
        self._live[entry.seq] = entry
        key = entry.message.key
        if self.fifo and key is not None:
            lane = self._lanes.setdefault(key, deque())
            lane.append(entry)
            if len(lane) > 1:
                entry.state = State.BLOCKED
                return
        self._place(entry, entry.due, now)

    def claim(self, limit: int, room: int, lease: float, now: float) -> list[Lease]:
        """Hand out up to ``limit`` ready messages, the longest ready first, until they hold ``room`` bytes."""
        self.promote(now)
        found: list[Lease] = []
        until = now + lease
        while self._ready and len(found) < limit and room > 0:
            visible, seq, entry = heappop(self._ready)
            if entry.state is not State.READY or entry.visible != visible:
                continue
            entry.state = State.LEASED
            entry.visible = until
            entry.count += 1
            entry.claim += 1
            room -= entry.message.size
            heappush(self._timed, (until, seq, entry))
            found.append(Lease(entry))
        self._leased += len(found)
        if found:
            self._wake(until)
        return found

    def settle(self, lease: Lease, verdict: Verdict, now: float) -> Outcome:
        """Apply ``verdict``. The first one wins; a lease that another reader has since taken over is stale."""
        if lease.outcome is not None:
            return lease.outcome
        entry = lease.entry
        if not lease.current or self.deleted:
            lease.outcome = STALE
            return STALE
        if isinstance(verdict, Ack):
            self._leave(entry)
            self._remove(entry, now)
        elif isinstance(verdict, Retry):
            self._leave(entry)
            self._place(entry, now + max(0.0, verdict.delay), now)
        elif isinstance(verdict, Release):
            self._leave(entry)
            entry.count -= not verdict.died
            self._place(entry, entry.due, now)
        else:
            return rejected(Code.INVALID, "memory has no dead-letter net of its own; copy the message, then Ack")
        lease.outcome = OK
        return OK

    def extend(self, lease: Lease, seconds: float, now: float) -> Outcome:
        entry = lease.entry
        if lease.outcome is not None or not lease.current or self.deleted:
            return STALE
        self._leave(entry)
        entry.state = State.LEASED
        entry.visible = now + seconds
        self._leased += 1
        self._push_timed(entry)
        return OK

    def purge(self, now: float) -> int:
        """Remove all that nobody holds: ready, delayed and blocked."""
        self.promote(now)
        doomed = [entry for entry in self._live.values() if entry.state is not State.LEASED]
        for entry in doomed:
            entry.state = State.GONE
            del self._live[entry.seq]
        for key in list(self._lanes):
            if kept := deque(entry for entry in self._lanes[key] if entry.state is not State.GONE):
                self._lanes[key] = kept
            else:
                del self._lanes[key]
        self._ready.clear()
        self._delayed = 0
        return len(doomed)

    # ------------------------------------------------------------------------------------------------------- looking

    def browse(self, limit: int, now: float) -> list[Entry]:
        self.promote(now)
        waiting = (e for e in self._live.values() if e.state in (State.READY, State.BLOCKED))
        return [entry for entry, _ in zip(waiting, range(limit), strict=False)]

    def backlog(self, now: float) -> Backlog:
        oldest = self.browse(1, now)
        return Backlog(
            waiting=len(self._live) - self._leased - self._delayed,
            in_flight=self._leased,
            delayed=self._delayed,
            oldest_age=max(0.0, now - oldest[0].published) if oldest else None,
        )

    def next_time(self) -> float:
        """When the next delay or lease ends, infinite if none does: the time at which the caller promises to look."""
        while self._timed and not self._is_timed(self._timed[0]):
            heappop(self._timed)
        self.alarm = self._timed[0][0] if self._timed else math.inf
        return self.alarm

    def notify(self) -> None:
        self.alarm = -math.inf
        for watcher in tuple(self.watchers):
            watcher()

    def promote(self, now: float) -> None:
        """Make ready what is due and what has outlived its lease."""
        timed = self._timed
        while timed and (timed[0][0] <= now or not self._is_timed(timed[0])):
            item = heappop(timed)
            if self._is_timed(item):
                self._leave(item[2])
                item[2].state = State.READY
                heappush(self._ready, item)
        if len(timed) > _SLACK + 2 * (self._leased + self._delayed):
            timed[:] = filter(self._is_timed, timed)
            heapify(timed)
        if len(self._ready) > _SLACK + 2 * len(self._live):
            self._ready[:] = [i for i in self._ready if i[2].state is State.READY and i[2].visible == i[0]]
            heapify(self._ready)

    # ------------------------------------------------------------------------------------------------------ transitions

    @staticmethod
    def _is_timed(item: tuple[float, int, Entry]) -> bool:
        visible, _, entry = item
        return entry.visible == visible and (entry.state is State.LEASED or entry.state is State.DELAYED)

    def _leave(self, entry: Entry) -> None:
        """Take ``entry`` out of the count of its state; its heap items die by themselves."""
        if entry.state is State.LEASED:
            self._leased -= 1
        elif entry.state is State.DELAYED:
            self._delayed -= 1

    def _place(self, entry: Entry, visible: float, now: float) -> None:
        entry.visible = visible
        if visible <= now:
            entry.state = State.READY
            heappush(self._ready, (visible, entry.seq, entry))
            self._wake(now)
        else:
            entry.state = State.DELAYED
            self._delayed += 1
            self._push_timed(entry)

    def _push_timed(self, entry: Entry) -> None:
        heappush(self._timed, (entry.visible, entry.seq, entry))
        self._wake(entry.visible)

    def _wake(self, when: float) -> None:
        if when < self.alarm:
            self.notify()

    def _remove(self, entry: Entry, now: float) -> None:
        entry.state = State.GONE
        del self._live[entry.seq]
        key = entry.message.key
        if self.fifo and key is not None:
            lane = self._lanes[key]
            lane.popleft()  # only a lane's head is ever handed out
            if lane:
                self._place(lane[0], lane[0].due, now)
            else:
                del self._lanes[key]
