"""A service whose handler ends its own process, in a process of its own.

    python tests/chaos/crash_worker.py URL TOPIC HOW JOURNAL

A body ``{"n": 7, "kill": true}`` kills by HOW: ``exit`` (os._exit), ``segfault``, or ``oom`` (SIGKILL, as the kernel's memory
killer does it). What was handled, and who was about to kill, goes to JOURNAL, one line at a time.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
from typing import TypedDict

from atleastonce import FailurePolicy, Service, Topic

CRASH_LIMIT = 2


class Job(TypedDict):
    n: int
    kill: bool


def die(how: str) -> None:
    if how == "exit":
        os._exit(7)
    elif how == "oom":
        os.kill(os.getpid(), signal.SIGKILL)
    else:
        ctypes.string_at(0)


def main(url: str, topic: str, how: str, journal: str) -> None:
    service = Service("crew", broker=url, drain="10s")
    log = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    @service.consumer(Topic(topic, Job, partitions=3), failure=FailurePolicy(crash_limit=CRASH_LIMIT), max_in_flight=50)
    async def handle(job: Job) -> None:
        if job["kill"]:
            os.write(log, f"killed {job['n']}\n".encode())
            die(how)
        await asyncio.sleep(0.002)
        os.write(log, f"done {job['n']}\n".encode())

    service.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
