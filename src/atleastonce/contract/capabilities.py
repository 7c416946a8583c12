"""What a broker keeps, as levels with limits; policies are checked against it before the first message."""

from __future__ import annotations

import enum

import msgspec


class Level(enum.Enum):
    """How a broker does something."""

    NATIVE = "native"
    EMULATED = "emulated"
    """By the broker together with the adapter, with the same observable behaviour; the docs say at what cost."""
    NONE = "none"


class Ability(msgspec.Struct, frozen=True):
    """A level and how far it goes.

    Attributes:
        level: how it is done.
        limit: the largest value in seconds; None for no practical limit.
    """

    level: Level
    limit: float | None = None

    def covers(self, value: float) -> bool:
        """Whether ``value`` seconds are within it."""
        return self.level is not Level.NONE and (self.limit is None or value <= self.limit)


NONE = Ability(Level.NONE)


class Counting(enum.Enum):
    """Who counts deliveries."""

    EXACT = "exact"
    APPROXIMATE = "approximate"
    NONE = "none"


class Leasing(enum.Enum):
    """What keeps a delivery with its worker."""

    EXTENDABLE = "extendable"
    """A deadline per message; `Subscription.extend` moves it."""
    FIXED = "fixed"
    """A deadline per message that nobody moves: what takes longer is handed out again."""
    SESSION = "session"
    """The connection or group membership: kept by being alive, lost as a whole."""
    NONE = "none"


class Ordering(enum.Enum):
    """Across which instances of a service order holds."""

    STREAM = "stream"
    """Per queue, as long as one consumer has it."""
    KEY = "key"
    """Per message key, across instances, in every channel: one instance has all of a key, until it is taken away."""
    GROUP = "group"
    """Per declared message group (FIFO)."""
    NONE = "none"


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What a broker keeps, as levels with limits. Policies are checked against it before the first message moves.

    Attributes:
        delay: redelivery after a delay (`Retry`, or a `DelayChannel` that the broker empties).
        publish_delay: `Outgoing.delay`.
        delivery_count: `Delivery.count`.
        counts_releases: whether a `Release` may raise that count.
        lease: what keeps a delivery.
        lease_seconds: the lease's first length; 0 for sessions.
        lease_limit: the longest that one delivery can be kept, by extending where that is possible, in seconds; None for no limit.
        settled_within: seconds from a settlement's answer until a crash can no longer undo it; 0 where the answer says that.
        order: where order holds.
        single_active: whether a channel can be declared with ``single_active``: one instance at a time has anything of it, and
            what one leaves behind is handed out before all that comes after it.
        single_file: whether of such a channel one message at a time is out, so that keys do not run in parallel.
        parts: whether such a channel with ``partitions`` is made of so many channels, each with its one reader: see `parts`.
        dead_letter: a net beneath ours that catches what crash-loops.
        dedupe: the broker drops a second publish of one id within ``limit`` seconds.
        addresses_groups: `Outgoing.destination` may be a `Source` of a topic.
        keeps_requests: whether what goes to a channel of requests is as safe there as in any; else an asker's time may run out.
        transactions: what is published and what is settled can be one step; see `Transacts`.
        replay, priority: optional abilities.
        max_message_bytes: body, key and headers together; None for no limit known.
        max_header_bytes: all header fields together.
        max_headers: how many fields; None for no limit.
        header_charset: ``"utf-8"``, or ``"ascii"`` where others are refused.
        binary_headers: whether ``bytes`` values survive.
        null_body: whether an absent body (a tombstone) is told from an empty one.
        max_batch: the most items that one call to the broker takes. Longer lists are split by the adapter; and the engine asks
            `Subscription.receive` for no more at once, and its publisher gives `Adapter.send` no longer list. Too small: both
            pay a round trip for so few.
        max_send: the longest list that the publisher gives `Adapter.send`, where that is not ``max_batch``: more, where the
            adapter has several calls of one list out at a time.
    """

    delay: Ability
    publish_delay: Ability = NONE
    delivery_count: Counting
    counts_releases: bool = False
    lease: Leasing
    lease_seconds: float = 0.0
    lease_limit: float | None = None
    settled_within: float = 0.0
    order: Ordering
    single_active: bool = False
    single_file: bool = False
    parts: bool = False
    dead_letter: Level = Level.NONE
    dedupe: Ability = NONE
    addresses_groups: bool = False
    keeps_requests: bool = True
    transactions: bool = False
    replay: bool = False
    priority: bool = False
    max_message_bytes: int | None = None
    max_header_bytes: int | None = None
    max_headers: int | None = None
    header_charset: str = "utf-8"
    binary_headers: bool = False
    null_body: bool = False
    max_batch: int = 1000
    max_send: int | None = None
