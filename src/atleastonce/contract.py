"""THE adapter contract: what every broker adapter implements, and all that the engine, patterns and commands know of
a broker.

An adapter moves *lists* of messages and settlements. It does not retry, back off, batch over time, limit, order, time
out or log
per message: that exists once, above it. Whoever writes an adapter implements `Adapter` and `Subscription`, states its
`Capabilities`, and runs `atleastonce.testing.conformance` against it.

Rules that hold for every method
    **Thread.** All methods are called on one running event loop, and must not block it. A client that blocks gets
    threads of the
    adapter's own; they exchange lists with the loop (a deque and one coalesced ``call_soon_threadsafe``), never
    single messages.

    **Per item.** `send`, `settle` and `extend` return one `Outcome` for each item, in order, and do not raise for an
    item's sake.
    They raise only where nothing was attempted (`Closed`), or `ConnectionLost` from `receive`.

    **Unknown is an answer.** An item whose reply was lost, timed out or was cut off by a dying connection is
    ``unknown``: never
    ``ok`` (that loses messages), never ``rejected`` (that hides a copy). The caller repeats it with the same message
    id.

    **Cancellation.** A cancelled `receive` loses nothing: what had arrived is handed out by the next `receive`, or is
    released by
    `close`. A cancelled `send` or `settle` may have happened. No method swallows ``CancelledError``.

    **Epochs.** Everything that invalidates tokens (reconnect, re-created channel, lost partition) begins a new epoch
    of that stream.
    A settlement from an old epoch is dropped and counted, answered ``rejected`` with `Code.STALE`, and *never sent*:
    on some brokers a
    stale token acknowledges somebody else's message (AMQP delivery tags are per channel).

    **Bytes are sacred.** Body, key and header fields come out as they went in. What a broker cannot carry is refused
    with
    ``rejected``, or packed and unpacked invisibly; it is never altered, cut or dropped.

    **Retention.** A list that was passed in belongs to the caller after the call has returned.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import msgspec

from atleastonce.channels import Channel, Queue, Source
from atleastonce.message import Message

# ---------------------------------------------------------------------------------------------------------------------
# Faults and outcomes


class Code(enum.Enum):
    """What went wrong, as programs need to know it."""

    NOT_FOUND = "not-found"
    TOO_LARGE = "too-large"
    INVALID = "invalid"
    """The broker or client refuses the content: header types, characters, counts."""
    UNROUTABLE = "unroutable"
    PERMISSION = "permission"
    CONFLICT = "conflict"
    """It exists already with other settings."""
    UNAVAILABLE = "unavailable"
    """Not reachable, or not ready: no leader, connection refused, connection reset."""
    TIMEOUT = "timeout"
    OVERLOADED = "overloaded"
    """The broker asks for less: quota, blocked connection, full queue."""
    STALE = "stale"
    """The lease, channel or assignment under which this was delivered is gone."""
    CLOSED = "closed"
    INTERNAL = "internal"


class Scope(enum.Enum):
    """How far a fault reaches, and so what has to be built anew."""

    MESSAGE = "message"
    SUBSCRIPTION = "subscription"
    CONNECTION = "connection"


class Fault(msgspec.Struct, frozen=True):
    """A classified error.

    Attributes:
        code: what happened.
        retryable: whether the very same call may succeed later.
        scope: how far it reaches.
        detail: one line for people, secrets masked.
    """

    code: Code
    retryable: bool = False
    scope: Scope = Scope.MESSAGE
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.code.value}: {self.detail}" if self.detail else self.code.value


class Status(enum.Enum):
    """How one item of IO ended."""

    OK = "ok"
    """Durable as far as the broker promises it."""
    REJECTED = "rejected"
    """Certainly did not happen, and would not happen if repeated."""
    UNKNOWN = "unknown"
    """May or may not have happened, or did not happen for a passing reason: repeat it with the same message id."""


class Outcome(msgspec.Struct, frozen=True):
    """The end of one sent, settled or extended item. Use the `OK` constant for success: nothing is created for it."""

    status: Status
    fault: Fault | None = None

    @property
    def ok(self) -> bool:
        return self.status is Status.OK


OK = Outcome(Status.OK)


def rejected(code: Code, detail: str = "", *, scope: Scope = Scope.MESSAGE) -> Outcome:
    """It did not happen and repeating it would not help."""
    return Outcome(Status.REJECTED, Fault(code, False, scope, detail))


def unknown(code: Code, detail: str = "", *, scope: Scope = Scope.CONNECTION) -> Outcome:
    """Nobody can tell, or not now: repeat it with the same message id."""
    return Outcome(Status.UNKNOWN, Fault(code, True, scope, detail))


STALE = rejected(Code.STALE, "delivered in an earlier epoch; dropped, not sent", scope=Scope.SUBSCRIPTION)

# ---------------------------------------------------------------------------------------------------------------------
# Verdicts


class Ack(msgspec.Struct, frozen=True, tag=True):
    """Done with it: handled, moved with a confirmed copy, or dropped by an explicit decision."""


class Retry(msgspec.Struct, frozen=True, tag=True):
    """Deliver it again to the same source, not before ``delay`` seconds, and count the delivery.

    Only given where `Capabilities.delay` is ``NATIVE`` and its ``limit`` allows ``delay``. The wait holds up no other
    message (except
    those of its key on a FIFO channel) and survives a restart of consumer and broker.
    """

    delay: float = 0.0


class Reject(msgspec.Struct, frozen=True, tag=True):
    """Never deliver it again; the broker's own dead-letter net takes it.

    Only given where `Capabilities.dead_letter` is ``NATIVE``. The usual dead letter is a confirmed copy and then an
    `Ack`.
    """

    reason: str = ""


class Release(msgspec.Struct, frozen=True, tag=True):
    """Not started, or not finished by decision: give it back at once, without counting it where the broker can."""


Verdict: TypeAlias = Ack | Retry | Reject | Release

ACK = Ack()
RELEASE = Release()

# ---------------------------------------------------------------------------------------------------------------------
# What moves


class Delivery:
    """One hand-out of a message. Created by the adapter, one per message and nothing else: it is the hot path.

    Attributes:
        message: the message.
        source: whose delivery this is.
        stream: what orders it: a partition (``"orders.created/3"``), a queue, a message group. Streams are what a
            listener
            is asked to drain.
        position: where it lies in the stream, for people and for ``alo-origin``: an offset, a sequence; "" if the
            broker has none.
        epoch: the stream's epoch at delivery.
        token: the adapter's own handle for settling; opaque to all others.
        count: deliveries of this message to this source so far, this one included; 0 where the broker does not count.
        lease_until: when the lease ends, by ``time.monotonic``; 0.0 where there is none, or it lives as long as the
            session.
        lost: set once the lease, session or assignment is known to be gone: somebody else may be handling it.
        size, tries, settled: kept by the engine (bytes counted in the window, runs in place, verdict given); adapters
            leave them alone.
        raw: the client library's own object, for users who need it; None where there is none.
    """

    __slots__ = (
        "count",
        "epoch",
        "lease_until",
        "lost",
        "message",
        "position",
        "raw",
        "settled",
        "size",
        "source",
        "stream",
        "token",
        "tries",
    )

    def __init__(
        self,
        message: Message,
        source: Source,
        stream: str,
        position: str | int,
        epoch: int,
        token: Any,
        count: int = 0,
        lease_until: float = 0.0,
        raw: Any = None,
    ) -> None:
        self.message = message
        self.source = source
        self.stream = stream
        self.position = position
        self.epoch = epoch
        self.token = token
        self.count = count
        self.lease_until = lease_until
        self.lost = False
        self.raw = raw
        self.size = 0
        self.tries = 0
        self.settled = False

    def __repr__(self) -> str:
        return f"<Delivery {self.message.id} of {self.source.name} at {self.stream}:{self.position} count={self.count}>"


Settlement: TypeAlias = tuple[Delivery, Verdict]


class Outgoing(msgspec.Struct, frozen=True, gc=False):
    """One message on its way out.

    Attributes:
        destination: a channel; or a source, for that group alone, where `Capabilities.addresses_groups` is set.
        message: validated already: headers checked, ``alo-id`` among them.
        delay: seconds before anyone may receive it; above 0 only where `Capabilities.publish_delay` allows it.
    """

    destination: Channel[Any] | Source
    message: Message
    delay: float = 0.0


class Window(msgspec.Struct, frozen=True):
    """How much may be unsettled at once in one subscription; adapters pass it to the broker (prefetch,
    max-ack-pending).

    Attributes:
        messages: at least 1. Too small: the network's round trip shows between messages. Too large: unstarted messages
            age in memory while other workers idle, and more is repeated after a crash.
        bytes: bodies, keys and headers together. May be overshot by what one `receive` brings.
    """

    messages: int
    bytes: int


class Backlog(msgspec.Struct, frozen=True):
    """What waits in a source. None means *unknown*, which is never the same as 0.

    Attributes:
        waiting: ready and not handed out.
        in_flight: handed out and unsettled, over all workers of the group.
        delayed: waiting for a due time.
        oldest_age: seconds since the oldest waiting message was published.
        true_waiting: on logs with out-of-order completion, records that no one has completed; else None.
        detail: why something is unknown.
    """

    waiting: int | None = None
    in_flight: int | None = None
    delayed: int | None = None
    oldest_age: float | None = None
    true_waiting: int | None = None
    detail: str = ""


class DelayChannel(msgspec.Struct, frozen=True):
    """A channel in which messages wait ``delay`` seconds and then return to ``back_to``.

    Where `Capabilities.delay` is ``EMULATED`` the broker returns them by itself (RabbitMQ: a queue with a TTL that
    dead-letters
    back); where it is ``NONE`` the engine reads the channel and holds each message until it is due.
    """

    channel: Queue[Any]
    delay: float
    back_to: Source


class Topology(msgspec.Struct, frozen=True):
    """All that a service or publisher needs to exist on the broker.

    Attributes:
        channels: published to; read by others, or by ``sources``.
        sources: read by this service.
        delays: waiting rooms of retries.
        dead_letters: queues that keep what was given up; long retention.
    """

    channels: tuple[Channel[Any], ...] = ()
    sources: tuple[Source, ...] = ()
    delays: tuple[DelayChannel, ...] = ()
    dead_letters: tuple[Queue[Any], ...] = ()


class Drift(msgspec.Struct, frozen=True):
    """One difference between what was declared and what the broker has. Nothing is ever destroyed to mend it.

    Attributes:
        name: of the channel or source, as it is called on the broker.
        setting: what differs: ``"missing"``, ``"partitions"``, an argument's name.
        wanted: as declared.
        found: on the broker.
        breaks: whether the declared promise fails with it (delays lost, retention too short), not just a preference.
    """

    name: str
    setting: str
    wanted: str
    found: str
    breaks: bool = False


# ---------------------------------------------------------------------------------------------------------------------
# Capabilities: levels with limits, checked before the first message


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
    SESSION = "session"
    """The connection or group membership: kept by being alive, lost as a whole."""
    NONE = "none"


class Ordering(enum.Enum):
    """Across which instances of a service order holds."""

    STREAM = "stream"
    """Per partition or queue, as long as one consumer has it."""
    KEY = "key"
    """Per message key, across instances."""
    GROUP = "group"
    """Per declared message group (FIFO)."""
    NONE = "none"


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What a broker keeps, as levels with limits. Policies are checked against it before the first message moves.

    Attributes:
        delay: redelivery after a delay (`Retry`, or a `DelayChannel` that the broker empties).
        publish_delay: `Outgoing.delay`.
        delivery_count: `Delivery.count`.
        lease: what keeps a delivery.
        lease_seconds: the lease's first length; 0 for sessions.
        lease_limit: the longest that one delivery can be kept by extending, in seconds; None for no limit.
        order: where order holds.
        dead_letter: a net beneath ours that catches what crash-loops.
        dedupe: the broker drops a second publish of one id within ``limit`` seconds.
        addresses_groups: `Outgoing.destination` may be a `Source` of a topic.
        transactions, replay, priority: optional abilities; see the Protocols below.
        max_message_bytes: body, key and headers together; None for no limit known.
        max_header_bytes: all header fields together.
        max_headers: how many fields; None for no limit.
        header_charset: ``"utf-8"``, or ``"ascii"`` where others are refused.
        binary_headers: whether ``bytes`` values survive.
        null_body: whether an absent body (a tombstone) is told from an empty one.
        max_batch: the most items that one call to the broker takes; longer lists are split by the adapter.
    """

    delay: Ability
    publish_delay: Ability = NONE
    delivery_count: Counting
    lease: Leasing
    lease_seconds: float = 0.0
    lease_limit: float | None = None
    order: Ordering
    dead_letter: Level = Level.NONE
    dedupe: Ability = NONE
    addresses_groups: bool = False
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


# ---------------------------------------------------------------------------------------------------------------------
# The two classes to implement, and the one to call back


class Listener(Protocol):
    """What a subscription tells its reader. Every method is called on the event loop."""

    async def drain(self, streams: Collection[str], grace: float) -> None:
        """``streams`` are about to be taken away: start nothing more of them, release what has not started, wait at
        most ``grace`` seconds for what runs and see it settled. Settlements still work until this returns. Never
        raises.
        """

    def lost(self, streams: Collection[str] | None) -> None:
        """``streams`` (None: all) are gone: nothing delivered from them can be settled any more."""

    def condition(self, state: str, detail: str) -> None:
        """For status and logs: ``state`` is ``"connected"``, ``"disconnected"``, ``"blocked"``, ``"unblocked"`` or
        ``"assigned"``."""


class Subscription(ABC):
    """A source being read. From `Adapter.subscribe`; dead once `receive` has raised or `close` was called."""

    @abstractmethod
    async def receive(self, max_messages: int, max_wait: float) -> Sequence[Delivery]:
        """Return what is there, 1 to ``max_messages``, as soon as anything is; wait at most ``max_wait`` seconds for
        the first.

        Empty after ``max_wait`` without messages; ``max_wait=0`` does not wait. Never called twice at a time. Not
        calling it is backpressure:
        the adapter then buffers at most its window. Never waits to fill a batch.

        Raises:
            ConnectionLost: the subscription is dead; what was unsettled will come again. The engine subscribes anew,
            with back-off.
            NotFound: what is read does not exist (any more).
            PermissionDenied: and will stay denied.
        """

    @abstractmethod
    async def settle(self, batch: Sequence[Settlement]) -> Sequence[Outcome]:
        """Settle each delivery, in any order; returns when the broker was told as durably as it can be told.

        Idempotent: the first verdict of a delivery wins, a repeated one answers ``ok`` and is not sent. One failing
        item affects no other and
        does not end the subscription. A lease that is over answers ``rejected`` with `Code.STALE`.
        """

    async def extend(self, deliveries: Sequence[Delivery], seconds: float) -> Sequence[Outcome]:
        """Keep these for ``seconds`` from now and set their ``lease_until``. Called only where leases are
        ``EXTENDABLE``."""
        return [rejected(Code.INVALID, "this broker's leases cannot be extended")] * len(deliveries)

    @abstractmethod
    async def pause(self) -> None:
        """Stop fetching while keeping the session, its assignment and the leases of what is out. Idempotent."""

    @abstractmethod
    async def resume(self) -> None:
        """Fetch again, at once. Idempotent."""

    @abstractmethod
    async def close(self) -> None:
        """Release what was fetched and never handed out, flush settlements, leave. Idempotent; never raises for a
        broker that is gone.

        What was handed out and is unsettled is left to its lease, or to the broker's notice of our leaving.
        """


class Adapter(ABC):
    """One broker connection (or a pool of them) as the engine sees it."""

    scheme: str
    """The URL scheme, which is also the broker's name in options and reports."""
    capabilities: Capabilities

    @abstractmethod
    async def open(self) -> None:
        """Connect, and return once the broker has answered. Called once, first.

        Raises:
            BrokerUnavailable: it does not answer. May be called again.
            PermissionDenied: it refuses the credentials.
        """

    @abstractmethod
    async def close(self) -> None:
        """Flush what was sent, then disconnect. Idempotent. Subscriptions are closed before it."""

    @abstractmethod
    async def declare(self, topology: Topology, *, create: bool = True) -> Sequence[Drift]:
        """Make ``topology`` exist (``create``), or only look. Idempotent and safe when many do it at once.

        Returns what differs. Never deletes, never changes what exists; an existing channel with other settings is a
        `Drift`.

        Raises:
            ConfigurationError: a name or option that this broker cannot have.
            PermissionDenied, BrokerUnavailable: as named.
        """

    @abstractmethod
    async def send(self, batch: Sequence[Outgoing]) -> Sequence[Outcome]:
        """Publish; return when the broker has *durably* confirmed or refused each one, or its time was over
        (``unknown``).

        Order within one destination and key is the list's order, as far as the items succeed. Items over a known
        limit are ``rejected`` before
        any IO, the others go. Reconnects by itself; while the broker is away, items end ``unknown`` within the
        adapter's send timeout.
        A missing destination is ``rejected`` with `Code.NOT_FOUND` or `Code.UNROUTABLE`, never a silent loss. May be
        called concurrently.
        """

    @abstractmethod
    async def subscribe(self, source: Source, window: Window, listener: Listener) -> Subscription:
        """Begin to read ``source``, which was declared. Reconnects if need be.

        Raises:
            NotFound: it does not exist; told within seconds, never by hanging.
            BrokerUnavailable, PermissionDenied: as named.
        """

    @abstractmethod
    async def backlog(self, source: Source) -> Backlog:
        """What waits. What cannot be found out is None, with the reason in ``detail``; a failed query is never 0.
        Never raises for that."""

    @abstractmethod
    def classify(self, error: BaseException) -> Fault:
        """The fault behind a client library's exception; `Code.INTERNAL`, not retryable, for what it does not know."""


# ---------------------------------------------------------------------------------------------------------------------
# Optional abilities, asked for with isinstance


@runtime_checkable
class Purges(Protocol):
    """Can empty a queue."""

    async def purge(self, channel: Queue[Any]) -> int:
        """Remove all that waits in ``channel``; return how many, -1 where the broker does not say."""


@runtime_checkable
class Deletes(Protocol):
    """Can remove what `Adapter.declare` made: for tests and tools, never called by a running service."""

    async def delete(self, topology: Topology) -> None:
        """Remove the channels and sources of ``topology`` with all their messages; what is not there is fine."""


@runtime_checkable
class Browses(Protocol):
    """Can look at a channel without consuming from it."""

    async def browse(self, channel: Channel[Any], limit: int) -> Sequence[Delivery]:
        """Up to ``limit`` waiting messages, oldest first. The deliveries cannot be settled."""
