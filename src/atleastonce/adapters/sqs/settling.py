"""Deletes, visibility changes and dead letters, in calls of ten, several at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from atleastonce.adapters.sqs import batches
from atleastonce.adapters.sqs.clients import Clients
from atleastonce.adapters.sqs.directory import Directory
from atleastonce.adapters.sqs.entries import encode
from atleastonce.adapters.sqs.threads import Threads
from atleastonce.contract import Code, Delivery, Outcome, Status, unknown
from atleastonce.errors import PermissionDenied

MAX_VISIBILITY: Final = 43_200
"""Seconds that one delivery can be kept, or kept away: twelve hours from when it was received."""

_LATE: Final = unknown(Code.TIMEOUT, "SQS did not answer in time")

Ended = tuple[int, Delivery, Outcome]


class Settling:
    """For one subscription.

    Args:
        dead_letters: the queue that takes what is rejected.
        patience: seconds for all calls together.
    """

    def __init__(
        self, clients: Clients, directory: Directory, threads: Threads, url: str, dead_letters: str, patience: float
    ) -> None:
        self._clients = clients
        self._directory = directory
        self._threads = threads
        self._url = url
        self._dead_letters = dead_letters
        self._patience = patience

    async def ensure_allowed(self, source: str) -> None:
        """Ask for what settling takes, with a receipt that is none: SQS looks at the rights first. So it shows before anything is
        handed out: who may read and not settle would run the same messages for ever.

        Raises:
            PermissionDenied: as SQS says.
        """
        none = {"Id": "0", "ReceiptHandle": "none"}
        calls: list[tuple[str, batches.Entry]] = [
            ("DeleteMessageBatch", none),
            ("ChangeMessageVisibilityBatch", {**none, "VisibilityTimeout": 0}),
        ]

        def ask(name: str, entry: batches.Entry) -> list[Outcome]:
            return batches.run(lambda part: self._clients.call(name, QueueUrl=self._url, Entries=part), [entry])

        running = [self._threads.submit(partial(ask, name, entry)) for name, entry in calls]
        done, _ = await asyncio.wait(running, timeout=self._patience)
        for (outcome,) in [future.result() for future in running if future in done]:
            if outcome.status is Status.REJECTED and outcome.fault and outcome.fault.code is Code.PERMISSION:
                raise PermissionDenied(f"reading {source}: {outcome.fault.detail}")

    async def settle(
        self,
        acks: Sequence[tuple[int, Delivery]],
        waits: Sequence[tuple[int, Delivery, int]],
        rejects: Sequence[tuple[int, Delivery]],
    ) -> list[Ended]:
        """Delete ``acks``, make ``waits`` visible in so many seconds, move ``rejects``; each comes with a place, which is
        given back with how it ended."""
        call, url = self._clients.call, self._url

        def delete(part: list[batches.Entry]) -> dict[str, Any]:
            return call("DeleteMessageBatch", QueueUrl=url, Entries=part)

        def change(part: list[batches.Entry]) -> dict[str, Any]:
            return call("ChangeMessageVisibilityBatch", QueueUrl=url, Entries=part)

        gone = [{"ReceiptHandle": delivery.token} for _, delivery in acks]
        kept = [{"ReceiptHandle": delivery.token, "VisibilityTimeout": wait} for _, delivery, wait in waits]
        items: list[tuple[int, Delivery]] = [*acks, *((place, delivery) for place, delivery, _ in waits), *rejects]
        parts = [(delete, part) for part in batches.in_tens(gone)]
        parts += [(change, part) for part in batches.in_tens(kept)]
        running = [self._threads.submit(lambda call=each, part=part: batches.run(call, part)) for each, part in parts]  # type: ignore[misc]
        sizes = [len(part) for _, part in parts]
        for _, delivery in rejects:
            running.append(self._threads.submit(partial(self._move, delivery, delete)))
            sizes.append(1)
        if not running:
            return []
        await asyncio.wait(running, timeout=self._patience)
        outcomes: list[Outcome] = []
        for future, size in zip(running, sizes, strict=True):
            outcomes += future.result() if future.done() else [_LATE] * size
        return [(place, delivery, outcome) for (place, delivery), outcome in zip(items, outcomes, strict=True)]

    def _move(self, delivery: Delivery, delete: batches.Call) -> list[Outcome]:
        """A copy into the dead-letter queue, then the delete. On a thread."""
        text, attributes, _ = encode(delivery.message, grouped=False)
        entry: dict[str, Any] = {"Id": "0", "MessageBody": text}
        if attributes:
            entry["MessageAttributes"] = attributes

        def send(part: list[batches.Entry]) -> dict[str, Any]:
            url = self._directory.url(self._dead_letters)
            return self._clients.call("SendMessageBatch", QueueUrl=url, Entries=part)

        outcomes = batches.run(send, [entry])
        if outcomes[0].ok:
            outcomes = batches.run(delete, [{"Id": "0", "ReceiptHandle": delivery.token}])
        return outcomes
