"""A service as a process: it runs until a signal or somebody tells it to stop, drains, and ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Coroutine
from typing import Any

from atleastonce.engine import collector
from atleastonce.running import Running

log = logging.getLogger("atleastonce")

Stop = Callable[..., Coroutine[Any, Any, bool]]

_SIGNALS = (signal.SIGTERM, signal.SIGINT)

# How long a stopped service's process waits for handlers that do not end when they are cancelled.
_STUCK_SECONDS = 2.0


async def serve(start: Coroutine[Any, Any, Running | None], stop: Stop, asked: asyncio.Event, *, tune_gc: bool) -> None:
    """See `Service.serve`.

    Args:
        start: starts it; gives None if somebody has stopped it by then.
        stop: `Service.stop`.
        asked: set by `Service.request_stop`: what is still starting, or waits for its broker, is given up.
        tune_gc: as in `Service.serve`.
    """
    loop = asyncio.get_running_loop()
    hurry = asyncio.Event()
    starting = asyncio.create_task(start)
    told = asyncio.create_task(asked.wait())
    given_up = False

    def give_up(why: str) -> None:
        nonlocal given_up
        log.warning("%s: not started", why)
        given_up = starting.cancel()

    def on_signal(name: str) -> None:
        if not starting.done():
            give_up(name)
            return
        if starting.cancelled() or starting.exception() is not None:  # it is ending already
            return
        running = starting.result()
        if running is None:
            return
        stopping = running.stopping
        if stopping.is_set():
            hurry.set()
        log.warning("%s: %s", name, "ending now" if hurry.is_set() else "draining; once more to end at once")
        stopping.set()

    for number in _SIGNALS:
        with contextlib.suppress(NotImplementedError, ValueError):  # not on Windows, not outside the main thread
            loop.add_signal_handler(number, on_signal, number.name)
    try:
        try:
            await asyncio.wait([starting, told], return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                give_up("asked to stop")
            running = await starting
        except asyncio.CancelledError:
            if given_up:
                return
            starting.cancel()
            await asyncio.wait([starting])
            if not starting.cancelled() and starting.exception() is None:  # cancelled just when it had started
                await stop()
            raise
        if running is None:
            return
        if asked.is_set():  # just when it had started
            running.stopping.set()
        with collector.tuned() if tune_gc else contextlib.nullcontext():
            await _until_stopped(running, stop, hurry)
    finally:
        told.cancel()
        for number in _SIGNALS:
            with contextlib.suppress(NotImplementedError, ValueError):
                loop.remove_signal_handler(number)
    if running.fatal_error is not None:
        raise running.fatal_error


async def _until_stopped(running: Running, stop: Stop, hurry: asyncio.Event) -> None:
    """Wait until it is to stop, or one of its readers cannot go on; then drain, until ``hurry``.

    Raises:
        AtLeastOnceError, Exception: why a reader cannot go on.
    """
    watch = [asyncio.create_task(supervisor.wait()) for supervisor in running.supervisors]
    told = asyncio.create_task(running.stopping.wait())
    rush = asyncio.create_task(hurry.wait())
    try:
        done, pending = await asyncio.wait([told, *watch], return_when=asyncio.FIRST_COMPLETED)
        draining = asyncio.create_task(stop())
        await asyncio.wait([draining, rush], return_when=asyncio.FIRST_COMPLETED)
        if not draining.done():
            await stop(grace=0)
        await asyncio.gather(draining, *pending, return_exceptions=True)
    except asyncio.CancelledError:
        await stop()
        raise
    finally:
        for task in (told, rush, *watch):
            task.cancel()
    for task in done:
        task.result()


def run(serving: Coroutine[Any, Any, None]) -> None:
    """``serving`` in an event loop of its own, to the end of the process."""
    loop = asyncio.new_event_loop()
    try:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(serving)
    finally:
        _close(loop)


def _close(loop: asyncio.AbstractEventLoop) -> None:
    """End ``loop`` as `asyncio.run` does, but without waiting for ever for a handler that swallows its cancellation: its message
    was given back, and a process that does not end is killed by its platform anyway."""
    try:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            _, stuck = loop.run_until_complete(asyncio.wait(left, timeout=_STUCK_SECONDS))
            for task in stuck:
                log.error("%s does not end though it was cancelled; the process ends without it", task.get_coro())
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        asyncio.set_event_loop(None)
        loop.close()
