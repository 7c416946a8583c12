"""One consumer as it was registered: a handler, its source, its policy and limits, and what it needs on a broker."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from atleastonce.binding import Binding, bind
from atleastonce.channels import Channel, Queue, Source, Topic
from atleastonce.contract import Capabilities, DelayChannel, Level, Topology, Window
from atleastonce.durations import Duration, Size, format_duration, size_in_bytes, whole
from atleastonce.errors import ConfigurationError
from atleastonce.patterns.failure import FailurePolicy, RetryChain

# Handlers that await spend their time waiting, so more of them fit; threads cost memory and the interpreter lock.
_ASYNC_PLACES, _THREAD_PLACES = 16, 4


class Batching(msgspec.Struct, frozen=True):
    """How a batch consumer collects: at most ``max_messages``, at most ``max_wait`` seconds from the first."""

    max_messages: int
    max_wait: float


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
    """

    home: Source
    binding: Binding
    failure: FailurePolicy
    dead_letter: bool
    concurrency: int
    window: Window
    batching: Batching | None = None

    def topology(self, capabilities: Capabilities) -> Topology:
        """What this consumer needs on a broker with ``capabilities``.

        Raises:
            ConfigurationError: a delay of the chain is longer than the broker can wait.
        """
        home, delay = self.home, capabilities.delay
        delays: list[DelayChannel] = []
        for wait in dict.fromkeys(self.failure.delays):  # one delay, one channel, however often the chain names it
            if delay.level is not Level.NONE and not delay.covers(wait):
                raise ConfigurationError(
                    f"{home}: this broker delays by at most {format_duration(delay.limit or 0)}; shorten the retry delay "
                    f"{format_duration(wait)}"
                )
            if delay.level is not Level.NATIVE:
                delays.append(DelayChannel(home.retry_channel(wait), wait, home))
        if self._needs_way_back(capabilities):
            delays.append(DelayChannel(home.redrive_channel, 0.0, home))
        return Topology(
            channels=(home.channel,),
            sources=(home,),
            delays=tuple(delays),
            dead_letters=(home.dead_letter_channel,) if self.dead_letter else (),
        )

    def _needs_way_back(self, capabilities: Capabilities) -> bool:
        """Whether redrive needs a channel of its own, because a topic's group cannot be addressed."""
        return self.dead_letter and isinstance(self.home.channel, Topic) and not capabilities.addresses_groups


def define(
    handler: Callable[..., Any],
    channel: Channel[Any],
    *,
    service: str,
    group: str | None,
    retry: Sequence[Duration] | None,
    failure: FailurePolicy | None,
    default: FailurePolicy,
    dead_letter: bool | None,
    concurrency: int | None,
    max_in_flight: int,
    max_in_flight_bytes: Size,
    batching: Batching | None = None,
) -> Consumer:
    """A `Consumer` from what a user wrote.

    Raises:
        ConfigurationError: names the handler, the argument and what to write instead.
    """
    if not isinstance(channel, Queue | Topic):
        raise ConfigurationError(
            f'a consumer reads a Queue or Topic, not {channel!r}; write Topic("orders.created", Order)'
        )
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
    places = concurrency if concurrency is not None else (_ASYNC_PLACES if binding.is_async else _THREAD_PLACES)
    return Consumer(
        home=home,
        binding=binding,
        failure=policy,
        dead_letter=bool(dead_letter),
        concurrency=whole(places, name=f"{binding.name}: concurrency", high=10_000),
        window=Window(
            whole(max_in_flight, name=f"{binding.name}: max_in_flight"),
            size_in_bytes(max_in_flight_bytes, name="max_in_flight_bytes"),
        ),
        batching=batching,
    )
