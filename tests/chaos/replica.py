"""Failovers to a replica that is behind: a database as it was at an earlier moment, put in the place of the one that goes on."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import subprocess
from pathlib import Path

from atleastonce.brokers import Running


class ServerReplica:
    """Of a server that is nobody else's: of all of its files, as a crash at that moment leaves them.

    Args:
        server: PostgreSQL or MariaDB, started natively.
        place: for the copy; not there yet.
    """

    def __init__(self, server: Running, place: Path) -> None:
        self._server, self._copy = server, place
        assert server.log is not None
        self._data = server.log.parent / "data"

    def catch_up(self) -> None:
        """It is as the database is now, and then falls behind."""
        self._put(self._data, self._copy)

    def take_over(self) -> None:
        """The database is what the replica is."""
        self._put(self._copy, self._data)

    def _put(self, source: Path, to: Path) -> None:
        self._server.kill()
        for socket in source.glob("sock*"):
            socket.unlink()
        shutil.rmtree(to, ignore_errors=True)
        subprocess.run(["cp", "-a", str(source), str(to)], check=True)  # with its owners
        self._server.start()


class FileReplica:
    """Of an SQLite file, which its users have open meanwhile.

    Args:
        path: of the database.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._copy = path.with_name(f"{path.name}.replica")

    def catch_up(self) -> None:
        """As `ServerReplica.catch_up`."""
        self._put(self._path, self._copy)

    def take_over(self) -> None:
        """As `ServerReplica.take_over`."""
        self._put(self._copy, self._path)

    def _put(self, source: Path, to: Path) -> None:
        with (
            contextlib.closing(sqlite3.connect(source, timeout=30)) as one,
            contextlib.closing(sqlite3.connect(to, timeout=30)) as other,
        ):
            one.backup(other)


class Forgetful:
    """Of a Redis: a replica that never heard of anything.

    Args:
        url: of the server.
    """

    def __init__(self, url: str) -> None:
        self._url = url

    def catch_up(self) -> None:
        """It does not."""

    def take_over(self) -> None:
        """The server is empty."""
        from redis import Redis

        with contextlib.closing(Redis.from_url(self._url)) as admin:
            admin.flushall()
