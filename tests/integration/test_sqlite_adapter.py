"""The SQLite broker with real files, real processes, real kills: what conformance does not ask of every broker."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection
from pathlib import Path
from typing import Any

import pytest

from atleastonce.adapters import open_adapter
from atleastonce.adapters.sqlite import SQLiteAdapter, worker
from atleastonce.adapters.sqlite.schema import open_database
from atleastonce.adapters.sqlite.store import Store
from atleastonce.channels import Channel, Queue, Source, Topic
from atleastonce.contract import (
    ACK,
    OK,
    RELEASE,
    Browses,
    Code,
    Deletes,
    Delivery,
    Drift,
    Outcome,
    Outgoing,
    Purges,
    Retry,
    Status,
    Subscription,
    Topology,
    Window,
)
from atleastonce.errors import AtLeastOnceError, BrokerUnavailable, Closed, ConfigurationError, ConnectionLost, NotFound
from atleastonce.message import Headers, Message, new_id

WIDE = Window(10_000, 2**26)
QUEUE: Queue[Any] = Queue("q")
Q = Source(QUEUE)
TOPIC: Topic[Any] = Topic("t")


class Ear:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.spoken = asyncio.Event()

    async def drain(self, streams: Collection[str], grace: float) -> None: ...
    def lost(self, streams: Collection[str] | None) -> None: ...
    def condition(self, state: str, detail: str) -> None:
        self.heard.append(state)
        self.spoken.set()


def outgoing(
    channel: Channel[Any] | Source, *bodies: str, key: bytes | None = None, delay: float = 0
) -> list[Outgoing]:
    return [Outgoing(channel, Message(new_id(), body.encode(), key), delay) for body in bodies]


def bodies(deliveries: Collection[Delivery]) -> list[str]:
    return [delivery.message.body.decode() for delivery in deliveries]


def code(outcome: Outcome) -> Code:
    assert outcome.fault is not None
    return outcome.fault.code


async def read(
    adapter: SQLiteAdapter, source: Source = Q, window: Window = WIDE, ear: Ear | None = None
) -> Subscription:
    return await adapter.subscribe(source, window, ear or Ear())


class Files:
    """Adapters on one file, closed at the end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.opened: list[SQLiteAdapter] = []

    async def open(self, *sources: Source, **options: Any) -> SQLiteAdapter:
        adapter = SQLiteAdapter(self.path, **options)
        await adapter.open()
        self.opened.append(adapter)
        await adapter.declare(Topology(sources=sources or (Q,)))
        return adapter


@pytest.fixture
async def files(tmp_path: Path) -> AsyncIterator[Files]:
    files = Files(tmp_path / "broker.db")
    yield files
    for adapter in files.opened:
        await adapter.close()
    if files.opened and files.path.exists():
        with contextlib.closing(sqlite3.connect(files.path)) as db:
            assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


# ------------------------------------------------------------------------------------------------- addresses and files


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("sqlite://queue.db", "write sqlite:///file.db (three slashes)"),
        ("sqlite:///", "names no file"),
        ("sqlite:///dir/", "names no file"),
        ("sqlite:///:memory:", "write memory://"),
        ("sqlite:///q.db?leese=3s", 'unknown option "leese"; sqlite has busy_timeout, lease'),
        ("sqlite:///q.db?synchronous=off", 'sqlite synchronous: "off" is neither "full" nor "normal"'),
        ("sqlite:///q.db?poll=1h", "at most 10 seconds"),
        ("sqlite:///q.db?max_message_bytes=1GiB", "at most 512MiB"),
        ("sqlite:///q.db?lease=0s", "sqlite lease"),
    ],
)
def test_a_bad_url_is_one_precise_line(url: str, complaint: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        open_adapter(url)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_options_reach_the_capabilities() -> None:
    adapter = open_adapter("sqlite:////tmp/q.db?lease=2s", {"max_message_bytes": "1KiB"})
    assert isinstance(adapter, SQLiteAdapter)
    assert adapter.path == Path("/tmp/q.db")
    assert adapter.capabilities.lease_seconds == 2.0
    assert adapter.capabilities.max_message_bytes == 1024
    for ability in (Purges, Deletes, Browses):
        assert isinstance(adapter, ability)


async def refusal(path: Path) -> AtLeastOnceError:
    with pytest.raises(AtLeastOnceError) as caught:
        await SQLiteAdapter(path, busy_timeout=0.2).open()
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return caught.value


async def test_a_file_that_cannot_be_a_broker_is_refused_in_one_line(tmp_path: Path) -> None:
    missing = await refusal(tmp_path / "no" / "q.db")
    assert isinstance(missing, ConfigurationError)
    assert "create it first" in str(missing)
    assert "is a directory" in str(await refusal(tmp_path))

    text = tmp_path / "notes.txt"
    text.write_text("not a database, " * 100)
    assert "is not a SQLite database" in str(await refusal(text))
    assert text.read_text().startswith("not a database")

    foreign = tmp_path / "shop.db"
    with contextlib.closing(sqlite3.connect(foreign)) as db:
        db.execute("CREATE TABLE orders (id INTEGER)")
    before = foreign.read_bytes()
    assert "another program's database" in str(await refusal(foreign))
    assert foreign.read_bytes() == before

    newer = tmp_path / "newer.db"
    open_database(newer, 1).close()
    with contextlib.closing(sqlite3.connect(newer)) as db:
        db.execute("PRAGMA user_version = 9")
    assert "schema 9, this atleastonce knows 1" in str(await refusal(newer))

    damaged = tmp_path / "damaged.db"
    open_database(damaged, 1).close()
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:4096] + b"\xa5" * (len(whole) - 4096))
    assert "is damaged" in str(await refusal(damaged))


async def test_a_file_locked_for_good_is_unavailable_not_hanging(tmp_path: Path) -> None:
    path = tmp_path / "q.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN EXCLUSIVE")
        error = await refusal(path)
    assert isinstance(error, BrokerUnavailable)
    assert "locked by another process" in str(error)
    adapter = SQLiteAdapter(path)
    await adapter.open()  # later it works
    await adapter.close()


async def test_a_read_only_place_is_permission_denied(tmp_path: Path) -> None:
    program = """
import asyncio, os, sys
from atleastonce.adapters.sqlite import SQLiteAdapter, worker
os.chdir(sys.argv[1])
if os.getuid() == 0:  # root may write everywhere
    os.setuid(65534)
for path in sys.argv[2:]:
    try: asyncio.run(SQLiteAdapter(path).open())
    except Exception as error: print(type(error).__name__, error)
"""
    sealed = tmp_path / "sealed"
    (sealed / "locked").mkdir(parents=True)
    (sealed / "locked").chmod(0o000)
    sealed.chmod(0o555)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, str(sealed), "q.db", "locked/q.db"), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    sealed.chmod(0o755)
    (sealed / "locked").chmod(0o755)
    lines = out.decode().splitlines()
    assert [line.split()[0] for line in lines] == ["PermissionDenied", "PermissionDenied"]
    assert all("no right to write" in line for line in lines)


async def test_many_may_create_the_file_at_once(files: Files) -> None:
    program = f"""
import asyncio, sys
from atleastonce.adapters import open_adapter
from atleastonce.channels import Queue, Source, Topic
from atleastonce.contract import Topology
async def main():
    adapter = open_adapter("sqlite:///{files.path}")
    await adapter.open()
    topics = [Source(Topic(f"t{{n}}"), "g") for n in range(20)]
    assert await adapter.declare(Topology(sources=(*topics, Source(Queue("q"))))) == []
    await adapter.close()
asyncio.run(main())
"""
    processes = [await asyncio.create_subprocess_exec(sys.executable, "-c", program) for _ in range(6)]
    assert [await process.wait() for process in processes] == [0] * 6
    adapter = await files.open()
    wanted = Topology(sources=tuple(Source(Topic(f"t{n}"), "g") for n in range(20)))
    assert await adapter.declare(wanted, create=False) == []


# ------------------------------------------------------------------------------------------------------------ topology


async def test_a_topic_keeps_messages_for_its_first_group_and_later_groups_start_new(files: Files) -> None:
    first, second = Source(TOPIC, "first"), Source(TOPIC, "second")
    adapter = await files.open()
    await adapter.declare(Topology(channels=(TOPIC,)))
    await adapter.send(outgoing(TOPIC, "early"))
    await adapter.declare(Topology(sources=(first,)))
    await adapter.declare(Topology(sources=(second,)))
    await adapter.send([*outgoing(TOPIC, "late"), *outgoing(second, "alone")])
    assert bodies(await (await read(adapter, first)).receive(10, 0)) == ["early", "late"]
    assert bodies(await (await read(adapter, second)).receive(10, 0)) == ["late", "alone"]


async def test_another_process_declarations_and_deletions_are_seen(files: Files) -> None:
    """The catalogue is cached: a second connection's change has to reach it."""
    one, two = await files.open(), await files.open()
    assert code((await one.send(outgoing(Queue("new"), "x")))[0]) is Code.NOT_FOUND
    await two.declare(Topology(channels=(Queue("new"),)))
    assert await one.send(outgoing(Queue("new"), "x")) == [OK]
    await two.delete(Topology(channels=(Queue("new"),)))
    assert code((await one.send(outgoing(Queue("new"), "x")))[0]) is Code.NOT_FOUND
    subscription = await read(one)
    waiting = asyncio.create_task(subscription.receive(1, 30))
    await asyncio.sleep(0.02)
    await two.delete(Topology(sources=(Q,)))
    with pytest.raises(NotFound):
        await asyncio.wait_for(waiting, 5)


async def test_drift_is_told_and_nothing_changed(files: Files) -> None:
    adapter = await files.open()
    assert await adapter.declare(Topology(channels=(QUEUE, QUEUE), sources=(Q,))) == []
    wrong = Topology(channels=(Topic("q"), Queue("q", fifo=True), Queue("q", single_active=True)))
    assert [(drift.name, drift.setting, drift.breaks) for drift in await adapter.declare(wrong)] == [
        ("q", "kind", True),
        ("q", "fifo", True),
        ("q", "single_active", True),
    ]
    missing = await adapter.declare(Topology(sources=(Source(TOPIC, "g"),)), create=False)
    assert missing == [Drift("t", "missing", "topic", "", breaks=True)]
    with pytest.raises(ConfigurationError, match="sqlite has no channel options"):
        await adapter.declare(Topology(channels=(Queue("o", options={"sqlite": {"ttl": 3}}),)))


async def test_a_settled_message_leaves_when_its_last_group_has_it(files: Files) -> None:
    groups = [Source(TOPIC, name) for name in ("a", "b", "c")]
    adapter = await files.open(*groups)
    await adapter.send(outgoing(TOPIC, *map(str, range(20))))

    def stored() -> int:
        with contextlib.closing(sqlite3.connect(files.path)) as db:
            return int(db.execute("SELECT count(*) FROM messages").fetchone()[0])

    for left, group in ((20, groups[0]), (20, groups[1])):
        subscription = await read(adapter, group)
        await subscription.settle([(d, ACK) for d in await subscription.receive(100, 0)])
        assert stored() == left
    await adapter.delete(Topology(sources=(groups[2],)))
    assert stored() == 0


# --------------------------------------------------------------------------------------------------------- settlement


async def test_what_another_has_claimed_is_stale_and_what_nobody_has_is_still_ours(files: Files) -> None:
    one, two = await files.open(lease=0.15), await files.open(lease=30)
    await one.send(outgoing(QUEUE, "x", "y"))
    first, second = await read(one), await read(two)
    x, y = await first.receive(2, 1)
    [taken] = await second.receive(1, 5)
    assert (bodies([taken]), taken.count) == (["x"], 2)
    # `y` is over as well, but nobody has it: the row's claim is still the one of this lease.
    outcomes = await first.settle([(x, ACK), (y, ACK), (y, RELEASE)])
    assert [outcome.ok for outcome in outcomes] == [False, True, True]
    assert code(outcomes[0]) is Code.STALE
    assert x.lost
    assert not (await first.extend([x], 5))[0].ok
    assert await second.settle([(taken, ACK)]) == [OK]
    backlog = await one.backlog(Q)
    assert (backlog.waiting, backlog.in_flight) == (0, 0)


async def test_numbers_are_never_used_twice_so_a_zombie_meets_no_newer_message(files: Files) -> None:
    one, two = await files.open(lease=0.05), await files.open()
    await one.send(outgoing(QUEUE, "old"))
    first, second = await read(one), await read(two)
    [zombie] = await first.receive(1, 1)
    [old] = await second.receive(1, 5)
    await second.settle([(old, ACK)])
    await one.send(outgoing(QUEUE, "new"))
    [new] = await second.receive(1, 5)
    assert code((await first.settle([(zombie, ACK)]))[0]) is Code.STALE
    assert await second.settle([(new, ACK)]) == [OK]
    assert new.position != zombie.position


async def test_the_same_settlement_twice_at_once_is_ok_twice(files: Files) -> None:
    adapter = await files.open()
    await adapter.send(outgoing(QUEUE, "x"))
    subscription = await read(adapter)
    [delivery] = await subscription.receive(1, 1)
    answers = await asyncio.gather(*(subscription.settle([(delivery, ACK)]) for _ in range(5)))
    assert [list(answer) for answer in answers] == [[OK]] * 5


async def test_a_call_that_fails_harms_no_call_of_its_transaction(files: Files) -> None:
    adapter = await files.open()
    broken = [Outgoing(QUEUE, Message("broken", b"x", key=["no key"]))]  # type: ignore[arg-type]
    results = await asyncio.gather(*(adapter.send(b) for b in (outgoing(QUEUE, "a"), broken, outgoing(QUEUE, "b"))))
    assert [result[0].ok for result in results] == [True, False, True]
    assert bodies(await (await read(adapter)).receive(10, 0)) == ["a", "b"]


async def test_text_that_is_no_text_is_rejected_alone(files: Files) -> None:
    adapter = await files.open()
    bad = Outgoing(QUEUE, Message("ok", b"", headers=Headers({"name": "\ud800"})))
    worse = Outgoing(QUEUE, Message("\ud800", b""))
    outcomes = await adapter.send([bad, *outgoing(QUEUE, "good"), worse])
    assert [outcome.ok for outcome in outcomes] == [False, True, False]
    assert code(outcomes[0]) is code(outcomes[2]) is Code.INVALID


async def test_closing_releases_what_a_cancelled_receive_had_claimed(files: Files) -> None:
    one, two = await files.open(), await files.open()
    await one.send(outgoing(QUEUE, *"abc"))
    subscription = await read(one)
    for _ in range(20):  # somewhere between submitting and receiving
        task = asyncio.create_task(subscription.receive(3, 1))
        await asyncio.sleep(random.uniform(0, 0.001))
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await subscription.settle([(delivery, RELEASE) for delivery in await task])
    await subscription.close()
    got = await (await read(two)).receive(10, 0)
    assert bodies(got) == ["a", "b", "c"]
    assert [delivery.count for delivery in got] == [1, 1, 1]


def test_a_wall_clock_that_goes_back_hides_no_message_and_ends_leases_in_time(tmp_path: Path) -> None:
    now = 5000.0
    store = Store(open_database(tmp_path / "q.db", 1), 1000, None, lambda: now)

    def transact(call: Any) -> Any:
        store.begin()
        result = call()
        store.commit()
        return result

    transact(lambda: store.declare(Topology(sources=(Q,)), create=True))
    number = store.numbers(Q)[0]
    transact(lambda: store.publish(outgoing(QUEUE, "a")))
    now -= 3600
    transact(lambda: store.publish(outgoing(QUEUE, "b")))
    claimed = transact(lambda: store.claim(Q, number, 10, 1000, 30.0))
    assert bodies(claimed.deliveries) == ["a", "b"]
    now += 29
    assert not transact(lambda: store.claim(Q, number, 10, 1000, 30.0)).deliveries
    now += 2
    assert bodies(transact(lambda: store.claim(Q, number, 10, 1000, 30.0)).deliveries) == ["a", "b"]
    store.db.close()


# -------------------------------------------------------------------------------------------------------------- waking


async def test_a_reader_wakes_at_once_for_any_publisher_of_its_process(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_SHORTEST_POLL", 10)
    one, two = await files.open(poll=10), await files.open(poll=10)
    subscription = await read(one)
    for adapter in (one, two):  # its own adapter, and another one of this process
        waiting = asyncio.create_task(subscription.receive(1, 30))
        await asyncio.sleep(0.02)
        started = time.monotonic()
        await adapter.send(outgoing(QUEUE, "x"))
        [delivery] = await waiting
        assert time.monotonic() - started < 2  # without the wake-up it would be the poll's 10 s
        await subscription.settle([(delivery, ACK)])


async def test_another_process_message_is_noticed_within_the_poll(files: Files) -> None:
    adapter = await files.open(poll=0.05)
    subscription = await read(adapter)
    waiting = asyncio.create_task(subscription.receive(1, 30))
    await asyncio.sleep(0.3)  # the poll has slowed down to its longest
    async with Process(files.path, "produce", "1") as producer:
        await producer.line()
        started = time.monotonic()
        assert await asyncio.wait_for(waiting, 10)
        assert time.monotonic() - started < 2


async def test_waiting_costs_next_to_nothing(files: Files) -> None:
    adapter = await files.open()
    subscription = await read(adapter)
    used = time.process_time()
    assert await subscription.receive(1, 0.5) == ()
    assert time.process_time() - used < 0.1


# ---------------------------------------------------------------------------------------------------------- adversity


async def test_a_full_file_refuses_publishers_loses_nothing_and_recovers(files: Files) -> None:
    adapter = await files.open(max_size="1MiB")
    accepted = 0
    outcomes: list[Outcome] = []
    while not outcomes or outcomes[0].ok:
        outcomes = list(await adapter.send(outgoing(QUEUE, *["x" * 1000] * 50)))
        accepted += sum(outcome.ok for outcome in outcomes)
        assert accepted < 2000
    assert {outcome.status for outcome in outcomes} == {Status.UNKNOWN}
    assert code(outcomes[0]) is Code.OVERLOADED
    subscription = await read(adapter)
    taken = 0
    while found := await subscription.receive(100, 0):
        assert set(await subscription.settle([(d, ACK) for d in found])) == {OK}
        taken += len(found)
    assert taken == accepted
    assert await adapter.send(outgoing(QUEUE, "again")) == [OK]
    assert files.path.stat().st_size < 3 * 2**20


async def test_a_disk_that_refuses_writes_leaves_items_unknown_and_the_confirmed_ones_safe(files: Files) -> None:
    await files.open()
    async with Process(files.path, "produce", "50", limit=3 * 2**20) as producer:
        lines = [json.loads(line) async for line in producer.lines()]
    confirmed = [id for line in lines for id in line.get("ok", [])]
    assert confirmed
    assert lines[-1]["codes"] in (["overloaded"], ["unavailable"])
    assert lines[-1]["statuses"] == ["unknown"]
    assert set(confirmed) <= set(await drain(await files.open()))


async def test_a_busy_file_is_overload_for_senders_and_a_pause_for_readers(files: Files) -> None:
    adapter, ear = await files.open(busy_timeout=0.1), Ear()
    subscription = await read(adapter, ear=ear)
    await adapter.send(outgoing(QUEUE, "x"))
    with contextlib.closing(sqlite3.connect(files.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        [outcome] = await adapter.send(outgoing(QUEUE, "y"))
        assert (outcome.status, code(outcome)) == (Status.UNKNOWN, Code.OVERLOADED)
        waiting = asyncio.create_task(subscription.receive(1, 10))
        await asyncio.wait_for(ear.spoken.wait(), 5)
        other.execute("ROLLBACK")
        assert bodies(await waiting) == ["x"]
    assert ear.heard == ["blocked", "unblocked"]


async def test_a_file_removed_under_us_takes_no_message_with_it(files: Files) -> None:
    adapter = await files.open()
    subscription = await read(adapter)
    files.path.unlink()
    [outcome] = await adapter.send(outgoing(QUEUE, "x"))
    assert (outcome.status, code(outcome)) == (Status.UNKNOWN, Code.UNAVAILABLE)
    with pytest.raises(ConnectionLost, match="removed or replaced"):
        await subscription.receive(1, 1)
    assert (await adapter.backlog(Q)).waiting is None


async def test_the_file_reuses_its_space(files: Files) -> None:
    adapter = await files.open()
    subscription = await read(adapter)
    sizes = []
    for _ in range(30):
        await adapter.send(outgoing(QUEUE, *["x" * 500] * 300))
        await subscription.settle([(d, ACK) for d in await subscription.receive(300, 1)])
        with contextlib.closing(sqlite3.connect(files.path)) as db:
            sizes.append(db.execute("PRAGMA page_count").fetchone()[0])
    assert sizes[-1] <= sizes[5] * 1.5


async def test_after_close_it_says_so_and_the_log_is_gone(files: Files) -> None:
    adapter = await files.open()
    subscription = await read(adapter)
    await adapter.send(outgoing(QUEUE, "x"))
    await subscription.close()
    await adapter.close()
    await adapter.close()
    with pytest.raises(Closed):
        await adapter.send(outgoing(QUEUE, "y"))
    with pytest.raises(Closed):
        await subscription.receive(1, 0)
    assert [path.name for path in files.path.parent.iterdir()] == ["broker.db"]


# --------------------------------------------------------------------------------------------------- killed processes

CHILD = """
import asyncio, json, resource, sys
from atleastonce.adapters import open_adapter
from atleastonce.channels import Queue, Source
from atleastonce.contract import ACK, Outgoing, Window
from atleastonce.message import Message, new_id

class Ear:
    async def drain(self, streams, grace): ...
    def lost(self, streams): ...
    def condition(self, state, detail): ...

def say(**what):
    print(json.dumps(what), flush=True)

async def main(path, role, size, lease, limit):
    adapter = open_adapter(f"sqlite:///{path}?lease={lease}")
    await adapter.open()
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    queue = Queue("q")
    if role == "produce":
        ok = True
        while ok:
            batch = [Outgoing(queue, Message(new_id(), b"x" * 300)) for _ in range(size)]
            outcomes = await adapter.send(batch)
            ok = all(outcome.ok for outcome in outcomes)
            if ok:
                say(ok=[item.message.id for item in batch])
        say(statuses=sorted({o.status.value for o in outcomes}), codes=sorted({o.fault.code.value for o in outcomes}))
    else:
        subscription = await adapter.subscribe(Source(queue), Window(size, 2**26), Ear())
        say(ready=True)
        idle = 0
        while idle < 3:
            found = await subscription.receive(size, 0.4)
            idle = 0 if found else idle + 1
            if not found:
                continue
            say(got=[[d.message.id, d.count] for d in found])
            if role == "hold":
                await asyncio.sleep(60)
            outcomes = await subscription.settle([(d, ACK) for d in found])
            say(ok=[d.message.id for d, o in zip(found, outcomes) if o.ok])
        await subscription.close()
    await adapter.close()

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], int(sys.argv[5])))
"""


class Process:
    """A program of our own on the file, to be killed."""

    def __init__(self, path: Path, role: str, size: str, lease: str = "30s", limit: int = 0) -> None:
        self.arguments = (str(path), role, size, lease, str(limit))
        self.said: list[dict[str, Any]] = []

    async def __aenter__(self) -> Process:
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", CHILD, *self.arguments, stdout=asyncio.subprocess.PIPE, limit=2**24
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()

    async def line(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        async with asyncio.timeout(20):
            self.said.append(json.loads(await self.process.stdout.readline()))
        return self.said[-1]

    async def lines(self) -> AsyncIterator[bytes]:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            if line.endswith(b"\n"):  # the last may have been cut by the kill
                yield line

    async def kill(self) -> None:
        """SIGKILL; keeps what was said until then."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGKILL)
        self.said += [json.loads(line) async for line in self.lines()]
        await self.process.wait()

    def all(self, what: str) -> list[Any]:
        return [item for line in self.said for item in line.get(what, [])]


async def drain(adapter: SQLiteAdapter) -> list[str]:
    subscription = await read(adapter)
    ids: list[str] = []
    while found := await subscription.receive(1000, 0):
        ids += [delivery.message.id for delivery in found]
        await subscription.settle([(delivery, ACK) for delivery in found])
    return ids


@pytest.mark.chaos
async def test_a_producer_killed_at_any_moment_loses_nothing_confirmed(files: Files) -> None:
    await files.open()
    confirmed: list[str] = []
    for _ in range(4):
        async with Process(files.path, "produce", "100") as producer:
            await producer.line()
            await asyncio.sleep(random.uniform(0, 0.1))
            await producer.kill()
        confirmed += producer.all("ok")
    there = await drain(await files.open())
    assert len(confirmed) >= 400
    assert set(confirmed) <= set(there)
    assert len(there) == len(set(there))
    assert len(there) % 100 == 0  # a batch is there as a whole or not at all


@pytest.mark.chaos
async def test_a_consumer_killed_with_messages_in_hand_gives_them_back_counted(files: Files) -> None:
    adapter = await files.open()
    await adapter.send(outgoing(QUEUE, *map(str, range(10))))
    async with Process(files.path, "hold", "10", lease="300ms") as consumer:
        await consumer.line()
        held = (await consumer.line())["got"]
    assert len(held) == 10
    subscription = await read(adapter)
    again = await subscription.receive(100, 10)
    assert sorted((delivery.message.id, delivery.count) for delivery in again) == sorted((id, 2) for id, _ in held)


@pytest.mark.chaos
async def test_a_consumer_killed_while_settling_repeats_nothing_it_was_told_is_settled(files: Files) -> None:
    adapter = await files.open()
    sent = [item for _ in range(10) for item in outgoing(QUEUE, *["x"] * 500)]
    assert set(await adapter.send(sent)) == {OK}
    settled: list[str] = []
    for _ in range(3):
        async with Process(files.path, "consume", "20", lease="100ms") as consumer:
            while "ok" not in await consumer.line():
                pass
            await asyncio.sleep(random.uniform(0, 0.05))
            await consumer.kill()
        settled += consumer.all("ok")
    await asyncio.sleep(0.15)
    rest = await drain(adapter)
    assert len(settled) == len(set(settled))
    assert not set(settled) & set(rest)
    handed_over = {item.message.id for item in sent} - set(settled) - set(rest)
    assert len(handed_over) <= 3 * 20  # settled, and killed before it could say so: at most one batch each


@pytest.mark.chaos
async def test_three_processes_compete_for_one_queue_and_settle_each_message_once(files: Files) -> None:
    adapter = await files.open()
    sent = [item for _ in range(10) for item in outgoing(QUEUE, *["x"] * 500)]
    async with contextlib.AsyncExitStack() as stack:
        consumers = [await stack.enter_async_context(Process(files.path, "consume", "50")) for _ in range(3)]
        for consumer in consumers:
            await consumer.line()
        for start in range(0, len(sent), 250):  # publishing while they consume
            assert set(await adapter.send(sent[start : start + 250])) == {OK}
        for consumer in consumers:
            consumer.said += [json.loads(line) async for line in consumer.lines()]
    settled = Counter(id for consumer in consumers for id in consumer.all("ok"))
    assert set(settled) == {item.message.id for item in sent}
    assert set(settled.values()) == {1}
    assert {count for consumer in consumers for _, count in consumer.all("got")} == {1}
    assert all(consumer.all("ok") for consumer in consumers)  # each had a share
    assert (await adapter.backlog(Q)).waiting == 0


@pytest.mark.chaos
async def test_order_per_key_holds_across_processes_and_retries(files: Files) -> None:
    fifo: Queue[Any] = Queue("fifo", fifo=True)
    source = Source(fifo)
    adapters = [await files.open(source, lease=30) for _ in range(3)]
    keys = [b"%d" % key for key in range(8)]
    for number in range(30):
        await adapters[0].send([item for key in keys for item in outgoing(fifo, str(number), key=key)])
    seen: dict[bytes, list[int]] = {key: [] for key in keys}
    out: Counter[bytes] = Counter()

    async def consume(adapter: SQLiteAdapter, dice: random.Random) -> None:
        subscription = await read(adapter, source)
        while found := await subscription.receive(5, 0.5):
            keys_held = [delivery.message.key or b"" for delivery in found]
            out.update(keys_held)
            assert max(out.values()) == 1, "two of one key at once"
            await asyncio.sleep(dice.uniform(0, 0.002))
            verdicts = [Retry(0.005) if dice.random() < 0.15 else ACK for _ in found]
            for delivery, verdict in zip(found, verdicts, strict=True):
                if verdict is ACK:
                    seen[delivery.message.key or b""].append(int(delivery.message.body))
            out.subtract(keys_held)
            await subscription.settle(list(zip(found, verdicts, strict=True)))

    await asyncio.gather(*(consume(adapter, random.Random(n)) for n, adapter in enumerate(adapters)))
    assert seen == {key: list(range(30)) for key in keys}
