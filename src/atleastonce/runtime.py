"""From a registered consumer to what runs: its workers, their pools, and what they report."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import cast

import msgspec

from atleastonce import check
from atleastonce.bound import Bound, Watcher
from atleastonce.broker import Broker
from atleastonce.channels import Source
from atleastonce.compose import compose_row
from atleastonce.consumer import Consumer
from atleastonce.contract import DelayChannel, Level, Topology
from atleastonce.durations import readable
from atleastonce.engine.admission import Due
from atleastonce.engine.guest import Guest
from atleastonce.engine.lanes import FreeLanes, Lanes
from atleastonce.engine.limit import Limit
from atleastonce.engine.limited import LimitedLanes
from atleastonce.engine.mover import Send
from atleastonce.engine.places import Places
from atleastonce.engine.quarantine import Quarantine
from atleastonce.engine.rate import TokenBucket
from atleastonce.engine.shared_window import SharedWindow
from atleastonce.engine.supervisor import Supervisor
from atleastonce.engine.turnstile import Turnstile
from atleastonce.engine.window import WindowMeter
from atleastonce.engine.worker import Worker
from atleastonce.lines import Line, Lines
from atleastonce.once import Claims, InboxBound, LeaseBound
from atleastonce.patterns.circuit_guard import CircuitGuard
from atleastonce.patterns.floodgate import Floodgate
from atleastonce.patterns.hot_keys import HotKey, HotKeys
from atleastonce.patterns.once.options import Inbox, Lease
from atleastonce.patterns.once.outage import Outage, probe_of
from atleastonce.patterns.ordering import message_key
from atleastonce.patterns.overloads import Overloads
from atleastonce.patterns.replies import replies_of
from atleastonce.pooling import Around, make_pool
from atleastonce.responding import Desk, LeaseResponder, Responder, outlet
from atleastonce.stores import TransactionalStore
from atleastonce.suspects import Suspects

log = logging.getLogger("atleastonce")

# A retry channel carries only failures: a quarter of the main consumer's places is plenty, and leaves it the rest of the
# machine.
_RETRY_SHARE = 4

# How long a start runs suspects before it reads anything else: then nothing else is touched if one of them ends the process.
# Longer: a service is late to start after a crash that left slow messages behind.
_SUSPECTS_FIRST = 10.0
_BY_HAND = "by hand"


class ConsumerStatus(msgspec.Struct, frozen=True):
    """What one reader of one source is doing.

    Attributes:
        source: what it reads.
        handler: for whom.
        state: starting, running, disconnected (it is being mended), blocked, paused, draining (it receives nothing more), stopping
            (an error ended the service, and whoever started it is to stop it), stopped (it is read no more; with a detail it was
            what trying again does not mend, as a right that is missing, and only a new start of the service reads it again).
        detail: why.
        in_flight, bytes: received and unsettled, without what waits for room: those of a consumer's readers together are never
            beyond its window.
        held_up: received, and waiting for room in the window.
        counts: since the start: received, done, retried_in_place, retried, held, dead, discarded, dropped, released, unsettled;
            of a responder also failed (answered with an error), late (its asker had stopped waiting), unheard (its asker was
            gone), refused (the answer was to go where no answers go).
        hot_keys: those that stand out, where they are counted.
    """

    source: str
    handler: str
    state: str
    detail: str
    in_flight: int
    bytes: int
    counts: dict[str, int]
    hot_keys: list[HotKey] = []
    held_up: int = 0


class Runtime:
    """One consumer, running on one broker: a worker for its source, and one for each channel that the broker does not empty itself.

    Args:
        broker: open.
        consumer: what was registered.
        service: the service's name, for dead letters.
        fatal: told when a handler raises SystemExit or KeyboardInterrupt.
        create: whether what is deleted on the broker while it runs is made again.
        turnstile: of the service: all its handlers pass through it.

    Raises:
        ConfigurationError: the broker cannot keep what the consumer asks for.
    """

    def __init__(
        self,
        broker: Broker,
        consumer: Consumer,
        service: str,
        fatal: Callable[[BaseException], None],
        *,
        create: bool = True,
        turnstile: Turnstile | None = None,
    ) -> None:
        self.consumer = consumer
        self._broker = broker
        self._fatal = fatal
        missing = self._make_again if create else None
        limits = consumer.failure.dead_letter
        self._gate = None if limits is None else Floodgate(str(consumer.home), limits)
        self._circuit = None if consumer.circuit is None else CircuitGuard(str(consumer.home), consumer.circuit)
        self._overloads = None if consumer.adaptive is None else Overloads()
        self._hot = HotKeys() if consumer.hot_keys else None
        self._rate = None if consumer.rate is None else TokenBucket(consumer.rate)
        self._desk, self._send = self._answers()
        self._bound, self._outage = self._bind(service, missing)
        self._lines = None if consumer.order is None else Lines(self._bound, consumer.order)
        self._making: asyncio.Task[None] | None = None
        self._create = create
        check.enforce(check.policy(consumer, broker.adapter.capabilities))
        self.topology: Topology = consumer.topology(broker.adapter.capabilities)
        self.supervisors: list[Supervisor | Quarantine] = []
        self.home: Worker | None = None  # set by `start`
        drained = len(self._drained_delays)
        self._places = Places(consumer.concurrency) if drained else None
        self._window = SharedWindow(consumer.window, 1 + drained)
        self._turnstile = turnstile or Turnstile()
        self._suspects = Suspects(self._bound, broker.adapter.capabilities, self._suspected, self._turnstile)
        guest = Guest(self._window)
        self._quarantine = Quarantine(broker.adapter, self._suspects_worker(guest), self._turnstile, guest)
        if self._circuit is not None:
            self._circuit.add_alone(self._quarantine.worker, self._suspects.give_back)

    def _answers(self) -> tuple[Desk | None, Send]:
        """What a responder needs to answer, and how copies are sent."""
        adapter, answering = self._broker.adapter, self.consumer.answering
        if answering is None:
            return None, adapter.send
        replies = replies_of(adapter)
        desk = Desk(replies, answering.reply_to, self.consumer.home.name, adapter.capabilities.max_message_bytes)
        return desk, outlet(adapter.send, replies)

    def _bind(self, service: str, missing: Callable[[], None] | None) -> tuple[Bound, Outage | None]:
        consumer, broker, asked = self.consumer, self._broker, self.consumer.idempotency
        compose = compose_row if isinstance(asked, Inbox) else broker.compose  # an outbox keeps any delay
        watchers: list[Watcher] = [each for each in (self._circuit, self._overloads) if each is not None]
        parts = (consumer, broker.adapter.capabilities, compose, service, missing, self._gate, watchers)
        desk = self._desk
        if asked is None:
            return Bound(*parts) if desk is None else Responder(*parts, desk=desk), None
        patience = (
            asked.store.patience if isinstance(asked, Inbox) and isinstance(asked.store, TransactionalStore) else None
        )
        outage = Outage(str(consumer.home), probe_of(asked.store, consumer.scope), patience=patience)
        if isinstance(asked, Inbox):
            return InboxBound(*parts, inbox=asked, scope=consumer.scope, outage=outage), outage
        lease = cast(Lease, asked)
        if desk is None:
            return LeaseBound(*parts, lease=lease), outage
        return LeaseResponder(*parts, lease=lease, desk=desk), outage

    def _claims(self) -> Claims | None:
        """The gate of one reader."""
        bound, asked, outage = self._bound, self.consumer.idempotency, self._outage
        if not isinstance(bound, LeaseBound) or not isinstance(asked, Lease) or outage is None:
            return None
        return Claims(bound, asked, self.consumer.scope, outage)

    def remember(self, memory: float) -> None:
        """What is handled from now on is remembered for so many seconds."""
        if isinstance(self._bound, InboxBound | LeaseBound):
            self._bound.memory = memory
            log.info("%s: what is handled is remembered for %s", self.consumer.home, readable(memory))

    async def look_for_suspects(self) -> None:
        """Run what is suspected of having ended a process: before `start`, and before anything of the service is read."""
        if isinstance(self._bound, InboxBound):
            await self._bound.ensure_session()
        self.supervisors.append(self._quarantine)
        await self._quarantine.start(_SUSPECTS_FIRST)

    async def start(self, before: Sequence[Worker] = ()) -> None:
        """Subscribe to everything. Raises as `Supervisor.start`; what was started by then is for `stop`.

        Args:
            before: readers that have priority over this one's.
        """
        self.home = home = self._worker(self.consumer.home, None)
        home.betters += before
        await self._start(home)
        for delay in self._drained_delays:
            worker = self._worker(Source(delay.channel), delay)
            worker.betters += before
            if delay.delay:
                home.elders.append(worker)
            await self._start(worker)

    @property
    def _drained_delays(self) -> Sequence[DelayChannel]:
        """The channels beside its source that it reads itself, since the broker does not empty them."""
        emulated = self._broker.adapter.capabilities.delay.level is Level.EMULATED
        return () if emulated else self.topology.delays

    async def _start(self, worker: Worker) -> None:
        supervisor = Supervisor(self._broker.adapter, worker, repair=self._declare if self._create else None)
        self.supervisors.append(supervisor)
        for guard in (self._gate, self._circuit, self._outage):
            if guard is not None:
                guard.add(worker)
        self._turnstile.add(worker)
        await supervisor.start()

    def _suspected(self) -> None:
        self._quarantine.call()

    async def pause(self) -> None:
        """Stop receiving, by hand. What is in flight goes on."""
        for supervisor in self.supervisors:
            await supervisor.worker.pause(_BY_HAND)

    async def resume(self) -> None:
        """Receive again, whatever has paused it: a hand, a flood of dead letters or an open circuit, which count anew. Parked
        keys go on."""
        for guard in (self._gate, self._circuit):
            if guard is not None:
                await guard.open()
        if self._lines is not None:
            self._lines.parked.forget()
        for supervisor in self.supervisors:
            await supervisor.worker.resume(_BY_HAND)

    @property
    def meters(self) -> list[WindowMeter]:
        """The windows of its readers."""
        return [supervisor.worker.meter for supervisor in self.supervisors]

    def stopping(self) -> None:
        """Its readers are about to be stopped: nothing pauses or wakes them any more."""
        for guard in (self._gate, self._circuit, self._outage):
            if guard is not None:
                guard.close()

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
        workers = [each.worker for each in self.supervisors if each is not self._quarantine]
        if self._quarantine.worker.counts["received"]:  # what has never had anything is not worth a line
            workers.append(self._quarantine.worker)
        return [self._status(worker) for worker in workers]

    def _status(self, worker: Worker) -> ConsumerStatus:
        state, detail = worker.state
        if worker.paused and state == "running":
            guards = [each.detail for each in (self._gate, self._circuit, self._outage) if each is not None]
            state, detail = "paused", next(filter(None, guards), worker.paused)
        elif state == "running" and worker.mover.failing:
            detail = f"{worker.mover.failing} wait for a channel that takes no copies: {worker.mover.last_fault}"
        return ConsumerStatus(
            source=str(worker.source),
            handler=self.consumer.binding.name,
            state=state,
            detail=detail,
            in_flight=worker.in_flight,
            bytes=worker.meter.bytes,
            counts=dict(worker.counts),
            hot_keys=self._hot.top() if self._hot is not None and worker is self.home else [],
            held_up=worker.held_up,
        )

    def _worker(self, source: Source, delay: DelayChannel | None) -> Worker:
        bound, shared = self._bound, self._window
        window, make_meter = self.consumer.window, shared.of_source
        if delay is not None:
            # What waits costs memory and no places.
            window, make_meter = msgspec.structs.replace(shared.part, shared=True), shared.of_other
        places = self.consumer.concurrency if delay is None else max(1, self.consumer.concurrency // _RETRY_SHARE)
        line = None if self._lines is None else self._lines.line()
        worker = Worker(
            self._broker.adapter,
            source,
            window=window,
            lanes=self._lanes(source, places, FreeLanes() if line is None else line.lanes),
            make_pool=lambda worker: make_pool(bound, worker, places, self._around(line), self._fatal, self._places),
            rejection=bound.rejected,
            due=self._due(delay),
            rate=self._rate,
            suspicion=self._suspects.suspicion,
            give_back=bound.give_back if self.consumer.returns_copies(self._broker.adapter.capabilities) else None,
            gate=self._claims(),
            judged=None if line is None else line.judged,
            exited=self._suspects.exited if line is None else None,  # in order it comes again where it was, and counts
            send=self._send,
            broken=self._fatal,
            make_meter=make_meter,
        )
        if line is not None:
            line.ended = worker.ended
        return worker

    def _suspects_worker(self, guest: Guest) -> Worker:
        circuit: list[Around] = [] if self._circuit is None else [self._circuit]
        return Worker(
            self._broker.adapter,
            Source(self.consumer.home.suspects_channel),
            window=msgspec.structs.replace(self.consumer.window, messages=1, counted=True),
            lanes=FreeLanes(),
            make_pool=lambda worker: make_pool(self._bound, worker, 1, circuit, self._ended_by_suspect),
            rejection=self._bound.rejected,
            due=self._suspects.judge,
            give_back=self._suspects.give_back,
            exited=self._suspects.exited,
            gate=self._claims(),
            send=self._send,
            broken=self._fatal,
            make_meter=lambda _: guest,
        )

    def _ended_by_suspect(self, error: BaseException) -> None:
        self._quarantine.halt()
        self._fatal(error)

    def _due(self, delay: DelayChannel | None) -> Due | None:
        bound = self._bound
        if delay is not None:
            return lambda delivery: bound.due_in_channel(delivery, delay.delay)
        emulated = self._broker.adapter.capabilities.delay.level is Level.EMULATED
        return bound.due_at_home if emulated and self.topology.delays else None

    def _lanes(self, source: Source, places: int, lanes: Lanes) -> Lanes:
        adaptive = self.consumer.adaptive
        if adaptive is None or self._overloads is None:
            return lanes
        limit = Limit(adaptive.at_most(places))
        self._overloads.add(source, limit)
        return LimitedLanes(lanes, limit)

    def _around(self, line: Line | None) -> list[Around]:
        """What stands around the runs of one reader, from the inside out."""
        around: list[Around] = [] if self._circuit is None else [self._circuit]
        if self._hot is not None:
            around.append(self._hot.reader(message_key if line is None else line.lanes.key))
        return around
