"""A service: handlers and policies in, running consumers out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, Unpack

from atleastonce import check
from atleastonce.broker import Broker
from atleastonce.channels import Channel, Source, Topic
from atleastonce.check import Finding
from atleastonce.consumer import Answering, Batching, Consumer, define
from atleastonce.contract import Adapter, Fact
from atleastonce.durations import Duration, Size, seconds, size_in_bytes, whole
from atleastonce.engine import collector
from atleastonce.engine.memory import MemoryGuard, container_limit, resident
from atleastonce.engine.turnstile import Turnstile
from atleastonce.errors import ConfigurationError
from atleastonce.explain import Explanation, explain
from atleastonce.inspecting import inspect, looking
from atleastonce.options import ConsumerOptions, ensure_known
from atleastonce.outbox import Outbox
from atleastonce.patterns.failure import FailurePolicy
from atleastonce.relays import Relays, outboxes
from atleastonce.runtime import ConsumerStatus, Runtime
from atleastonce.stores.contract import LeaseStore
from atleastonce.urls import BrokerUrl, mask_url

log = logging.getLogger("atleastonce")

F = TypeVar("F", bound=Callable[..., Any])


class Service:
    """A named set of consumers on one broker.

    Args:
        name: of the service; the group with which it reads topics.
        broker: a URL; ``ALO_BROKER`` in the environment overrides it.
        options: the client's own options, as they are; not for a broker of another scheme that ``ALO_BROKER`` names instead.
        failure: the policy of consumers that name none.
        drain: how long handlers may go on when the service stops. Too short: work is cancelled and done again
            elsewhere; too long: the platform kills the process first (Kubernetes: terminationGracePeriodSeconds, 30 s by default).
        create: whether missing channels are created at the start.
        memory_limit: when the process nears it, less is received. Default: the limit of its container (control group), where it
            has one. Too large, and the kernel kills it first; too small, and windows are never full.
        wait: how long to wait for a broker that is not there at the start; 0 fails at once, None waits for ever.
        outbox: whose rows this service relays while it runs, besides those that its own handlers publish with an `Inbox`. False:
            it relays none, for that is done elsewhere (``atleastonce outbox relay``).
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
        outbox: Outbox | Literal[False] | None = None,
        memory_limit: Size | None = None,
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
        self._memory_limit = None if memory_limit is None else size_in_bytes(memory_limit, name="memory_limit")
        self._memory: asyncio.Task[None] | None = None
        self._broker: Broker | None = None
        self._outbox = outbox
        self._relays: Relays | None = None
        self._runtimes: list[Runtime] = []
        self._stores: list[LeaseStore] = []  # that we have opened, and so close
        self._running = False
        self._stopping: asyncio.Event | None = None
        self._fatal_error: BaseException | None = None

    # --------------------------------------------------------------------------------------- register

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
            reply_to: patterns (``"legacy.replies.*"``) of further addresses that may be answered to. By default these are the
                broker's inboxes and nothing else, so that no request makes a responder publish anywhere.
            options: see `ConsumerOptions`. By default a request is tried once and no dead letters are kept. With a `Lease`
                duplicates are answered with the first one's answer.

        Raises:
            ConfigurationError: as `consumer`; also for an `Inbox`, which remembers no answers.
        """
        if isinstance(reply_to, str):
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
            ConfigurationError: no URL was given, in code or in ``ALO_BROKER``; or one that is none.
        """
        chosen = url or os.environ.get("ALO_BROKER") or self._url
        if not chosen:
            raise ConfigurationError(
                f'service {self.name} has no broker; give Service(broker="kafka://localhost:9092") or set ALO_BROKER'
            )
        options = self._options
        if options and self._url and BrokerUrl.parse(chosen).scheme != BrokerUrl.parse(self._url).scheme:
            log.info("%s: options are for %s, not for %s", self.name, mask_url(self._url), mask_url(chosen))
            options = None
        return Broker(chosen, options, create=self._create, wait=0 if no_wait else self._wait)

    def _ensure_handlers(self) -> None:
        if not self.consumers and not self._outbox:
            raise ConfigurationError(
                f"service {self.name} has no handlers; decorate one with @service.consumer(channel)"
            )

    @property
    def drain_seconds(self) -> float:
        """How long handlers may go on when the service stops."""
        return self._drain

    async def check(self, *, url: str | None = None, no_wait: bool = False, offline: bool = False) -> list[Finding]:
        """What a start would refuse or warn of, and what it would create; nothing is created by looking.

        Args:
            url, no_wait: as in `start`.
            offline: look at the handlers and policies alone, and do not ask the broker what is there.

        Raises:
            ConfigurationError: no handlers, or no broker that can be named.
            BrokerUnavailable, PermissionDenied: as named.
        """
        self._ensure_handlers()
        broker = self.make_broker(url, no_wait=no_wait)
        capabilities = broker.adapter.capabilities
        found = check.together(self.consumers, capabilities)
        found += [finding for consumer in self.consumers for finding in check.policy(consumer, capabilities)]
        if not offline:
            async with looking(broker):
                capabilities = broker.adapter.capabilities  # some limits are the server's to say
                for consumer in self.consumers:
                    topology, _ = check.wanted(consumer, capabilities)
                    if topology is None:
                        continue
                    try:
                        drifts = await broker.adapter.declare(topology, create=False)
                    except ConfigurationError as error:  # a name or an option that this broker cannot have
                        found.append(check.impossible(error))
                    else:
                        found += check.topology(drifts, create=self._create)
                found += await self._settings(broker.adapter)
        return check.merge(found)

    async def explain(self, *, url: str | None = None, no_wait: bool = False, live: bool = False) -> list[Explanation]:
        """What each handler may see, in words: how often, in what order, when it is tried again, what each crash repeats.

        Args:
            url, no_wait: as in `start`.
            live: ask the broker for the settings that a failover depends on; else it is not asked at all.

        Raises:
            ConfigurationError: no handlers, no broker that can be named, or a policy that it cannot keep.
            BrokerUnavailable, PermissionDenied: as named; only with ``live``.
        """
        self._ensure_handlers()
        broker = self.make_broker(url, no_wait=no_wait)
        facts: list[Fact] | None = None
        if live:
            async with looking(broker):
                wanted = [check.wanted(each, broker.adapter.capabilities)[0] for each in self.consumers]
                facts = await inspect(broker.adapter, [topology for topology in wanted if topology is not None])
        capabilities = broker.adapter.capabilities
        for consumer in self.consumers:  # what does not start cannot be explained
            check.refuse(check.policy(consumer, capabilities))
        return [explain(consumer, capabilities, drain=self._drain, facts=facts) for consumer in self.consumers]

    async def _settings(self, adapter: Adapter) -> list[Finding]:
        """What follows from the settings of what is there, as far as this broker tells them."""
        wanted = [(consumer, check.wanted(consumer, adapter.capabilities)[0]) for consumer in self.consumers]
        there = [(consumer, topology) for consumer, topology in wanted if topology is not None]
        facts = await inspect(adapter, [topology for _, topology in there])
        found = check.broker(facts)
        for consumer, topology in there:
            found += check.settings(consumer, adapter.capabilities, topology, facts)
        return found

    async def start(self, *, url: str | None = None, no_wait: bool = False) -> None:
        """Connect, declare, subscribe: returns when every consumer reads.

        Raises:
            ConfigurationError: no handlers, running already, or a promise that this broker or its live topology cannot
            keep.
            BrokerUnavailable, StoreUnavailable, PermissionDenied, NotFound: as named. Nothing is left running.
        """
        self._ensure_handlers()
        if self._running:
            raise ConfigurationError(f"service {self.name} is running already")
        broker = self.make_broker(url, no_wait=no_wait)
        relayed = outboxes(self.consumers, self._outbox)
        turnstile = Turnstile()
        runtimes = [
            Runtime(broker, consumer, self.name, self._fatal, create=self._create, turnstile=turnstile)
            for consumer in self.consumers
        ]
        self._stopping = asyncio.Event()
        self._fatal_error = None
        self._running = True
        try:
            await self._open_stores([outbox.store for outbox in relayed])
            await broker.open()
            self._broker = broker
            found = check.together(self.consumers, broker.adapter.capabilities)
            for runtime in runtimes:
                drifts = await broker.adapter.declare(runtime.topology, create=self._create)
                found += check.topology(drifts, create=False)
            check.enforce(check.merge([*found, *await self._settings(broker.adapter)]))
            for runtime in sorted(runtimes, key=lambda each: -each.consumer.priority):
                before = [
                    other.home
                    for other in self._runtimes
                    if other.home is not None and other.consumer.priority > runtime.consumer.priority
                ]
                self._runtimes.append(runtime)
                await runtime.start(before)
            self._relays = Relays(relayed, broker, self.name)
            await self._relays.start()
            self._guard_memory()
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
        if self._memory is not None:
            self._memory.cancel()
        for runtime in self._runtimes:
            runtime.stopping()
        supervisors = [supervisor for runtime in self._runtimes for supervisor in runtime.supervisors]
        limit = self._drain if grace is None else grace
        begun = time.monotonic()
        try:
            ends = await asyncio.gather(*(s.stop(limit) for s in supervisors), return_exceptions=True)
        except asyncio.CancelledError:  # no more time: what still runs is given back
            await asyncio.gather(*(s.stop(0) for s in supervisors), return_exceptions=True)
            raise
        finally:
            self._runtimes = []
            broker, self._broker = self._broker, None
            stores, self._stores = self._stores, []
            try:
                if self._relays is not None:
                    left = limit - (time.monotonic() - begun)
                    await self._relays.stop(max(0.0, min(left, _RELAY_SECONDS)))
                    self._relays = None
                if broker is not None:
                    await broker.close()
                for store in stores:
                    await store.close()
            finally:
                self._running = False
        for end in ends:
            if isinstance(end, BaseException):
                log.error("stopping %s: %s", self.name, end)
        return all(end is True for end in ends)

    def _guard_memory(self) -> None:
        limit = self._memory_limit or container_limit()
        if limit is not None and resident() is not None:
            guard = MemoryGuard(limit, lambda: [meter for runtime in self._runtimes for meter in runtime.meters])
            self._memory = asyncio.create_task(guard.run(), name="atleastonce-memory")

    async def _open_stores(self, more: Sequence[LeaseStore]) -> None:
        asked = [consumer.idempotency.store for consumer in self.consumers if consumer.idempotency is not None]
        for store in (*asked, *more):
            if not store.is_open:
                await store.open()
                self._stores.append(store)

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

    async def serve(self, *, url: str | None = None, no_wait: bool = False, tune_gc: bool = False) -> None:
        """Run until SIGTERM, SIGINT or `request_stop`, then drain; a second signal ends the drain, and one that comes
        while the service is still starting, or waiting for its broker, ends the start.

        Args:
            url: another broker than the service's.
            no_wait: fail if the broker is down, instead of waiting for it.
            tune_gc: let Python's garbage collector run less often (`engine.collector`), once everything is started.

        Raises:
            SystemExit, KeyboardInterrupt: a handler raised it; its message was given back, the others drained.
            PermissionDenied, ConfigurationError: a consumer cannot go on.
        """
        loop = asyncio.get_running_loop()
        hurry = asyncio.Event()
        starting = asyncio.create_task(self.start(url=url, no_wait=no_wait))
        given_up = False
        tuning = contextlib.ExitStack()

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
                await asyncio.wait([starting])
                if not starting.cancelled() and starting.exception() is None:  # cancelled just when it had started
                    await self.stop()
                raise
            assert self._stopping is not None  # noqa: S101 - set by start
            if tune_gc:
                tuning.enter_context(collector.tuned())
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
            tuning.close()
            for number in (signal.SIGTERM, signal.SIGINT):
                with contextlib.suppress(NotImplementedError, ValueError):
                    loop.remove_signal_handler(number)
        if self._fatal_error is not None:
            raise self._fatal_error

    def run(self, *, url: str | None = None, no_wait: bool = False, tune_gc: bool = True) -> None:
        """Run until SIGTERM or Ctrl-C, then drain. Blocks; the process is taken to be the service's own. Arguments and
        errors are those of `serve`."""
        loop = asyncio.new_event_loop()
        try:
            asyncio.set_event_loop(loop)
            loop.run_until_complete(self.serve(url=url, no_wait=no_wait, tune_gc=tune_gc))
        finally:
            _close(loop)

    def request_stop(self) -> None:
        """Ask a running `serve` to drain and return. From the loop's thread."""
        if self._stopping is not None:
            self._stopping.set()

    def status(self) -> list[ConsumerStatus]:
        """What every reader and relay is doing; empty when the service does not run."""
        relays = self._relays.status() if self._relays is not None else []
        return [status for runtime in self._runtimes for status in runtime.status()] + relays

    async def pause(self, channel: Channel[Any] | None = None) -> None:
        """Receive nothing more from ``channel`` (default: from any) until `resume`; what is in flight goes on.

        Raises:
            ConfigurationError: no handler of this service reads ``channel``.
        """
        for runtime in self._reading(channel):
            await runtime.pause()

    async def resume(self, channel: Channel[Any] | None = None) -> None:
        """Receive from ``channel`` (default: from all) again, whatever has paused it: `pause`, or a flood of dead letters,
        of which as many as before may come then.

        Raises:
            ConfigurationError: no handler of this service reads ``channel``.
        """
        for runtime in self._reading(channel):
            await runtime.resume()

    def _reading(self, channel: Channel[Any] | None) -> list[Runtime]:
        if channel is not None and all(consumer.home.channel != channel for consumer in self.consumers):
            raise ConfigurationError(f"no handler of service {self.name} reads {channel.name}")
        return [runtime for runtime in self._runtimes if channel in (None, runtime.consumer.home.channel)]

    def _fatal(self, error: BaseException) -> None:
        log.error("service %s stops: %r", self.name, error)
        if self._fatal_error is None:
            self._fatal_error = error
        self.request_stop()

    def __repr__(self) -> str:
        return f"<Service {self.name}: {len(self.consumers)} consumers>"


# How long a relay's publishes may go on when everything else has ended. More is not needed: what they publish stays a row until
# it is confirmed, so at worst it is published again.
_RELAY_SECONDS = 5.0

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
