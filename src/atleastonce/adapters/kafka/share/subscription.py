"""`Subscription` over the members of a share group: what the event loop sees of them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

from confluent_kafka import KafkaError, KafkaException

from atleastonce.adapters.kafka.config import CLIENT_LOG, Settings, share_consumer
from atleastonce.adapters.kafka.faults import as_exception, fault
from atleastonce.adapters.kafka.handover import Handover
from atleastonce.adapters.kafka.share.batch import ShareDelivery
from atleastonce.adapters.kafka.share.groups import NO_SHARE_GROUPS, SUSPECTED, Terms
from atleastonce.adapters.kafka.share.member import Job, Member, Wanted
from atleastonce.channels import Source
from atleastonce.contract import (
    OK,
    STALE,
    Ack,
    Code,
    Delivery,
    Listener,
    Outcome,
    Release,
    Settlement,
    Subscription,
    Window,
    rejected,
)
from atleastonce.errors import AtLeastOnceError, BrokerUnavailable, Closed, ConfigurationError, ConnectionLost, NotFound

log = logging.getLogger("atleastonce.kafka")

# How long `close` waits for the threads. Only a client whose brokers are gone needs longer; it then ends by itself.
_CLOSE_WAIT_SECONDS = 10.0

# How soon after a receive the next one is to come: else nobody receives, and nothing is asked for. Longer: records lie longer with
# a process that is busy. Shorter: one that is only a little busy leaves the group and joins anew, which takes seconds.
_PATIENCE_SECONDS = 2.0

# How often it is asked whether the topic is still there, or a broker again: the client tells of neither.
_LOOK_SECONDS = 3.0

_NOT_OFFERED = rejected(Code.INVALID, "Kafka neither delays nor dead-letters by itself; copy it to a channel and Ack")
_UNSUPPORTED = (KafkaError.UNSUPPORTED_VERSION, KafkaError._UNSUPPORTED_FEATURE)


class ShareSubscription(Subscription):
    """Membership in a share group, by several members.

    `settle` answers an `Ack` when the broker has stored it. A `Release` stays here, to be received again as long as its lock lasts:
    the broker counts each hand-out of its own, and has a limit. What is unsettled at `close` is free for others at once.
    """

    def __init__(
        self,
        source: Source,
        window: Window,
        listener: Listener,
        settings: Settings,
        terms: Terms,
        exists: Callable[[str], Awaitable[bool]],
    ) -> None:
        self.source = source
        self.stale = 0
        """Settlements that came too late and were dropped."""
        self._listener = listener
        self._exists = exists
        self._loop = asyncio.get_running_loop()
        self._handover = Handover(self._loop)
        self._held = False
        self._receiving = False
        self._received_at = time.monotonic()
        self._window = window
        self._closed = False
        self._connected = True
        self._left = asyncio.Event()
        count = min(settings.share_members, window.messages)
        self._ended: set[Member] = set()
        most = window.messages // count
        config = {**settings.sharer(source.group_name, most), "error_cb": self._error}
        make = share_consumer()
        door = threading.Lock()
        self._members = [
            Member(
                lambda: make(config, logger=CLIENT_LOG),
                source,
                number,
                terms.lock,
                door=door,
                wanted=self._wanted,
                offer=self._handover.put,
                answer=self._tell,
                withdraw=self._withdraw,
                over=lambda: listener.lost(()),
                error=self._error,
                fail=self._handover.fail,
                ended=lambda member: self._tell(self._one_left, member),
            )
            for number in range(count)
        ]
        for member in self._members:
            member.start()
        self._looking = self._loop.create_task(self._look(), name=f"atleastonce-kafka-look-{source.name}")

    # ---------------------------------------------------------------------------------- contract

    async def receive(self, max_messages: int, max_wait: float) -> Sequence[Delivery]:
        """See `Subscription.receive`."""
        self._receiving = True
        for member in self._members if time.monotonic() - self._received_at > _PATIENCE_SECONDS else ():
            member.nudge()
        try:
            return await self._receive(max_messages, time.monotonic() + max_wait)
        finally:
            self._received_at = time.monotonic()
            self._receiving = False

    async def _receive(self, max_messages: int, deadline: float) -> Sequence[Delivery]:
        handover = self._handover
        while True:
            if self._closed:
                raise Closed(f"{self.source}: the subscription is closed")
            room = self._room()
            if not self._held and room > 0:
                now = time.monotonic()
                while taken := handover.take(min(max_messages, room)):
                    # Those of which the lock is over are with their member still, which sees to them.
                    if ready := [each for each in taken if not each.lost and each.lease_until > now]:
                        return ready
            if handover.failure is not None:
                raise handover.failure
            wait = deadline - time.monotonic()
            if wait <= 0:
                return []
            await handover.wait(wait, even_if_ready=self._held or room <= 0)

    async def settle(self, batch: Sequence[Settlement]) -> Sequence[Outcome]:
        """See `Subscription.settle`."""
        outcomes = [OK] * len(batch)
        asked: dict[Member, list[tuple[int, ShareDelivery]]] = {}
        first: dict[Delivery, int] = {}
        again: list[tuple[int, int]] = []
        released: list[Delivery] = []
        now = time.monotonic()
        for index, (settled, verdict) in enumerate(batch):
            delivery = cast(ShareDelivery, settled)
            member: Any = delivery.token
            if member is None:
                continue  # settled before: the first verdict has won
            if first.setdefault(settled, index) != index:
                again.append((index, first[settled]))
            elif delivery.lost or delivery.lease_until <= now or member not in self._members:
                delivery.lost = True
                outcomes[index] = STALE
            elif verdict.__class__ is Ack:
                asked.setdefault(member, []).append((index, delivery))
            elif verdict.__class__ is not Release:
                outcomes[index] = _NOT_OFFERED
            elif member.batch.again(new := delivery.again()):
                delivery.token = None
                released.append(new)
            else:
                outcomes[index] = STALE
        if released and not self._closed:
            self._handover.put_back(released)
        if asked:
            for index, outcome in (await self._acknowledged(asked)).items():
                outcomes[index] = outcome
                if outcome.ok:
                    batch[index][0].token = None
            self._handover.wake()  # there is room
        for index, earlier in again:
            outcomes[index] = outcomes[earlier]
        self.stale += outcomes.count(STALE)
        return outcomes

    async def pause(self) -> None:
        """See `Subscription.pause`. What is buffered is held back, too, as long as its lock lasts."""
        self._held = True

    async def resume(self) -> None:
        """See `Subscription.resume`."""
        self._held = False
        for member in self._members:
            member.nudge()
        self._handover.wake()

    async def close(self) -> None:
        """See `Subscription.close`."""
        if not self._closed:
            self._closed = self._held = True
            self._looking.cancel()
            self._handover.clear()
            self._handover.wake()
        # Those that ask leave first: they would be handed what the others give back, and that counts.
        asking = [member for member in self._members if not member.batch]
        try:
            async with asyncio.timeout(_CLOSE_WAIT_SECONDS):
                await self._gone(asking)
                await self._gone(self._members)
        except TimeoutError:
            log.warning("%s: the client still waits for a broker that is gone; it ends by itself", self.source)
            for member in self._members:
                member.stop()

    # ----------------------------------------------------------------------------------- inside

    async def _acknowledged(self, asked: dict[Member, list[tuple[int, ShareDelivery]]]) -> dict[int, Outcome]:
        left = len(asked)
        answered = self._loop.create_future()

        def done() -> None:
            nonlocal left
            left -= 1
            if not left and not answered.done():
                answered.set_result(None)

        jobs = []
        for member, some in asked.items():
            jobs.append(job := Job(some, done))
            member.settle(job)
        await answered
        return {index: outcome for job in jobs for index, outcome in job.outcomes.items()}

    def _room(self) -> int:
        """How many more may be handed out: a record batch may be larger than the window."""
        return self._window.messages - sum(member.batch.live for member in self._members) + self._handover.records()

    def _wanted(self) -> Wanted:
        """See `Member`; on its thread."""
        if self._held or (not self._receiving and time.monotonic() - self._received_at > _PATIENCE_SECONDS):
            return Wanted.NOTHING
        open_ = sum(len(member.batch) for member in self._members)
        return Wanted.MORE if open_ < self._window.messages else Wanted.NO_MORE

    def _withdraw(self, member: Member) -> None:
        """Half of its locks' time is over: what nobody has begun had better be begun by somebody who has all of it."""
        member.give_back(self._handover.withdraw(lambda each: each.token is member and each.count < SUSPECTED))

    async def _gone(self, members: Sequence[Member]) -> None:
        for member in members:
            member.stop()
        while not self._ended.issuperset(members):
            self._left.clear()
            await self._left.wait()
        for member in members:
            member.join()  # it has nothing left to do

    def _one_left(self, member: Member) -> None:
        self._ended.add(member)
        self._left.set()

    def _error(self, error: KafkaError) -> None:
        """An error event, on a member's thread: from the client (``error_cb``) or in the place of a record."""
        code, found = error.code(), fault(error)
        if code in _UNSUPPORTED:
            self._handover.fail(ConfigurationError(f"Kafka: {NO_SHARE_GROUPS} ({found.detail})"))
        elif code == KafkaError.GROUP_ID_NOT_FOUND:
            group = self.source.group_name
            self._handover.fail(
                ConfigurationError(
                    f"Kafka: {group} is a consumer group, and no share group; read {self.source} without share.groups, or under "
                    f"another name, or delete the old group (kafka-consumer-groups.sh --delete --group {group}) and read all again"
                )
            )
        elif error.fatal():
            self._handover.fail(ConnectionLost(f"Kafka: {found.detail}"))
        elif found.code in (Code.PERMISSION, Code.CONFLICT):
            self._handover.fail(as_exception(KafkaException(error), f"reading {self.source}"))
        elif code == KafkaError._ALL_BROKERS_DOWN:
            self._tell(self._disconnect, found.detail)
        else:
            log.debug("%s: %s", self.source, found)

    def _disconnect(self, detail: str) -> None:
        if self._connected:
            self._connected = False
            self._listener.condition("disconnected", detail)

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                there = await self._exists(self.source.channel.name)
            except BrokerUnavailable as error:
                self._disconnect(str(error))
                continue
            except AtLeastOnceError as error:
                log.debug("%s: %s", self.source, error)
                continue
            if not there:
                self._handover.fail(NotFound(f"Kafka: topic {self.source.channel.name} does not exist (any more)"))
                return
            if not self._connected:
                self._connected = True
                self._listener.condition("connected", "")

    def _tell(self, function: Callable[..., None], *args: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to be told
            self._loop.call_soon_threadsafe(function, *args)
