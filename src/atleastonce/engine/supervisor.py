"""Keeps one worker reading: subscribes, notices that the subscription died, waits, subscribes anew."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from atleastonce.contract import Adapter, Subscription
from atleastonce.engine.backoff import Backoff
from atleastonce.engine.cancel import is_cancelled
from atleastonce.engine.worker import Worker
from atleastonce.errors import ConfigurationError, ConnectionLost, NotFound, PermissionDenied

log = logging.getLogger("atleastonce.engine")

# Quick at first, since most losses are one restarted node; at most ten seconds, so that recovery is not what takes
# long.
RECONNECT = Backoff("200ms", factor=2, maximum="10s")

# How long a stop waits for the broker to hear that nothing more is wanted. Shorter: what is given back may be counted twice;
# longer: a silent broker holds up the end. SQS needs a second and a round trip.
_QUIET_SECONDS = 1.5


class Supervisor:
    """Runs one worker from start to drain.

    Args:
        adapter: what to subscribe on.
        worker: what reads.
        repair: makes what the source needs exist again; called when it was not found. Never raises.
        backoff: waits between subscriptions. Begins anew after a subscription that delivered.
    """

    def __init__(
        self,
        adapter: Adapter,
        worker: Worker,
        *,
        backoff: Backoff = RECONNECT,
        repair: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._repair = repair
        self.worker = worker
        self._adapter = adapter
        self._backoff = backoff
        self._subscription: Subscription | None = None
        self._reading: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Subscribe once and begin to read.

        Raises:
            NotFound, BrokerUnavailable, PermissionDenied, ConfigurationError: the first subscription failed. Nothing
            is left running.
        """
        self._subscription = await self._subscribe()
        self.worker.start()
        self._reading = asyncio.create_task(self._read(), name=f"atleastonce-{self.worker.source}")

    async def wait(self) -> None:
        """Until reading has ended for good.

        Raises:
            PermissionDenied, ConfigurationError: what trying again does not mend.
            AtLeastOnceError, Exception: the last failure, where the back-off has an end.
        """
        if self._reading is not None:
            await asyncio.wait([self._reading])
            if not self._reading.cancelled():
                self._reading.result()

    async def stop(self, grace: float) -> bool:
        """Stop receiving, let handlers end within ``grace`` seconds, cancel and give back the rest, leave.

        Returns whether everything ended by itself. Idempotent; a second call with less grace cuts the first one short.
        """
        if self.worker.state[0] != "stopped":
            self.worker.state = ("draining", "")
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])
            if not self._reading.cancelled():
                self._reading.exception()  # told by `wait` to who asks, and no surprise to the loop
        self.worker.halt()  # meanwhile nothing more begins
        await self._quiet()
        drained = await self.worker.drain_all(grace)
        await self.worker.stop()
        await self._close()
        self.worker.state = ("stopped", "")
        return drained

    async def _subscribe(self) -> Subscription:
        subscription = await self._adapter.subscribe(self.worker.source, self.worker.window, self.worker)
        self.worker.state = ("running", "")
        return subscription

    async def _quiet(self) -> None:
        """Ask the broker for nothing more, before anything is given back: else it comes to us again, and is counted again."""
        if self._subscription is None:
            return
        leaving = asyncio.create_task(self._leave(self._subscription))
        _, late = await asyncio.wait([leaving], timeout=_QUIET_SECONDS)
        if not late and not leaving.cancelled() and (error := leaving.exception()) is not None:
            log.debug("%s: not paused for the end: %r", self.worker.source, error)

    async def _leave(self, subscription: Subscription) -> None:
        if self.worker.returns_copies:
            self.worker.left(await subscription.leave_with_rest())
        else:
            await subscription.leave()

    async def _close(self) -> None:
        if self._subscription is None:
            return
        try:
            await self._subscription.close()
        except asyncio.CancelledError:
            if is_cancelled():
                raise  # still ours: whoever cancelled us closes it
        except Exception as error:  # noqa: BLE001 - it is gone either way, and reading must begin again
            log.warning("%s: closing the subscription failed (%r)", self.worker.source, error)
        self._subscription = None

    async def _read(self) -> None:
        failures = 0
        while True:
            received = self.worker.counts["received"]
            try:
                if self._subscription is None:
                    self._subscription = await self._subscribe()
                await self.worker.read(self._subscription)
                return
            except asyncio.CancelledError:
                if is_cancelled():
                    raise
                ended: Exception = ConnectionLost("something inside the client was cancelled")
            except Exception as error:  # noqa: BLE001 - whatever ended it, reading must begin again
                ended = error
            self.worker.state = ("disconnected", self._describe(ended))
            self.worker.lost(None)
            await self._close()
            if isinstance(ended, NotFound) and self._repair is not None:
                await self._repair()
            failures = 1 if self.worker.counts["received"] > received else failures + 1
            pause = self._backoff.wait(failures)
            if pause is None or isinstance(ended, PermissionDenied | ConfigurationError):
                self.worker.state = ("stopped", self.worker.state[1])  # nobody mends it
                log.error("%s: %s; it is read no more", self.worker.source, self.worker.state[1])
                raise ended
            log.warning("%s: %s; subscribing again in %.1f s", self.worker.source, self.worker.state[1], pause)
            await asyncio.sleep(pause)

    def _describe(self, error: Exception) -> str:
        detail = str(error)
        if not detail:
            with contextlib.suppress(Exception):  # what an adapter makes of a strange error must not end the reading
                detail = self._adapter.classify(error).detail
        return detail or type(error).__name__
