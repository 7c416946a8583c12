"""What moves between engine and adapter: deliveries in, messages out, and how much of either."""

from __future__ import annotations

import logging
import math
from collections.abc import Container, Sequence
from typing import Any, Final, TypeAlias

import msgspec

from atleastonce import wire
from atleastonce.channels import Channel, Source
from atleastonce.contract.verdicts import Verdict
from atleastonce.message import Composed, Headers, HeaderValue, Message, sift

log = logging.getLogger("atleastonce.engine")


class Delivery:
    """One hand-out of a message. Created by the adapter, one per message and nothing else: it is the hot path.

    An adapter whose client makes a message's parts expensive may derive a class that makes ``message`` when somebody first
    looks at it, by `read`, and sets ``_message`` and ``unreadable`` to None from the start; it then gives ``size`` and ``body``
    without that, which is all that the engine and most handlers ask for, and where it can ``key``, which order asks for, and
    ``headers`` and ``waited_until``, which a responder asks for.

    Attributes:
        message: the message.
        source: whose delivery this is.
        stream: what orders it: a partition (``"orders.created/3"``), a queue, a message group. Streams are what a listener is
            asked to drain.
        position: where it lies in the stream, for people and for ``alo-origin``: an offset, a sequence; "" if the
            broker has none.
        epoch: the stream's epoch at delivery.
        token: the adapter's own handle for settling; opaque to all others.
        count: deliveries of this message to this source so far, this one included; 0 where the broker does not count, unless
            `Window.counted` asks for it.
        lease_until: when the lease ends, by ``time.monotonic``; 0.0 where there is none, or it lives as long as the session.
        lost: whether the lease, session or assignment is known to be gone: somebody else may be handling it. Set by the adapter
            when a broker's answer or its own clock says so, and by the engine for what `Listener.lost` names and for a lease
            that could not be extended. Never unset.
        size: the message's bytes, as the window counts them.
        tries, settled: kept by the engine (runs in place, verdict given); adapters leave them alone.
        past: what its reader has to remember of it between runs in place; not set until there is something.
        returned: whether the broker brought it back from a `DelayChannel` of this source: only then does a delivery from the
            source itself carry the header fields of a retry that anybody may believe.
        raw: the client library's own object, for users who need it; None where there is none.
        unreadable: why `read` could not make ``message``, which then has the body and nothing else; None as nearly always, and
            until somebody has looked at ``message``.
    """

    __slots__ = (
        "_message",
        "count",
        "epoch",
        "lease_until",
        "lost",
        "past",
        "position",
        "raw",
        "returned",
        "settled",
        "size",
        "source",
        "stream",
        "token",
        "tries",
        "unreadable",
    )

    _message: Message | None
    past: Any
    unreadable: Exception | None

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
        self._message = message
        self.unreadable = None
        self.source = source
        self.stream = stream
        self.position = position
        self.epoch = epoch
        self.token = token
        self.count = count
        self.lease_until = lease_until
        self.lost = False
        self.raw = raw
        self.returned = False
        self.size = message.size
        self.tries = 0
        self.settled = False

    # A property and no ``__getattr__``: beside one, Python takes seven times as long for each of the other attributes.
    @property
    def message(self) -> Message:
        """The message. Made now, if it was not given and nobody has looked at it before."""
        found = self._message
        if found is None:
            self._message = found = self._made()
        return found

    @message.setter
    def message(self, message: Message) -> None:
        self._message = message

    def _made(self) -> Message:
        # Looked at by whatever holds the delivery: a reader of foreign bytes that raises must end none of them.
        try:
            return self.read()
        except Exception as error:
            self.unreadable = error
            log.exception("%s: what lies at %s:%s cannot be read", self.source.name, self.stream, self.position)
            return Message(f"{self.stream}/{self.position}", self.body)

    def read(self) -> Message:
        """Make the message, if it was not given. May raise: then the delivery is a failure of its decoding."""
        raise NotImplementedError

    @property
    def body(self) -> bytes:
        """The payload's bytes: ``message.body``."""
        return self.message.body

    @property
    def headers(self) -> Headers:
        """The message's header fields: ``message.headers``."""
        return self.message.headers

    @property
    def waited_until(self) -> float | None:
        """Until when somebody waits for its answer, by its header fields, in seconds since the epoch: infinity where they do not
        say, None where whoever asked has long gone, since it was redriven."""
        headers = self.headers
        if headers.get(wire.REDRIVES) is not None:
            return None
        deadline = wire.read_deadline(headers)
        return math.inf if deadline is None else deadline

    @staticmethod
    def first_copies(
        deliveries: Sequence[Delivery], marks: Container[str], mark: str, values: Sequence[str], shared: Headers
    ) -> list[Message | None]:
        """A copy of the message of each of ``deliveries``, whose header fields end with its id, ``mark`` and ``shared``; None if
        one of ``marks`` is among them already, the id aside, or if they cannot be read. Where messages are dear to make, without
        making them.

        Args:
            deliveries: of this class.
            marks: names of fields, `wire.ID` among them.
            mark: the one that is each copy's own.
            values: of ``mark``, for each.
            shared: what they have in common; see `Composed`.
        """
        copies: list[Message | None] = []
        for delivery, value in zip(deliveries, values, strict=True):
            message = delivery.message
            own, size, gone = sift(message.headers.fields(), marks)
            gone.pop(wire.ID, None)
            if gone or delivery.unreadable is not None:
                copies.append(None)
                continue
            headers = Composed(own, size, ((wire.ID, message.id), (mark, value)), shared)
            copies.append(Message(message.id, message.body, message.key, headers, None, message.native))
        return copies

    def sifted(self, names: Container[str]) -> tuple[str, list[tuple[str, HeaderValue]], int, dict[str, HeaderValue]]:
        """The message's id, and what `sift` tells of its header fields. Where a message is dear to make, without making it."""
        message = self.message
        return message.id, *sift(message.headers.fields(), names)

    def copied(self, identity: str, headers: Headers) -> Message:
        """A copy of the message under ``headers``; ``identity`` is its id, as `sifted` tells it. As cheap as that."""
        message = self.message
        return Message(identity, message.body, message.key, headers, None, message.native)

    @property
    def key(self) -> bytes | None:
        """The message's key: ``message.key``."""
        return self.message.key

    def shed(self) -> None:
        """Let go of body and headers: for what is held for long and only settled. Adapters settle and extend without
        ``message``; one that needs no ``raw`` for it lets go of that, too."""
        self._message = Message(self.message.id, b"")

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


HandOff: TypeAlias = tuple[Delivery, Sequence[Outgoing]]
"""A delivery that is done, and what is published with it."""


_UNSEEN_BYTES: Final = 64 * 1024
_LEAST_UNSEEN: Final = 16


class Window(msgspec.Struct, frozen=True):
    """How much may be unsettled at once in one subscription; adapters pass it to the broker (prefetch, max-ack-pending).

    Attributes:
        messages: at least 1. Too small: the network's round trip shows between messages. Too large: unstarted messages
            age in memory while other workers idle, and more is repeated after a crash.
        bytes: bodies, keys and headers together. May be overshot by what one `receive` brings: who receives takes of it what it has
            room for.
        counted: with one message: that `Delivery.count` must be exact, whatever it costs, also where the broker does not count.
            A hand-out that cannot be counted is none: `receive` raises `ConnectionLost`.
        shared: where one subscription reads several streams: that none of them may take more than its share of ``messages``.
            For what waits until it is due, or in its lane: one stream's would fill the window, and the others not be seen.
        transactional: that the subscription `Transacts`, and what it reads is committed. Only where `Capabilities.transactions` is
            set.
    """

    messages: int
    bytes: int
    counted: bool = False
    shared: bool = False
    transactional: bool = False

    @property
    def unseen(self) -> int:
        """How many messages at most are taken from a subscription at once, since nobody knows how large they are: as many as fit
        with 64 KiB each, and 16 at least. Fewer, and lists are short in a window of few bytes; more, and what waits for room is
        many times the window once messages get large."""
        return max(_LEAST_UNSEEN, self.bytes // _UNSEEN_BYTES)


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
