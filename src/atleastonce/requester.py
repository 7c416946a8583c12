"""For those who ask often: requests to one channel with a limit, a breaker, a fallback and, if wanted, a second try in parallel."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from atleastonce.broker import Broker
from atleastonce.channels import Channel
from atleastonce.durations import Duration, seconds, whole
from atleastonce.errors import (
    BrokerUnavailable,
    ConfigurationError,
    NoResponder,
    Overloaded,
    RemoteError,
    RequestError,
    RequestTimeout,
    Unconfirmed,
)
from atleastonce.message import HeaderValue, new_id
from atleastonce.patterns.circuit_breaker import Circuit, CircuitBreaker
from atleastonce.patterns.failure import causes

T = TypeVar("T")

_NONE: Any = object()

_TROUBLE = (RequestTimeout, NoResponder, BrokerUnavailable, Unconfirmed)


class Requester(Generic[T]):
    """Asks one channel, as `Broker.request` does, for callers that ask often::

        quote = Requester(broker, quotes, returns=Quote, timeout="2s", concurrency=50, circuit=CircuitBreaker(), fallback=None)
        price = await quote(QuoteRequest("sku-1"))

    Safe to share among the tasks of one event loop.

    Args:
        broker: open.
        channel: what is asked.
        returns: what an answer decodes to; see `Broker.request`.
        timeout: of each request, from the call on.
        concurrency: requests under way at once; others wait for their turn within their timeout. Too few: callers wait although
            the responder has time. Too many: it is flooded when it is slow.
        circuit: stops asking while requests keep failing: they raise `Overloaded` at once. Timeouts, nobody there, a broker that is
            away and errors that the responder calls retryable count; other errors are answers like any.
        fallback: what is returned where there is no answer, instead of the exception: a value, or a callable of payload and
            exception (``def`` or ``async def``). Not for errors that are no lack of an answer: a `RemoteError` that is not
            retryable, or a request that cannot be sent, is raised.
        hedge: ask a second time, under the same id, if there is no answer after this long, and take whichever comes first. For
            responders that are sometimes slow, and idempotent: both may be handled. None: never.

    Raises:
        ConfigurationError: a value out of range, or a ``circuit`` that is no `CircuitBreaker`.
    """

    def __init__(
        self,
        broker: Broker,
        channel: Channel[Any],
        *,
        returns: type[T] | None = None,
        timeout: Duration = "5s",
        concurrency: int | None = None,
        circuit: CircuitBreaker | None = None,
        fallback: Any = _NONE,
        hedge: Duration | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._broker = broker
        self._channel = channel
        self._returns = returns
        self._timeout = seconds(timeout, name="timeout", minimum=0.001)
        self._hedge = None if hedge is None else seconds(hedge, name="hedge", minimum=0.001)
        if self._hedge is not None and self._hedge >= self._timeout:
            raise ConfigurationError(f"hedge={hedge!r} is not below timeout={timeout!r}: it would never be asked again")
        self._places = None
        if concurrency is not None:
            self._places = asyncio.Semaphore(whole(concurrency, name="concurrency", high=100_000))
        if not isinstance(circuit, CircuitBreaker | None):
            raise ConfigurationError(f"circuit={circuit!r}: give CircuitBreaker(failures=20) or None")
        self._breaker = circuit
        self.circuit: Circuit | None = None if circuit is None else circuit.circuit()
        """The breaker's state; None without one."""
        self._fallback = fallback
        self._clock = clock

    async def __call__(
        self,
        payload: Any,
        *,
        key: str | bytes | None = None,
        id: str | None = None,
        headers: Mapping[str, HeaderValue] | None = None,
    ) -> T:
        """The answer to ``payload``, or the fallback. Raises as `Broker.request`."""
        try:
            return await self._guarded(payload, {"key": key, "id": id, "headers": headers})
        except (RequestError, Overloaded, BrokerUnavailable, Unconfirmed) as error:
            if self._fallback is _NONE or (isinstance(error, RemoteError) and not error.retryable):
                raise
            return await self._instead(payload, error)

    async def _instead(self, payload: Any, error: Exception) -> T:
        found = self._fallback
        if callable(found):
            found = found(payload, error)
            if inspect.isawaitable(found):
                found = await found
        result: T = found
        return result

    async def _guarded(self, payload: Any, options: dict[str, Any]) -> T:
        circuit = self.circuit
        if circuit is None:
            return await self._limited(payload, options)
        ticket = circuit.admit(self._clock())
        if ticket is None:
            wait = circuit.wait(self._clock())
            raise Overloaded(
                f"not sent: requests to {self._channel.name} kept failing ({circuit.reason}); tried again in {wait:.1f} s"
            )
        try:
            answer = await self._limited(payload, options)
        except BaseException as error:
            if self._is_trouble(error):
                circuit.failed(ticket, self._clock())
            elif isinstance(error, RequestError):  # an answer like any
                circuit.succeeded(ticket)
            else:  # cut off, or never sent
                circuit.abandoned(ticket, self._clock())
            raise
        circuit.succeeded(ticket)
        return answer

    def _is_trouble(self, error: BaseException) -> bool:
        """Whether ``error`` says that the responder is in trouble, and not the request."""
        counts = self._breaker is None or self._breaker.counts(causes(error))
        return counts and (isinstance(error, _TROUBLE) or (isinstance(error, RemoteError) and error.retryable))

    async def _limited(self, payload: Any, options: dict[str, Any]) -> T:
        if self._places is None:
            return await self._ask(payload, options, self._timeout)
        begin = self._clock()
        try:
            async with asyncio.timeout(self._timeout):
                await self._places.acquire()
        except TimeoutError:
            raise Overloaded(
                f"not sent: all places for requests to {self._channel.name} were taken for {self._timeout:g} s"
            ) from None
        try:
            return await self._ask(payload, options, max(0.001, self._timeout - (self._clock() - begin)))
        finally:
            self._places.release()

    async def _ask(self, payload: Any, options: dict[str, Any], within: float) -> T:
        if self._hedge is None or self._hedge >= within:
            return await self._once(payload, options, within)
        options = {**options, "id": options["id"] or new_id()}
        first = asyncio.ensure_future(self._once(payload, options, within))
        asked = [first]
        try:
            await asyncio.wait(asked, timeout=self._hedge)
            if not first.done():
                asked.append(asyncio.ensure_future(self._once(payload, options, within - self._hedge)))
            pending = set(asked)
            while True:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                good = [each for each in done if not each.cancelled() and each.exception() is None]
                if good or not pending:
                    return (good or list(done))[0].result()
        finally:
            for each in asked:
                each.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    async def _once(self, payload: Any, options: dict[str, Any], within: float) -> T:
        returns: Any = self._returns
        answer: T = await self._broker.request(self._channel, payload, returns=returns, timeout=within, **options)
        return answer

    def __repr__(self) -> str:
        return f"<Requester {self._channel.name} on {self._broker.url}>"
