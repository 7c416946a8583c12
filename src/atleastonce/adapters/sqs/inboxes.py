"""Inboxes for answers: a queue for each process that asks, with its owner and the last sign of life as tags. Everything here
blocks."""

from __future__ import annotations

import os
import socket
import time
from typing import Any, Final

from atleastonce.adapters.sqs.clients import Clients
from atleastonce.adapters.sqs.directory import Directory
from atleastonce.adapters.sqs.faults import classify
from atleastonce.contract import Code

PREFIX: Final = "alo--reply--"
"""SQS takes no dots in names: ``alo.reply.<name>`` is called so there."""
_SEEN, _OWNER = "alo-seen", "alo-owner"
_RETENTION: Final = "3600"
_STALE_SECONDS: Final = 3600.0
"""Without a sign for so long, its owner is dead. Shorter: a process that stood still loses its inbox; it makes a new one."""
_SWEEP_SECONDS: Final = 1800.0
_AT_MOST: Final = 100
"""Inboxes looked at in one sweep, one request each."""


class Inboxes:
    """What keeps the inboxes of one account in order."""

    def __init__(self, clients: Clients, directory: Directory, prefix: str) -> None:
        self._clients = clients
        self._directory = directory
        self._prefix = prefix
        self._swept = 0.0

    def keep(self, queue: str) -> None:
        """Make ``queue`` exist, and say that its owner lives. Raises the client's errors."""
        sqs, tags = (
            self._clients.sqs,
            {_SEEN: str(int(time.time())), _OWNER: f"{socket.gethostname()[:200]}:{os.getpid()}"},
        )
        try:
            url = self._directory.find(queue)
        except Exception as error:
            if classify(error).code is not Code.NOT_FOUND:
                raise
            made = sqs.create_queue(QueueName=queue, Attributes={"MessageRetentionPeriod": _RETENTION}, tags=tags)
            url = made["QueueUrl"]
            self._directory.learn(queue, url)
        else:
            sqs.tag_queue(QueueUrl=url, Tags=tags)
        if time.monotonic() - self._swept > _SWEEP_SECONDS or not self._swept:
            self._swept = time.monotonic()
            self.sweep()

    def sweep(self) -> int:
        """Remove the inboxes whose owners are dead; return how many. Rights that are missing leave them where they are."""
        sqs, removed = self._clients.sqs, 0
        try:
            found: dict[str, Any] = sqs.list_queues(QueueNamePrefix=f"{self._prefix}{PREFIX}", MaxResults=_AT_MOST)
            for url in found.get("QueueUrls", ()):
                removed += self._remove_stale(url)
        except Exception as error:
            if classify(error).code is not Code.PERMISSION:
                raise
        return removed

    def _remove_stale(self, url: str) -> bool:
        sqs = self._clients.sqs
        try:
            seen = sqs.list_queue_tags(QueueUrl=url).get("Tags", {}).get(_SEEN, "")
            if not seen.isdigit() or time.time() - int(seen) < _STALE_SECONDS:
                return False  # no tag of ours: not ours to remove
            sqs.delete_queue(QueueUrl=url)
        except Exception as error:
            if classify(error).code is not Code.NOT_FOUND:
                raise
            return False
        return True
