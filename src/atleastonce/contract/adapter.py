"""The two classes that an adapter implements, and the one that it calls back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import Protocol

from atleastonce.channels import Source
from atleastonce.contract.capabilities import Capabilities
from atleastonce.contract.moves import Backlog, Delivery, Outgoing, Settlement, Window
from atleastonce.contract.outcomes import Code, Fault, Outcome, rejected
from atleastonce.contract.topology import Drift, Topology
from atleastonce.silence import Owed


class Listener(Protocol):
    """What a subscription tells its reader. Every method is called on the event loop."""

    async def drain(self, streams: Collection[str], grace: float) -> None:
        """``streams`` are about to be taken away: start nothing more of them, release what has not started, wait at most ``grace``
        seconds for what runs and see it settled. Settlements must still work until this returns. Never raises.

        Called where the broker asks before it takes something away; `lost` follows for what did not end in time. What is taken
        without being asked for is told to `lost` alone.
        """

    def lost(self, streams: Collection[str] | None) -> None:
        """``streams`` (None: all) are gone: nothing delivered from them can be settled any more. Sets their `Delivery.lost`.

        Worth telling as soon as it is known: what has not started is then not run in vain, and the reader need not be in
        `receive`. Before `ConnectionLost` it may be left out, since any exception of `receive` means the same of all streams.
        """

    def condition(self, state: str, detail: str) -> None:
        """For status and logs: ``state`` is ``"connected"``, ``"disconnected"``, ``"blocked"``, ``"unblocked"`` or
        ``"assigned"``."""


class Subscription(ABC):
    """A source being read. From `Adapter.subscribe`; dead once `receive` has raised or `close` was called. Dead or not, it is
    closed by who subscribed."""

    @abstractmethod
    async def receive(self, max_messages: int, max_wait: float) -> Sequence[Delivery]:
        """Return what is there, 1 to ``max_messages``, as soon as anything is; wait at most ``max_wait`` seconds for the first.

        Empty after ``max_wait`` without messages; ``max_wait=0`` does not wait. Never called twice at a time. Not calling it is
        backpressure: the adapter then buffers at most its window. Never waits to fill a batch.

        Raises:
            ConnectionLost: the subscription is dead; what was unsettled will come again. The engine closes it and subscribes
                anew, with back-off; so it does after any error that is not named here.
            NotFound: what is read does not exist (any more). The engine has it made again, where it may, and subscribes anew.
            PermissionDenied: and will stay denied: the engine stops reading.
            ConfigurationError: what the window or the options ask for is not to be had here. Likewise.
            Closed: `close` was called, maybe while this waited.
        """

    @abstractmethod
    async def settle(self, batch: Sequence[Settlement]) -> Sequence[Outcome]:
        """Settle each delivery, in any order; returns when the broker was told as durably as it can be told: how long a crash may
        undo it after that is `Capabilities.settled_within`.

        Idempotent: the first verdict of a delivery wins, a repeated one answers ``ok`` and is not sent. One failing item affects
        no other and does not end the subscription. A lease that is over answers ``rejected`` with `Code.STALE`, who may not
        settle ``rejected`` with `Code.PERMISSION`: the engine stops reading.
        """

    async def extend(self, deliveries: Sequence[Delivery], seconds: float) -> Sequence[Outcome]:
        """Keep these for ``seconds`` from now and set their ``lease_until``. Called only where leases are ``EXTENDABLE``; a lease
        that is over answers ``rejected`` with `Code.STALE`, and as `settle` who may not."""
        return [rejected(Code.INVALID, "this broker's leases cannot be extended")] * len(deliveries)

    @abstractmethod
    async def pause(self) -> None:
        """Stop fetching while keeping the session, its assignment and the leases of what is out. Idempotent.

        Once this has returned nothing more is asked for. What was asked for before, a window's worth at most, is handed out by
        `receive` as ever, so that neither giving it back nor the end of its lease counts as an attempt. It may be kept until
        `resume` where nothing is counted, or where it cannot be told from what a poll that goes on brings after the pause.
        """

    @abstractmethod
    async def resume(self) -> None:
        """Fetch again, at once. Idempotent."""

    async def leave(self) -> None:
        """`pause` for the last time, before what has not begun is given back: from then on nothing that anybody gives back may
        come to this subscription, which would give it back once more, and have it counted once more. What was fetched and not
        handed out is given back as well, and not kept for as long as handlers run. Takes a second or so at most; `settle`,
        `extend` and `close` follow.
        """
        await self.pause()

    async def leave_with_rest(self) -> Sequence[Delivery]:
        """`leave`, for who gives back in a way that the broker does not count: what was fetched and not handed out is returned,
        as by `receive`, and not given back."""
        await self.leave()
        return ()

    @property
    def overdue(self) -> Owed | None:
        """What the broker owes for the longest time (`Silence.look` of the way to it); None while nothing is overdue, or where that
        cannot be told: a poll that waits for messages looks alike on an empty queue and on a dead line. For status alone, which
        says after three seconds that there is no answer; nothing is torn down for it. Asked often, and on the event loop."""
        return None

    @abstractmethod
    async def close(self) -> None:
        """Release what was fetched and never handed out, flush settlements, leave. Idempotent; never raises for a broker that is
        gone. A `receive` that waits raises `Closed`.

        What was handed out and is unsettled is left to its lease, or to the broker's notice of our leaving.
        """


class Adapter(ABC):
    """One broker connection (or a pool of them) as the engine sees it.

    Made, not connected, by its class method ``from_url(url: BrokerUrl, options: Mapping[str, Any])``, which every adapter has:
    ``options`` are those that `connect` was given, for its client, and it raises `ConfigurationError` for a parameter of the URL
    or an option that it cannot use. It is found by its URL's scheme; the class of another distribution
    through the entry-point group ``atleastonce.adapters``, whose names are schemes. Other arguments are its own affair.
    """

    scheme: str
    """The URL scheme, which is also the broker's name in options and reports."""
    capabilities: Capabilities
    may_create: bool = True
    """Whether `open` may make the broker itself where there is none, as an embedded one makes its file. Set before it, by who only
    looks. Where there is none then, `open` raises `NotFound`, and `declare` without ``create`` and `Inspects.inspect` say all the
    same what a start would find."""

    @abstractmethod
    async def open(self) -> None:
        """Connect, and return once the broker has answered. Called once, first.

        Raises:
            BrokerUnavailable: it does not answer. May be called again.
            PermissionDenied: it refuses the credentials.
        """

    @abstractmethod
    async def close(self) -> None:
        """Flush what was sent, then disconnect. Idempotent. Subscriptions are closed before it. It is not opened again."""

    @abstractmethod
    async def declare(self, topology: Topology, *, create: bool = True) -> Sequence[Drift]:
        """Make ``topology`` exist (``create``), or only look. Idempotent and safe when many do it at once.

        Returns what differs. Never deletes, never changes what exists; an existing channel with other settings is a `Drift`.

        Raises:
            ConfigurationError: a name or option that this broker cannot have.
            PermissionDenied, BrokerUnavailable: as named.
        """

    @abstractmethod
    async def send(self, batch: Sequence[Outgoing]) -> Sequence[Outcome]:
        """Publish; return when the broker has *durably* confirmed or refused each one, or its time was over (``unknown``).

        Order within one destination and key is the list's order, as far as the items succeed. Items over a known limit are
        ``rejected`` before any IO, the others go. Reconnects by itself; while the broker is away, items end ``unknown`` within the
        adapter's send timeout. A missing destination is ``rejected`` with `Code.NOT_FOUND` or `Code.UNROUTABLE`, never a silent
        loss. May be called concurrently.

        Raises:
            Closed: `close` was called; nothing was sent.
        """

    @abstractmethod
    async def subscribe(self, source: Source, window: Window, listener: Listener) -> Subscription:
        """Begin to read ``source``, which was declared. Reconnects if need be.

        Raises:
            NotFound: it does not exist; told within seconds, never by hanging.
            BrokerUnavailable: as named.
            PermissionDenied: it may not be read, or not be settled, where that can be told before anything is handed out.
            ConfigurationError: ``window`` asks for what this broker does not have.
        """

    @abstractmethod
    async def backlog(self, source: Source) -> Backlog:
        """What waits. What cannot be found out is None, with the reason in ``detail``; a failed query is never 0. Raises for no
        reason that lies with the broker, the connection or a closed adapter."""

    @abstractmethod
    def classify(self, error: BaseException) -> Fault:
        """The fault behind a client library's exception; `Code.INTERNAL`, not retryable, for what it does not know."""
