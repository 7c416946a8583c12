"""The handlers of a service: registered by decorators, each for a source of its own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar, Unpack

from atleastonce.channels import Channel, Source, Topic
from atleastonce.consumer import Answering, Batching, Consumer, define
from atleastonce.durations import Duration, seconds, whole
from atleastonce.errors import ConfigurationError
from atleastonce.options import ConsumerOptions, ensure_known
from atleastonce.patterns.failure import FailurePolicy

F = TypeVar("F", bound=Callable[..., Any])


class Handlers:
    """What is registered under one name.

    Args:
        name: of the service; the group with which it reads topics.
        failure: the policy of consumers that name none.

    Attributes:
        consumers: in the order in which they were registered.
    """

    def __init__(self, name: str, failure: FailurePolicy | None) -> None:
        Source(Topic("name-check"), name)  # a service's name is a group's name: the same rules
        self.name = name
        self.consumers: list[Consumer] = []
        self._failure = failure or FailurePolicy()
        self._registrable = True

    def consumer(self, channel: Channel[Any], **options: Unpack[ConsumerOptions]) -> Callable[[F], F]:
        """Register a handler for the messages of ``channel``, one at a time.

        Args:
            channel: a `Queue`, or a `Topic` read as the service's group.
            options: see `ConsumerOptions`.

        Raises:
            ConfigurationError: a second handler for the same channel and group, a handler that cannot be called so, an
            option that there is not, a value out of range.
        """
        return self._registering(channel, options)

    def batch_consumer(
        self,
        channel: Channel[Any],
        *,
        max_messages: int = 100,
        max_wait: Duration = "200ms",
        **options: Unpack[ConsumerOptions],
    ) -> Callable[[F], F]:
        """Register a handler for lists of messages: ``async def handle(orders: list[Order])``.

        A ``list[Context]`` parameter gets one Context for each message, in the same order. It returns None when all are
        done, or one result per message: None, or an exception for a message that failed.
        If it raises, its messages run one by one, so that one bad message costs only itself. What does not decode never
        reaches it.

        Args:
            channel: as in `consumer`.
            max_messages: the largest batch.
            max_wait: from a batch's first message until it runs with what it has.
            options: see `ConsumerOptions`.

        Raises:
            ConfigurationError: as `consumer`.
        """
        whole(max_messages, name="max_messages", high=100_000)
        return self._registering(channel, options, Batching(max_messages, seconds(max_wait, name="max_wait")))

    def responder(
        self, channel: Channel[Any], *, reply_to: Sequence[str] = (), **options: Unpack[ConsumerOptions]
    ) -> Callable[[F], F]:
        """Register a handler that answers the requests in ``channel``: what it returns goes to whoever asked, and what it raises
        goes there as an error (`RemoteError`). See `Broker.request`.

        A request whose asker has stopped waiting is dropped without a run. One that nobody waits for (a plain message) runs, and
        its result goes nowhere.

        Args:
            channel: as in `consumer`.
            reply_to: patterns (``"legacy.replies.*"``; ``*`` stands for anything, dots included) of further addresses that may be
                answered to. By default these are the broker's inboxes and nothing else, so that no request makes a responder
                publish anywhere; ``"*"`` allows every address.
            options: see `ConsumerOptions`. By default a request is tried once and no dead letters are kept. With a `Lease`
                duplicates are answered with the first one's answer.

        Raises:
            ConfigurationError: as `consumer`; also for an `Inbox`, which remembers no answers.
        """
        given: object = reply_to
        if (
            isinstance(given, str)
            or not isinstance(given, Collection)
            or not all(isinstance(each, str) and each for each in given)
        ):
            raise ConfigurationError(f'reply_to={reply_to!r}: give a list of patterns, like reply_to=["legacy.*"]')
        policy = FailurePolicy(in_place=None)
        return self._registering(channel, options, answering=Answering(tuple(reply_to)), default=policy)

    def _registering(
        self,
        channel: Channel[Any],
        options: ConsumerOptions,
        batching: Batching | None = None,
        answering: Answering | None = None,
        default: FailurePolicy | None = None,
    ) -> Callable[[F], F]:
        ensure_known(options)

        def register(handler: F) -> F:
            self._register(
                define(
                    handler,
                    channel,
                    options,
                    service=self.name,
                    default=default or self._failure,
                    batching=batching,
                    answering=answering,
                )
            )
            return handler

        return register

    def _register(self, consumer: Consumer) -> None:
        if not self._registrable:
            raise ConfigurationError(f"service {self.name} is running; register handlers before it starts")
        for other in self.consumers:
            if other.home.name == consumer.home.name:
                instead = (
                    "give one of them a group of its own with group="
                    if isinstance(consumer.home.channel, Topic)
                    else "of a queue each message goes to one handler: give one of them another queue, or make it a Topic"
                )
                raise ConfigurationError(
                    f"{consumer.binding.name} and {other.binding.name} both handle {consumer.home}; {instead}"
                )
        self.consumers.append(consumer)
