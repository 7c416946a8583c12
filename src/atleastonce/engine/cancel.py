"""Whom a ``CancelledError`` is meant for: our own task, something inside a client, a handler, or the whole loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any


def is_cancelled() -> bool:
    """Whether the running task itself is being cancelled.

    If not, a ``CancelledError`` comes from something that was awaited, such as a client's future that ended with its
    connection: a failure like others.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def loop_ends(task: asyncio.Task[Any]) -> bool:
    """Whether ``task`` is cancelled together with every other one, as `asyncio.run` does at its end and then waits for
    them: that is no handler's own affair."""
    return task.cancelling() > 0 and all(other.cancelling() for other in asyncio.all_tasks())


def forgive(task: asyncio.Task[Any]) -> None:
    """Forget that ``task`` was cancelled: else task groups and timeouts of later handlers would think they were."""
    while task.cancelling():
        task.uncancel()


async def shed(task: asyncio.Task[Any], stopping: Callable[[], bool]) -> None:
    """Give the loop back once. A handler that was cancelled (by its timeout, or by itself) and did not let the cancellation out
    leaves it hanging in the air; here it ends, instead of in the next message's handler."""
    forgive(task)
    try:
        await asyncio.sleep(0)
    except asyncio.CancelledError:
        if stopping() or loop_ends(task):
            raise
        forgive(task)
