"""Requests over a broker: the question out, the answers in, decoded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any, TypeVar, Unpack, overload

from atleastonce import wire
from atleastonce.channels import Channel, Queue, Topic
from atleastonce.codecs import JSON, Decoder, decoder_for
from atleastonce.contract import Adapter, Outgoing
from atleastonce.durations import Duration, seconds, whole
from atleastonce.engine.publisher import Publisher
from atleastonce.errors import ConfigurationError
from atleastonce.message import Message
from atleastonce.options import RequestOptions, ensure_request_options
from atleastonce.patterns.replies import Asker, Gathered, RequestStatus, replies_of
from atleastonce.unpublished import publish_error

T = TypeVar("T")

_ANY = decoder_for(Any)
_MOST_ASKED = 1000


class Asks(ABC):
    """What can ask. Its inbox is opened by the first question.

    Args:
        adapter: of the broker.
        publisher: of the same.
        max_requests: how many may wait for their answers.
    """

    def __init__(self, adapter: Adapter, publisher: Publisher, max_requests: int) -> None:
        self.adapter = adapter
        self._publisher = publisher
        self._max_requests = whole(max_requests, name="max_requests")
        self._asker: Asker | None = None
        self._asked: dict[Channel[Any], Channel[Any]] = {}
        self._last_asked: tuple[Channel[Any] | None, Channel[Any] | None] = (None, None)

    @abstractmethod
    def compose(self, channel: Channel[Any], payload: Any, **options: Any) -> Outgoing:
        """What is sent."""

    @abstractmethod
    def _ensure_room(self, channels: Iterable[Channel[Any]]) -> None:
        """Raise `Overloaded` where too much waits already: see `Broker.limit_depth`."""

    @overload
    async def request(
        self, channel: Channel[Any], payload: Any, *, returns: type[T], **options: Unpack[RequestOptions]
    ) -> T: ...

    @overload
    async def request(self, channel: Channel[Any], payload: Any, **options: Unpack[RequestOptions]) -> Any: ...

    async def request(
        self,
        channel: Channel[Any],
        payload: Any,
        *,
        returns: Any = None,
        **options: Unpack[RequestOptions],
    ) -> Any:
        """Ask, and return the answer::

            price = await broker.request(quotes, QuoteRequest("sku-1"), timeout="2s", returns=Quote)

        Nothing is created: whoever answers (`Service.responder`) makes the channel. Requests are sent at least once and may be
        handled more than once; a responder with a `Lease` answers a second time what it answered first.

        Args:
            channel: what is asked; of a topic the first answer counts (see `gather`).
            payload: as in `publish`.
            returns: what the answer decodes to. Default: JSON as it is, or bytes where it is none.
            options: see `RequestOptions`.

        Raises:
            RequestTimeout: no answer in time. The request may have been handled, or may be yet.
            RemoteError: the responder could not answer, and why.
            NoResponder: nobody reads the channel, where the broker can tell.
            Overloaded: not sent: too many requests or publishes are pending.
            Rejected: not sent: too large, no permission.
            DecodeError: the answer does not decode to ``returns``.
            EncodeError, InvalidMessage, ConfigurationError: before anything was sent.
        """
        decode = _decoding(returns)
        item, timeout = self._question(channel, payload, options)
        message = await (self._asker or self._asking()).ask(item, timeout)
        return _plain(message) if decode is None else decode(message.body)

    async def gather(
        self,
        channel: Channel[Any],
        payload: Any,
        *,
        at_least: int | None = None,
        returns: Any = None,
        **options: Unpack[RequestOptions],
    ) -> Gathered[Any]:
        """Ask all who read a topic, and return the answers in the order in which they came::

            prices = await broker.gather(quotes, QuoteRequest("sku-1"), timeout="2s", at_least=2, returns=Quote)

        One answer of each group counts, however often it was asked. Errors do not, nor does an answer that does not decode to
        ``returns`` (`DecodeError`): they are in ``errors`` of what is returned.

        Args:
            at_least: return as soon as there are so many. None: wait for the whole time and return what came.

        The others are as in `request`.

        Raises:
            QuorumMissed: fewer than ``at_least`` came in time; what came is in it.
            NoResponder, Overloaded, Rejected: as `request`.
        """
        read = _reading(returns)
        item, timeout = self._question(channel, payload, options)
        wanted = None if at_least is None else whole(at_least, name="at_least", high=self._max_requests)
        return Gathered(*await self._asking().gather(item, timeout, wanted, read))

    @property
    def requests(self) -> RequestStatus:
        """What has become of requests so far."""
        counts: Mapping[str, int] = self._asker.table.counts if self._asker is not None else {}
        waiting = len(self._asker.table) if self._asker is not None else 0
        return RequestStatus(
            waiting=waiting, **{name: counts.get(name, 0) for name in RequestStatus.__struct_fields__[1:]}
        )

    def _asking(self) -> Asker:
        if self._asker is None:
            replies = replies_of(self.adapter)
            self._asker = Asker(replies, self._publisher.post, publish_error, self._max_requests)
        return self._asker

    def _question(self, channel: Channel[Any], payload: Any, options: RequestOptions) -> tuple[Outgoing, float]:
        ensure_request_options(options)
        timeout = _timeout(options.get("timeout", "5s"))
        # By identity first: to ask a channel for its hash costs more than the rest of this.
        asked = self._last_asked[1] if channel is self._last_asked[0] else self._asked.get(channel)
        if asked is None:
            if not isinstance(channel, Queue | Topic):
                raise ConfigurationError(f'request from a Queue or Topic, not from {channel!r}; write Queue("name")')
            if len(self._asked) >= _MOST_ASKED:  # names made up for each request must not fill the memory
                self._asked.clear()
            asked = self._asked[channel] = replace(channel, requests=True)
        self._last_asked = (channel, asked)
        self._ensure_room((channel,))
        item = self.compose(
            asked, payload, key=options.get("key"), id=options.get("id"), headers=options.get("headers")
        )
        return item, timeout

    async def _close_inbox(self) -> None:
        if self._asker is not None:
            await self._asker.close()


def _reading(returns: Any) -> Callable[[Message], Any]:
    """From an answer to what the caller gets."""
    decode = _decoding(returns)
    return _plain if decode is None else lambda message: decode(message.body)


def _decoding(returns: Any) -> Decoder | None:
    """From its body; None where it is as it says itself."""
    if returns is None:
        return None
    try:
        return _decoder(returns)
    except TypeError:  # metadata of an annotation may be anything
        return decoder_for(returns)


@lru_cache(1000)
def _timeout(given: Duration) -> float:
    """Text is read once: programs use few."""
    return seconds(given, name="timeout", minimum=0.001)


@lru_cache(1000)
def _decoder(returns: Any) -> Decoder:
    """Made once for each type: that takes longer than a request."""
    return decoder_for(returns)


def _plain(message: Message) -> Any:
    kind = message.headers.get(wire.CONTENT_TYPE) or ""
    return _ANY(message.body) if kind.partition(";")[0].strip() == JSON else message.body
