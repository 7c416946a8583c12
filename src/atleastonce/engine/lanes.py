"""Which delivery may run next. Pure and single-threaded: the loop owns them.

`FreeLanes` let any delivery run; `KeyedLanes` run one delivery of a key at a time, in the order received, keys in
parallel.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable
from itertools import islice
from typing import Protocol

from atleastonce.contract import Delivery
from atleastonce.errors import ends_process


class Lanes(Protocol):
    """Queued deliveries, and the rule which of them may start."""

    ordered: bool
    """Whether what may start depends on what has finished: only then `finish` has to be told."""
    closed: bool
    """While it is set nothing starts."""

    def offer(self, batch: Iterable[Delivery]) -> None:
        """Queue what was received, in order."""

    def take(self) -> Delivery | None:
        """Start the next delivery that may run; None if there is none now."""

    def take_some(self, most: int) -> list[Delivery]:
        """Start up to ``most`` that may run, in the order in which `take` would."""

    def again(self, batch: Iterable[Delivery]) -> None:
        """Let deliveries that were taken before start once more, ahead of everything queued."""

    def finish(self, delivery: Delivery) -> None:
        """A delivery has ended for good; repeated and unstarted ones are ignored.

        While it waits to run again in place, or for its copy to be confirmed, it is *not* finished: its key waits
        with it.
        """

    def holds(self, delivery: Delivery) -> bool:
        """Whether it was taken, has not finished, and nothing of its key can start before that."""

    def purge(self, unwanted: Callable[[Delivery], bool], *, in_order: bool = False) -> list[Delivery]:
        """Remove and return what has not started and is ``unwanted``, of each key in its order.

        With ``in_order``, what is behind something that runs of its key is removed and not returned: `freed` gives it once that
        has finished. Where a broker hands out again in the order of what was given back, it would overtake it.
        """

    def freed(self) -> list[Delivery]:
        """What `purge` kept back and need keep no longer; each once."""

    @property
    def ready(self) -> bool:
        """Whether `take` would start something now."""

    def __len__(self) -> int:
        """How many are queued, startable or not."""


class FreeLanes:
    """No order: whatever is next."""

    __slots__ = ("_queue", "closed")
    ordered = False

    def __init__(self) -> None:
        self.closed = False
        self._queue: deque[Delivery] = deque()

    def offer(self, batch: Iterable[Delivery]) -> None:
        self._queue.extend(batch)

    def take(self) -> Delivery | None:
        if not self._queue or self.closed:
            return None
        delivery = self._queue.popleft()
        delivery.tries += 1
        return delivery

    def take_some(self, most: int) -> list[Delivery]:
        queue = self._queue
        if not queue or self.closed:
            return []
        if len(queue) <= most:
            taken = list(queue)
            queue.clear()
        else:
            taken = [queue.popleft() for _ in range(most)]
        for delivery in taken:
            delivery.tries += 1
        return taken

    def again(self, batch: Iterable[Delivery]) -> None:
        self._queue.extendleft(reversed(list(batch)))

    def finish(self, delivery: Delivery) -> None:
        pass

    def holds(self, delivery: Delivery) -> bool:
        return False

    def purge(self, unwanted: Callable[[Delivery], bool], *, in_order: bool = False) -> list[Delivery]:
        removed = [delivery for delivery in self._queue if unwanted(delivery)]
        if removed:
            self._queue = deque(delivery for delivery in self._queue if not unwanted(delivery))
        return removed

    def freed(self) -> list[Delivery]:
        return []

    @property
    def ready(self) -> bool:
        return bool(self._queue) and not self.closed

    def __len__(self) -> int:
        return len(self._queue)


class Rules(Protocol):
    """What `KeyedLanes` asks of the consumer."""

    def key_of(self, delivery: Delivery) -> Hashable | None:
        """By what it is kept in line; None for in line with no other. May raise: see `unkeyed`."""

    def unkeyed(self, delivery: Delivery, error: BaseException) -> None:
        """Its key could not be had. It was not queued, and is for whoever is told to end."""

    def parked(self, key: Hashable, delivery: Delivery) -> bool:
        """Whether it may not start, because something of its key before it was given up. Then it is for whoever is asked to end,
        and keeps its key until it has."""


class KeyedLanes:
    """One lane for each key. A lane exists only while it holds or runs something, so memory follows the window, not
    the keys. Keys with something to do take turns.

    Messages without a key share no order with anything and run freely, each in its turn. One whose key cannot be had (`Rules`
    raised, or gave what cannot be hashed) is never queued: an error that is its own.

    Args:
        rules: asked for the key of each delivery once, when it is offered, and before each first start whether it may.
    """

    __slots__ = ("_again", "_behind", "_lanes", "_queued", "_ready", "_rules", "_running", "closed")
    ordered = True

    def __init__(self, rules: Rules) -> None:
        self.closed = False
        self._rules = rules
        self._lanes: dict[Hashable, deque[Delivery]] = {}  # what is queued, for each key that is queued or running
        self._running: dict[Delivery, Hashable] = {}  # started and not finished
        self._ready: deque[Hashable] = deque()  # keys that may start, and in between deliveries without a key
        self._again: deque[Delivery] = deque()
        self._behind: dict[Hashable, list[Delivery]] = {}  # purged, and not let go before what runs of their key
        self._queued = 0

    def offer(self, batch: Iterable[Delivery]) -> None:
        lanes, ready, key_of = self._lanes, self._ready, self._rules.key_of
        count = 0
        for delivery in batch:
            try:
                key = key_of(delivery)
                lane = lanes.get(key)
            except BaseException as error:  # a key function may be the user's; one bad message harms no other
                if ends_process(error):
                    raise
                self._rules.unkeyed(delivery, error)
                continue
            count += 1
            if key is None:
                ready.append(delivery)
            elif lane is not None:
                lane.append(delivery)
            else:
                lanes[key] = deque((delivery,))
                ready.append(key)
        self._queued += count

    def take(self) -> Delivery | None:
        if self.closed:
            return None
        if self._again:
            delivery = self._again.popleft()
            delivery.tries += 1
            return delivery
        while self._ready:
            key = self._ready.popleft()
            self._queued -= 1
            if isinstance(key, Delivery):
                key.tries += 1
                return key
            delivery = self._lanes[key].popleft()
            self._running[delivery] = key
            if not self._rules.parked(key, delivery):
                delivery.tries += 1
                return delivery
        return None

    def take_some(self, most: int) -> list[Delivery]:
        return list(islice(iter(self.take, None), most))

    def again(self, batch: Iterable[Delivery]) -> None:
        # Their keys are still theirs, so nothing of the same key can start before them or beside them.
        self._again.extendleft(reversed(list(batch)))

    def finish(self, delivery: Delivery) -> None:
        key = self._running.pop(delivery, None)
        if key is None:
            return
        if self._lanes[key]:
            self._ready.append(key)
        else:
            del self._lanes[key]

    def key(self, delivery: Delivery) -> Hashable | None:
        """Of a delivery that has started and not finished; None for one without a key."""
        return self._running.get(delivery)

    def holds(self, delivery: Delivery) -> bool:
        return delivery in self._running

    def purge(self, unwanted: Callable[[Delivery], bool], *, in_order: bool = False) -> list[Delivery]:
        again = [delivery for delivery in self._again if unwanted(delivery)]
        gone = {delivery: key for key, lane in self._lanes.items() for delivery in lane if unwanted(delivery)}
        free = {item for item in self._ready if isinstance(item, Delivery) and unwanted(item)}
        running = set(self._running.values()) if gone or self._behind else ()
        if again:
            self._again = deque(delivery for delivery in self._again if not unwanted(delivery))
        if gone or free:
            for key in dict.fromkeys(gone.values()):
                kept = deque(delivery for delivery in self._lanes[key] if delivery not in gone)
                if kept or key in running:
                    self._lanes[key] = kept
                else:
                    del self._lanes[key]
            self._ready = deque(
                item
                for item in self._ready
                if (item not in free if isinstance(item, Delivery) else item in self._lanes)
            )
            self._queued -= len(gone) + len(free)
        if in_order:
            for delivery, key in list(gone.items()):
                if key in running:
                    self._behind.setdefault(key, []).append(delivery)
                    del gone[delivery]
        elif self._behind:  # what is unwanted for another reason by now, too
            for key, waiting in list(self._behind.items()):
                gone.update((delivery, key) for delivery in waiting if unwanted(delivery))
                if kept_back := [delivery for delivery in waiting if delivery not in gone]:
                    self._behind[key] = kept_back
                else:
                    del self._behind[key]
        return [*again, *self.freed(), *gone, *free]

    def freed(self) -> list[Delivery]:
        if not self._behind:
            return []
        running = set(self._running.values())
        keys = [key for key in self._behind if key not in running]
        return [delivery for key in keys for delivery in self._behind.pop(key)]

    @property
    def ready(self) -> bool:
        return bool(self._again or self._ready) and not self.closed

    def __len__(self) -> int:
        return self._queued + len(self._again)
