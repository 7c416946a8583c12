"""Reading through a queue and leaving everything in it.

SQS shows a message only by handing it out. So each is taken, kept from others until the end, and then made visible again.
Every look counts as a receive; a dead-letter queue has no net beneath it that would mind.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Final

from atleastonce.adapters.sqs import batches
from atleastonce.adapters.sqs.clients import Clients
from atleastonce.adapters.sqs.records import SYSTEM_FIFO, SQSDelivery
from atleastonce.adapters.sqs.threads import Threads
from atleastonce.channels import Source
from atleastonce.contract import Delivery

_HOLD: Final = 120
"""Seconds that what was read is kept from others, renewed at half time. Longer: after a crash it is out of sight longer."""

_ABREAST: Final = 4
_WAIT: Final = 1
"""Seconds that a poll waits: any, for then SQS asks all its servers, and an empty answer means an empty queue."""

_EPOCH: Final = 0


class Scan:
    """One look at the queue at ``url``."""

    def __init__(self, clients: Clients, threads: Threads, url: str, source: Source, queue: str) -> None:
        self._clients = clients
        self._threads = threads
        self._url = url
        self._source = source
        self._queue = queue
        self._held: list[str] = []
        self._renewed = time.monotonic()

    async def run(self) -> AsyncGenerator[Sequence[Delivery]]:
        """All that was sent before now, in lists. Raises the client's errors."""
        begun = time.time() * 1000
        try:
            while True:
                polls = [self._threads.submit(self._poll) for _ in range(_ABREAST)]
                await asyncio.wait(polls)
                came = [raw for poll in polls if poll.exception() is None for raw in poll.result()]
                self._held += [raw["ReceiptHandle"] for raw in came]
                for poll in polls:
                    poll.result()  # raises what went wrong, now that what the others brought is on the list
                at = time.monotonic()
                found: list[Delivery] = [
                    SQSDelivery(raw, self._source, self._queue, _EPOCH, at, _HOLD)
                    for raw in came
                    if int(raw["Attributes"]["SentTimestamp"]) <= begun
                ]
                if not found:
                    return
                yield found
                if time.monotonic() - self._renewed > _HOLD / 2:
                    self._renewed = time.monotonic()
                    await self._change(_HOLD)
        finally:
            await asyncio.shield(self._change(0))

    def _poll(self) -> Sequence[dict[str, Any]]:
        answer = self._clients.call(
            "ReceiveMessage",
            QueueUrl=self._url,
            MaxNumberOfMessages=batches.MAX_ENTRIES,
            WaitTimeSeconds=_WAIT,
            VisibilityTimeout=_HOLD,
            MessageSystemAttributeNames=SYSTEM_FIFO,
            MessageAttributeNames=["All"],
        )
        messages: Sequence[dict[str, Any]] = answer.get("Messages", ())
        return messages

    async def _change(self, seconds: int) -> None:
        """Keep what is held for ``seconds``. What cannot be given back comes back by itself."""
        call, url = self._clients.call, self._url

        def change(part: list[batches.Entry]) -> dict[str, Any]:
            return call("ChangeMessageVisibilityBatch", QueueUrl=url, Entries=part)

        parts = batches.in_tens([{"ReceiptHandle": each, "VisibilityTimeout": seconds} for each in self._held])
        running = [self._threads.submit(lambda part=part: batches.run(change, part)) for part in parts]  # type: ignore[misc]
        if running:
            await asyncio.wait(running)
