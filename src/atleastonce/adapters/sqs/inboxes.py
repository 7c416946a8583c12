"""Inboxes for answers: a queue for each process that asks, with its owner and the last sign of life as tags. Everything here
blocks."""

from __future__ import annotations

import logging
import os
import random
import socket
import string
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
_DIGITS: Final = 32
"""Of a name."""

log = logging.getLogger("atleastonce.sqs")


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

    @property
    def unswept(self) -> bool:
        """Whether it is time for a `sweep`."""
        return not self._swept or time.monotonic() - self._swept > _SWEEP_SECONDS

    def sweep(self) -> None:
        """Remove inboxes whose owners are dead. What keeps it from it leaves them where they are: nobody who asks is to wait for
        this, or to fail by it."""
        self._swept = time.monotonic()
        try:
            for url in self._some():
                self._remove_stale(url)
        except Exception as error:  # noqa: BLE001 - whatever it is, the next sweep may get further
            log.log(
                logging.DEBUG if classify(error).code is Code.PERMISSION else logging.INFO,
                "inboxes of dead processes could not be swept: %s",
                error,
            )

    def _some(self) -> list[str]:
        """URLs of inboxes, `_AT_MOST` of them. Where there are more: those that begin with a digit that chance chooses, so that all
        have their turn. The first of a list are the same each time, and those behind them would never be looked at."""
        prefix = f"{self._prefix}{PREFIX}"
        while True:
            found: dict[str, Any] = self._clients.sqs.list_queues(QueueNamePrefix=prefix, MaxResults=_AT_MOST)
            if not found.get("NextToken") or len(prefix) >= len(self._prefix) + len(PREFIX) + _DIGITS:
                return list(found.get("QueueUrls", ()))[:_AT_MOST]
            prefix += random.choice(string.hexdigits[:16])

    def _remove_stale(self, url: str) -> None:
        sqs = self._clients.sqs
        try:
            seen = sqs.list_queue_tags(QueueUrl=url).get("Tags", {}).get(_SEEN, "")
            if not seen.isdigit() or time.time() - int(seen) < _STALE_SECONDS:
                return  # no tag of ours: not ours to remove
            sqs.delete_queue(QueueUrl=url)
        except Exception as error:
            if classify(error).code is not Code.NOT_FOUND:
                raise
