"""What a handler may ask for besides its payload."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Mapping
from typing import Any, Protocol

from atleastonce.channels import Channel, Source
from atleastonce.contract import Delivery, Outgoing
from atleastonce.errors import ConfigurationError
from atleastonce.message import Headers, HeaderValue, Message
from atleastonce.patterns.history import History, tries_of, undecoded

Compose = Callable[..., Outgoing]
Past = Callable[[Delivery], History]


class _Buffered:
    """Awaitable and done: `Context.publish` works with and without ``await``."""

    def __await__(self) -> Generator[None, None, None]:
        return
        yield


_BUFFERED = _Buffered()


class Context:
    """One run of a handler. Ask for it by annotation: ``async def handle(order: Order, ctx: Context)``.

    Attributes:
        delivery: the delivery being handled, with the client's own object in ``delivery.raw``.
        outputs: what `publish` has taken down.
    """

    __slots__ = ("_compose", "_history", "_past", "delivery", "outputs")

    def __init__(self, delivery: Delivery, compose: Compose, past: Past) -> None:
        self.delivery = delivery
        self.outputs: list[Outgoing] = []
        self._compose = compose
        self._past = past
        self._history: History | None = None

    @property
    def attempt(self) -> int:
        """Which attempt this is, from 1: one for each time the message came from the broker, or waited in its lane for the next."""
        return self._read().attempt

    @property
    def redrives(self) -> int:
        """How often the message came back from the dead letters."""
        return self._read().redrives

    def _read(self) -> History:
        history = self._history  # read from the headers once: a retry says much about itself
        if history is None:
            history = self._history = self._past(self.delivery)
        return history

    @property
    def message(self) -> Message:
        """The message as it came: id, key, headers, body.

        Raises:
            DecodeError: its adapter could not read it.
        """
        if (unread := undecoded(self.delivery)) is not None:
            raise unread
        return self.delivery.message

    @property
    def headers(self) -> Headers:
        """The message's headers. Raises as `message`."""
        return self.message.headers

    @property
    def source(self) -> Source:
        """What it was delivered from: the consumer's source, or one of its retry channels."""
        return self.delivery.source

    @property
    def tries(self) -> int:
        """Which run within this attempt, from 1: in-place repetitions count here."""
        return tries_of(self.delivery)

    @property
    def lost(self) -> bool:
        """Whether the lease or session ended meanwhile: somebody else may be handling this message too."""
        return self.delivery.lost

    @property
    def tx(self) -> Any:
        """With an `Inbox`: the transaction in which this message is remembered, as the driver's own connection or the user's
        session. What is written through it happens exactly once. Neither commit it nor roll it back.

        Raises:
            ConfigurationError: the consumer has no inbox.
        """
        raise ConfigurationError("ctx.tx: this handler has no transaction; register it with idempotency=Inbox(store)")

    @property
    def fence(self) -> int:
        """With a `Lease`: rises with each claim of this message. Write it beside the effect (``WHERE fence < :fence``), and a
        run that was overtaken cannot overwrite its successor. Fits in 53 bits.

        Raises:
            ConfigurationError: the consumer has no lease.
        """
        raise ConfigurationError("ctx.fence: this handler holds no lease; register it with idempotency=Lease(store)")

    @property
    def idempotency_key(self) -> str:
        """With an `Inbox` or a `Lease`: 32 hexadecimal digits, the same for each run of this message by this handler and of no
        other one. For external systems that know idempotency keys.

        Raises:
            ConfigurationError: the consumer is not idempotent.
        """
        raise ConfigurationError("ctx.idempotency_key: register the handler with idempotency=Inbox(...) or Lease(...)")

    @property
    def in_doubt(self) -> bool:
        """With a `Lease`: an earlier run of this message ended without a word, so its effect may have happened."""
        return False

    def publish(
        self,
        channel: Channel[Any],
        payload: Any,
        *,
        key: str | bytes | None = None,
        id: str | None = None,
        headers: Mapping[str, HeaderValue] | None = None,
        delay: str | float | None = None,
    ) -> Awaitable[None]:
        """Publish when, and only when, this handler has succeeded: sent and confirmed before its message is settled.

        If the process dies in between, the message is handled again and these are published again, under the same ids when ``id``
        is derived from the input. With an `Inbox` they are rows of the outbox in the handler's transaction, and a relay publishes
        them. Works with and without ``await``: it only takes the message down.

        Raises:
            EncodeError, InvalidMessage, ConfigurationError: as `Broker.publish` does, at once.
        """
        self.outputs.append(self._compose(channel, payload, key=key, id=id, headers=headers, delay=delay))
        return _BUFFERED


class InboxContext(Context):
    """A run inside the transaction of an inbox."""

    __slots__ = ("_key", "_tx")

    def __init__(self, delivery: Delivery, compose: Compose, past: Past, tx: Any, key: str) -> None:
        super().__init__(delivery, compose, past)
        self._tx, self._key = tx, key

    @property
    def tx(self) -> Any:
        return self._tx

    @property
    def idempotency_key(self) -> str:
        return self._key


class Held(Protocol):
    """What a run under a lease knows of it."""

    fence: int
    in_doubt: bool
    lost: bool

    @property
    def external_key(self) -> str: ...


class LeaseContext(Context):
    """A run under a lease."""

    __slots__ = ("_held",)

    def __init__(self, delivery: Delivery, compose: Compose, past: Past, held: Held) -> None:
        super().__init__(delivery, compose, past)
        self._held = held

    @property
    def fence(self) -> int:
        return self._held.fence

    @property
    def idempotency_key(self) -> str:
        return self._held.external_key

    @property
    def in_doubt(self) -> bool:
        return self._held.in_doubt

    @property
    def lost(self) -> bool:
        return self.delivery.lost or self._held.lost
