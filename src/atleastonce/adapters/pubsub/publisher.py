"""Publishing: requests of up to a thousand messages and 10 MB, and for each key of an ordered topic one at a time."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import grpc

from atleastonce.adapters.pubsub import faults
from atleastonce.adapters.pubsub.attributes import Attributes, Refused, add_key
from atleastonce.adapters.pubsub.channel import Link, ListTopicSubscriptionsRequest, PublishRequest
from atleastonce.adapters.pubsub.config import Config
from atleastonce.adapters.pubsub.inboxes import INBOX, REPLIES
from atleastonce.adapters.pubsub.records import write_message
from atleastonce.channels import Channel, Queue, Source, Topic
from atleastonce.contract import OK, Code, Outcome, Outgoing, ReplyTo, Status, rejected, unknown

MAX_MESSAGE_BYTES: Final = 9_900_000
"""Of body, key and headers. A request takes 10 MB (cloud.google.com/pubsub/quotas), the framing of one message among them."""
_REQUEST_BYTES: Final = 9_500_000
REQUEST_MESSAGES: Final = 1000
_FRAMING: Final = 64  # of a message, and again for each attribute: more than protobuf adds
_BELIEVED: Final = 60.0
"""Seconds that a topic once seen with a subscription is believed to have one. Publishing to a topic without any succeeds
and loses the message. Longer: losses after somebody deleted the subscription go unnoticed; shorter: more requests."""


class Job:
    """One request to be, with its items' places in the caller's list."""

    __slots__ = ("bytes", "places", "request")

    def __init__(self, topic: str) -> None:
        self.request = PublishRequest(topic=topic)
        self.places: list[int] = []
        self.bytes = 0

    def has_room(self, size: int) -> bool:
        """Whether a message of ``size`` bytes, framing included, may join."""
        count = len(self.places)
        return not count or (count < REQUEST_MESSAGES and self.bytes + size <= _REQUEST_BYTES)

    def halves(self) -> tuple[Job, Job]:
        """The same messages in two requests."""
        half = len(self.places) // 2
        first, second = Job(self.request.topic), Job(self.request.topic)
        for job, part in ((first, slice(half)), (second, slice(half, None))):
            job.request.messages.extend(self.request.messages[part])
            job.places = self.places[part]
        return first, second


class Lanes:
    """One holder at a time for each key."""

    def __init__(self) -> None:
        self._locks: dict[object, tuple[asyncio.Lock, int]] = {}

    @asynccontextmanager
    async def hold(self, key: object) -> AsyncIterator[None]:
        lock, users = self._locks.get(key, (None, 0))
        if lock is None:
            lock = asyncio.Lock()
        self._locks[key] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            users = self._locks[key][1] - 1
            if users:
                self._locks[key] = (lock, users)
            else:
                del self._locks[key]


class Publisher:
    """Turns lists of messages into requests."""

    def __init__(self, config: Config, link: Link) -> None:
        self._config = config
        self._link = link
        self._lanes = Lanes()
        self._room = asyncio.Semaphore(config.publishes)
        self._heard: dict[str, float] = {}
        self._sending = 0
        self._idle = asyncio.Event()

    async def send(self, batch: Sequence[Outgoing]) -> Sequence[Outcome]:
        """As `Adapter.send`."""
        self._link.check_open()
        self._sending += 1
        try:
            return await self._send(batch)
        finally:
            self._sending -= 1
            if not self._sending:
                self._idle.set()

    async def close(self) -> None:
        """Return when everything that is being sent has an answer."""
        while self._sending:
            self._idle.clear()
            await self._idle.wait()

    def forget(self) -> None:
        """Whatever was known of topics may be otherwise now."""
        self._heard = {}  # another one: an answer that is on its way was asked for before

    async def _send(self, batch: Sequence[Outgoing]) -> Sequence[Outcome]:
        outcomes: list[Outcome] = [OK] * len(batch)
        keyed: dict[tuple[str, str], list[Job]] = {}
        last: Job | None = None
        async with asyncio.TaskGroup() as tasks:
            async for job in self._jobs(batch, outcomes, keyed):
                if last is not None:
                    tasks.create_task(self._publish(last, outcomes))
                    await asyncio.sleep(0)  # it leaves while the next one is made
                last = job
            work = deque((key, jobs) for key, jobs in keyed.items())
            for _ in range(min(len(work), self._config.publishes)):
                tasks.create_task(self._work(work, outcomes))
            if last is not None:
                await self._publish(last, outcomes)
        return outcomes

    async def _jobs(
        self, batch: Sequence[Outgoing], outcomes: list[Outcome], keyed: dict[tuple[str, str], list[Job]]
    ) -> AsyncIterator[Job]:
        """The requests of ``batch``, each as soon as it is full. Those with an ordering key are put into ``keyed``: they wait
        for each other. What cannot be sent gets its outcome."""
        open_jobs: dict[str, Job] = {}
        known: Channel[Any] | Source | None = None
        topic, ordered, lone = "", False, False
        refusals: dict[str, Outcome | None] = {}
        attributes_of = Attributes().of
        for place, item in enumerate(batch):
            message = item.message
            if item.destination is not known:
                known = item.destination
                channel = known.channel if isinstance(known, Source) else known
                topic = self._config.topic(REPLIES if isinstance(known, ReplyTo) else channel.name)
                ordered = isinstance(channel, Queue | Topic) and channel.fifo
                lone = isinstance(known, Source) and known.group is not None
            size = message.size
            if lone or item.delay > 0 or size > MAX_MESSAGE_BYTES:
                outcomes[place] = _refused(item)
                continue
            try:
                attributes = attributes_of(message)
                if isinstance(known, ReplyTo):
                    attributes[INBOX] = known.name
                ordering_key = "" if message.key is None else add_key(attributes, message.key, ordered=ordered)
            except Refused as error:
                outcomes[place] = rejected(error.code, str(error))
                continue
            if topic not in refusals:
                refusals[topic] = await self._unheard(topic)
            if (refusal := refusals[topic]) is not None:
                outcomes[place] = refusal
                continue
            size += _FRAMING * (len(attributes) + 2)
            if ordering_key:
                jobs = keyed.setdefault((topic, ordering_key), [])
                if not jobs or not jobs[-1].has_room(size):
                    jobs.append(Job(topic))
                job = jobs[-1]
            else:
                found = open_jobs.get(topic)
                if found is None or not found.has_room(size):
                    if found is not None:
                        yield found
                    found = open_jobs[topic] = Job(topic)
                job = found
            try:
                write_message(message, attributes, ordering_key, job.request)
            except (ValueError, TypeError) as error:  # one that cannot be written costs itself, and not its neighbours
                del job.request.messages[len(job.places) :]
                outcomes[place] = rejected(Code.INVALID, f"protobuf cannot carry it: {error}")
                continue
            job.places.append(place)
            job.bytes += size
        for job in open_jobs.values():
            yield job

    async def _work(self, work: deque[tuple[tuple[str, str], list[Job]]], outcomes: list[Outcome]) -> None:
        while work:
            key, jobs = work.popleft()
            # Two requests of one key at a time could change places; after one that failed the later ones must wait for it.
            async with self._lanes.hold(key):
                for number, job in enumerate(jobs):
                    await self._publish(job, outcomes)
                    if any(outcomes[place].status is Status.UNKNOWN for place in job.places):
                        behind = unknown(Code.UNAVAILABLE, "not sent: an earlier message of its key has no answer")
                        for later in jobs[number + 1 :]:
                            _answer(outcomes, later.places, behind)
                        break

    async def _publish(self, job: Job, outcomes: list[Outcome]) -> None:
        try:
            async with self._room:
                answer = await self._link.call("Publish", job.request, seconds=self._config.send_timeout, wait=True)
        except grpc.RpcError as error:
            fault = faults.classify(error)
            if fault.code is Code.NOT_FOUND:
                self._heard.pop(job.request.topic, None)
            if fault.code in (Code.INVALID, Code.TOO_LARGE) and len(job.places) > 1:
                # The request as a whole was refused for one of them: nothing of it was published.
                for half in job.halves():
                    await self._publish(half, outcomes)
                return
            _answer(outcomes, job.places, faults.outcome_of(error))
            return
        if len(answer.message_ids) != len(job.places):
            _answer(outcomes, job.places, unknown(Code.INTERNAL, "the answer names another number of messages"))

    async def _unheard(self, topic: str) -> Outcome | None:
        """Why nothing should be published to ``topic``: it does not exist, or nobody would get it."""
        now, heard = time.monotonic(), self._heard
        if heard.get(topic, 0.0) > now:
            return None
        request = ListTopicSubscriptionsRequest(topic=topic, page_size=1)
        try:
            answer = await self._link.call(
                "ListTopicSubscriptions", request, seconds=self._config.send_timeout, wait=True
            )
        except grpc.RpcError as error:
            fault = faults.classify(error)
            if fault.code is Code.NOT_FOUND or not faults.certain(fault):
                return faults.outcome_of(error)
            # Not allowed to look (roles/pubsub.publisher is not): then the publish itself has to tell.
        else:
            if not answer.subscriptions:
                return rejected(Code.UNROUTABLE, f"{topic} has no subscription: nobody would get the message")
        heard[topic] = now + _BELIEVED
        return None


def _refused(item: Outgoing) -> Outcome:
    """Why Pub/Sub does not take it."""
    destination = item.destination
    if isinstance(destination, Source) and destination.group is not None:
        return rejected(Code.INVALID, f"Pub/Sub cannot address the group {destination.name} alone")
    if item.delay > 0:
        return rejected(Code.INVALID, "Pub/Sub cannot delay a publish")
    return rejected(Code.TOO_LARGE, f"{item.message.size} bytes; Pub/Sub takes {MAX_MESSAGE_BYTES}")


def _answer(outcomes: list[Outcome], places: list[int], outcome: Outcome) -> None:
    for place in places:
        outcomes[place] = outcome
