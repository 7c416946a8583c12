"""Brokers that ask who somebody is. The shared ones take anybody, so these run beside them, for the one case that needs it."""

from __future__ import annotations

import contextlib
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import pytest

from atleastonce.brokers import Running
from atleastonce.brokers.model import HOST, Command
from atleastonce.brokers.nats import install
from atleastonce.brokers.ports import free_port
from atleastonce.brokers.process import spawn
from atleastonce.brokers.progress import Silent
from atleastonce.testing.brokers import marked

_STARTS_WITHIN = 30.0


class Guard:
    """One such broker.

    Args:
        start: runs it in a folder of its own, and gives a URL with credentials that it refuses.
    """

    def __init__(self, start: Callable[[Path], AbstractContextManager[str]], folder: Path) -> None:
        self._start = start
        self._folder = folder
        self._url: str | None = None
        self._owned = ExitStack()

    @property
    def refused(self) -> str:
        """The URL. The broker is started when it is first asked for."""
        if self._url is None:
            self._url = self._owned.enter_context(self._start(self._folder))
        return self._url

    def end(self) -> None:
        self._owned.close()


@contextmanager
def guard(
    beside: Running, start: Callable[[Path], AbstractContextManager[str]], folders: pytest.TempPathFactory
) -> Iterator[Guard | None]:
    """A broker of the kind of ``beside``, from the same installation; None where there is none here."""
    if beside.origin != "native":
        yield None
        return
    made = Guard(start, folders.mktemp("guarded"))
    try:
        yield made
    finally:
        made.end()


@contextmanager
def nats(folder: Path) -> Iterator[str]:
    """nats-server with one user."""
    port = free_port()
    (folder / "nats.conf").write_text(
        f'host: {HOST}\nport: {port}\njetstream {{ store_dir: "{folder / "store"}" }}\n'
        "authorization { users = [ { user: app, password: secret } ] }\n"
    )
    binary = install(Silent()) / "bin" / "nats-server"
    with marked("nats") as mark:
        spawn(Command([str(binary), "-c", str(folder / "nats.conf")], {}, str(folder)), mark, folder / "log")
        _wait(port, folder / "log")
        yield f"nats://app:wrong@{HOST}:{port}"


@contextmanager
def sqs(folder: Path) -> Iterator[str]:
    """ministack that checks signatures, with one user."""
    from sqs_kit import guarding

    with guarding(folder) as guarded:
        key, _ = guarded.user("app", "sqs:*")
        yield guarded.url_of(key, "wrong")


@contextmanager
def kafka(folder: Path) -> Iterator[str]:
    """A broker behind TLS and passwords."""
    from kafka_servers import CA, guarded

    with guarded(folder) as server:
        yield f"kafka://alice:wrong@{server.address}?ssl.ca.location={folder / CA}"


CAN_CERTIFY = shutil.which("openssl") is not None
"""Whether `kafka` can be run: TLS takes a certificate."""


def _wait(port: int, log: Path) -> None:
    deadline = time.monotonic() + _STARTS_WITHIN
    while True:
        with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=1):
            return
        assert time.monotonic() < deadline, log.read_text(errors="replace")[-2000:]
        time.sleep(0.05)
