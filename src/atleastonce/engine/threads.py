"""One call on a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable
from typing import Any


async def on_a_thread(function: Callable[[], Any]) -> Any:
    """As ``asyncio.to_thread``, on a thread that the end of the process does not wait for: a handler that hangs must
    not hold it up. Once for a batch, so that a thread of its own costs nothing that shows."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def tell(result: Any, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)
            return
        # No future holds the one, and the other would close who awaits it.
        if isinstance(error, StopIteration | GeneratorExit):
            cause, error = error, RuntimeError(f"raised {error!r}")
            error.__cause__ = cause
        future.set_exception(error)

    def work() -> None:
        try:
            outcome: tuple[Any, BaseException | None] = (function(), None)
        except BaseException as error:  # noqa: BLE001 - also SystemExit: raised again where it is awaited
            outcome = (None, error)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(tell, *outcome)

    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(work,), name="atleastonce-batch", daemon=True).start()
    return await future
