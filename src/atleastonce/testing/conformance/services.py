"""Services as the cases above the adapter use them: run on the bench's broker, and what their handlers were given."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import msgspec

from atleastonce.context import Context
from atleastonce.message import Message
from atleastonce.service import Service
from atleastonce.testing.conformance.bench import Bench
from atleastonce.testing.history import History

EARLY = 0.05
"""Seconds by which a clock may be read too early. A delay that is shorter than asked for is broken; a longer one is
only late."""


class Call(msgspec.Struct, frozen=True):
    """One run of a handler."""

    message: Message
    at: float
    attempt: int
    redrives: int


class Calls:
    """The receive log of handlers: every run, in order."""

    def __init__(self) -> None:
        self.log: list[Call] = []

    def note(self, context: Context) -> Call:
        """Called by a handler first of all."""
        call = Call(context.message, time.monotonic(), context.attempt, context.redrives)
        self.log.append(call)
        return call

    def of(self, message: Message) -> list[Call]:
        """The runs for ``message``."""
        return [call for call in self.log if call.message.id == message.id]

    @property
    def counts(self) -> Counter[str]:
        """Runs by message id."""
        return Counter(call.message.id for call in self.log)

    def seen(self, messages: Iterable[Message]) -> bool:
        """Whether there was a run for each of ``messages``."""
        return {message.id for message in messages} <= self.counts.keys()

    def into(self, history: History) -> History:
        """Add all runs to ``history`` as receipts."""
        for call in self.log:
            history.received(call.message.id, started=call.at)
        return history


def service_on(
    bench: Bench, name: str, kind: type[Service] = Service, *, short_lease: bool = False, **settings: Any
) -> Service:
    """A service on the bench's broker, with the harness's options; not started."""
    harness = bench.harness
    options = {**harness.options, **(harness.short_lease if short_lease else {})}
    return kind(name, broker=harness.url, options=options, wait=harness.patience, **settings)


@asynccontextmanager
async def running(bench: Bench, *services: Service) -> AsyncIterator[None]:
    """Run ``services`` for the block, then drain them; what they declared is removed with the bench."""
    started: list[Service] = []
    try:
        for service in services:
            for consumer in service.consumers:
                bench.removes(consumer.topology(bench.capabilities))
            started.append(service)
            await bench.within(service.start(url=bench.harness.url))
        yield
    except BaseException:
        for service in reversed(started):
            await bench.within(service.stop(grace=0))
        raise
    for service in reversed(started):
        await bench.within(service.stop(grace=bench.patience / 2))


@contextmanager
def warnings_logged() -> Iterator[list[str]]:
    """What the library warns of during the block."""
    found: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    ear, log = Ear(logging.WARNING), logging.getLogger("atleastonce")
    log.addHandler(ear)
    try:
        yield found
    finally:
        log.removeHandler(ear)
