"""Ctrl-C and SIGTERM for commands that have something to put in order before they end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from atleastonce.cli.errors import Terminated

T = TypeVar("T")


def interruptible(work: Coroutine[Any, Any, T]) -> T:
    """Run ``work``; Ctrl-C and SIGTERM cancel it, and what it does to clean up is done.

    Raises:
        KeyboardInterrupt, Terminated: after that.
    """

    async def until_told() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None  # noqa: S101 - inside a coroutine
        told = False

        def on_term() -> None:
            nonlocal told
            told = True
            task.cancel()

        with contextlib.suppress(NotImplementedError):  # Windows
            loop.add_signal_handler(signal.SIGTERM, on_term)
        try:
            return await work
        except asyncio.CancelledError:
            if told:
                raise Terminated from None
            raise

    return asyncio.run(until_told())


def gracefully(work: Callable[[asyncio.Event], Coroutine[Any, Any, T]], remark: str) -> tuple[T, BaseException | None]:
    """Run ``work``, which ends in good order once its event is set: by the first Ctrl-C or SIGTERM, with ``remark`` on stderr.
    A second one cancels it.

    Returns:
        Its result, and what is to be raised when that was reported: KeyboardInterrupt, `Terminated` or nothing.

    Raises:
        KeyboardInterrupt, Terminated: it was cancelled.
    """

    async def until_told() -> tuple[T, BaseException | None]:
        loop, task, stopping = asyncio.get_running_loop(), asyncio.current_task(), asyncio.Event()
        assert task is not None  # noqa: S101 - inside a coroutine
        told: list[BaseException] = []

        def on_signal(reason: BaseException) -> None:
            if told:
                task.cancel()
            else:
                print(remark, file=sys.stderr, flush=True)
            told.append(reason)
            stopping.set()

        with contextlib.suppress(NotImplementedError):  # Windows
            loop.add_signal_handler(signal.SIGINT, on_signal, KeyboardInterrupt())
            loop.add_signal_handler(signal.SIGTERM, on_signal, Terminated())
        try:
            return await work(stopping), told[0] if told else None
        except asyncio.CancelledError:
            if told:
                raise told[0] from None
            raise

    return asyncio.run(until_told())


async def in_background(function: Callable[[], T]) -> T:
    """``asyncio.to_thread`` for what may never return, like reading a terminal: a Ctrl-C does not wait for it."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def work() -> None:
        try:
            outcome: tuple[T | None, BaseException | None] = (function(), None)
        except Exception as error:  # noqa: BLE001 - raised again where it is awaited
            outcome = (None, error)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, *outcome)

    threading.Thread(target=work, name="atleastonce-cli", daemon=True).start()
    return await future
