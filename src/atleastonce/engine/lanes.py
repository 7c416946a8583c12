"""Which delivery may run next. Pure and single-threaded: the loop owns them.

`FreeLanes` let any delivery run; `KeyedLanes` run one delivery of a key at a time, in the order received, keys in
parallel.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable
from typing import Protocol

from atleastonce.contract import Delivery


class Lanes(Protocol):
    """Queued deliveries, and the rule which of them may start."""

    def offer(self, batch: Iterable[Delivery]) -> None:
        """Queue what was received, in order."""

    def take(self) -> Delivery | None:
        """Start the next delivery that may run; None if there is none now."""

    def again(self, batch: Iterable[Delivery]) -> None:
        """Let deliveries that were taken before start once more, ahead of everything queued."""

    def finish(self, delivery: Delivery) -> None:
        """A delivery has ended for good; repeated and unstarted ones are ignored.

        While it waits to run again in place, or for its copy to be confirmed, it is *not* finished: its key waits
        with it.
        """

    def purge(self, unwanted: Callable[[Delivery], bool]) -> list[Delivery]:
        """Remove and return what has not started and is ``unwanted``."""

    def __len__(self) -> int:
        """How many are queued, startable or not."""


class FreeLanes:
    """No order: whatever is next."""

    __slots__ = ("_queue",)

    def __init__(self) -> None:
        self._queue: deque[Delivery] = deque()

    def offer(self, batch: Iterable[Delivery]) -> None:
        self._queue.extend(batch)

    def take(self) -> Delivery | None:
        if not self._queue:
            return None
        delivery = self._queue.popleft()
        delivery.tries += 1
        return delivery

    def again(self, batch: Iterable[Delivery]) -> None:
        self._queue.extendleft(reversed(list(batch)))

    def finish(self, delivery: Delivery) -> None:
        pass

    def purge(self, unwanted: Callable[[Delivery], bool]) -> list[Delivery]:
        removed = [delivery for delivery in self._queue if unwanted(delivery)]
        if removed:
            self._queue = deque(delivery for delivery in self._queue if not unwanted(delivery))
        return removed

    def __len__(self) -> int:
        return len(self._queue)


class KeyedLanes:
    """One lane for each key. A lane exists only while it holds or runs something, so memory follows the window, not
    the keys.

    Messages without a key share no order with anything and run freely.
    """

    __slots__ = ("_free", "_key", "_lanes", "_queued", "_ready", "_running")

    def __init__(self, key: Callable[[Delivery], Hashable | None]) -> None:
        self._key = key
        self._lanes: dict[Hashable, deque[Delivery]] = {}  # queued; a key that is here is running or stands in _ready
        self._running: dict[Hashable, Delivery] = {}
        self._ready: deque[Hashable] = deque()
        self._free = FreeLanes()
        self._queued = 0

    def offer(self, batch: Iterable[Delivery]) -> None:
        for delivery in batch:
            key = self._key(delivery)
            if key is None:
                self._free.offer((delivery,))
                continue
            self._queued += 1
            lane = self._lanes.get(key)
            if lane is None:
                self._lanes[key] = deque((delivery,))
                if key not in self._running:
                    self._ready.append(key)
            else:
                lane.append(delivery)

    def take(self) -> Delivery | None:
        if not self._ready:
            return self._free.take()
        key = self._ready.popleft()
        lane = self._lanes[key]
        delivery = self._running[key] = lane.popleft()
        if not lane:
            del self._lanes[key]
        self._queued -= 1
        delivery.tries += 1
        return delivery

    def again(self, batch: Iterable[Delivery]) -> None:
        # Their keys are still theirs, so nothing of the same key can start before them or beside them.
        self._free.again(batch)

    def finish(self, delivery: Delivery) -> None:
        key = self._key(delivery)
        if key is not None and self._running.get(key) is delivery:
            del self._running[key]
            if key in self._lanes:
                self._ready.append(key)

    def purge(self, unwanted: Callable[[Delivery], bool]) -> list[Delivery]:
        removed: list[Delivery] = []
        for key, lane in list(self._lanes.items()):
            gone = [delivery for delivery in lane if unwanted(delivery)]
            if not gone:
                continue
            removed += gone
            kept = deque(delivery for delivery in lane if not unwanted(delivery))
            if kept:
                self._lanes[key] = kept
                continue
            del self._lanes[key]
            if key not in self._running:
                self._ready.remove(key)
        self._queued -= len(removed)
        return removed + self._free.purge(unwanted)

    def __len__(self) -> int:
        return self._queued + len(self._free)
