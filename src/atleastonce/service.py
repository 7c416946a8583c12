"""A service: handlers and policies in, running consumers out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Literal, Self

from atleastonce import preflight, serving
from atleastonce.broker import Broker
from atleastonce.channels import Channel
from atleastonce.check import Finding
from atleastonce.durations import Duration, Size, seconds, size_in_bytes
from atleastonce.errors import ConfigurationError
from atleastonce.explain import Explanation
from atleastonce.handlers import Handlers
from atleastonce.outbox import Outbox
from atleastonce.patterns.failure import FailurePolicy
from atleastonce.relays import outboxes
from atleastonce.running import Running
from atleastonce.runtime import ConsumerStatus, Runtime
from atleastonce.urls import BrokerUrl, mask_url

log = logging.getLogger("atleastonce")


class Service(Handlers):
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
        super().__init__(name, failure)
        self._url = broker
        self._options = options
        self._drain = seconds(drain, name="drain")
        self._create = create
        self._wait = wait
        self._memory_limit = None if memory_limit is None else size_in_bytes(memory_limit, name="memory_limit")
        self._outbox = outbox
        self._running: Running | None = None
        self._asked: asyncio.Event | None = None  # while it serves: set when somebody asks it to stop

    # -------------------------------------------------------------------------------------------- run

    @property
    def broker(self) -> Broker:
        """The running service's connection.

        Raises:
            ConfigurationError: the service is not running.
        """
        broker = None if self._running is None else self._running.broker
        if broker is None:
            raise ConfigurationError(f"service {self.name} is not running; use `async with service:` or service.run()")
        return broker

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
        return await preflight.findings(self.consumers, broker, create=self._create, offline=offline)

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
        return await preflight.explanations(self.consumers, broker, drain=self._drain, live=live)

    async def start(self, *, url: str | None = None, no_wait: bool = False) -> None:
        """Connect, declare, subscribe: returns when every consumer reads.

        Raises:
            ConfigurationError: no handlers, running already, or a promise that this broker or its live topology cannot
            keep.
            BrokerUnavailable, StoreUnavailable, PermissionDenied, NotFound: as named. Nothing is left running.
        """
        self._ensure_handlers()
        if self._running is not None:
            raise ConfigurationError(f"service {self.name} is running already")
        running = Running(
            self.name,
            self.consumers,
            self.make_broker(url, no_wait=no_wait),
            outboxes(self.consumers, self._outbox),
            create=self._create,
            memory_limit=self._memory_limit,
        )
        self._running, self._registrable = running, False
        try:
            await running.start()
        except BaseException:
            self._ended(running)
            raise

    async def stop(self, grace: float | None = None) -> bool:
        """Stop receiving, drain for ``grace`` seconds (default: ``drain``), disconnect. Returns whether everything
        ended by itself.

        Idempotent. A second call with less grace cuts the first one short, and so does cancelling it.
        """
        running = self._running
        if running is None:
            return True
        try:
            return await running.stop(self._drain if grace is None else grace)
        finally:
            self._ended(running)

    def _ended(self, running: Running) -> None:
        if self._running is running:
            self._running, self._registrable = None, True

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

        async def start() -> Running | None:
            await self.start(url=url, no_wait=no_wait)
            return self._running

        asked = self._asked = asyncio.Event()
        try:
            await serving.serve(start(), self.stop, asked, tune_gc=tune_gc)
        finally:
            self._asked = None

    def run(self, *, url: str | None = None, no_wait: bool = False, tune_gc: bool = True) -> None:
        """Run until SIGTERM or Ctrl-C, then drain. Blocks; the process is taken to be the service's own. Arguments and
        errors are those of `serve`."""
        serving.run(self.serve(url=url, no_wait=no_wait, tune_gc=tune_gc))

    def request_stop(self) -> None:
        """Ask a running `serve` to drain and return; one that is still starting, or waits for its broker, returns at once. From
        the loop's thread."""
        if self._asked is not None:
            self._asked.set()
        if self._running is not None:
            self._running.stopping.set()

    def status(self) -> list[ConsumerStatus]:
        """What every reader and relay is doing; while the service starts, what it waits for; empty when it does not run."""
        return [] if self._running is None else self._running.status()

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
        return [] if self._running is None else self._running.reading(channel)

    def __repr__(self) -> str:
        return f"<Service {self.name}: {len(self.consumers)} consumers>"
