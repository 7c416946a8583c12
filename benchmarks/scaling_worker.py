"""One of the processes of `scaling.py`: notes what it handles, until it is told to stop.

    python scaling_worker.py URL QUEUE LEDGER KIND

Each run of the handler is a line in the file LEDGER, with its begin and end by the machine's one clock. The first line of a process
says that its interpreter is up: what comes before it is Python's start, and no join.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time

import msgspec

from atleastonce import Queue, Service
from atleastonce.testing.history import Received

WORK = 0.005


class Step(msgspec.Struct):
    key: str
    n: int


def channel(name: str, kind: str) -> Queue[Step]:
    """The ordered declaration is the same on every broker: each takes the promise that it knows."""
    ordered = kind == "ordered"
    return Queue(name, Step, fifo=ordered, single_active=ordered, partitions=16)


def make(url: str, name: str, ledger: str, kind: str) -> Service:
    service = Service("scaling", broker=url, drain="10s")
    book = os.open(ledger, os.O_WRONLY | os.O_APPEND)
    me = str(os.getpid())

    def note(run: Received) -> None:
        os.write(book, msgspec.json.encode(run) + b"\n")

    @service.consumer(channel(name, kind), ordered=kind == "ordered", concurrency=16)
    async def handle(step: Step) -> None:
        began = time.monotonic()
        await asyncio.sleep(random.uniform(0, WORK))
        note(Received(f"{step.key}/{step.n}", me, began, time.monotonic()))

    note(Received("up", me, time.monotonic()))
    return service


if __name__ == "__main__":
    make(*sys.argv[1:]).run()
