"""The synchronous face: the same results and errors, from any thread, and clear ends."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
from front_kit import FakeAdapter

from atleastonce import (
    Closed,
    ConfigurationError,
    EncodeError,
    InvalidMessage,
    MessageTooLarge,
    PermissionDenied,
    Queue,
    connect_sync,
)

QUEUE: Queue[Any] = Queue("q")


def loops() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "atleastonce-sync"]


@pytest.fixture(params=["memory", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path / 'queue.db'}"


def test_publish_and_count(url: str) -> None:
    with connect_sync(url) as broker:
        assert broker.publish(QUEUE, {"n": 1}, id="order-1", key="k", headers={"a": "b"}) == "order-1"
        assert all(outcome.ok for outcome in broker.publish_many(QUEUE, range(10)))
        assert broker.backlog(QUEUE).waiting == 11
    assert not loops()


def test_errors_surface_as_they_are(url: str) -> None:
    with connect_sync(url) as broker:
        with pytest.raises(EncodeError):
            broker.publish(QUEUE, object())
        with pytest.raises(InvalidMessage):
            broker.publish(QUEUE, b"", headers={"a": "\n"})
        with pytest.raises(ConfigurationError):
            broker.publish("q", b"")  # type: ignore[arg-type]
        with pytest.raises(MessageTooLarge):
            broker.publish(QUEUE, b"x" * (300 << 20) if url.startswith("sqlite") else b"x" * (17 << 20))
        assert broker.publish(QUEUE, b"still works")


def test_bad_addresses_start_no_thread() -> None:
    with pytest.raises(ConfigurationError):
        connect_sync("pigeon://h")
    assert not loops()


def test_an_open_that_fails_ends_its_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeAdapter()
    fake.opens.append(PermissionDenied("no"))
    monkeypatch.setattr("atleastonce.broker.open_adapter", lambda *_: fake)
    with pytest.raises(PermissionDenied), connect_sync("fake://h"):
        pass
    assert fake.closed == 1
    assert not loops()


def test_after_close_everything_says_so(url: str) -> None:
    broker = connect_sync(url)
    broker.open()
    broker.close()
    broker.close()
    for call in (
        lambda: broker.publish(QUEUE, b""),
        lambda: broker.publish_many(QUEUE, [b""]),
        lambda: broker.backlog(QUEUE),
        broker.open,
    ):
        with pytest.raises(Closed, match="this broker was closed"):
            call()
    assert not loops()


def test_many_threads_share_one(url: str) -> None:
    with connect_sync(url) as broker:
        errors: list[BaseException] = []

        def publish(n: int) -> None:
            try:
                for i in range(25):
                    broker.publish(QUEUE, {"n": n}, id=f"{n}-{i}")
            except BaseException as error:  # noqa: BLE001
                errors.append(error)

        threads = [threading.Thread(target=publish, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        assert broker.backlog(QUEUE).waiting == 200


def test_closing_while_others_publish_leaves_nobody_waiting() -> None:
    for _ in range(20):
        broker = connect_sync("memory://")
        broker.open()
        ends: list[str] = []
        ready = threading.Barrier(5)

        def publish(broker: Any = broker, ends: list[str] = ends, ready: threading.Barrier = ready) -> None:
            ready.wait(10)
            try:
                while True:
                    broker.publish(QUEUE, b"")
            except Closed:
                ends.append("closed")
            except BaseException as error:  # noqa: BLE001
                ends.append(repr(error))

        threads = [threading.Thread(target=publish, daemon=True) for _ in range(4)]
        for thread in threads:
            thread.start()
        ready.wait(10)
        broker.close()
        for thread in threads:
            thread.join(10)
        assert ends == ["closed"] * 4


def test_a_fork_gets_a_clear_error_and_does_not_harm_its_parent(url: str) -> None:
    with connect_sync(url) as broker:
        broker.publish(QUEUE, b"")
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            text = "nothing was raised"
            try:
                try:
                    broker.publish(QUEUE, b"")
                except Closed as error:
                    text = str(error)
                broker.close()  # as the end of its with block would
            except BaseException as error:  # noqa: BLE001
                text = repr(error)
            finally:
                os.write(write, text.encode())
                os._exit(0)
        os.close(write)
        os.waitpid(child, 0)
        with os.fdopen(read) as pipe:
            assert pipe.read() == "this broker was opened before a fork; open one in each process"
        assert broker.publish(QUEUE, b"")
        assert broker.backlog(QUEUE).waiting == 2


def test_its_repr_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atleastonce.broker.open_adapter", lambda *_: FakeAdapter())
    broker = connect_sync("fake://u:hunter2@h")
    assert repr(broker) == "<SyncBroker fake://u:***@h>"
    broker.close()
