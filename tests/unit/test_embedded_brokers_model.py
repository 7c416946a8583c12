"""The memory broker and the SQLite store beside one simple model, through any sequence of calls and any passing of time."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule

from atleastonce.adapters.memory import MemoryBroker
from atleastonce.adapters.memory.source import Lease as MemoryLease
from atleastonce.adapters.sqlite.looking import backlog, purge
from atleastonce.adapters.sqlite.schema import open_database
from atleastonce.adapters.sqlite.store import Store
from atleastonce.channels import Queue, Source
from atleastonce.contract import (
    ACK,
    OK,
    RELEASE,
    Backlog,
    Code,
    Delivery,
    Outcome,
    Outgoing,
    Release,
    Retry,
    Topology,
    Verdict,
)
from atleastonce.message import Message

LEASE = 30.0
MANY = 1 << 30


class Broker(Protocol):
    """What both have, without threads and loops."""

    def publish(self, item: Outgoing) -> Outcome: ...
    def claim(self, limit: int) -> list[Delivery]: ...
    def settle(self, delivery: Delivery, verdict: Verdict) -> Outcome: ...
    def extend(self, delivery: Delivery, seconds: float) -> Outcome: ...
    def purge(self) -> int: ...
    def backlog(self) -> Backlog: ...
    def close(self) -> None: ...


class InMemory:
    def __init__(self, queue: Queue[Any], clock: Callable[[], float]) -> None:
        self.source = Source(queue)
        self.broker = MemoryBroker(clock)
        self.broker.declare(Topology(channels=(queue,)), create=True)
        self.state = self.broker.state(self.source)

    def publish(self, item: Outgoing) -> Outcome:
        return self.broker.publish([item], MANY)[0]

    def claim(self, limit: int) -> list[Delivery]:
        leases, _ = self.broker.claim(self.state, limit, MANY, LEASE)
        return [self.delivery(lease) for lease in leases]

    def delivery(self, lease: MemoryLease) -> Delivery:
        entry = lease.entry
        return Delivery(entry.message, self.source, "", entry.seq, 0, lease, entry.count)

    def settle(self, delivery: Delivery, verdict: Verdict) -> Outcome:
        return self.broker.settle(self.state, [(delivery, verdict)])[0]

    def extend(self, delivery: Delivery, seconds: float) -> Outcome:
        return self.broker.extend(self.state, [delivery.token], seconds)[0]

    def purge(self) -> int:
        return self.broker.purge(self.source)

    def backlog(self) -> Backlog:
        return self.broker.backlog(self.source)

    def close(self) -> None:
        pass


class InSQLite:
    def __init__(self, queue: Queue[Any], clock: Callable[[], float]) -> None:
        self.source = Source(queue)
        self.folder = tempfile.mkdtemp()
        self.store = Store(open_database(Path(self.folder) / "q.db", 1.0), MANY, None, clock)
        self.store.synchronise("off")
        self.transact(lambda: self.store.declare(Topology(channels=(queue,)), create=True))
        self.number = self.store.numbers(self.source)[0]

    def transact(self, call: Callable[[], Any]) -> Any:
        self.store.begin()
        result = call()
        self.store.commit()
        return result

    def publish(self, item: Outgoing) -> Outcome:
        outcome: Outcome = self.transact(lambda: self.store.publish([item]))[0]
        return outcome

    def claim(self, limit: int) -> list[Delivery]:
        found: list[Delivery] = self.transact(
            lambda: self.store.claim(self.source, self.number, limit, MANY, LEASE)
        ).deliveries
        return found

    def settle(self, delivery: Delivery, verdict: Verdict) -> Outcome:
        outcome: Outcome = self.transact(lambda: self.store.settle([(delivery, verdict)]))[0]
        return outcome

    def extend(self, delivery: Delivery, seconds: float) -> Outcome:
        outcome: Outcome = self.transact(lambda: self.store.extend([delivery.token], seconds))[0]
        return outcome

    def purge(self) -> int:
        purged: int = self.transact(lambda: purge(self.store, self.number))
        return purged

    def backlog(self) -> Backlog:
        return backlog(self.store, self.number)

    def close(self) -> None:
        stored = self.store.db.execute("SELECT count(*) FROM messages").fetchone()[0]
        kept = self.store.db.execute("SELECT count(DISTINCT seq) FROM deliveries").fetchone()[0]
        self.store.db.close()
        shutil.rmtree(self.folder)
        assert stored == kept, "a settled message's body was left behind, or an unsettled one's removed"


class Row:
    """A message in the model."""

    def __init__(self, id: str, key: bytes | None, now: float, due: float) -> None:
        self.id = id
        self.key = key
        self.published = now
        self.due = self.visible = due
        self.held = False
        self.count = 0
        self.claim = 0


class Machine(RuleBasedStateMachine):
    """The model is a plain list in order of publishing; every question is answered by looking at all of it."""

    make: Callable[[Queue[Any], Callable[[], float]], Broker]
    fifo: bool
    handed_out = Bundle("handed_out")

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.ids = itertools.count()
        self.queue: Queue[Any] = Queue("q", fifo=self.fifo)
        self.broker = type(self).make(self.queue, lambda: self.now)
        self.rows: list[Row] = []
        self.settled: dict[int, Outcome] = {}

    def is_head(self, row: Row) -> bool:
        if not self.fifo or row.key is None:
            return True
        return next(other for other in self.rows if other.key == row.key) is row

    @rule(key=st.sampled_from([None, b"", b"a", b"b"]), delay=st.sampled_from([0.0, 0.0, 1.0, 40.0]))
    def publish(self, key: bytes | None, delay: float) -> None:
        id = f"m{next(self.ids)}"
        assert self.broker.publish(Outgoing(self.queue, Message(id, id.encode(), key), delay)) is OK
        self.rows.append(Row(id, key, self.now, self.now + delay))

    @rule(target=handed_out, limit=st.integers(1, 4))
    def receive(self, limit: int) -> Any:
        ready = [(row.visible, place, row) for place, row in enumerate(self.rows) if row.visible <= self.now]
        expected = [row for _, _, row in sorted(ready, key=lambda item: item[:2]) if self.is_head(row)][:limit]
        got = self.broker.claim(limit)
        pairs = []
        for row in expected:
            row.held, row.visible = True, self.now + LEASE
            row.count += 1
            row.claim += 1
            pairs.append((row, row.claim))
        assert [(d.message.id, d.message.key, d.count) for d in got] == [(r.id, r.key, r.count) for r in expected]
        return multiple(*[(delivery, *pair) for delivery, pair in zip(got, pairs, strict=True)])

    @rule(item=handed_out, verdict=st.sampled_from([ACK, ACK, RELEASE, Retry(), Retry(5.0), Retry(50.0)]))
    def settle(self, item: tuple[Delivery, Row, int], verdict: Verdict) -> None:
        delivery, row, claim = item
        outcome = self.broker.settle(delivery, verdict)
        if (earlier := self.settled.get(id(delivery))) is not None:
            assert outcome == earlier  # the first verdict wins and is answered again
            return
        self.settled[id(delivery)] = outcome
        if row not in self.rows or row.claim != claim:
            assert outcome.fault is not None
            assert outcome.fault.code is Code.STALE
            return
        assert outcome is OK
        if verdict is ACK:
            self.rows.remove(row)
            return
        row.held = False
        if isinstance(verdict, Release):
            row.visible = row.due
            row.count -= 1
        elif isinstance(verdict, Retry):
            row.visible = self.now + verdict.delay

    @rule(item=handed_out, seconds=st.sampled_from([1.0, 60.0]))
    def extend(self, item: tuple[Delivery, Row, int], seconds: float) -> None:
        delivery, row, claim = item
        outcome = self.broker.extend(delivery, seconds)
        if id(delivery) in self.settled or row not in self.rows or row.claim != claim:
            assert not outcome.ok
        else:
            assert outcome is OK
            row.held, row.visible = True, self.now + seconds

    @rule(seconds=st.sampled_from([0.5, 4.0, 29.0, 30.0, 100.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(sure=st.integers(0, 9))
    def purge(self, sure: int) -> None:
        if sure == 0:
            kept = [row for row in self.rows if row.held and row.visible > self.now]
            assert self.broker.purge() == len(self.rows) - len(kept)
            self.rows = kept

    @invariant()
    def backlog_is_exact(self) -> None:
        waiting = [row for row in self.rows if row.visible <= self.now or not self.is_head(row)]
        in_flight = [row for row in self.rows if row.held and row.visible > self.now]
        assert self.broker.backlog() == Backlog(
            waiting=len(waiting),
            in_flight=len(in_flight),
            delayed=len(self.rows) - len(waiting) - len(in_flight),
            oldest_age=self.now - waiting[0].published if waiting else None,
        )

    def teardown(self) -> None:
        self.now += 1000
        left = sorted(row.id for row in self.rows)
        drained: list[str] = []
        while got := self.broker.claim(1000):
            drained += [delivery.message.id for delivery in got]
            assert all(self.broker.settle(delivery, ACK) is OK for delivery in got)
        assert sorted(drained) == left
        self.broker.close()


@pytest.mark.parametrize("fifo", [False, True], ids=["plain", "fifo"])
@pytest.mark.parametrize("make", [InMemory, InSQLite])
def test_it_behaves_as_the_model(make: Callable[..., Broker], fifo: bool) -> None:
    machine = type("Machine", (Machine,), {"make": staticmethod(make), "fifo": fifo})
    case = machine.TestCase
    case.settings = settings(
        max_examples=150 if make is InMemory else 40,
        stateful_step_count=40,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    case().runTest()
