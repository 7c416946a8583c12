"""The rules of an ordered consumer's lanes: whose turn a message waits for, and what follows a message that was given up."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from atleastonce.bound import Bound
from atleastonce.contract import Delivery
from atleastonce.engine.decision import Decision
from atleastonce.engine.lanes import KeyedLanes
from atleastonce.errors import DecodeError, KeyParked
from atleastonce.patterns.ordering import KeyOf, Ordered, Parked, as_flaw, shown

Ended = Callable[[Delivery, Decision], None]

# What a run can end with after which a parked key goes on.
_HANDLED = frozenset({"done", "discarded"})


class Lines:
    """One ordered consumer. Each of its readers has lanes of its own; a key that is parked is parked for all of them.

    Args:
        bound: the consumer.
        order: as its user wrote it.

    Attributes:
        parked: the keys whose head was given up; always empty where nothing is parked.
        parks: whether they are noted at all.
    """

    def __init__(self, bound: Bound, order: Ordered) -> None:
        self.parked = Parked()
        self.parks = order.park
        self._bound = bound
        self._key_of = bound.consumer.key_of()

    def line(self) -> Line:
        """The rules of one reader's lanes."""
        return Line(self, self._bound, self._key_of)


class Line:
    """`Rules` of one reader.

    Attributes:
        lanes: that keep them.
        ended: to be set to the reader's own: told how what never starts has ended.
    """

    def __init__(self, lines: Lines, bound: Bound, key_of: KeyOf) -> None:
        self.key_of = key_of
        self.lanes = KeyedLanes(self)
        self.ended: Ended = lambda _delivery, _decision: None
        self._parked = lines.parked
        self._bound = bound
        self.judged = self._judged if lines.parks else None

    def unkeyed(self, delivery: Delivery, error: BaseException) -> None:
        """Poison, for this message alone."""
        flaw = as_flaw(error)
        undecodable = isinstance(flaw, DecodeError)
        self.ended(
            delivery, self._bound.failed(delivery, flaw) if undecodable else self._bound.park(delivery, "key", flaw)
        )

    def parked(self, key: Hashable, delivery: Delivery) -> bool:
        """See `Rules.parked`."""
        if not self._parked:
            return False
        head = self._parked.behind(key, delivery.message.id)
        if head is None:
            return False
        error = KeyParked(f"{head} of its key {shown(key)} was given up before it")
        self.ended(delivery, self._bound.condemned(delivery, error, "parked"))
        return True

    def _judged(self, delivery: Delivery, name: str) -> None:
        """How a run of ``delivery`` has ended."""
        if name != "dead" and (name not in _HANDLED or not self._parked):
            return
        key = self.lanes.key(delivery)
        if key is None:
            return
        if name == "dead":
            self._parked.park(key, delivery.message.id)
        else:
            self._parked.done(key, delivery.message.id)
