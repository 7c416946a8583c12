"""Which delivery may run next. Pure and single-threaded: the loop owns them.

`FreeLanes` let any delivery run; `KeyedLanes` run one delivery of a key at a time, in the order received, keys in
parallel.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from typing import Protocol

from atleastonce.contract import Delivery

log = logging.getLogger("atleastonce.engine")


class Lanes(Protocol):
    """Queued deliveries, and the rule which of them may start."""

    ordered: bool
    """Whether what may start depends on what has finished: only then `finish` has to be told."""

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

    @property
    def ready(self) -> bool:
        """Whether `take` would start something now."""

    def __len__(self) -> int:
        """How many are queued, startable or not."""


class FreeLanes:
    """No order: whatever is next."""

    __slots__ = ("_queue",)
    ordered = False

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

    @property
    def ready(self) -> bool:
        return bool(self._queue)

    def __len__(self) -> int:
        return len(self._queue)


class KeyedLanes:
    """One lane for each key. A lane exists only while it holds or runs something, so memory follows the window, not
    the keys. Keys with something to do take turns.

    Messages without a key share no order with anything and run freely, each in its turn. So do those whose key cannot
    be had (``key`` raised, or gave what cannot be hashed): an error that is their own.

    Args:
        key: asked once for each delivery, when it is offered.
    """

    __slots__ = ("_again", "_key", "_lanes", "_queued", "_ready", "_running")
    ordered = True

    def __init__(self, key: Callable[[Delivery], Hashable | None]) -> None:
        self._key = key
        self._lanes: dict[Hashable, deque[Delivery]] = {}  # what is queued, for each key that is queued or running
        self._running: dict[Delivery, Hashable] = {}  # started and not finished
        self._ready: deque[Hashable] = deque()  # keys that may start, and in between deliveries without a key
        self._again: deque[Delivery] = deque()
        self._queued = 0

    def offer(self, batch: Iterable[Delivery]) -> None:
        for delivery in batch:
            self._queued += 1
            key = self._key_of(delivery)
            if key is None:
                self._ready.append(delivery)
            elif (lane := self._lanes.get(key)) is not None:
                lane.append(delivery)
            else:
                self._lanes[key] = deque((delivery,))
                self._ready.append(key)

    def _key_of(self, delivery: Delivery) -> Hashable | None:
        try:
            key = self._key(delivery)
            hash(key)
        except Exception as error:  # noqa: BLE001 - a key function may be the user's; one bad message harms no other
            log.warning("%s has no usable key (%r); it runs without order", delivery.message.id, error)
            return None
        return key

    def take(self) -> Delivery | None:
        if self._again:
            delivery = self._again.popleft()
        elif self._ready:
            key = self._ready.popleft()
            if isinstance(key, Delivery):
                delivery = key
            else:
                delivery = self._lanes[key].popleft()
                self._running[delivery] = key
            self._queued -= 1
        else:
            return None
        delivery.tries += 1
        return delivery

    def again(self, batch: Iterable[Delivery]) -> None:
        # Their keys are still theirs, so nothing of the same key can start before them or beside them.
        self._again.extendleft(reversed(list(batch)))

    def finish(self, delivery: Delivery) -> None:
        if delivery not in self._running:
            return
        key = self._running.pop(delivery)
        if self._lanes[key]:
            self._ready.append(key)
        else:
            del self._lanes[key]

    def purge(self, unwanted: Callable[[Delivery], bool]) -> list[Delivery]:
        again = [delivery for delivery in self._again if unwanted(delivery)]
        gone = {delivery: None for lane in self._lanes.values() for delivery in lane if unwanted(delivery)}
        gone.update((item, None) for item in self._ready if isinstance(item, Delivery) and unwanted(item))
        if again:
            self._again = deque(delivery for delivery in self._again if not unwanted(delivery))
        if gone:
            running = set(self._running.values())
            for key, lane in list(self._lanes.items()):
                self._lanes[key] = kept = deque(delivery for delivery in lane if delivery not in gone)
                if not kept and key not in running:
                    del self._lanes[key]
            self._ready = deque(
                item
                for item in self._ready
                if (item not in gone if isinstance(item, Delivery) else item in self._lanes)
            )
            self._queued -= len(gone)
        return [*gone, *again]

    @property
    def ready(self) -> bool:
        return bool(self._again or self._ready)

    def __len__(self) -> int:
        return self._queued + len(self._again)
