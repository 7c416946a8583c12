"""What the engine's tests share: deliveries, a broker that follows a script, and a worker that must leave nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Hashable, Iterable, Sequence
from typing import Any

from atleastonce.channels import Queue, Source
from atleastonce.contract import (
    NONE,
    OK,
    Adapter,
    Backlog,
    Capabilities,
    Code,
    Counting,
    Delivery,
    Drift,
    Fault,
    Leasing,
    Listener,
    Ordering,
    Outcome,
    Outgoing,
    Settlement,
    Subscription,
    Topology,
    Verdict,
    Window,
)
from atleastonce.engine.aside import Suspicion
from atleastonce.engine.async_pool import AsyncPool
from atleastonce.engine.backoff import Backoff
from atleastonce.engine.decision import Decision
from atleastonce.engine.lanes import FreeLanes, Lanes
from atleastonce.engine.pools import Pool
from atleastonce.engine.supervisor import Supervisor
from atleastonce.engine.thread_pool import ThreadPool
from atleastonce.engine.window import WindowMeter
from atleastonce.engine.worker import Worker
from atleastonce.errors import ConnectionLost
from atleastonce.message import Headers, Message


class ByKey:
    """The rules of `KeyedLanes` in a test: by the message's key, or as ``key`` says."""

    def __init__(self, key: Callable[[Delivery], Hashable | None] = lambda item: item.message.key) -> None:
        self.key_of = key
        self.poison: list[Delivery] = []
        self.following: list[Delivery] = []
        self.heads: set[Hashable] = set()
        """Keys that are parked."""

    def unkeyed(self, delivery: Delivery, error: BaseException) -> None:
        self.poison.append(delivery)

    def parked(self, key: Hashable, delivery: Delivery) -> bool:
        if key in self.heads:
            self.following.append(delivery)
        return key in self.heads


SOURCE = Source(Queue("orders"))
SESSION = Capabilities(delay=NONE, delivery_count=Counting.NONE, lease=Leasing.SESSION, order=Ordering.STREAM)
LEASED = Capabilities(
    delay=NONE,
    delivery_count=Counting.EXACT,
    lease=Leasing.EXTENDABLE,
    lease_seconds=0.3,
    order=Ordering.NONE,
    max_batch=100,
)


def delivery(
    name: str = "m",
    *,
    key: bytes | None = None,
    stream: str = "s",
    body: bytes = b"",
    lease_until: float = 0.0,
) -> Delivery:
    return Delivery(Message(name, body, key, Headers()), SOURCE, stream, name, 1, name, lease_until=lease_until)


def deliveries(count: int, *, prefix: str = "m", body: bytes = b"", stream: str = "s") -> list[Delivery]:
    return [delivery(f"{prefix}{n}", body=body, stream=stream) for n in range(count)]


def copy(name: str = "copy", channel: str = "orders.dlq") -> Outgoing:
    return Outgoing(Queue(channel), Message(name, b""))


def ids(batch: Iterable[Delivery]) -> list[str]:
    return [item.message.id for item in batch]


async def until(condition: Callable[[], Any], within: float = 5.0, what: str = "") -> None:
    """Return once ``condition`` holds; fail after ``within`` seconds."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, what or f"not within {within} s"
        await asyncio.sleep(0.001)


Answer = Sequence[Outcome] | BaseException
SettleScript = Callable[[Sequence[Settlement]], Answer]


class ScriptedSubscription(Subscription):
    """Hands out what `feed` is given, raises what it is given, and answers settlements by a script."""

    def __init__(self) -> None:
        self.waiting: deque[list[Delivery] | BaseException] = deque()
        self.stopped = False
        self.later: list[list[Delivery] | BaseException] = []  # fed while it is paused: handed out after that
        self.changed = asyncio.Event()
        self.settled: list[tuple[str, Verdict]] = []  # as the broker saw it, repetitions included
        self.calls: list[list[str]] = []  # ids of each call of settle
        self.answers: deque[SettleScript] = deque()  # one for each call; then everything is OK
        self.settling = asyncio.Event()  # cleared: calls of settle wait
        self.settling.set()
        self.extended: list[list[str]] = []
        self.extensions: deque[Callable[[Sequence[Delivery]], Answer]] = deque()
        self.receives = 0
        self.receiving = False
        self.paused = 0
        self.resumed = 0
        self.closed = 0

    def feed(self, *batches: list[Delivery] | BaseException) -> None:
        for batch in batches:
            held = self.stopped and not isinstance(batch, BaseException)
            (self.later if held else self.waiting).append(batch)
        self.changed.set()

    async def receive(self, max_messages: int, max_wait: float) -> Sequence[Delivery]:
        assert not self.receiving, "receive was called twice at a time"
        assert max_messages >= 1
        self.receiving = True
        self.receives += 1
        try:
            deadline = time.monotonic() + max_wait
            while not self.waiting:
                self.changed.clear()
                left = deadline - time.monotonic()
                if left <= 0:
                    return ()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await self.changed.wait()
            item = self.waiting.popleft()
            if isinstance(item, BaseException):
                raise item
            if len(item) > max_messages:
                self.waiting.appendleft(item[max_messages:])
            return item[:max_messages]
        finally:
            self.receiving = False

    async def settle(self, batch: Sequence[Settlement]) -> Sequence[Outcome]:
        assert batch, "nothing to settle"
        await self.settling.wait()
        self.calls.append([item.message.id for item, _ in batch])
        self.settled.extend((item.message.id, verdict) for item, verdict in batch)
        answer: Answer = self.answers.popleft()(batch) if self.answers else [OK] * len(batch)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    async def extend(self, deliveries: Sequence[Delivery], seconds: float) -> Sequence[Outcome]:
        self.extended.append(ids(deliveries))
        answer: Answer = self.extensions.popleft()(deliveries) if self.extensions else [OK] * len(deliveries)
        if isinstance(answer, BaseException):
            raise answer
        for item, outcome in zip(deliveries, answer, strict=False):
            if outcome.ok:
                item.lease_until = time.monotonic() + seconds
        return answer

    async def pause(self) -> None:
        self.paused += 1
        self.stopped = True

    async def resume(self) -> None:
        self.resumed += 1
        self.stopped = False
        held, self.later = self.later, []
        self.feed(*held)

    async def close(self) -> None:
        self.closed += 1

    def verdicts(self) -> dict[str, Verdict]:
        """The first verdict of each message, as idempotent settling keeps it."""
        first: dict[str, Verdict] = {}
        for name, verdict in self.settled:
            first.setdefault(name, verdict)
        return first


class ScriptedAdapter(Adapter):
    """A broker that does what the test says. Without a script, all succeeds."""

    scheme = "scripted"

    def __init__(self, capabilities: Capabilities = SESSION) -> None:
        self.capabilities = capabilities
        self.subscriptions: list[ScriptedSubscription] = []
        self.prepared: deque[ScriptedSubscription | BaseException] = deque()
        self.sends: list[list[str]] = []  # ids of each call of send
        self.answers: deque[Callable[[Sequence[Outgoing]], Answer]] = deque()
        self.sending = asyncio.Event()  # cleared: calls of send wait
        self.sending.set()

    @property
    def subscription(self) -> ScriptedSubscription:
        return self.subscriptions[-1]

    async def subscribe(self, source: Source, window: Window, listener: Listener) -> Subscription:
        prepared = self.prepared.popleft() if self.prepared else ScriptedSubscription()
        if isinstance(prepared, BaseException):
            raise prepared
        self.subscriptions.append(prepared)
        return prepared

    async def send(self, batch: Sequence[Outgoing]) -> Sequence[Outcome]:
        assert batch, "nothing to send"
        self.sends.append([item.message.id for item in batch])
        await self.sending.wait()
        answer: Answer = self.answers.popleft()(batch) if self.answers else [OK] * len(batch)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def classify(self, error: BaseException) -> Fault:
        code = Code.UNAVAILABLE if isinstance(error, ConnectionLost) else Code.INTERNAL
        return Fault(code, detail=str(error))

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def declare(self, topology: Topology, *, create: bool = True) -> Sequence[Drift]:
        return ()

    async def backlog(self, source: Source) -> Backlog:
        return Backlog()


AsyncHandler = Callable[[Delivery], Awaitable[Decision]]


class Rig:
    """A supervised worker over a scripted (or any) adapter, and what it told."""

    def __init__(
        self,
        process: AsyncHandler | Callable[[Delivery], Decision],
        *,
        adapter: Adapter | None = None,
        source: Source = SOURCE,
        lanes: Lanes | None = None,
        concurrency: int = 4,
        window: Window = Window(100, 2**20),  # noqa: B008 - frozen
        threads: bool = False,
        timeout: float | None = None,
        failed: Callable[[Delivery, BaseException], Decision] | None = None,
        rejection: Callable[[Delivery, Decision, Fault], Decision | None] = lambda *_: None,
        due: Callable[[Delivery], float] | None = None,
        suspicion: Suspicion | None = None,
        backoff: Backoff = Backoff("1ms", maximum="5ms"),  # noqa: B008 - frozen
        make_meter: Callable[[Callable[[], None]], WindowMeter] | None = None,
    ) -> None:
        self.adapter = adapter if adapter is not None else ScriptedAdapter()
        self.fatal: list[BaseException] = []
        self.failed: list[tuple[str, BaseException]] = []

        def on_failed(item: Delivery, error: BaseException) -> Decision:
            self.failed.append((item.message.id, error))
            return failed(item, error) if failed is not None else Decision(name="dead")

        def make_pool(worker: Worker) -> Pool:
            if threads:
                return ThreadPool(
                    process,  # type: ignore[arg-type]
                    worker.lanes,
                    concurrency,
                    ended=worker.ended,
                    failed=on_failed,
                    fatal=self.fatal.append,
                    timeout=timeout,
                )
            return AsyncPool(
                process,  # type: ignore[arg-type]
                worker.lanes,
                concurrency,
                ended=worker.ended,
                failed=on_failed,
                fatal=self.fatal.append,
                timeout=timeout,
            )

        self.worker = Worker(
            self.adapter,
            source,
            window=window,
            lanes=lanes if lanes is not None else FreeLanes(),
            make_pool=make_pool,
            rejection=rejection,
            due=due,
            suspicion=suspicion,
            broken=self.fatal.append,
            make_meter=make_meter,
        )
        self.supervisor = Supervisor(self.adapter, self.worker, backoff=backoff)

    @property
    def scripted(self) -> ScriptedAdapter:
        assert isinstance(self.adapter, ScriptedAdapter)
        return self.adapter

    @property
    def subscription(self) -> ScriptedSubscription:
        return self.scripted.subscription

    def feed(self, *batches: list[Delivery] | BaseException) -> None:
        self.subscription.feed(*batches)

    @property
    def counts(self) -> dict[str, int]:
        return {name: count for name, count in self.worker.counts.items() if count}

    async def ended(self, within: float = 5.0) -> None:
        """Until everything that was fed has been received and has ended."""
        await until(
            lambda: not self.subscription.waiting and not self.worker.in_flight,
            within,
            f"still in flight after {within} s",
        )

    def check_empty(self) -> None:
        """Nothing is accounted for any more, anywhere."""
        worker = self.worker
        assert worker.in_flight == 0
        assert (worker.meter.messages, worker.meter.bytes) == (0, 0)
        assert len(worker.lanes) == 0
        assert worker.timers.holding == 0
        assert worker.settler.idle
        assert worker.mover.idle
        assert worker.mover.failing == 0


@contextlib.asynccontextmanager
async def running(rig: Rig, grace: float = 2.0, *, threads_left: int = 0) -> AsyncIterator[Rig]:
    """``rig`` started; afterwards stopped, and checked to have left nothing: no task, no thread, no message on the account."""
    tasks, threads = asyncio.all_tasks(), set(threading.enumerate())
    await rig.supervisor.start()
    try:
        yield rig
    finally:
        await rig.supervisor.stop(grace)
    rig.check_empty()
    assert asyncio.all_tasks() - tasks == set()
    await until(lambda: len(set(threading.enumerate()) - threads) <= threads_left, what="threads are left")


def in_streams(names: Collection[str]) -> Callable[[Delivery], bool]:
    return lambda item: item.stream in names
