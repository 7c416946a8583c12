"""What a handler may ask for besides its payload."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Mapping
from typing import Any

from atleastonce.channels import Channel, Source
from atleastonce.contract import Delivery, Outgoing
from atleastonce.message import Headers, HeaderValue, Message

Compose = Callable[..., Outgoing]


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
        attempt: which attempt this is, from 1: one for each time the message came from the broker.
        tries: which run this is within the attempt, from 1: in-place repetitions count here.
        redrives: how often the message came back from the dead letters.
    """

    __slots__ = ("_compose", "attempt", "delivery", "outputs", "redrives")

    def __init__(self, delivery: Delivery, compose: Compose, attempt: int, redrives: int) -> None:
        self.delivery = delivery
        self.attempt = attempt
        self.redrives = redrives
        self.outputs: list[Outgoing] = []
        self._compose = compose

    @property
    def message(self) -> Message:
        """The message as it came: id, key, headers, body."""
        return self.delivery.message

    @property
    def headers(self) -> Headers:
        """The message's headers."""
        return self.delivery.message.headers

    @property
    def source(self) -> Source:
        """What it was delivered from: the consumer's source, or one of its retry channels."""
        return self.delivery.source

    @property
    def tries(self) -> int:
        """Which run within this attempt, from 1."""
        return self.delivery.tries

    @property
    def lost(self) -> bool:
        """Whether the lease or session ended meanwhile: somebody else may be handling this message too."""
        return self.delivery.lost

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

        If the process dies in between, the message is handled again and these are published again, under the same ids
        when ``id`` is
        derived from the input. Works with and without ``await``: it only takes the message down.

        Raises:
            EncodeError, InvalidMessage, ConfigurationError: as `Broker.publish` does, at once.
        """
        self.outputs.append(self._compose(channel, payload, key=key, id=id, headers=headers, delay=delay))
        return _BUFFERED
