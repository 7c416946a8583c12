"""The SQLite broker behind the adapter contract: URL, options, and the calls handed to the worker."""

from __future__ import annotations

import contextlib
import sqlite3
import time
import weakref
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from atleastonce.adapters.sqlite.faults import fault_of, outcome_of
from atleastonce.adapters.sqlite.inboxes import inbox, stale_inboxes
from atleastonce.adapters.sqlite.looking import backlog, browse, last, purge
from atleastonce.adapters.sqlite.schema import empty_database
from atleastonce.adapters.sqlite.store import Store
from atleastonce.adapters.sqlite.subscription import SQLiteSubscription
from atleastonce.adapters.sqlite.topology import Catalogue
from atleastonce.adapters.sqlite.worker import Worker
from atleastonce.channels import Channel, Queue, Source
from atleastonce.contract import (
    Ability,
    Adapter,
    Backlog,
    Capabilities,
    Counting,
    Delivery,
    Drift,
    Fact,
    Fault,
    Leasing,
    Level,
    Listener,
    Ordering,
    Outcome,
    Outgoing,
    Subscription,
    Topology,
    Trait,
    Window,
)
from atleastonce.durations import Duration, Size, seconds, size_in_bytes
from atleastonce.errors import AtLeastOnceError, BrokerUnavailable, Closed, ConfigurationError
from atleastonce.urls import BrokerUrl

T = TypeVar("T")

_OPTIONS = ("busy_timeout", "lease", "max_message_bytes", "max_size", "poll", "synchronous")
_SCAN = 1000
"""Messages of one list of `SQLiteAdapter.scan`."""

_PAGE = 4096


class SQLiteAdapter(Adapter):
    """A durable broker in the file ``path``, shared by all processes of this machine that open it.

    Args:
        path: the database file; made at the first `open`. Its directory must exist, on a local disk.
        lease: how long a delivery stays with its reader, at least 1 ms. Too short repeats messages whose renewal comes
            late; too long makes a crashed reader's messages wait.
        synchronous: ``"full"``: what was confirmed survives a power cut. ``"normal"``: it survives the kill of any process,
            not a power cut.
        poll: the longest that a waiting reader takes to notice a message from another process, 1 ms to 10 s. Too short
            burns CPU while idle; too long delays first messages. Messages of its own process are noticed at once.
        busy_timeout: how long a call waits while other processes write. Too short ends calls as ``unknown`` under load; too
            long hides a process that hangs in the middle of a transaction.
        max_message_bytes: body, key and headers together, up to 512 MiB; larger ones are refused.
        max_size: publishing ends ``unknown`` (overloaded) rather than let the file grow beyond this; None for no limit.
        clock: for tests, instead of ``time.time``.
    """

    scheme = "sqlite"

    def __init__(
        self,
        path: str | Path,
        *,
        lease: Duration = 30.0,
        synchronous: str = "full",
        poll: Duration = 0.05,
        busy_timeout: Duration = 5.0,
        max_message_bytes: Size = 16 * 2**20,
        max_size: Size | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.path = Path(path)
        self.lease = seconds(lease, name="sqlite lease", minimum=0.001)
        self._synchronous = str(synchronous).lower()
        if self._synchronous not in ("normal", "full"):
            raise ConfigurationError(f'sqlite synchronous: "{synchronous}" is neither "full" nor "normal"')
        self._poll = seconds(poll, name="sqlite poll", minimum=0.001)
        if self._poll > 10:
            raise ConfigurationError(f"sqlite poll: {poll!r} is out of range; it must be at most 10 seconds")
        self._patience = seconds(busy_timeout, name="sqlite busy_timeout")
        self._max_bytes = size_in_bytes(max_message_bytes, name="sqlite max_message_bytes")
        if self._max_bytes > 512 * 2**20:
            raise ConfigurationError(f"sqlite max_message_bytes: {max_message_bytes!r} is out of range; at most 512MiB")
        self._max_pages = None
        if max_size is not None:
            self._max_pages = max(16, size_in_bytes(max_size, name="sqlite max_size") // _PAGE)
        self._clock = clock
        self._worker: Worker | None = None
        self._subscriptions: weakref.WeakSet[SQLiteSubscription] = weakref.WeakSet()
        self.capabilities = Capabilities(
            delay=Ability(Level.NATIVE),
            publish_delay=Ability(Level.NATIVE),
            delivery_count=Counting.EXACT,
            lease=Leasing.EXTENDABLE,
            lease_seconds=self.lease,
            order=Ordering.GROUP,
            addresses_groups=True,
            max_message_bytes=self._max_bytes,
            binary_headers=True,
        )

    @classmethod
    def from_url(cls, url: BrokerUrl, options: Mapping[str, Any]) -> SQLiteAdapter:
        """The adapter for ``sqlite:///relative.db`` or ``sqlite:////absolute/path.db``, options in the query.

        Raises:
            ConfigurationError: a host where the path belongs, no path, or an unknown option or value.
        """
        if url.hosts or url.user is not None:
            raise ConfigurationError(
                f'broker URL "{url}": write sqlite:///file.db (three slashes) or sqlite:////absolute/path/file.db'
            )
        if not url.path or url.path.endswith("/"):
            raise ConfigurationError(f'broker URL "{url}" names no file; write sqlite:///file.db')
        if url.path == ":memory:":
            raise ConfigurationError(f'broker URL "{url}": for a broker in memory write memory://')
        given = {**url.query, **options}
        if unknown := [option for option in given if option not in (*_OPTIONS, "clock")]:
            raise ConfigurationError(
                f'broker URL "{url}": unknown option "{unknown[0]}"; sqlite has {", ".join(_OPTIONS)}'
            )
        return cls(url.path, **given)

    # -------------------------------------------------------------------------------------------------------- lifecycle

    async def open(self) -> None:
        """Open the file, creating it where there is none and that `may_create`.

        Raises:
            NotFound: there is none, and it may not be created.
            ConfigurationError: no such directory, not a database, another program's, or another version's.
            PermissionDenied: the file or its directory cannot be written.
            BrokerUnavailable: locked for longer than ``busy_timeout``, or the disk fails.
        """
        worker = Worker(
            self.path,
            self._synchronous,
            self._store,
            self._patience,
            self._poll,
            self._on_change,
            create=self.may_create,
        )
        await worker.open()
        self._worker = worker

    def _store(self, db: sqlite3.Connection) -> Store:
        return Store(db, self._max_bytes, self._max_pages, self._clock)

    async def close(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            await worker.close()

    @property
    def _open_worker(self) -> Worker:
        if self._worker is None:
            raise Closed(f"sqlite:///{self.path} is not open")
        return self._worker

    def _on_change(self, sources: set[int] | None) -> None:
        for subscription in tuple(self._subscriptions):
            if sources is None or subscription.number in sources:
                subscription.changed()

    # ------------------------------------------------------------------------------------------------------------ calls

    async def declare(self, topology: Topology, *, create: bool = True) -> Sequence[Drift]:
        """As `Adapter.declare`. Delay channels are not made: a source delays by itself (`Retry`)."""
        if self._worker is None and not (create or self.may_create):  # there is no file, so all of it is missing
            with contextlib.closing(empty_database()) as db:
                return Catalogue(db).declare(topology, create=False)

        def look(store: Store) -> list[Drift] | None:
            drifts = store.declare(topology, create=False)
            return None if create and any(drift.setting == "missing" for drift in drifts) else drifts

        try:
            return await self._open_worker.submit(lambda store: store.declare(topology, create=True), unless=look)
        except sqlite3.Error as error:
            raise BrokerUnavailable(fault_of(error).detail) from error

    async def inspect(self, topology: Topology) -> Sequence[Fact]:
        """As `Inspects.inspect`."""
        place = f"sqlite:///{self.path}"
        facts = [Fact(place, Trait.ONE_NODE, "file", str(self.path.name), 1)]
        if self._synchronous != "full":
            facts.append(Fact(place, Trait.LATE_SYNC, "synchronous", self._synchronous))
        return facts

    async def send(self, batch: Sequence[Outgoing]) -> Sequence[Outcome]:
        items = list(batch)
        try:
            return await self._open_worker.submit(lambda store: store.publish(items))
        except Closed:
            raise
        except (sqlite3.Error, AtLeastOnceError) as error:
            return [outcome_of(error)] * len(items)

    async def subscribe(self, source: Source, window: Window, listener: Listener) -> Subscription:
        worker = self._open_worker
        try:
            numbers = await worker.submit(lambda store: store.numbers(source), writes=False)
        except sqlite3.Error as error:
            raise BrokerUnavailable(fault_of(error).detail) from error
        subscription = SQLiteSubscription(worker, source, numbers[0], window, listener, self.lease)
        self._subscriptions.add(subscription)
        return subscription

    async def keep_inbox(self, name: str) -> None:
        """See `KeepsInboxes`: an inbox in which an answer has waited for an hour has no owner."""
        await self.declare(inbox(name))
        for dead in await self._call(stale_inboxes, writes=False):
            await self.delete(inbox(dead))

    async def remove_inbox(self, name: str) -> None:
        """See `KeepsInboxes`."""
        await self.delete(inbox(name))

    async def backlog(self, source: Source) -> Backlog:
        """Exact counts, by reading the source's part of the index: some 70 ms for a million messages."""
        try:
            return await self._open_worker.submit(lambda store: backlog(store, store.numbers(source)[0]), writes=False)
        except (sqlite3.Error, AtLeastOnceError) as error:
            return Backlog(detail=fault_of(error).detail)

    def classify(self, error: BaseException) -> Fault:
        return fault_of(error)

    async def purge(self, channel: Queue[Any]) -> int:
        """Remove all that nobody holds, delayed messages too.

        Raises:
            NotFound: no such queue.
            BrokerUnavailable: the file is locked or failing.
        """
        return await self._call(lambda store: purge(store, store.numbers(channel)[0]))

    async def delete(self, topology: Topology) -> None:
        """Remove the channels and sources of ``topology`` with their messages; their readers get `NotFound`.

        Raises:
            BrokerUnavailable: the file is locked or failing.
        """
        await self._call(lambda store: store.delete(topology))

    async def browse(self, channel: Channel[Any], limit: int, group: str | None = None) -> Sequence[Delivery]:
        """Up to ``limit`` messages that wait in any group, or in ``group``, each once, oldest first; none that is held.

        Raises:
            NotFound: no such channel or group.
            BrokerUnavailable: the file is locked or failing.
        """
        what = channel if group is None else Source(channel, group)
        source = Source(Queue(channel.name)) if group is None else Source(channel, group)
        return await self._call(lambda store: browse(store, store.numbers(what), source, limit), writes=False)

    async def scan(self, queue: Queue[Any]) -> AsyncGenerator[Sequence[Delivery]]:
        """As `Scans.scan`, page by page: no transaction is held open between them."""
        source = Source(Queue(queue.name))
        end = await self._call(lambda store: last(store, store.numbers(queue)[0]), writes=False)
        after = -1
        while after < end:
            at = after
            page = await self._call(
                lambda store, at=at: browse(store, store.numbers(queue), source, _SCAN, at),  # type: ignore[misc]
                writes=False,
            )
            page = [delivery for delivery in page if int(delivery.position) <= end]
            if not page:
                return
            after = int(page[-1].position)
            yield page

    async def _call(self, run: Callable[[Store], T], *, writes: bool = True) -> T:
        try:
            return await self._open_worker.submit(run, writes=writes)
        except sqlite3.Error as error:
            raise BrokerUnavailable(fault_of(error).detail) from error
