"""From a registered consumer to what runs: its workers, their pools, and what they report."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

import msgspec

from atleastonce.bound import Bound
from atleastonce.broker import Broker
from atleastonce.channels import Source
from atleastonce.consumer import Consumer
from atleastonce.contract import DelayChannel, Drift, Level, Topology, Window
from atleastonce.engine.batches import BatchPool
from atleastonce.engine.lanes import FreeLanes
from atleastonce.engine.pools import AsyncPool, Pool, ThreadPool
from atleastonce.engine.supervisor import Supervisor
from atleastonce.engine.worker import Due, Worker
from atleastonce.errors import ConfigurationError

log = logging.getLogger("atleastonce")

# A retry channel carries only failures: a quarter of the main consumer's places is plenty, and leaves it the rest of the
# machine.
_RETRY_SHARE = 4


class ConsumerStatus(msgspec.Struct, frozen=True):
    """What one reader of one source is doing.

    Attributes:
        source: what it reads.
        handler: for whom.
        state: starting, running, disconnected, blocked, paused, stopped.
        detail: why.
        in_flight, bytes: received and unsettled.
        counts: since the start: received, done, retried_in_place, retried, dead, discarded, dropped, released, unsettled.
    """

    source: str
    handler: str
    state: str
    detail: str
    in_flight: int
    bytes: int
    counts: dict[str, int]


class Runtime:
    """One consumer, running on one broker: a worker for its source, and one for each channel that the broker does not empty itself.

    Args:
        broker: open.
        consumer: what was registered.
        service: the service's name, for dead letters.
        fatal: told when a handler raises SystemExit or KeyboardInterrupt.
        create: whether what is deleted on the broker while it runs is made again.
    """

    def __init__(
        self,
        broker: Broker,
        consumer: Consumer,
        service: str,
        fatal: Callable[[BaseException], None],
        *,
        create: bool = True,
    ) -> None:
        self.consumer = consumer
        self._broker = broker
        self._fatal = fatal
        missing = self._make_again if create else None
        self._bound = Bound(consumer, broker.adapter.capabilities, broker.compose, service, missing)
        self._making: asyncio.Task[None] | None = None
        self._create = create
        self.topology: Topology = consumer.topology(broker.adapter.capabilities)
        self.supervisors: list[Supervisor] = []

    async def start(self) -> None:
        """Subscribe to everything. Raises as `Supervisor.start`; what was started by then is for `stop`."""
        await self._start(self._worker(self.consumer.home, self.consumer.window, None))
        if self._broker.adapter.capabilities.delay.level is Level.NONE:
            window = self.consumer.window
            small = Window(max(1, window.messages // _RETRY_SHARE), window.bytes)
            for delay in self.topology.delays:
                await self._start(self._worker(Source(delay.channel), small, delay))

    async def _start(self, worker: Worker) -> None:
        supervisor = Supervisor(self._broker.adapter, worker, repair=self._declare if self._create else None)
        self.supervisors.append(supervisor)
        await supervisor.start()

    def _make_again(self) -> None:
        """Declare anew, in the background and once at a time; whoever missed something tries again by itself."""
        if self._making is None or self._making.done():
            self._making = asyncio.get_running_loop().create_task(self._declare(), name="atleastonce-declare")

    async def _declare(self) -> None:
        log.warning("%s: something it needs is gone from the broker; declaring it again", self.consumer.home)
        try:
            await self._broker.adapter.declare(self.topology, create=True)
        except Exception as error:  # noqa: BLE001 - it is asked for again, with back-off, as long as it is missed
            log.warning("%s: declaring failed: %s", self.consumer.home, error)

    def status(self) -> list[ConsumerStatus]:
        """What each of its readers is doing."""
        return [
            ConsumerStatus(
                source=str(worker.source),
                handler=self.consumer.binding.name,
                state=worker.state[0],
                detail=worker.state[1],
                in_flight=worker.in_flight,
                bytes=worker.meter.bytes,
                counts=dict(worker.counts),
            )
            for worker in (supervisor.worker for supervisor in self.supervisors)
        ]

    def _worker(self, source: Source, window: Window, delay: DelayChannel | None) -> Worker:
        bound = self._bound
        places = self.consumer.concurrency if delay is None else max(1, self.consumer.concurrency // _RETRY_SHARE)
        return Worker(
            self._broker.adapter,
            source,
            window=window,
            lanes=FreeLanes(),
            make_pool=lambda worker: self._pool(worker, places),
            rejection=bound.rejected,
            due=self._due(delay),
        )

    def _due(self, delay: DelayChannel | None) -> Due | None:
        bound = self._bound
        if delay is not None:
            return lambda delivery: bound.due_in_channel(delivery, delay.delay)
        emulated = self._broker.adapter.capabilities.delay.level is Level.EMULATED
        return bound.due_at_home if emulated and self.topology.delays else None

    def _pool(self, worker: Worker, places: int) -> Pool:
        bound, batching = self._bound, self.consumer.batching
        if batching is not None:
            return BatchPool(
                bound.process_batch,
                worker.lanes,
                places,
                max_messages=min(batching.max_messages, worker.window.messages),
                max_wait=batching.max_wait,
                ended=worker.ended,
                fatal=self._fatal,
            )
        if self.consumer.binding.is_async:
            return AsyncPool(
                bound.process,
                worker.lanes,
                places,
                ended=worker.ended,
                failed=bound.failed,
                fatal=self._fatal,
                timeout=bound.timeout,
            )
        return ThreadPool(
            bound.process_sync, worker.lanes, places, ended=worker.ended, fatal=self._fatal, timeout=bound.timeout
        )


def check_drifts(drifts: Sequence[Drift]) -> None:
    """Log what differs between what was declared and what the broker has.

    Raises:
        ConfigurationError: a difference breaks a promise.
    """
    for drift in drifts:
        text = f"{drift.name}: {drift.setting} is {drift.found}, wanted {drift.wanted}"
        if drift.breaks:
            raise ConfigurationError(f"{text}; change it on the broker or in the code")
        log.warning("%s", text)
