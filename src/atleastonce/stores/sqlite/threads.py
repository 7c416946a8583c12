"""Work in a thread that nobody leaves behind: a connection that is closed while a thread is in it ends the process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

_T = TypeVar("_T")


async def in_thread(thread: Executor, work: Callable[[], _T], *, undo: Callable[[_T], object] | None = None) -> _T:
    """What ``work`` gives. Cancelled, it ends only when ``work`` has; whether that had its effect is then in doubt.

    Args:
        thread: where it runs. Not the loop's own: what a handler has sent there may never end, and it holds the file until then.
        work: may block.
        undo: is given what ``work`` made and nobody gets any more.
    """
    # No task: the end of a loop cancels those, and then it would seem to be done while the thread goes on.
    job = asyncio.get_running_loop().run_in_executor(thread, work)
    try:
        return await asyncio.shield(job)
    except asyncio.CancelledError:
        while not job.done():
            with contextlib.suppress(asyncio.CancelledError):  # the first one is passed on
                await asyncio.wait((job,))
        if not job.cancelled() and job.exception() is None and undo is not None:
            undo(job.result())
        raise
