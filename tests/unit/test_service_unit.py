"""The life of a service: what it refuses, what a failed start leaves, how it drains, and how signals end it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from front_kit import FakeAdapter, until

from atleastonce import (
    BrokerUnavailable,
    ConfigurationError,
    FailurePolicy,
    NotFound,
    PermissionDenied,
    Queue,
    RetryChain,
    Service,
    Source,
    Topic,
    connect,
    connect_sync,
)
from atleastonce.contract import Ability, Capabilities, Counting, Drift, Leasing, Level, Ordering

QUEUE: Queue[Any] = Queue("q")
ORDERS: Topic[Any] = Topic("orders")


async def handle(payload: Any) -> None: ...


async def other(payload: Any) -> None: ...


@pytest.fixture
def adapter(monkeypatch: pytest.MonkeyPatch) -> FakeAdapter:
    fake = FakeAdapter()
    monkeypatch.setattr("atleastonce.broker.open_adapter", lambda *_: fake)
    monkeypatch.delenv("ALO_BROKER", raising=False)
    return fake


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + 5
    while left := set(threading.enumerate()) - before:
        assert time.monotonic() < deadline, left
        time.sleep(0.005)


# ------------------------------------------------------------------------------------------------- registering


def test_a_source_has_one_handler() -> None:
    service = Service("billing", broker="memory://")
    service.consumer(ORDERS)(handle)
    for group in (None, "billing"):
        with pytest.raises(ConfigurationError, match=r"other and .*handle both handle orders.billing; .*group="):
            service.consumer(ORDERS, group=group)(other)
    service.consumer(ORDERS, group="audit")(other)
    service.consumer(QUEUE)(handle)
    with pytest.raises(
        ConfigurationError, match=r"both handle q; of a queue each message goes to one handler: .* Topic$"
    ):
        service.batch_consumer(QUEUE)(lambda batch: batch)
    assert [str(consumer.home) for consumer in service.consumers] == ["orders.billing", "orders.audit", "q"]


def test_a_handler_stays_itself() -> None:
    service = Service("billing", broker="memory://")
    assert service.consumer(QUEUE)(handle) is handle


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"concurrency": 0}, "concurrency=0 is out of range"),
        ({"concurrency": 10_001}, "concurrency=10001"),
        ({"concurrency": "4"}, "concurrency='4'"),
        ({"concurrency": 1.5}, "concurrency=1.5"),
        ({"max_in_flight": 0}, "max_in_flight=0"),
        ({"max_in_flight": True}, "max_in_flight=True"),
        ({"max_in_flight_bytes": "lots"}, 'max_in_flight_bytes: "lots" is no size'),
        ({"max_in_flight_bytes": 0}, "max_in_flight_bytes: 0 is out of range"),
        ({"retry": []}, "needs at least one delay"),
        ({"retry": "5s"}, r"retry='5s' is no list of delays; write retry=\["),
        ({"retry": 5}, "retry=5 is no list of delays"),
        ({"retry": ["5s", "1s"]}, "shorter than the one before"),
        ({"retry": ["5s"], "failure": FailurePolicy()}, "give retry= or failure=, not both"),
        ({"group": "a b"}, "group of orders name 'a b'"),
        ({"channel": "orders"}, "reads a Queue or Topic, not 'orders'"),
        ({"channel": QUEUE, "group": "g"}, "queue q has no groups"),
        ({"retires": ["5s"]}, "no consumer option retires; did you mean retry"),
        ({"zebra": 1}, "no consumer option zebra; there are group, retry, "),
    ],
)
def test_bad_values_are_refused_at_registration(given: dict[str, Any], sentence: str) -> None:
    service = Service("billing", broker="memory://")
    options = {"channel": ORDERS, **given}
    with pytest.raises(ConfigurationError, match=sentence) as caught:
        service.consumer(options.pop("channel"), **options)(handle)
    assert "\n" not in str(caught.value)
    assert not service.consumers


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"max_messages": 0}, "max_messages=0"),
        ({"max_messages": 100_001}, "max_messages=100001"),
        ({"max_messages": "5"}, "max_messages='5'"),
        ({"max_wait": "soon"}, "max_wait"),
        ({"max_wait": -1}, "max_wait"),
        ({"max_in_flight": 99}, "max_in_flight=99 is below max_messages=100: no batch could fill"),
        ({"concurrency": 0}, "concurrency=0"),
    ],
)
def test_bad_values_of_batches_are_refused(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        Service("s", broker="memory://").batch_consumer(QUEUE, **given)(lambda batch: batch)


@pytest.mark.parametrize(("given", "sentence"), [({"name": "a b"}, "group"), ({"name": ""}, "group"), ({"name": None}, "group"),
                                                 ({"drain": "long"}, "drain"), ({"drain": -1}, "drain")])  # fmt: skip
def test_a_service_that_cannot_be_is_refused(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        Service(**{"name": "s", **given})


def test_equal_delays_share_a_channel() -> None:
    service = Service("s", broker="memory://")
    service.consumer(QUEUE, retry=["5s", "5s", "5s"])(handle)
    topology = service.consumers[0].topology(FakeAdapter.capabilities)
    assert [delay.channel.name for delay in topology.delays] == ["q.retry.5s"]


def test_a_delay_that_the_waiting_rooms_cannot_keep_is_refused() -> None:
    service = Service("s", broker="memory://")
    service.consumer(QUEUE, retry=["5s", "1h"])(handle)
    short = Capabilities(
        delay=Ability(Level.EMULATED, 900.0), delivery_count=Counting.EXACT, lease=Leasing.NONE, order=Ordering.NONE
    )
    with pytest.raises(ConfigurationError, match="q: this broker delays by at most 15m; shorten the retry delay 1h"):
        service.consumers[0].topology(short)


def test_a_delay_beyond_what_the_broker_delays_itself_gets_a_channel_that_the_engine_reads() -> None:
    service = Service("s", broker="memory://")
    service.consumer(QUEUE, retry=["5s", "1h"])(handle)
    short = Capabilities(
        delay=Ability(Level.NATIVE, 900.0), delivery_count=Counting.EXACT, lease=Leasing.EXTENDABLE, order=Ordering.NONE
    )
    assert [delay.channel.name for delay in service.consumers[0].topology(short).delays] == ["q.retry.1h"]


# ------------------------------------------------------------------------------------------- starting and stopping


async def test_what_cannot_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALO_BROKER", raising=False)
    with pytest.raises(ConfigurationError, match="has no handlers; decorate one"):
        await Service("s", broker="memory://").start()
    service = Service("s")
    service.consumer(QUEUE)(handle)
    with pytest.raises(ConfigurationError, match=r"has no broker; .* or set ALO_BROKER"):
        await service.start()
    with pytest.raises(ConfigurationError, match="not running; use `async with service:`"):
        _ = service.broker
    assert service.status() == []


async def test_the_environment_chooses_the_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service("s", broker="kafka://nowhere:1")
    service.consumer(QUEUE)(handle)
    monkeypatch.setenv("ALO_BROKER", "memory://")
    async with service:
        assert service.broker.adapter.scheme == "memory"
    monkeypatch.setenv("ALO_BROKER", "pigeon://h")
    await service.start(url="memory://")
    assert service.broker.adapter.scheme == "memory", "the argument comes before both"
    await service.stop()


def test_options_are_for_the_broker_that_they_were_given_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    service = Service("s", broker=f"sqlite:///{tmp_path}/a.db", options={"lease": "7s"})
    monkeypatch.setenv("ALO_BROKER", f"sqlite:///{tmp_path}/b.db")
    assert service.make_broker().adapter.capabilities.lease_seconds == 7
    monkeypatch.setenv("ALO_BROKER", "memory://")
    assert service.make_broker().adapter.scheme == "memory"


async def test_a_running_service_takes_no_handler_and_does_not_start_twice() -> None:
    service = Service("s", broker="memory://")
    service.consumer(QUEUE)(handle)
    async with service:
        with pytest.raises(ConfigurationError, match="is running; register handlers before it starts"):
            service.consumer(ORDERS)(other)
        with pytest.raises(ConfigurationError, match="is running already"):
            await service.start()
        (status,) = service.status()
        assert (status.source, status.state, status.in_flight) == ("q", "running", 0)
        assert status.handler.endswith("handle")
    assert service.status() == []
    service.consumer(ORDERS)(other)
    async with service:
        assert len(service.status()) == 2, "it may start again, with more"


async def test_while_it_waits_for_its_broker_it_takes_no_handler(adapter: FakeAdapter) -> None:
    service = Service("s", broker="fake://", wait=None)
    service.consumer(QUEUE)(handle)
    adapter.opens.append(BrokerUnavailable("refused"))
    starting = asyncio.create_task(service.start())
    await until(lambda: adapter.opened)
    with pytest.raises(ConfigurationError, match="is running"):
        service.consumer(ORDERS)(other)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert adapter.closed
    service.consumer(ORDERS)(other)


FAILURES: dict[str, tuple[str, list[BaseException | None]]] = {
    "open": ("opens", [PermissionDenied("no")]),
    "the first declaration": ("declares", [NotFound("gone")]),
    "the second declaration": ("declares", [None, NotFound("gone")]),
    "the first subscription": ("subscribes", [NotFound("gone")]),
    "a retry channel's subscription": ("subscribes", [None, NotFound("gone")]),
    "the second consumer's subscription": ("subscribes", [None, None, NotFound("gone")]),
    "a drift that breaks a promise": ("drifts", []),
}


@pytest.mark.parametrize("where", FAILURES)
async def test_a_start_that_fails_half_way_leaves_nothing_running(adapter: FakeAdapter, where: str) -> None:
    service = Service("s", broker="fake://", wait=0)
    service.consumer(QUEUE, retry=["5s"])(handle)
    service.consumer(ORDERS)(lambda payload: payload)
    before = asyncio.all_tasks()
    attribute, script = FAILURES[where]
    getattr(adapter, attribute).extend(script or [Drift("q", "retention", "14d", "1h", breaks=True)])
    error = script[-1] if script else ConfigurationError("q: retention is 1h, wanted 14d")
    with pytest.raises(type(error), match=str(error)):
        await service.start()
    assert asyncio.all_tasks() == before
    assert all(subscription.closed for subscription in adapter.subscriptions)
    assert adapter.closed
    assert service.status() == []
    adapter.drifts = []
    async with service:  # and it can be started again
        assert [status.state for status in service.status()] == [
            "running"
        ] * 4  # two main sources, a retry channel, a way back


async def test_it_drains_within_its_time_and_gives_back_what_does_not_end() -> None:
    service = Service("s", broker="memory://drain", drain="10s")
    started, go = asyncio.Event(), asyncio.Event()
    ended: list[int] = []

    @service.consumer(QUEUE, concurrency=1)
    async def slow(number: int) -> None:
        started.set()
        await go.wait()
        ended.append(number)

    async with connect("memory://drain") as watcher:
        await service.start()
        await watcher.publish_many(QUEUE, [1, 2, 3])
        await started.wait()
        stopping = asyncio.create_task(service.stop())
        await asyncio.sleep(0)
        await until(lambda: service.status()[0].in_flight == 1, what="a draining service can still be looked at")
        go.set()
        assert await stopping is True
        assert ended == [1]
        assert (await watcher.backlog(QUEUE)).waiting == 2, "what had not started was given back"

        go.clear()
        started.clear()
        await service.start()
        await started.wait()
        first = asyncio.create_task(service.stop())
        await asyncio.sleep(0)
        begin = time.monotonic()
        assert await service.stop(grace=0) is False, "a second call with less grace cuts the first one short"
        assert await first is False or first.done()
        assert time.monotonic() - begin < 5
        assert (await watcher.backlog(QUEUE)).waiting == 2

        started.clear()
        await service.start()
        await started.wait()
        cancelled = asyncio.create_task(service.stop())
        await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        assert (await watcher.backlog(QUEUE)).waiting == 2
        assert await service.stop() is True, "nothing left to stop"


async def test_lifespan_runs_it() -> None:
    service = Service("s", broker="memory://")
    service.consumer(QUEUE)(handle)
    async with service.lifespan(object()):
        assert service.status()
    assert not service.status()


async def test_serving_ends_when_asked_and_when_cancelled() -> None:
    service = Service("s", broker="memory://")
    service.consumer(QUEUE)(handle)
    before = asyncio.all_tasks()
    serving = asyncio.create_task(service.serve())
    await until(lambda: service.status() and service.status()[0].state == "running")
    service.request_stop()
    await serving
    assert asyncio.all_tasks() == before

    serving = asyncio.create_task(service.serve())
    await until(lambda: service.status() and service.status()[0].state == "running")
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    await until(lambda: asyncio.all_tasks() == before)  # what was cancelled with it may have its last step before it
    assert service.status() == []


async def test_serving_that_waits_for_its_broker_says_so_and_ends_when_asked() -> None:
    service = Service("s", broker="redis://127.0.0.1:1")
    service.consumer(QUEUE)(handle)
    before = asyncio.all_tasks()
    serving = asyncio.create_task(service.serve())
    await until(lambda: service.status() and service.status()[0].detail)
    (status,) = service.status()
    assert (status.source, status.state) == (QUEUE.name, "starting")
    assert "127.0.0.1:1" in status.detail
    service.request_stop()
    await serving
    assert service.status() == []
    assert asyncio.all_tasks() == before


async def test_serving_that_is_asked_to_stop_at_once_never_starts() -> None:
    service = Service("s", broker="memory://")
    service.consumer(QUEUE)(handle)
    serving = asyncio.create_task(service.serve())
    await asyncio.sleep(0)
    service.request_stop()
    await serving
    assert service.status() == []


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("threaded", [False, True])
async def test_a_handler_that_ends_the_process_gives_its_message_back(error: BaseException, threaded: bool) -> None:
    service = Service("s", broker="memory://fatal")

    def fatal(number: int) -> None:
        raise error

    async def fatal_async(number: int) -> None:
        raise error

    service.consumer(QUEUE)(fatal if threaded else fatal_async)
    async with connect("memory://fatal") as watcher:
        serving = asyncio.create_task(_ends(service))
        await until(lambda: service.status() and service.status()[0].state == "running")
        await watcher.publish(QUEUE, 1)
        assert await serving is error
        # Who raised SystemExit is known to have ended the process; Ctrl-C is nobody's.
        there = Source(QUEUE).suspects_channel if isinstance(error, SystemExit) else QUEUE
        assert (await watcher.backlog(there)).waiting == 1
        await watcher.adapter.purge(there)  # type: ignore[attr-defined]


async def test_an_error_that_ends_a_service_in_ones_own_loop_is_in_its_status() -> None:
    """There is nobody who stops it at once."""
    service = Service("s", broker="memory://own")

    @service.consumer(QUEUE)
    async def fatal(number: int) -> None:
        raise SystemExit(3)

    async with service, connect("memory://own") as publisher:
        assert service.status()[0].state == "running"
        await publisher.publish(QUEUE, 1)
        await until(lambda: service.status()[0].state == "stopping")
        assert service.status()[0].detail == "SystemExit(3)"
        await publisher.adapter.purge(Source(QUEUE).suspects_channel)  # type: ignore[attr-defined]


async def _ends(service: Service) -> BaseException | None:
    try:
        await service.serve()
    except (SystemExit, KeyboardInterrupt) as error:
        return error
    return None


async def test_what_trying_again_does_not_mend_ends_the_service(
    adapter: FakeAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service("s", broker="fake://")
    service.consumer(QUEUE)(handle)

    async def denied(self: Any, max_messages: int, max_wait: float) -> Any:
        raise PermissionDenied("revoked")

    monkeypatch.setattr("front_kit.QuietSubscription.receive", denied)
    with pytest.raises(PermissionDenied, match="revoked"):
        async with asyncio.timeout(10):
            await service.serve()
    assert adapter.closed


def test_its_repr_is_short() -> None:
    service = Service("s", broker="fake://u:hunter2@h", failure=FailurePolicy(chain=RetryChain("5s")))
    assert repr(service) == "<Service s: 0 consumers>"


# --------------------------------------------------------------------------------------------- signals, for real

APP = """
import asyncio, sys, threading, time
from pathlib import Path
from atleastonce import Queue, Service

service = Service("s", broker="sqlite:///" + sys.argv[1], drain="20s", wait=0)
numbers = Queue("numbers", int)
notes = Path(sys.argv[2])
kind = sys.argv[3]

def note(text):
    with notes.open("a") as file:
        file.write(text + "\\n")

def released():
    return notes.with_suffix(".go").exists()

async def handle(number):
    note(f"began {number}")
    while not released():
        await asyncio.sleep(0.01)
    note(f"ended {number}")

def handle_sync(number):
    note(f"began {number}")
    while not released():
        time.sleep(0.01)
    note(f"ended {number}")

def handle_batch(batch):
    handle_sync(batch[0])

if kind == "async":
    service.consumer(numbers, concurrency=1)(handle)
elif kind == "sync":
    service.consumer(numbers, concurrency=1)(handle_sync)
else:
    service.batch_consumer(numbers, max_messages=1)(handle_batch)
service.run()
note("returned")
"""


class Program:
    """A service in a process of its own, with one handler in progress."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.notes = folder / "notes"
        script = folder / "app.py"
        script.write_text(APP)
        self.database = folder / "queue.db"
        command = [sys.executable, script, self.database, self.notes, kind]
        environment = {**os.environ, "ALO_BROKER": ""}
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)

    def lines(self) -> list[str]:
        return self.notes.read_text().splitlines() if self.notes.exists() else []

    def wait_for(self, line: str) -> None:
        deadline = time.monotonic() + 30
        while line not in self.lines():
            assert self.process.poll() is None, self.process.stderr and self.process.stderr.read()
            assert time.monotonic() < deadline, self.lines()
            time.sleep(0.01)

    def release(self) -> None:
        self.notes.with_suffix(".go").touch()

    def end(self, within: float = 20.0) -> int:
        try:
            return self.process.wait(within)
        finally:
            self.process.kill()
            if self.process.stderr is not None:
                self.process.stderr.close()


SIGNALS = [("async", signal.SIGTERM), ("async", signal.SIGINT), ("sync", signal.SIGTERM), ("batch", signal.SIGTERM)]


@pytest.mark.parametrize(("kind", "number"), SIGNALS)
def test_a_signal_drains_and_a_handler_in_progress_ends(tmp_path: Path, kind: str, number: signal.Signals) -> None:
    publish(tmp_path, [1, 2])
    program = Program(tmp_path, kind)
    try:
        program.wait_for("began 1")
        program.process.send_signal(number)
        assert program.process.stderr is not None
        while "draining" not in program.process.stderr.readline():
            assert program.process.poll() is None
        deadline = time.monotonic() + 10
        while waiting(tmp_path) != 1:  # until what had not started is given back
            assert time.monotonic() < deadline
        program.release()
        assert program.end() == 0
    finally:
        program.process.kill()
    assert program.lines() == ["began 1", "ended 1", "returned"]
    assert waiting(tmp_path) == 1, "the other one was not begun, and is still there"


@pytest.mark.parametrize("kind", ["async", "sync", "batch"])
def test_a_second_signal_ends_at_once(tmp_path: Path, kind: str) -> None:
    publish(tmp_path, [1])
    program = Program(tmp_path, kind)
    try:
        program.wait_for("began 1")
        program.process.send_signal(signal.SIGTERM)
        assert program.process.stderr is not None
        while "draining" not in program.process.stderr.readline():
            assert program.process.poll() is None
        begin = time.monotonic()
        program.process.send_signal(signal.SIGTERM)
        assert program.end() == 0
        assert time.monotonic() - begin < 15, "the drain would have taken 20 seconds, the handler for ever"
    finally:
        program.process.kill()
    assert "ended 1" not in program.lines()


def publish(folder: Path, numbers: list[int]) -> None:
    with connect_sync(f"sqlite:///{folder / 'queue.db'}") as broker:
        assert all(outcome.ok for outcome in broker.publish_many(Queue("numbers", int), numbers))


def waiting(folder: Path) -> int | None:
    with connect_sync(f"sqlite:///{folder / 'queue.db'}") as broker:
        return broker.backlog(Queue("numbers", int)).waiting
