"""What an adapter answers to a batch, made safe: one outcome for each item, whatever the call does.

The tasks that settle, publish and renew live as long as their worker. An adapter that raises, or answers for fewer items
than it was given, must cost a repetition and not such a task.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from atleastonce.contract import Code, Outcome, unknown
from atleastonce.engine.cancel import is_cancelled

T = TypeVar("T")


async def ask(call: Callable[[Sequence[T]], Awaitable[Sequence[Outcome]]], batch: Sequence[T]) -> list[Outcome]:
    """The outcomes of ``call(batch)``, in order; all ``unknown`` where they cannot be told."""
    try:
        outcomes = list(await call(batch))
    except asyncio.CancelledError:
        if is_cancelled():
            raise
        why = "something inside the client was cancelled"
    except Exception as error:  # noqa: BLE001 - whatever it was, nobody can tell how the items ended
        why = f"{type(error).__name__}: {error}"
    else:
        if len(outcomes) == len(batch):
            return outcomes
        why = f"the adapter gave {len(outcomes)} outcomes for {len(batch)} items"
    return [unknown(Code.INTERNAL, why)] * len(batch)
