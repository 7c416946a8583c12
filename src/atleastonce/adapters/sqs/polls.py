"""The long polls of one subscription. What a poll brings is never lost: it is collected, or made visible again."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from atleastonce.adapters.sqs import batches
from atleastonce.adapters.sqs.clients import Clients
from atleastonce.adapters.sqs.config import Config
from atleastonce.adapters.sqs.records import SYSTEM, SYSTEM_FIFO
from atleastonce.adapters.sqs.threads import Threads

_ALL = ["All"]


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
        self._closed = False
        self._url = url
        self._request: dict[str, Any] = {
            "QueueUrl": url,
            "WaitTimeSeconds": config.wait,
            "VisibilityTimeout": config.lease,
            "MessageSystemAttributeNames": SYSTEM_FIFO if fifo else SYSTEM,
            "MessageAttributeNames": _ALL,
        }

    def start(self, most: int, *, briefly: bool = False) -> None:
        """One more poll, for up to ``most`` messages; ``briefly``: it does not wait long, for what counts is its answer."""
        self.running += 1
        self.asked += most
        request = {**self._request, "WaitTimeSeconds": 1} if briefly else self._request
        self._threads.run(lambda: self._poll(most, request))

    def close(self) -> list[dict[str, Any]]:
        """Let go of all polls; returns what had come and was not told yet."""
        with self._lock:
            self._closed = True
            arrivals, self._arrivals = self._arrivals, []
        return [message for arrival in arrivals for message in arrival.messages]

    def _collect(self) -> None:
        with self._lock:
            arrivals, self._arrivals = self._arrivals, []
        for arrival in arrivals:
            self.running -= 1
            self.asked -= arrival.asked
        if arrivals:
            self._tell(arrivals)

    # ---------------------------------------------------------------------------------------------------- on a thread

    def _poll(self, most: int, request: dict[str, Any]) -> None:
        messages: Sequence[dict[str, Any]] = ()
        error: Exception | None = None
        if self._closed:
            return
        try:
            messages = self._clients.call("ReceiveMessage", MaxNumberOfMessages=most, **request).get("Messages", ())
        except Exception as raised:  # noqa: BLE001 - told to the reader
            error = raised
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
