"""A file system of 32 MiB that can be filled, and databases on it. Needs root, to mount it. And a Redis without memory."""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pymysql
from redis import Redis

from atleastonce.brokers import Running
from atleastonce.stores import open_store
from atleastonce.urls import BrokerUrl

# How long the disks of other tests may stay full.
_OTHERS_SECONDS = 30.0


class NoDisk(Exception):
    """There cannot be one here; the text says why."""


class Disk:
    """It is mounted at ``place``."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._ballast = place / "ballast"

    def fill(self) -> None:
        """To the last byte."""
        with self._ballast.open("ab", buffering=0) as file:
            for size in (1 << 16, 1 << 9, 1):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise

    def free(self) -> None:
        """Make room again."""
        self._ballast.unlink()


@contextlib.contextmanager
def mounted(place: Path) -> Iterator[Disk]:
    """A disk for the block. Raises `NoDisk`."""
    place.mkdir(parents=True)
    words = ["mount", "-t", "tmpfs", "-o", "size=32m,mode=777", "tmpfs", str(place)]
    made = subprocess.run(words, capture_output=True, text=True, check=False)
    if made.returncode:
        raise NoDisk(f"a file system of one's own needs root: {made.stderr.strip()}")
    try:
        yield Disk(place)
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@contextlib.contextmanager
def postgres_on(disk: Disk, url: str) -> Iterator[str]:
    """A database in a table space on ``disk``: its tables cannot grow, and the server's log, elsewhere, can. Raises `NoDisk`."""
    name = f"small_{uuid.uuid4().hex[:8]}"
    place = disk.place / name
    place.mkdir()
    if os.geteuid() == 0:
        os.chown(place, pwd.getpwnam("nobody").pw_uid, -1)  # as whom it runs
    with psycopg.connect(url, autocommit=True) as admin:
        try:
            admin.execute(f"CREATE TABLESPACE {name} LOCATION '{place}'".encode())
        except psycopg.Error as error:
            raise NoDisk(f"the server cannot use this machine's disk: {error}") from None
        try:
            admin.execute(f"CREATE DATABASE {name} TABLESPACE {name}".encode())
            yield url.rpartition("/")[0] + f"/{name}"
        finally:
            _drop(admin, name)


def _drop(admin: psycopg.Connection[Any], name: str) -> None:
    deadline = time.monotonic() + _OTHERS_SECONDS
    while True:
        try:
            admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)".encode())
            admin.execute(f"DROP TABLESPACE {name}".encode())
            return
        except psycopg.errors.InternalError_:
            # It begins with a checkpoint, of the whole server: another test's disk may be full just now.
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


@contextlib.contextmanager
def mysql_on(disk: Disk, url: str, prefix: str) -> Iterator[None]:
    """The tables of the store with ``prefix`` on ``disk``; all others, and the log, are elsewhere. Raises `NoDisk`."""
    parts = BrokerUrl.parse(url)
    ((host, port),) = parts.hosts
    schema: str = open_store(url, {"prefix": prefix}).schema()  # type: ignore[attr-defined]
    how: Any = {"host": host, "port": port or 3306, "user": parts.user, "database": parts.path, "autocommit": True}
    with pymysql.connect(**how) as admin, admin.cursor() as cursor:
        try:
            for statement in schema.replace("ENGINE=InnoDB", f"DATA DIRECTORY='{disk.place}' ENGINE=InnoDB").split(
                ";\n"
            ):
                if statement.strip():
                    try:
                        cursor.execute(statement)
                    except pymysql.Error as error:
                        raise NoDisk(f"the server cannot use this machine's disk: {error}") from None
            yield
        finally:
            for table in ("inbox", "lease", "outbox", "outbox_slot", "outbox_relay", "store"):
                cursor.execute(f"DROP TABLE IF EXISTS {prefix}_{table}")


@contextlib.contextmanager
def redis_on(place: Path, server: Running, *, sync: str) -> Iterator[Disk]:
    """``server``, which must be nobody else's, with its append-only file on a disk of its own at ``place``, empty. Raises `NoDisk`.

    Args:
        place: where it is mounted.
        server: is restarted, and again at the end.
        sync: ``appendfsync``. With ``everysec`` a server that cannot write refuses writes; with ``always`` it ends itself.
    """
    if server.origin != "native":
        raise NoDisk(f"its server is from the {server.origin}")
    with Redis.from_url(server.url) as admin:
        data = Path(admin.config_get("dir")["dir"])
        server.stop()
        kept = data.with_name(f"{data.name}.kept")
        data.rename(kept)
        try:
            with mounted(place) as disk:
                data.symlink_to(disk.place, target_is_directory=True)
                server.start()
                admin.config_set("appendfsync", sync)
                try:
                    yield disk
                finally:
                    server.stop()
                    data.unlink()
        finally:
            kept.rename(data)
            server.start()


class Memory:
    """Of a Redis that must be nobody else's: all of it is taken, or none."""

    def __init__(self, server: Running) -> None:
        self._url = server.url

    def _limit(self, most: int) -> None:
        with Redis.from_url(self._url) as admin:
            admin.config_set("maxmemory", most)

    def fill(self) -> None:
        """It has more than it may."""
        self._limit(1)

    def free(self) -> None:
        """It may have what it likes."""
        self._limit(0)
