"""``atleastonce lag``: on a service, on one channel, watched, and asked wrongly."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from atleastonce import Broker, Queue, Source, Topic, connect, connect_sync
from atleastonce.cli.target import Alone
from atleastonce.contract import ACK, Window

APP = """
from atleastonce import Queue, Service, Topic

service = Service("billing", broker="{url}")

@service.consumer(Topic("{topic}", dict, partitions=2), retry=["5s"])
async def charge(order: dict) -> None: ...

@service.consumer(Queue("{queue}", dict, partitions=2), dead_letter=None)
async def store(order: dict) -> None: ...
"""


def command(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "atleastonce", "lag", *words],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


async def test_lag_of_a_service(backend_url: str, tmp_path: Path) -> None:
    if backend_url.startswith("memory"):
        pytest.skip("other processes do not see a memory broker")
    run = uuid.uuid4().hex[:8]
    orders, audit = Topic[Any](f"orders.{run}", dict, partitions=2), Queue[Any](f"audit.{run}", dict, partitions=2)
    (tmp_path / "app.py").write_text(APP.format(url=backend_url, topic=orders.name, queue=audit.name))
    sys.path.insert(0, str(tmp_path))
    try:
        import importlib

        service = importlib.import_module("app").service
        async with connect(backend_url) as broker:
            for consumer in service.consumers:
                await broker.declare(consumer.topology(broker.adapter.capabilities))
            await broker.publish_many(orders, [{"n": n} for n in range(7)])
            await broker.publish_many(audit, [{"n": n} for n in range(3)])
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("app", None)
    done = command("app:service", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = {(row["channel"], row["role"]): row for row in json.loads(done.stdout)}
    assert {"channel", "group", "role", "waiting", "in_flight", "oldest_age_s", "true_lag"} <= set(
        next(iter(rows.values()))
    )
    main = rows[orders.name, "main"]
    assert main["group"] == "billing"
    assert main["waiting"] in (7, None)  # Pub/Sub does not say
    if backend_url.partition(":")[0] in ("sqlite", "kafka", "redis", "nats"):
        assert 0 <= main["oldest_age_s"] < 60
    assert rows[audit.name, "main"]["waiting"] in (3, None)
    assert rows[audit.name, "main"]["group"] is None
    assert rows[f"{orders.name}.billing.dlq", "dead-letter"]["waiting"] in (0, None)
    assert (f"{audit.name}.dlq", "dead-letter") not in rows
    if main["waiting"] is None:
        assert main["detail"]
    text = command("app:service", cwd=tmp_path)
    assert text.returncode == 0
    assert "dead-letter" in text.stdout


HOT_APP = """
import msgspec
from atleastonce import Queue, Service, Topic

class Order(msgspec.Struct):
    customer: str

service = Service("billing", broker="{url}")

@service.consumer(Topic("{topic}", Order, partitions=2, fifo={fifo}, single_active={alone}), ordered="customer")
async def charge(order: Order) -> None: ...

@service.consumer(Queue("{queue}", Order, partitions=2))
async def store(order: Order) -> None: ...
"""

SHOW = ("sqlite", "kafka", "redis", "nats")


async def taken(broker: Broker, source: Source, count: int) -> None:
    """As a consumer would, that then goes."""
    subscription = await broker.adapter.subscribe(source, Window(count, 1 << 24), Alone())
    try:
        end = time.monotonic() + 30
        while count > 0:
            assert time.monotonic() < end
            found = await subscription.receive(count, 1.0)
            assert all(outcome.ok for outcome in await subscription.settle([(each, ACK) for each in found]))
            count -= len(found)
    finally:
        await subscription.close()


async def test_hot_keys_of_what_waits(backend_url: str, tmp_path: Path) -> None:
    scheme = backend_url.partition(":")[0]
    if scheme == "memory":
        pytest.skip("other processes do not see a memory broker")
    run = uuid.uuid4().hex[:8]
    settings: dict[str, Any] = {
        "fifo": scheme in ("sqs", "pubsub", "sqlite"),
        "single_active": scheme in ("rabbitmq", "redis", "nats"),
    }
    orders = Topic[Any](f"orders.{run}", dict, partitions=2, **settings)
    audit = Queue[Any](f"audit.{run}", dict, partitions=2)
    names = {"topic": orders.name, "queue": audit.name, "fifo": settings["fifo"], "alone": settings["single_active"]}
    (tmp_path / "app.py").write_text(HOT_APP.format(url=backend_url, **names))
    async with connect(backend_url) as broker:
        home = Source(orders, "billing")
        await broker.declare(home, audit)
        if scheme in SHOW:
            # Hot in what is done, and in nothing else.
            await broker.publish_many(orders, [{"customer": "gone"}] * 30, key=lambda _: "gone")
            await taken(broker, home, 30)
            await broker.publish_many(
                orders,
                [{"customer": "hot" if n % 2 else f"c{n}"} for n in range(30)],
                key=lambda order: order["customer"],
            )
        await broker.publish_many(audit, [{"customer": "hot"}] * 3)  # without a key
    done = command("app:service", "--keys", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = {(row["channel"], row["role"]): row for row in json.loads(done.stdout)}
    main, other = rows[orders.name, "main"], rows[audit.name, "main"]
    assert all(row["hot_keys"] is None for (_, role), row in rows.items() if role != "main")
    text = command("app:service", "--keys", cwd=tmp_path)
    assert text.returncode == 0, text.stderr
    if scheme not in SHOW:
        assert main["hot_keys"] is None
        assert "hot keys are not looked for" in main["detail"]
        assert text.stdout.count("hot keys are not looked for") == 1
        return
    assert main["hot_keys"] == [{"key": "'hot'", "share": 0.5}]
    assert main["sampled"] == 30
    assert 0 <= main["sampled_age_s"] < 30
    assert (other["hot_keys"], other["sampled"]) == ([], 3)
    assert "50.0%" in text.stdout
    assert "the oldest 30" in text.stdout
    assert "gone" not in text.stdout
    assert f"{audit.name}: no key stands out among the oldest 3" in text.stdout
    silent = command("app:service", "--json", cwd=tmp_path)
    assert all(row["hot_keys"] is None and "hot" not in row["detail"] for row in json.loads(silent.stdout))
    words = ["--broker", backend_url, "--topic", "--channel", orders.name, "--group", "billing", "--keys", "--json"]
    if settings["single_active"]:
        words += ["--parts", "2"]
    done = command(*words, cwd=tmp_path)
    (row,) = json.loads(done.stdout)
    assert row["hot_keys"] == [{"key": "b'hot'", "share": 0.5}]


@pytest.mark.parametrize(("words", "looks"), [((), True), (("--no-keys",), False)])
def test_who_watches_is_told_of_hot_keys(
    words: tuple[str, ...], looks: bool, tmp_path: Path, queue: Callable[[str], Queue[Any]]
) -> None:
    work, url = queue("work"), f"sqlite:///{tmp_path}/q.db"
    with connect_sync(url) as broker:
        broker.publish_many(work, range(10), key=lambda n: "hot" if n % 2 else str(n))
    named = ["--broker", url, "--queue", "--channel", work.name, "--watch", "--every", "100ms", "--json", *words]
    process = subprocess.Popen([sys.executable, "-m", "atleastonce", "lag", *named], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        end = time.monotonic() + 30
        while True:
            (row,) = json.loads(process.stdout.readline())
            if not looks or row["hot_keys"] is not None:
                break
            assert time.monotonic() < end
        assert row["hot_keys"] == ([{"key": "b'hot'", "share": 0.5}] if looks else None)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.stdout.close()


def test_each_look_is_written_where_no_terminal_is(tmp_path: Path, queue: Callable[[str], Queue[Any]]) -> None:
    work, url = queue("work"), f"sqlite:///{tmp_path}/q.db"
    with connect_sync(url) as broker:
        broker.publish_many(work, [1, 2, 3])
    words = ["lag", "--broker", url, "--queue", "--channel", work.name, "--watch", "--every", "100ms"]
    process = subprocess.Popen([sys.executable, "-m", "atleastonce", *words], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    stuck = threading.Timer(60, process.kill)
    stuck.start()
    try:
        rows = [line for line in itertools.islice(process.stdout, 40) if line.startswith(work.name)]
        assert len(rows) > 2
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    finally:
        stuck.cancel()
        process.kill()
        process.stdout.close()


def test_lag_of_a_channel_watched(tmp_path: Path, queue: Callable[[str], Queue[Any]]) -> None:
    work, url = queue("work"), f"sqlite:///{tmp_path}/q.db"
    with connect_sync(url) as broker:
        broker.publish_many(work, [1, 2, 3])
    words = ["lag", "--broker", url, "--queue", "--channel", work.name, "--watch", "--every", "100ms", "--json"]
    process = subprocess.Popen([sys.executable, "-m", "atleastonce", *words], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        for _ in range(3):
            (row,) = json.loads(process.stdout.readline())
            assert (row["channel"], row["role"], row["waiting"]) == (work.name, "main", 3)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.stdout.close()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "whose lag?"),
        (["app:service", "--channel", "x"], "whose lag?"),
        (["--channel", "x", "--broker", "memory://"], "say --queue or --topic"),
        (["--channel", "x", "--topic", "--broker", "memory://"], "with --group"),
        (["--channel", "x", "--queue"], "no broker: give --broker"),
        (["--channel", "x", "--queue", "--broker", "memory://", "--watch", "--every", "soon"], "--every"),
    ],
)
def test_what_is_asked_wrongly_is_said(
    words: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ALO_BROKER", raising=False)
    done = command(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1
