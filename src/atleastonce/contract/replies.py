"""How answers find their way back: what an adapter does for request-reply beyond carrying messages.

One process that asks has one inbox. Its address travels in each request (``alo-reply-to``, and natively where the broker has a
place for it), and whoever answers sends to that address. Where an adapter has no `Replies`, the inbox is a queue of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

from atleastonce import wire
from atleastonce.channels import Queue
from atleastonce.contract.moves import Delivery, Outgoing
from atleastonce.contract.outcomes import Outcome
from atleastonce.message import Headers, HeaderValue, Message


@dataclass(frozen=True)
class ReplyTo(Queue[Any]):
    """The destination of an answer: an inbox, by its address. Made from addresses that were looked at first.

    Args:
        until: when its owner stops waiting, in seconds since the epoch.
    """

    requests: bool = field(default=True, kw_only=True, compare=False, repr=False)
    until: float = field(default=math.inf, kw_only=True, compare=False)

    def __post_init__(self) -> None:
        """An address has no rules of ours."""

    @classmethod
    def waiting(cls, address: str, until: float) -> ReplyTo:
        """``ReplyTo(address, until=until)``, at a fraction of the cost: one is made for each answer."""
        made = object.__new__(cls)
        fields = made.__dict__  # all others have their defaults from the class
        fields["name"], fields["until"], fields["options"] = address, until, _NO_OPTIONS
        return made


_NO_OPTIONS: dict[str, Any] = {}


class AskingHeaders(Headers):
    """The fields of a question, taken together when somebody looks at all of them.

    Attributes:
        base: those that it has in common with many, one object for all of them: who writes them may keep what it made of it.
        id, deadline, address: its own (`wire.ID`, `wire.DEADLINE`, `wire.REPLY_TO`).
        correlation: of its own as well, unless the address says it; then "".
    """

    __slots__ = ("address", "base", "correlation", "deadline", "id")

    def __init__(self, base: Headers, id: str, correlation: str, deadline: str, address: str) -> None:
        self.base = base
        self.id = id
        self.correlation = correlation
        self.deadline = deadline
        self.address = address
        self._items = ()
        self._last = None
        own = len(id) + len(deadline) + len(address) + _OWN_NAMES
        self._size = base.size + (own + len(wire.CORRELATION) + len(correlation) if correlation else own)

    def items(self) -> tuple[tuple[str, HeaderValue], ...]:
        """See `Headers.items`."""
        if not self._items:
            # By name: brokers that keep no order need not be told of one.
            correlation = ((wire.CORRELATION, self.correlation),) if self.correlation else ()
            own = ((wire.DEADLINE, self.deadline), (wire.ID, self.id), (wire.REPLY_TO, self.address))
            self._items = (*self.base.items(), *correlation, *own)
        return self._items

    def fields(self) -> Sequence[tuple[str, HeaderValue]]:
        """See `Headers.fields`."""
        return self.items()


_OWN_NAMES = len(wire.ID) + len(wire.DEADLINE) + len(wire.REPLY_TO)


class Reply(NamedTuple):
    """What came to an inbox.

    Attributes:
        correlation: which request it answers, as far as it says; "" if it does not.
        message: the answer; None where the broker itself says that nobody reads what was asked.
    """

    correlation: str
    message: Message | None


Arrived = Callable[[Sequence[Reply]], None]


class ReplyInbox(Protocol):
    """An open inbox. It comes back by itself after a lost connection, and is removed with its owner, or swept later."""

    def address(self, correlation: str) -> str:
        """Where the answer to one request goes. May differ after a reconnect: asked anew for each request."""

    async def close(self) -> None:
        """Remove it. What comes later goes nowhere. Idempotent; never raises for a broker that is gone."""


@runtime_checkable
class Replies(Protocol):
    """Has a way of its own for answers."""

    async def open_inbox(self, arrived: Arrived) -> ReplyInbox:
        """An inbox of this process, listening when this returns. ``arrived`` is called on the event loop with lists of what came,
        once for each, and never raises.

        Raises:
            BrokerUnavailable, PermissionDenied: as named.
        """

    def is_address(self, address: str) -> bool:
        """Whether ``address`` has the form of an inbox on this broker. All else is refused: whoever asks must not make a
        responder publish anywhere."""

    def asked_by(self, delivery: Delivery) -> tuple[str, str]:
        """The address and correlation in the broker's own fields; "" for what is not there, or what the address says already. They
        go before ours. Bytes that are no UTF-8 are surrogates (``surrogateescape``), and so go back as they came."""

    async def reply(self, batch: Sequence[Outgoing]) -> Sequence[Outcome]:
        """As `Adapter.send`, for destinations that are `ReplyTo`. An inbox that is gone answers ``rejected`` with
        `Code.NOT_FOUND` where the broker can tell, else ``ok``."""


@runtime_checkable
class KeepsInboxes(Protocol):
    """Has no way of its own for answers, but inboxes that are more than a queue: made, kept alive and swept by the adapter, and
    read and written as any queue is."""

    async def keep_inbox(self, name: str) -> None:
        """Make inbox ``name`` exist, for a source of that name to be read; from then on, a sign that its owner lives. Called again
        every minute. Now and then it removes the inboxes of owners that have given no sign for long.

        Raises:
            BrokerUnavailable, PermissionDenied: as named.
        """

    async def remove_inbox(self, name: str) -> None:
        """Its owner leaves. What is not there is fine; may raise for a broker that is gone."""
