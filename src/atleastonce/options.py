"""What can be said of a consumer, for every kind of handler, and of a request: one list of options each."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from atleastonce.durations import Duration, Rate, Size
from atleastonce.engine.limit import AdaptiveConcurrency
from atleastonce.errors import ConfigurationError
from atleastonce.message import HeaderValue
from atleastonce.patterns.circuit_breaker import CircuitBreaker
from atleastonce.patterns.failure import FailurePolicy
from atleastonce.patterns.once.options import Idempotency
from atleastonce.patterns.ordering import Order


class ConsumerOptions(TypedDict, total=False):
    """The keyword arguments of `Service.consumer` and `Service.batch_consumer`; each may be left out.

    Attributes:
        group: whose deliveries of a topic these are. Default: the service's name.
        retry: delays between attempts; short for ``failure=FailurePolicy(chain=RetryChain(...))``.
        failure: the whole policy. Default: the service's.
        dead_letter: None or False turns the dead-letter queue off: what is given up is then dropped, logged and counted.
        concurrency: handlers at once, those of retries included, or `AdaptiveConcurrency`. Default: 16 for ``async def``, 4 threads
            for ``def``, 1 for batches.
        max_in_flight: messages received and unsettled. Too small: the network's round trip shows; too large: more is
            repeated after a crash, and workers hoard what idle ones could do. Default: 1000; for batches enough for
            ``concurrency`` of them and as many being collected.
        max_in_flight_bytes: the same in bytes. A message that is larger runs when nothing else is in flight. Default: 64 MiB.
        idempotency: `Inbox` or `Lease`: duplicates have no second effect. Default: None, they run again.
        ordered: True (by message key), a field's name, a callable of the payload, or `Ordered`: messages of one key run one at a
            time and in order, keys in parallel; one that fails holds its key in place for the delays of the chain, too. Refused
            at the start where the broker cannot keep it across processes. Default: False, any order.
        rate_limit: messages that may begin in a second, all retries included, like ``"500/s"``. Default: None, no limit. For
            one process: ten of them are ten times as fast.
        circuit: when this consumer stops reading because its handler keeps failing. Burns no attempts. Default: None, never.
        priority: while messages of this consumer wait to run, one with a lower priority receives one message a second. Default: 0.
        hot_keys: whether the keys that bring most messages, or take most time, are counted and named in `Service.status`. Default:
            True for an ordered consumer, else False; it costs a microsecond a message.
        transactions: whether what the handler publishes, a retry or dead letter of its message, and the settlement are one
            transaction of the broker (Kafka): all of it or nothing. Default: False.
    """

    group: str | None
    retry: Sequence[Duration] | None
    failure: FailurePolicy | None
    dead_letter: bool | None
    concurrency: int | AdaptiveConcurrency | None
    max_in_flight: int | None
    max_in_flight_bytes: Size
    idempotency: Idempotency | None
    ordered: Order
    rate_limit: Rate | None
    circuit: CircuitBreaker | None
    priority: int
    hot_keys: bool | None
    transactions: bool


class RequestOptions(TypedDict, total=False):
    """The keyword arguments of `Broker.request` and `Broker.gather`; each may be left out.

    Attributes:
        timeout: how long to wait, from the call on, whatever it is that takes time. It travels with the request: a responder
            drops what nobody waits for any more. Default: 5 s.
        key: as in `Broker.publish`.
        id: of the request; the same one for the same request, where a responder knows duplicates. Default: a new one.
        headers: as in `Broker.publish`.
    """

    timeout: Duration
    key: str | bytes | None
    id: str | None
    headers: Mapping[str, HeaderValue] | None


def ensure_known(options: Mapping[str, Any]) -> None:
    """Return if each of ``options`` is a consumer's: Python does not look at the names behind ``**``.

    Raises:
        ConfigurationError: names the wrong one, and the right one where it is close.
    """
    _ensure(options, ConsumerOptions.__annotations__, "consumer")


def ensure_request_options(options: Mapping[str, Any]) -> None:
    """As `ensure_known`, for a request."""
    _ensure(options, RequestOptions.__annotations__, "request")


def _ensure(options: Mapping[str, Any], known: Mapping[str, Any], kind: str) -> None:
    for name in options:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
            raise ConfigurationError(f"no {kind} option {name}; {hint}")
