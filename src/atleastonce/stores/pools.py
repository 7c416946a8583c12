"""A few connections, made when they are first needed, and again when they broke: on a loop, and for threads."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator
from typing import Generic, TypeVar

C = TypeVar("C")


class Pool(ABC, Generic[C]):
    """At most ``size`` connections in use at a time, for coroutines.

    Args:
        size: of the pool.
        trusted: seconds for which one that nobody uses is thought to be there still. Longer than its server keeps silent ones,
            and a caller gets one that has ended.
    """

    def __init__(self, size: int, trusted: float = math.inf) -> None:
        self._trusted = trusted
        self._idle: list[tuple[C, float]] = []
        self._slots = asyncio.Semaphore(size)
        self._closed = False

    @abstractmethod
    async def make(self) -> C:
        """A connection that is not the pool's."""

    @abstractmethod
    def is_idle(self, connection: C) -> bool:
        """Whether it can be used again: connected, in no transaction, nothing under way."""

    @abstractmethod
    def is_broken(self, connection: C) -> bool:
        """Whether its server has ended it, as it has perhaps ended the others."""

    @abstractmethod
    async def drop(self, connection: C) -> None:
        """Close it. What it raises is nobody's business any more."""

    @abstractmethod
    async def restore(self, connection: C) -> None:
        """Make it again as `make` gives it, whatever somebody has set on it, or raise."""

    @contextlib.asynccontextmanager
    async def lent(self) -> AsyncIterator[C]:
        """`connection`, for somebody who may do with it what they like: the next one gets it restored."""
        async with self.connection() as connection:
            try:
                yield connection
            finally:
                if self.is_idle(connection):
                    try:
                        await self.restore(connection)
                    except BaseException as error:
                        await self._drop(connection)
                        if not isinstance(error, Exception):
                            raise

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[C]:
        """One for the block; thrown away if it comes back anything but idle."""
        async with self._slots:
            connection = await self._taken() or await self.make()
            try:
                yield connection
            finally:
                if self.is_idle(connection) and not self._closed:
                    self._idle.append((connection, time.monotonic()))
                else:
                    if self.is_broken(connection):
                        await self._drop_idle()  # a restart of the server ended them all
                    await self._drop(connection)

    async def _taken(self) -> C | None:
        while self._idle:
            connection, used = self._idle.pop()
            if time.monotonic() - used < self._trusted and self.is_idle(connection):
                return connection
            await self._drop(connection)
        return None

    async def _drop(self, connection: C) -> None:
        with contextlib.suppress(Exception):
            await self.drop(connection)

    async def close(self) -> None:
        """Close what is idle; what is in use is closed when it comes back."""
        self._closed = True
        await self._drop_idle()

    async def _drop_idle(self) -> None:
        idle, self._idle = self._idle, []
        for connection, _ in idle:
            await self._drop(connection)


class BlockingPool(ABC, Generic[C]):
    """The same for threads. May be used again after `close`."""

    def __init__(self, size: int, trusted: float = math.inf) -> None:
        self._trusted = trusted
        self._idle: list[tuple[C, float]] = []
        self._slots = threading.Semaphore(size)
        self._lock = threading.Lock()

    @abstractmethod
    def make(self) -> C:
        """As `Pool.make`."""

    @abstractmethod
    def is_idle(self, connection: C) -> bool:
        """As `Pool.is_idle`."""

    @abstractmethod
    def is_broken(self, connection: C) -> bool:
        """As `Pool.is_broken`."""

    @abstractmethod
    def drop(self, connection: C) -> None:
        """As `Pool.drop`."""

    @abstractmethod
    def restore(self, connection: C) -> None:
        """As `Pool.restore`."""

    @contextlib.contextmanager
    def lent(self) -> Iterator[C]:
        """As `Pool.lent`."""
        with self.connection() as connection:
            try:
                yield connection
            finally:
                if self.is_idle(connection):
                    try:
                        self.restore(connection)
                    except Exception:  # noqa: BLE001 - thrown away, whatever it was
                        self._drop(connection)

    @contextlib.contextmanager
    def connection(self) -> Iterator[C]:
        """One for the block; thrown away if it comes back anything but idle."""
        with self._slots:
            connection = self._taken() or self.make()
            try:
                yield connection
            finally:
                if self.is_idle(connection):
                    with self._lock:
                        self._idle.append((connection, time.monotonic()))
                else:
                    if self.is_broken(connection):
                        self.close()  # a restart of the server ended them all
                    self._drop(connection)

    def _taken(self) -> C | None:
        while True:
            with self._lock:
                if not self._idle:
                    return None
                connection, used = self._idle.pop()
            if time.monotonic() - used < self._trusted and self.is_idle(connection):
                return connection
            self._drop(connection)

    def _drop(self, connection: C) -> None:
        with contextlib.suppress(Exception):
            self.drop(connection)

    def close(self) -> None:
        """Close what is idle."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection, _ in idle:
            self._drop(connection)
