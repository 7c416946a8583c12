"""The synchronous face, for Flask, Django and scripts: the same broker, with a loop of its own in a thread of its
own."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine, Iterable, Mapping
from concurrent.futures import CancelledError
from types import TracebackType
from typing import Any, Self, TypeVar

from atleastonce.broker import Broker
from atleastonce.channels import Channel
from atleastonce.contract import Backlog, Outcome
from atleastonce.errors import Closed
from atleastonce.patterns.replies import Gathered

T = TypeVar("T")


class SyncBroker:
    """A `Broker` whose methods block. Safe to share among threads; not across a fork (make one in each worker process).

    A single call costs a thread hop, about 60 us; `publish_many` pays it once for a list.

    Every method raises `Closed` after `close`, in a forked process, and for calls that `close` cuts off.
    """

    def __init__(self, url: str, options: Mapping[str, Any] | None = None, **settings: Any) -> None:
        self._broker = Broker(url, options, **settings)
        self._loop = asyncio.new_event_loop()
        self._pid = os.getpid()
        self._lock = threading.Lock()  # nothing is handed to the loop once it is to end: it would never be answered
        self._closed = False
        self._thread = threading.Thread(target=self._loop.run_forever, name="atleastonce-sync", daemon=True)
        self._thread.start()

    def open(self) -> None:
        """Connect. Raises as `Broker.open`."""
        self._call(self._broker.open())

    def publish(self, channel: Channel[Any], payload: Any, **options: Any) -> str:
        """Publish and wait for the confirmation; arguments and errors as `Broker.publish`."""
        return self._call(self._broker.publish(channel, payload, **options))

    def publish_many(self, channel: Channel[Any], payloads: Iterable[Any], **options: Any) -> list[Outcome]:
        """Publish a list; arguments and errors as `Broker.publish_many`."""
        return self._call(self._broker.publish_many(channel, payloads, **options))

    def request(self, channel: Channel[Any], payload: Any, **options: Any) -> Any:
        """Ask and wait for the answer; arguments and errors as `Broker.request`."""
        return self._call(self._broker.request(channel, payload, **options))

    def gather(self, channel: Channel[Any], payload: Any, **options: Any) -> Gathered[Any]:
        """Ask many and wait for the answers; arguments and errors as `Broker.gather`."""
        return self._call(self._broker.gather(channel, payload, **options))

    def backlog(self, channel: Channel[Any], group: str | None = None) -> Backlog:
        """As `Broker.backlog`."""
        return self._call(self._broker.backlog(channel, group))

    def limit_depth(self, channel: Channel[Any], group: str | None = None, **options: Any) -> None:
        """As `Broker.limit_depth`."""

        async def limit() -> None:
            self._broker.limit_depth(channel, group, **options)

        self._call(limit())

    def close(self) -> None:
        """Wait for pending publishes, disconnect, end the thread. Idempotent. Nothing in a forked process: the
        connection and its loop are the parent's."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            if self._closed:
                return
            self._closed = True
            future = asyncio.run_coroutine_threadsafe(self._end(), self._loop)
        try:
            future.result()
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    async def _end(self) -> None:
        try:
            await self._broker.close()
        finally:
            rest = asyncio.all_tasks() - {asyncio.current_task()}
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)

    def __enter__(self) -> Self:
        try:
            self.open()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        if os.getpid() != self._pid:
            coroutine.close()
            raise Closed("this broker was opened before a fork; open one in each process")
        with self._lock:
            if self._closed:
                coroutine.close()
                raise Closed("this broker was closed")
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except CancelledError:
            raise Closed("this broker was closed meanwhile") from None
        except BaseException:  # Ctrl-C while waiting: the loop need not go on with it
            future.cancel()
            raise

    def __repr__(self) -> str:
        return f"<SyncBroker {self._broker.url}>"


def connect_sync(url: str, options: Mapping[str, Any] | None = None, **settings: Any) -> SyncBroker:
    """A `SyncBroker` for ``with``; arguments as `connect`."""
    return SyncBroker(url, options, **settings)
