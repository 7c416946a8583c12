"""The long polls of one subscription. What a poll brings is never lost: it is collected, or made visible again."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from atleastonce.adapters.sqs import batches
from atleastonce.adapters.sqs.clients import Clients
from atleastonce.adapters.sqs.config import Config
from atleastonce.adapters.sqs.records import SYSTEM, SYSTEM_FIFO
from atleastonce.adapters.sqs.threads import Threads

_ALL = ["All"]
BRIEF: Final = 1
"""Seconds that a poll waits which must not last: the least for which SQS asks all of its servers."""
_LATE: Final = 0.35
"""How much longer such a poll may take before a stop goes on without it: a round trip, and a busy machine."""


class Arrival(NamedTuple):
    """What one poll brought: up to as many messages as were asked for, or an error; and when."""

    asked: int
    messages: Sequence[dict[str, Any]]
    error: Exception | None
    at: float


class Polls:
    """Runs polls on the adapter's threads and tells the loop what they brought, in lists.

    A poll waits in the service and cannot be called back: hanging up would leave what it was about to bring with nobody
    until its lease ends. So when polls are closed they are let go at once and end by themselves, and what they still bring
    is made visible again by the thread that got it; the end of the process waits for that (`Threads`).

    What is made visible again goes to any poll that waits, also to one of ours, which would bring it once more only to give it back
    once more; SQS counts each time. So who may have to give something back polls briefly, and nothing is given back before the last
    brief poll has ended. A long poll that waits is the only one of its subscription.

    Args:
        arrived: called on the loop with what has come.
    """

    def __init__(
        self,
        config: Config,
        clients: Clients,
        threads: Threads,
        url: str,
        fifo: bool,
        arrived: Callable[[Sequence[Arrival]], None],
    ) -> None:
        self.running = 0
        self.asked = 0
        self._clients = clients
        self._threads = threads
        self._loop = asyncio.get_running_loop()
        self._tell = arrived
        self._lock = threading.Lock()
        self._arrivals: list[Arrival] = []
        self._brief = 0  # polls under way that end soon
        self._quiet = asyncio.Event()  # whether there are none
        self._quiet.set()
        self._kept: list[dict[str, Any]] = []  # to be given back once there are none
        self._refusing = False
        self._closed = False
        self._url = url
        self._request: dict[str, Any] = {
            "QueueUrl": url,
            "WaitTimeSeconds": config.wait,
            "VisibilityTimeout": config.lease,
            "MessageSystemAttributeNames": SYSTEM_FIFO if fifo else SYSTEM,
            "MessageAttributeNames": _ALL,
        }

    def start(self, most: int, *, briefly: bool) -> None:
        """One more poll, for up to ``most`` messages; ``briefly``: it waits for `BRIEF` seconds at most."""
        self.running += 1
        self.asked += most
        request = self._request
        if briefly:
            request = {**request, "WaitTimeSeconds": BRIEF}
            self._quiet.clear()
            with self._lock:
                self._brief += 1
        self._threads.run(lambda: self._poll(most, request, briefly))

    async def refuse(self) -> None:
        """Take nothing more: what polls still bring is given back. Returns when those that end soon have ended."""
        with self._lock:
            self._refusing = True
        await self._until_quiet()

    async def end(self) -> None:
        """As `refuse`, but what those bring that end soon is told."""
        await self._until_quiet()
        with self._lock:
            self._refusing = True

    async def _until_quiet(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(BRIEF + _LATE):
                await self._quiet.wait()

    def close(self) -> list[dict[str, Any]]:
        """Let go of all polls; returns what had come and was not told yet."""
        with self._lock:
            self._closed = self._refusing = True
            arrivals, self._arrivals = self._arrivals, []
        return [message for arrival in arrivals for message in arrival.messages]

    def _collect(self) -> None:
        with self._lock:
            arrivals, self._arrivals = self._arrivals, []
            if not self._brief:
                self._quiet.set()
        for arrival in arrivals:
            self.running -= 1
            self.asked -= arrival.asked
        if arrivals:
            self._tell(arrivals)

    # ---------------------------------------------------------------------------------------------------- on a thread

    def _poll(self, most: int, request: dict[str, Any], briefly: bool) -> None:
        messages: Sequence[dict[str, Any]] = ()
        error: Exception | None = None
        if not self._refusing:  # it may have waited for a thread
            try:
                messages = self._clients.call("ReceiveMessage", MaxNumberOfMessages=most, **request).get("Messages", ())
            except Exception as raised:  # noqa: BLE001 - told to the reader
                error = raised
        unwanted: list[dict[str, Any]] = []
        with self._lock:
            self._brief -= briefly
            if self._refusing:
                self._kept += messages
                messages = ()
            if not self._brief:
                unwanted, self._kept = self._kept, unwanted
        if unwanted:
            give_back(self._clients, self._url, unwanted)
        with self._lock:
            if not self._closed:
                self._arrivals.append(Arrival(most, messages, error, time.monotonic()))
                if len(self._arrivals) > 1:
                    return
                try:
                    self._loop.call_soon_threadsafe(self._collect)
                    return
                except RuntimeError:  # the loop has ended without a word
                    self._arrivals.clear()
        if messages:
            give_back(self._clients, self._url, messages)


def give_back(clients: Clients, url: str, messages: Sequence[dict[str, Any]]) -> None:
    """Make ``messages`` visible again; what cannot be comes when its lease ends. Blocks."""
    entries = [{"ReceiptHandle": message["ReceiptHandle"], "VisibilityTimeout": 0} for message in messages]
    for part in batches.in_tens(entries):
        batches.run(lambda part: clients.call("ChangeMessageVisibilityBatch", QueueUrl=url, Entries=part), part)
