"""A service: handlers and policies in, running consumers out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from atleastonce.broker import Broker
from atleastonce.channels import Channel, Source, Topic
from atleastonce.consumer import Batching, Consumer, define
from atleastonce.durations import Duration, Size, seconds, whole
from atleastonce.errors import ConfigurationError
from atleastonce.patterns.failure import FailurePolicy
from atleastonce.runtime import ConsumerStatus, Runtime, check_drifts

log = logging.getLogger("atleastonce")

F = TypeVar("F", bound=Callable[..., Any])


class Service:
    """A named set of consumers on one broker.

    Args:
        name: of the service; the group with which it reads topics.
        broker: a URL; ``ALO_BROKER`` in the environment overrides it.
        options: the client's own options, as they are.
        failure: the policy of consumers that name none.
        drain: how long handlers may go on when the service stops. Too short: work is cancelled and done again
            elsewhere; too long: the platform kills the process first (Kubernetes: terminationGracePeriodSeconds, 30 s by default).
        create: whether missing channels are created at the start.
        wait: how long to wait for a broker that is not there at the start; 0 fails at once, None waits for ever.
    """

    def __init__(
        self,
        name: str,
        *,
        broker: str | None = None,
        options: dict[str, Any] | None = None,
        failure: FailurePolicy | None = None,
        drain: Duration = "25s",
        create: bool = True,
        wait: Duration | None = "60s",
    ) -> None:
        Source(Topic("name-check"), name)  # a service's name is a group's name: the same rules
        self.name = name
        self.consumers: list[Consumer] = []
        self._url = broker
        self._options = options
        self._failure = failure or FailurePolicy()
        self._drain = seconds(drain, name="drain")
        self._create = create
        self._wait = wait
        self._broker: Broker | None = None
        self._runtimes: list[Runtime] = []
        self._running = False
        self._stopping: asyncio.Event | None = None
        self._fatal_error: BaseException | None = None

    # --------------------------------------------------------------------------------------- register

    def consumer(
        self,
        channel: Channel[Any],
        *,
        group: str | None = None,
        retry: Sequence[Duration] | None = None,
        failure: FailurePolicy | None = None,
        dead_letter: bool | None = True,
        concurrency: int | None = None,
        max_in_flight: int = 1000,
        max_in_flight_bytes: Size = "64MiB",
    ) -> Callable[[F], F]:
        """Register a handler for the messages of ``channel``, one at a time.

        Args:
            channel: a `Queue`, or a `Topic` read as ``group`` (default: the service's name).
            retry: delays between attempts; short for ``failure=FailurePolicy(chain=RetryChain(...))``.
            failure: the whole policy.
            dead_letter: None or False turns the dead-letter queue off: what is given up is then dropped, logged and
                counted.
            concurrency: handlers at once; default 16 for ``async def``, 4 threads for ``def``.
            max_in_flight: messages received and unsettled. Too small: the network's round trip shows; too large: more
                is repeated after a crash, and workers hoard what idle ones could do.
            max_in_flight_bytes: the same in bytes.

        Raises:
            ConfigurationError: a second handler for the same channel and group, a handler that cannot be called so, a
            value out of range.
        """

        def register(handler: F) -> F:
            self._register(
                define(
                    handler,
                    channel,
                    service=self.name,
                    group=group,
                    retry=retry,
                    failure=failure,
                    default=self._failure,
                    dead_letter=dead_letter,
                    concurrency=concurrency,
                    max_in_flight=max_in_flight,
                    max_in_flight_bytes=max_in_flight_bytes,
                )
            )
            return handler

        return register

    def batch_consumer(
        self,
        channel: Channel[Any],
        *,
        max_messages: int = 100,
        max_wait: Duration = "200ms",
        group: str | None = None,
        retry: Sequence[Duration] | None = None,
        failure: FailurePolicy | None = None,
        dead_letter: bool | None = True,
        concurrency: int = 1,
        max_in_flight: int | None = None,
        max_in_flight_bytes: Size = "64MiB",
    ) -> Callable[[F], F]:
        """Register a handler for lists of messages: ``async def handle(orders: list[Order])``.

        A ``list[Context]`` parameter gets one Context for each message, in the same order. It returns None when all are
        done, or one result per message: None, or an exception for a message that failed.
        If it raises, its messages run one by one, so that one bad message costs only itself. What does not decode never
        reaches it.

        Args:
            max_messages: the largest batch.
            max_wait: from a batch's first message until it runs with what it has.
            max_in_flight: default: enough for ``concurrency`` batches and as many being collected.

        The others are as in `consumer`; raises as `consumer`.
        """
        whole(max_messages, name="max_messages", high=100_000)
        whole(concurrency, name="concurrency", high=10_000)
        batching = Batching(max_messages, seconds(max_wait, name="max_wait"))
        limit = whole(
            max_in_flight if max_in_flight is not None else 2 * concurrency * max_messages, name="max_in_flight"
        )
        if limit < max_messages:
            raise ConfigurationError(f"max_in_flight={limit} is below max_messages={max_messages}: no batch could fill")

        def register(handler: F) -> F:
            self._register(
                define(
                    handler,
                    channel,
                    service=self.name,
                    group=group,
                    retry=retry,
                    failure=failure,
                    default=self._failure,
                    dead_letter=dead_letter,
                    concurrency=concurrency,
                    max_in_flight=limit,
                    max_in_flight_bytes=max_in_flight_bytes,
                    batching=batching,
                )
            )
            return handler

        return register

    def _register(self, consumer: Consumer) -> None:
        if self._running:
            raise ConfigurationError(f"service {self.name} is running; register handlers before it starts")
        for other in self.consumers:
            if other.home.name == consumer.home.name:
                raise ConfigurationError(
                    f"{consumer.binding.name} and {other.binding.name} both handle {consumer.home}; "
                    "give one of them a group of its own with group="
                )
        self.consumers.append(consumer)

    # -------------------------------------------------------------------------------------------- run

    @property
    def broker(self) -> Broker:
        """The running service's connection.

        Raises:
            ConfigurationError: the service is not running.
        """
        if self._broker is None:
            raise ConfigurationError(f"service {self.name} is not running; use `async with service:` or service.run()")
        return self._broker

    def make_broker(self, url: str | None = None, *, no_wait: bool = False) -> Broker:
        """A connection to this service's broker, not yet open; with ``no_wait`` one that fails at once if it is not there.

        Raises:
            ConfigurationError: no URL was given, in code or in ``ALO_BROKER``.
        """
        chosen = url or os.environ.get("ALO_BROKER") or self._url
        if not chosen:
            raise ConfigurationError(
                f'service {self.name} has no broker; give Service(broker="kafka://localhost:9092") or set ALO_BROKER'
            )
        return Broker(chosen, self._options, create=self._create, wait=0 if no_wait else self._wait)

    async def start(self, *, url: str | None = None, no_wait: bool = False) -> None:
        """Connect, declare, subscribe: returns when every consumer reads.

        Raises:
            ConfigurationError: no handlers, running already, or a promise that this broker or its live topology cannot
            keep.
            BrokerUnavailable, PermissionDenied, NotFound: as named. Nothing is left running.
        """
        if not self.consumers:
            raise ConfigurationError(
                f"service {self.name} has no handlers; decorate one with @service.consumer(channel)"
            )
        if self._running:
            raise ConfigurationError(f"service {self.name} is running already")
        broker = self.make_broker(url, no_wait=no_wait)
        runtimes = [
            Runtime(broker, consumer, self.name, self._fatal, create=self._create) for consumer in self.consumers
        ]
        self._stopping = asyncio.Event()
        self._fatal_error = None
        self._running = True
        try:
            await broker.open()
            self._broker = broker
            for runtime in runtimes:
                check_drifts(await broker.adapter.declare(runtime.topology, create=self._create))
            for runtime in runtimes:
                self._runtimes.append(runtime)
                await runtime.start()
        except BaseException:
            try:
                await self.stop(grace=0)
            finally:
                await broker.close()
            raise
        log.info("service %s runs on %s: %s", self.name, broker.url, ", ".join(str(c.home) for c in self.consumers))

    async def stop(self, grace: float | None = None) -> bool:
        """Stop receiving, drain for ``grace`` seconds (default: ``drain``), disconnect. Returns whether everything
        ended by itself.

        Idempotent. A second call with less grace cuts the first one short, and so does cancelling it.
        """
        if self._stopping is not None:
            self._stopping.set()
        supervisors = [supervisor for runtime in self._runtimes for supervisor in runtime.supervisors]
        limit = self._drain if grace is None else grace
        try:
            ends = await asyncio.gather(*(s.stop(limit) for s in supervisors), return_exceptions=True)
        except asyncio.CancelledError:  # no more time: what still runs is given back
            await asyncio.gather(*(s.stop(0) for s in supervisors), return_exceptions=True)
            raise
        finally:
            self._runtimes = []
            broker, self._broker = self._broker, None
            try:
                if broker is not None:
                    await broker.close()
            finally:
                self._running = False
        for end in ends:
            if isinstance(end, BaseException):
                log.error("stopping %s: %s", self.name, end)
        return all(end is True for end in ends)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @contextlib.asynccontextmanager
    async def lifespan(self, app: object) -> AsyncIterator[None]:
        """For FastAPI and Starlette: ``FastAPI(lifespan=service.lifespan)``."""
        async with self:
            yield

    async def serve(self, *, url: str | None = None, no_wait: bool = False) -> None:
        """Run until SIGTERM, SIGINT or `request_stop`, then drain; a second signal ends the drain, and one that comes
        while the service is still starting, or waiting for its broker, ends the start.

        Raises:
            SystemExit, KeyboardInterrupt: a handler raised it; its message was given back, the others drained.
            PermissionDenied, ConfigurationError: a consumer cannot go on.
        """
        loop = asyncio.get_running_loop()
        hurry = asyncio.Event()
        starting = asyncio.create_task(self.start(url=url, no_wait=no_wait))
        given_up = False

        def on_signal(name: str) -> None:
            nonlocal given_up
            if not starting.done():
                log.warning("%s: not started", name)
                given_up = starting.cancel()
                return
            if self._stopping is not None and self._stopping.is_set():
                hurry.set()
            log.warning("%s: %s", name, "ending now" if hurry.is_set() else "draining; once more to end at once")
            self.request_stop()

        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(NotImplementedError, ValueError):  # not on Windows, not outside the main thread
                loop.add_signal_handler(number, on_signal, number.name)
        try:
            try:
                await starting
            except asyncio.CancelledError:
                if given_up:
                    return
                raise
            assert self._stopping is not None  # noqa: S101 - set by start
            watch = [asyncio.create_task(s.wait()) for runtime in self._runtimes for s in runtime.supervisors]
            told = asyncio.create_task(self._stopping.wait())
            rush = asyncio.create_task(hurry.wait())
            try:
                done, pending = await asyncio.wait([told, *watch], return_when=asyncio.FIRST_COMPLETED)
                draining = asyncio.create_task(self.stop())
                await asyncio.wait([draining, rush], return_when=asyncio.FIRST_COMPLETED)
                if not draining.done():
                    await self.stop(grace=0)
                await asyncio.gather(draining, *pending, return_exceptions=True)
            except asyncio.CancelledError:
                await self.stop()
                raise
            finally:
                for task in (told, rush, *watch):
                    task.cancel()
            for task in done:
                task.result()
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                with contextlib.suppress(NotImplementedError, ValueError):
                    loop.remove_signal_handler(number)
        if self._fatal_error is not None:
            raise self._fatal_error

    def run(self, *, url: str | None = None, no_wait: bool = False) -> None:
        """Run until SIGTERM or Ctrl-C, then drain. Blocks. Raises as `serve`."""
        loop = asyncio.new_event_loop()
        try:
            asyncio.set_event_loop(loop)
            loop.run_until_complete(self.serve(url=url, no_wait=no_wait))
        finally:
            _close(loop)

    def request_stop(self) -> None:
        """Ask a running `serve` to drain and return. From the loop's thread."""
        if self._stopping is not None:
            self._stopping.set()

    def status(self) -> list[ConsumerStatus]:
        """What every reader is doing; empty when the service does not run."""
        return [status for runtime in self._runtimes for status in runtime.status()]

    def _fatal(self, error: BaseException) -> None:
        log.error("service %s stops: %r", self.name, error)
        if self._fatal_error is None:
            self._fatal_error = error
        self.request_stop()

    def __repr__(self) -> str:
        return f"<Service {self.name}: {len(self.consumers)} consumers>"


# How long a stopped service's process waits for handlers that do not end when they are cancelled.
_STUCK_SECONDS = 2.0


def _close(loop: asyncio.AbstractEventLoop) -> None:
    """End ``loop`` as `asyncio.run` does, but without waiting for ever for a handler that swallows its cancellation: its message
    was given back, and a process that does not end is killed by its platform anyway."""
    try:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            _, stuck = loop.run_until_complete(asyncio.wait(left, timeout=_STUCK_SECONDS))
            for task in stuck:
                log.error("%s does not end though it was cancelled; the process ends without it", task.get_coro())
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        asyncio.set_event_loop(None)
        loop.close()
