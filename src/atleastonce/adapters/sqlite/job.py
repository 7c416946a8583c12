"""One call of the contract on its way through the worker's thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

from atleastonce.adapters.sqlite.store import Store

T = TypeVar("T")


class Job(Generic[T]):
    """One call.

    Attributes:
        run: what to do; anything it raises goes to the caller.
        writes: whether it needs the write lock.
        durable: whether it has to survive a power cut. Losing a claim or an extension only repeats a message.
        unless: looked at before the write lock is taken; where it returns a result, ``run`` is not called.
    """

    __slots__ = ("durable", "error", "future", "result", "run", "unless", "writes")

    def __init__(
        self,
        run: Callable[[Store], T],
        future: asyncio.Future[T],
        writes: bool,
        durable: bool,
        unless: Callable[[Store], T | None] | None,
    ) -> None:
        self.run = run
        self.future = future
        self.writes = writes
        self.durable = durable
        self.unless = unless
        self.result: T | None = None
        self.error: BaseException | None = None
