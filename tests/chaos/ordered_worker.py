"""One of several processes that share an ordered queue: notes what runs when, until it is told to stop.

Run by `test_ordered_storm` and `test_parts_shared`: python ordered_worker.py URL QUEUE LEDGER [STUCK [LONGEST]]

Each run of the handler is a line in the file LEDGER: the message, and when it began and ended by the machine's one clock. Every
eleventh message fails in its first two attempts. The second message of the key STUCK never ends. A run takes up to LONGEST
seconds, by default 0.005.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time

import msgspec

from atleastonce import Context, FailurePolicy, Queue, RetryChain, Service
from atleastonce.testing.history import Received

FAILS = 11


class Step(msgspec.Struct):
    key: str
    n: int


def steps(name: str) -> Queue[Step]:
    """The same declaration on every broker: each takes the promise that it knows."""
    return Queue(name, Step, fifo=True, single_active=True, partitions=8)


def make(url: str, name: str, ledger: str, stuck: str = "", longest: str = "0.005") -> Service:
    service = Service("storm", broker=url, drain="10s")
    book = os.open(ledger, os.O_WRONLY | os.O_APPEND)
    me = str(os.getpid())

    @service.consumer(
        steps(name),
        ordered=True,
        failure=FailurePolicy(in_place=None, chain=RetryChain("20ms", "40ms")),
        concurrency=16,
        max_in_flight=200,
    )
    async def handle(step: Step, ctx: Context) -> None:
        began = time.monotonic()
        if step.key == stuck and step.n == 1:
            await asyncio.Event().wait()
        try:
            await asyncio.sleep(random.uniform(0, float(longest)))
            if step.n % FAILS == 0 and ctx.attempt < 3:
                raise ValueError("not yet")
        finally:
            run = Received(f"{step.key}/{step.n}", me, began, time.monotonic(), ctx.attempt)
            os.write(book, msgspec.json.encode(run) + b"\n")

    return service


if __name__ == "__main__":
    make(*sys.argv[1:]).run()
