"""Publishing: a list of messages becomes calls of ten, and each message gets an answer of its own."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from atleastonce.adapters.sqs import batches, faults, names
from atleastonce.adapters.sqs.clients import Clients
from atleastonce.adapters.sqs.config import Config
from atleastonce.adapters.sqs.directory import Directory
from atleastonce.adapters.sqs.entries import deduplication_of, encode, group_of
from atleastonce.adapters.sqs.threads import Threads
from atleastonce.channels import Channel, Source, Topic
from atleastonce.contract import Code, Outcome, Outgoing, Status, rejected, unknown
from atleastonce.errors import AtLeastOnceError, Closed

MAX_DELAY: Final = 900
"""Seconds that SQS delays a publish."""

_LATE: Final = unknown(Code.TIMEOUT, "no answer within send_timeout")
_BEHIND: Final = unknown(Code.OVERLOADED, "not sent: one before it, of the same message group, did not go")
_GRACE: Final = 1.0

Part = list[tuple[int, dict[str, Any]]]
"""Entries for one call, each with its place in the batch."""


class Route:
    """One destination of a batch, with its entries. Each entry comes with its place in the batch."""

    def __init__(self, destination: Channel[Any] | Source, prefix: str) -> None:
        channel = destination.channel if isinstance(destination, Source) else destination
        self.topic = isinstance(destination, Topic)
        self.fifo = bool(getattr(channel, "fifo", False))
        if isinstance(destination, Topic):
            self.name = names.topic_name(destination, prefix)
        else:
            source = destination if isinstance(destination, Source) else Source(destination)
            self.name = names.queue_name(source, prefix)
        self.parts: list[Part] = []
        self._room = 0

    def add(self, place: int, entry: dict[str, Any], size: int, limit: int) -> None:
        if not self.parts or len(self.parts[-1]) == batches.MAX_ENTRIES or size > self._room:
            self.parts.append([])
            self._room = limit
        part = self.parts[-1]
        entry["Id"] = str(len(part))
        part.append((place, entry))
        self._room -= size


class Publisher:
    """Sends for one adapter.

    Args:
        limit: the most bytes of body, key and headers that a message may have anywhere.
    """

    def __init__(self, config: Config, clients: Clients, directory: Directory, threads: Threads, limit: int) -> None:
        self._config = config
        self._clients = clients
        self._directory = directory
        self._threads = threads
        self._limit = limit
        self._closed = False
        self._active = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def send(self, batch: Sequence[Outgoing]) -> list[Outcome]:
        """See `Adapter.send`."""
        if self._closed:
            raise Closed("the adapter is closed")
        self._active += 1
        self._idle.clear()
        try:
            return await self._send(batch)
        finally:
            self._active -= 1
            if not self._active:
                self._idle.set()

    async def close(self) -> None:
        """Refuse what comes, and wait for what is being sent."""
        self._closed = True
        try:
            async with asyncio.timeout(self._config.send_timeout + 2 * _GRACE):
                await self._idle.wait()
        except TimeoutError:
            pass

    async def _send(self, batch: Sequence[Outgoing]) -> list[Outcome]:
        outcomes: list[Outcome] = [_LATE] * len(batch)
        until = time.monotonic() + self._config.send_timeout
        running = [
            self._threads.submit(partial(self._deliver, route, parts, until))
            for route, parts in self._jobs(batch, outcomes)
        ]
        if running:
            done, _ = await asyncio.wait(running, timeout=self._config.send_timeout + _GRACE)
            for future in done:
                for place, outcome in future.result():
                    outcomes[place] = outcome
        return outcomes

    def _jobs(self, batch: Sequence[Outgoing], outcomes: list[Outcome]) -> list[tuple[Route, list[Part]]]:
        """What is refused at once is noted in ``outcomes``; the rest as parts for a thread each. Parts of a FIFO
        destination follow each other on one thread."""
        routes: dict[Channel[Any] | Source, Route | Outcome] = {}
        last: Channel[Any] | Source | None = None
        route: Route | Outcome = _LATE
        for place, item in enumerate(batch):
            if item.destination is not last:
                last = item.destination
                found = routes.get(last)
                route = routes[last] = self._route(last) if found is None else found
            if isinstance(route, Outcome):
                outcomes[place] = route
            elif (refusal := self._add(route, place, item)) is not None:
                outcomes[place] = refusal
        jobs: list[tuple[Route, list[Part]]] = []
        for each in routes.values():
            if isinstance(each, Route) and each.parts:
                jobs += [(each, each.parts)] if each.fifo else [(each, [part]) for part in each.parts]
        return jobs

    def _route(self, destination: Channel[Any] | Source) -> Route | Outcome:
        try:
            return Route(destination, self._config.prefix)
        except AtLeastOnceError as error:
            return rejected(Code.INVALID, str(error))

    def _add(self, route: Route, place: int, item: Outgoing) -> Outcome | None:
        message = item.message
        if message.size > self._limit:
            return rejected(Code.TOO_LARGE, f"{message.size} bytes; the limit is {self._limit}")
        limit = self._config.topic_max_message_bytes if route.topic else self._config.max_message_bytes
        text, attributes, size = encode(message, grouped=route.fifo, as_text=route.topic)
        if size > limit:
            return rejected(Code.TOO_LARGE, f"{size} bytes as text and attributes; the limit is {limit}")
        entry: dict[str, Any] = {"Message" if route.topic else "MessageBody": text}
        if attributes:
            entry["MessageAttributes"] = attributes
        if route.fifo:
            entry["MessageGroupId"] = group_of(message)
            entry["MessageDeduplicationId"] = deduplication_of(message)
        if item.delay > 0:
            if route.topic or route.fifo:
                what = "SNS delays nothing" if route.topic else "a FIFO queue delays no single message"
                return rejected(Code.INVALID, f"{route.name}: {what}; publish later, or to a standard queue")
            entry["DelaySeconds"] = min(math.ceil(item.delay), MAX_DELAY)
        route.add(place, entry, size, limit)
        return None

    # ---------------------------------------------------------------------------------------------------- on a thread

    def _deliver(self, route: Route, parts: list[Part], until: float) -> list[tuple[int, Outcome]]:
        ended: list[tuple[int, Outcome]] = []
        held: set[str] = set()  # message groups of which one did not go
        try:
            call = self._call(route)
        except Exception as error:  # noqa: BLE001 - each item is told
            outcome = self._nowhere(route, error)
            return [(place, outcome) for part in parts for place, _ in part]
        for whole in parts:
            part = [item for item in whole if item[1].get("MessageGroupId") not in held] if held else whole
            ended += [(place, _BEHIND) for place, entry in whole if entry.get("MessageGroupId") in held]
            if not part:
                continue
            entries = [entry for _, entry in part]
            if len(part) < len(whole):
                entries = batches.in_tens(entries)[0]
            outcomes = batches.run(call, entries, until=until, repeatable=route.fifo)
            for (place, entry), outcome in zip(part, outcomes, strict=True):
                ended.append((place, outcome))
                if route.fifo and outcome.status is Status.UNKNOWN:
                    held.add(entry["MessageGroupId"])
                if outcome.fault is not None and outcome.fault.code is Code.NOT_FOUND:
                    self._directory.forget(route.name)
        return ended

    def _call(self, route: Route) -> batches.Call:
        if not route.topic:
            url, call = self._directory.url(route.name), self._clients.call
            return lambda entries: call("SendMessageBatch", QueueUrl=url, Entries=entries)
        arn, publish = self._directory.arn("sns", route.name), self._clients.sns.publish_batch
        if not self._directory.heard(arn):
            raise _NobodyListens
        heard = self._clients.heard
        return lambda entries: heard("PublishBatch", lambda: publish(TopicArn=arn, PublishBatchRequestEntries=entries))

    def _nowhere(self, route: Route, error: Exception) -> Outcome:
        if isinstance(error, _NobodyListens):
            return rejected(Code.UNROUTABLE, f"topic {route.name} has no subscription: nobody would ever get it")
        fault = faults.classify(error)
        if fault.code is Code.NOT_FOUND:
            return rejected(Code.NOT_FOUND, f"{'topic' if route.topic else 'queue'} {route.name} does not exist")
        return faults.outcome_of(fault)


class _NobodyListens(Exception):
    pass
