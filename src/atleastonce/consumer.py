"""One consumer as it was registered: a handler, its source, its policy and limits, and what it needs on a broker."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import msgspec

from atleastonce.binding import Binding, bind
from atleastonce.channels import Channel, Queue, Source, Topic
from atleastonce.contract import Capabilities, DelayChannel, Leasing, Level, Topology, Window
from atleastonce.durations import format_duration, per_second, size_in_bytes, whole
from atleastonce.engine.limit import AdaptiveConcurrency
from atleastonce.errors import ConfigurationError
from atleastonce.options import ConsumerOptions, ensure_known
from atleastonce.patterns.circuit_breaker import CircuitBreaker
from atleastonce.patterns.crash_loops import suspected_from
from atleastonce.patterns.failure import FailurePolicy, RetryChain
from atleastonce.patterns.once.keys import KeyReader
from atleastonce.patterns.once.options import Idempotency, Inbox
from atleastonce.patterns.ordering import KeyOf, LineReader, Ordered, message_key, read_order

# Handlers that await spend their time waiting, so more of them fit; threads cost memory and the interpreter lock.
_ASYNC_PLACES, _THREAD_PLACES = 16, 4
_IN_FLIGHT = 1000
_MOST_PRIORITY = 1000


class Batching(msgspec.Struct, frozen=True):
    """How a batch consumer collects: at most ``max_messages``, at most ``max_wait`` seconds from the first."""

    max_messages: int
    max_wait: float


class Answering(msgspec.Struct, frozen=True):
    """That a handler's result is an answer, which may also go to addresses that match one of the patterns ``reply_to``."""

    reply_to: tuple[str, ...] = ()


class Consumer(msgspec.Struct, frozen=True, kw_only=True):
    """What was registered. Immutable; `Bound` is what runs.

    Attributes:
        home: the source that the handler is for. Its retry channels lead to the same handler.
        binding: the handler.
        failure: its policy.
        dead_letter: whether given-up messages are kept. If not they are dropped, and counted as dropped.
        concurrency: handlers at once.
        window: the bound on everything received and unsettled.
        batching: how batches are collected; None for a handler of single messages.
        idempotency: how its duplicates are known; None where they run again.
        scope: of its claims; "" without idempotency.
        order: by what its messages are kept in line; None where they run in any order.
        adaptive: how ``concurrency``, which is then the most, changes; None where it does not.
        rate: messages per second that may begin; None for no limit.
        circuit: when it stops reading; None for never.
        priority: over other consumers of its service.
        hot_keys: whether its keys are counted.
        answering: of a responder; None for a consumer.
        transactions: whether what it publishes and its settlements are one transaction.
    """

    home: Source
    binding: Binding
    failure: FailurePolicy
    dead_letter: bool
    concurrency: int
    window: Window
    batching: Batching | None = None
    idempotency: Idempotency | None = None
    scope: str = ""
    order: Ordered | None = None
    adaptive: AdaptiveConcurrency | None = None
    rate: float | None = None
    circuit: CircuitBreaker | None = None
    priority: int = 0
    hot_keys: bool = False
    answering: Answering | None = None
    transactions: bool = False

    def topology(self, capabilities: Capabilities) -> Topology:
        """What this consumer needs on a broker with ``capabilities``.

        Raises:
            ConfigurationError: a delay of the chain is longer than its waiting rooms can keep a message.
        """
        home, delay = self.home, capabilities.delay
        for wait in () if self.order is not None else self.failure.delays:
            if delay.level is Level.EMULATED and not delay.covers(wait):
                raise ConfigurationError(
                    f"{home}: this broker delays by at most {format_duration(delay.limit or 0)}; shorten the retry delay "
                    f"{format_duration(wait)}"
                )
        waits = list(self.rooms(capabilities))
        if delay.level is not Level.EMULATED:  # the broker empties the others by itself
            waits += [
                wait for wait in self.failure.drained if delay.level is not Level.NATIVE or not delay.covers(wait)
            ]
        delays = [DelayChannel(home.retry_channel(wait), wait, home) for wait in dict.fromkeys(waits)]
        if self._needs_way_back(capabilities):
            delays.append(DelayChannel(home.redrive_channel, 0.0, home))
        return Topology(
            channels=(home.channel, home.suspects_channel),
            sources=(home, Source(home.suspects_channel)),
            delays=tuple(delays),
            dead_letters=(home.dead_letter_channel,) if self.dead_letter else (),
        )

    def key_of(self) -> KeyOf:
        """By what its messages are kept in line; where they are not, the message's key."""
        if self.order is None:
            return message_key
        binding = self.binding
        return LineReader(self.order, binding.name, binding.payload_type, binding.decode).key_of

    def rooms(self, capabilities: Capabilities) -> tuple[float, ...]:
        """The delays that have a channel of their own to wait in, shortest first; one each, however often the chain names it.

        A broker that delays by itself needs none, up to its limit. What a handler defers for longer waits in a channel
        of that limit. An ordered consumer needs none either: what waits there holds its key in place.
        """
        if self.order is not None:
            return ()
        delay = capabilities.delay
        if delay.level is not Level.NATIVE:
            return tuple(dict.fromkeys(self.failure.delays))
        longer = tuple(dict.fromkeys(wait for wait in self.failure.delays if not delay.covers(wait)))
        if not longer and self.failure.delays and delay.limit is not None:
            return (delay.limit,)
        return longer

    def suspected_from(self, capabilities: Capabilities) -> int:
        """The broker's count of hand-outs from which on a message is suspected of ending its process."""
        return suspected_from(
            self.failure,
            counted=capabilities.delay.level is Level.NATIVE,
            ordered=self.order is not None,
            # Whose lease is fixed (a share group) throws away what was handed out too often: nothing to spare there.
            releases=capabilities.counts_releases and capabilities.lease is not Leasing.FIXED,
        )

    def returns_copies(self, capabilities: Capabilities) -> bool:
        """Whether what a process gives back unhandled is a copy of it, where that can be addressed: the broker counts each
        hand-out, and would take it for an attempt of the chain. Not where its place in a line is worth more than an attempt."""
        counted = capabilities.counts_releases and capabilities.delay.level is Level.NATIVE
        channel = self.home.channel
        lined_up = self.order is not None or (
            isinstance(channel, Queue | Topic) and (channel.fifo or channel.single_active)
        )
        addressed = isinstance(channel, Queue) or capabilities.addresses_groups or self.dead_letter
        return counted and addressed and bool(self.failure.delays) and not lined_up and self.answering is None

    def _needs_way_back(self, capabilities: Capabilities) -> bool:
        """Whether redrive needs a channel of its own, because a topic's group cannot be addressed."""
        return self.dead_letter and isinstance(self.home.channel, Topic) and not capabilities.addresses_groups


def define(
    handler: Callable[..., Any],
    channel: Channel[Any],
    options: ConsumerOptions,
    *,
    service: str,
    default: FailurePolicy,
    batching: Batching | None = None,
    answering: Answering | None = None,
) -> Consumer:
    """A `Consumer` from what a user wrote.

    Args:
        handler: what runs.
        channel: what it reads.
        options: as given; what was left out has its default.
        service: the name of the service.
        default: the policy of those that name none.
        batching: for a handler of lists.
        answering: for a responder.

    Raises:
        ConfigurationError: names the handler, the argument and what to write instead.
    """
    ensure_known(options)
    if not isinstance(channel, Queue | Topic):
        raise ConfigurationError(
            f'a consumer reads a Queue or Topic, not {channel!r}; write Topic("orders.created", Order)'
        )
    group, retry, failure = options.get("group"), options.get("retry"), options.get("failure")
    idempotency, rate = options.get("idempotency"), options.get("rate_limit")
    if answering is not None:
        channel = replace(channel, requests=True)
    home = Source(channel, (group or service) if isinstance(channel, Topic) else group)
    binding = bind(handler, channel, batch=batching is not None)
    if retry is not None and failure is not None:
        raise ConfigurationError(
            f"{binding.name}: give retry= or failure=, not both; retry is short for the policy's chain"
        )
    policy = failure or default
    if isinstance(retry, str) or not isinstance(retry, Iterable | None):
        raise ConfigurationError(
            f'{binding.name}: retry={retry!r} is no list of delays; write retry=["5s", "30s", "5m"]'
        )
    if batching is not None and failure is not None and failure.timeout is not None:
        raise ConfigurationError(
            f"{binding.name}: a batch has no timeout; leave timeout={failure.timeout!r} out of its failure policy"
        )
    if retry is not None:
        policy = replace(policy, chain=RetryChain(*retry))
    if not options.get("dead_letter", answering is None):  # whoever asked is told, and nobody else waits for it
        policy = replace(policy, dead_letter=None)
    if answering is not None and isinstance(idempotency, Inbox):
        raise ConfigurationError(
            f"{binding.name}: an inbox remembers no answers, and a duplicate would get none; give idempotency=Lease(store)"
        )
    transactions = options.get("transactions", False)
    if not isinstance(transactions, bool):
        raise ConfigurationError(f"{binding.name}: transactions={transactions!r} must be True or False")
    hot_keys = options.get("hot_keys")
    if not isinstance(hot_keys, bool | None):
        raise ConfigurationError(f"{binding.name}: hot_keys={hot_keys!r} must be True, False or None")
    if answering is not None and transactions:
        raise ConfigurationError(
            f"{binding.name}: an answer is for who waits for it now, and no part of a transaction; leave transactions away"
        )
    scope = "" if idempotency is None else _scope(idempotency, service, home, binding)
    places = whole(_places(options, binding, batching), name=f"{binding.name}: concurrency", high=10_000)
    order = _order(options, binding, policy)
    return Consumer(
        home=home,
        binding=binding,
        failure=policy,
        dead_letter=policy.dead_letter is not None,
        concurrency=places,
        window=_window(options, binding, batching, places),
        batching=batching,
        idempotency=idempotency,
        scope=scope,
        order=order,
        adaptive=_adaptive(options, binding, batching),
        rate=None if rate is None else per_second(rate, name=f"{binding.name}: rate_limit"),
        circuit=_circuit(options, binding),
        priority=whole(
            options.get("priority", 0), name=f"{binding.name}: priority", low=-_MOST_PRIORITY, high=_MOST_PRIORITY
        ),
        hot_keys=order is not None if hot_keys is None else hot_keys,
        answering=answering,
        transactions=transactions,
    )


def _order(options: ConsumerOptions, binding: Binding, policy: FailurePolicy) -> Ordered | None:
    try:
        order = read_order(options.get("ordered"))
    except ConfigurationError as error:
        raise ConfigurationError(f"{binding.name}: {error}") from None
    if order is not None:
        LineReader(order, binding.name, binding.payload_type, binding.decode)
        if order.park and policy.dead_letter is None:
            raise ConfigurationError(
                f"{binding.name}: park=True sends a key's later messages to the dead letters, and dead_letter=None keeps none; "
                "leave one of the two away"
            )
    return order


def _places(options: ConsumerOptions, binding: Binding, batching: Batching | None) -> int:
    given = options.get("concurrency")
    if isinstance(given, AdaptiveConcurrency):
        return given.max
    if given is not None:
        return given
    if batching is not None:
        return 1
    return _ASYNC_PLACES if binding.is_async else _THREAD_PLACES


def _adaptive(options: ConsumerOptions, binding: Binding, batching: Batching | None) -> AdaptiveConcurrency | None:
    given = options.get("concurrency")
    if not isinstance(given, AdaptiveConcurrency):
        return None
    if batching is not None:
        raise ConfigurationError(
            f"{binding.name}: AdaptiveConcurrency is for handlers of single messages; give concurrency=1 or another number of "
            "batches at once"
        )
    return given


def _circuit(options: ConsumerOptions, binding: Binding) -> CircuitBreaker | None:
    given: object = options.get("circuit")
    if not isinstance(given, CircuitBreaker | None):
        raise ConfigurationError(f"{binding.name}: circuit={given!r}: give CircuitBreaker(failures=20) or None")
    return given


def _window(options: ConsumerOptions, binding: Binding, batching: Batching | None, places: int) -> Window:
    given = options.get("max_in_flight")
    if given is None:
        # Of batches: one is handled, one is being settled, two are on their way.
        given = _IN_FLIGHT if batching is None else 4 * places * batching.max_messages
    messages = whole(given, name=f"{binding.name}: max_in_flight")
    if batching is not None and messages < batching.max_messages:
        raise ConfigurationError(
            f"max_in_flight={messages} is below max_messages={batching.max_messages}: no batch could fill"
        )
    size = size_in_bytes(options.get("max_in_flight_bytes", "64MiB"), name="max_in_flight_bytes")
    # A key that waits keeps what is behind it; with all the traffic of its partition it must not keep the others' places, too.
    return Window(messages, size, shared=bool(options.get("ordered")), transactional=options.get("transactions", False))


def _scope(idempotency: Idempotency, service: str, home: Source, binding: Binding) -> str:
    """Where the handler's claims are: of this service, source and handler. A source and not its group alone, because two
    sources may have the same natural keys."""
    from atleastonce.stores.records import scope_key

    if not isinstance(idempotency, Idempotency):
        raise ConfigurationError(
            f"{binding.name}: idempotency={idempotency!r}: give Inbox(PostgresStore(...)) or Lease(RedisStore(...))"
        )
    KeyReader(idempotency.key, binding.name, binding.payload_type)
    function = binding.name.removeprefix(f"{getattr(binding.call, '__module__', '')}.")
    return scope_key(service, home.name, idempotency.scope or function)
