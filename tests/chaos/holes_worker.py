"""A consumer that is done with nearly all of a partition, but not with what lies before it, until it is killed.

Run by `test_kill_with_holes`: python holes_worker.py URL QUEUE LEDGER STUCK

Each message that was handled is a line in the file LEDGER. Those of which the file STUCK has a line never end.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from atleastonce import Queue, Service

WINDOW = 6000


def work(name: str) -> Queue[int]:
    return Queue(name, int, partitions=1)


def make(url: str, name: str, ledger: str, stuck: str) -> Service:
    service = Service("holes", broker=url, drain="1s")
    book = os.open(ledger, os.O_WRONLY | os.O_APPEND)
    never = set(map(int, Path(stuck).read_text().split()))

    @service.consumer(work(name), concurrency=WINDOW, max_in_flight=WINDOW)
    async def handle(n: int) -> None:
        if n in never:
            await asyncio.Event().wait()
        os.write(book, b"%d\n" % n)

    return service


if __name__ == "__main__":
    make(*sys.argv[1:]).run()
