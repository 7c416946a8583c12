"""`Subscription` over the polling thread: what the event loop sees of it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence

from confluent_kafka import Consumer, KafkaError, TopicPartition

from atleastonce.adapters.kafka.commits import Committer
from atleastonce.adapters.kafka.config import CLIENT_LOG, Settings
from atleastonce.adapters.kafka.flow import Flow
from atleastonce.adapters.kafka.handover import Handover
from atleastonce.adapters.kafka.owner import Owner
from atleastonce.adapters.kafka.partition import Assignment, Partition
from atleastonce.adapters.kafka.publisher import Publisher
from atleastonce.adapters.kafka.reach import Reach
from atleastonce.adapters.kafka.rebalance import Rebalancer
from atleastonce.adapters.kafka.standstill import Standstill
from atleastonce.adapters.kafka.transactions import Transactions
from atleastonce.adapters.kafka.transactor import Transactor
from atleastonce.channels import Source
from atleastonce.contract import (
    OK,
    STALE,
    Ack,
    Code,
    Delivery,
    HandOff,
    Listener,
    Outcome,
    Release,
    Settlement,
    Subscription,
    Window,
    rejected,
)
from atleastonce.errors import AtLeastOnceError, Closed, ConfigurationError, ConnectionLost, NotFound
from atleastonce.message import new_id
from atleastonce.silence import Owed

log = logging.getLogger("atleastonce.kafka")

# How long `close` waits for the thread. Only a client that is stuck on a dead coordinator needs longer; it then ends by
# itself, at the latest after session.timeout.ms.
CLOSE_WAIT_SECONDS = 10.0

# How often is looked whether the thread waits in vain: how late its end is told.
_WATCH_SECONDS = 1.0

_NOT_OFFERED = rejected(Code.INVALID, "Kafka neither delays nor dead-letters by itself; copy it to a channel and Ack")


class KafkaSubscription(Subscription):
    """A consumer group's membership in one topic.

    `settle` answers an `Ack` as soon as it is marked: the commit follows within ``commit.interval``, and at the latest
    before the partition is given up. What is not committed when the process dies comes again.

    With a transactional window, also `Transacts`.
    """

    def __init__(
        self,
        source: Source,
        window: Window,
        listener: Listener,
        settings: Settings,
        exists: Callable[[str], Awaitable[bool]],
        publisher: Publisher,
    ) -> None:
        self.source = source
        self.stale = 0
        """Settlements that came too late and were dropped."""
        self._listener = listener
        self._exists = exists
        self._publisher = publisher
        self._loop = loop = asyncio.get_running_loop()
        self._assignment = assignment = Assignment(source.channel.name, window)
        self._handover = handover = Handover(loop)
        self._closed = False
        self._left = asyncio.Event()
        self._checking: asyncio.Task[None] | None = None
        self._consumer = Consumer(
            {
                **settings.consumer(source.group_name, window),
                # Both are called within poll, on the owner's thread, and not before it has started.
                "error_cb": self._failed,
                "on_commit": self._committed,
            },
            logger=CLIENT_LOG,
        )
        self._standstill = Standstill()
        self._committer = Committer(self._consumer, assignment, settings, self._standstill)
        self._flow = Flow(window, assignment, handover)
        self._transactor = self._make_transactor(settings) if window.transactional else None
        self._rebalancer = Rebalancer(
            settings,
            assignment,
            self._committer,
            self._flow,
            handover,
            self._standstill,
            drain=self._drain,
            lost=lambda streams: self._tell(listener.lost, streams),
            condition=self._condition,
        )
        self._reach = Reach(self._consumer, settings)
        self._owner = Owner(
            self._consumer,
            source,
            assignment,
            self._committer,
            self._flow,
            handover,
            self._rebalancer,
            self._reach,
            counting=window.counted,
            transactor=self._transactor,
            condition=self._condition,
            missing=lambda: self._tell(self._verify),
            ended=lambda: self._tell(self._left.set),
        )
        self._owner.start()
        self._watching = loop.call_later(_WATCH_SECONDS, self._watch)

    # ---------------------------------------------------------------------------------- contract

    async def receive(self, max_messages: int, max_wait: float) -> Sequence[Delivery]:
        """See `Subscription.receive`."""
        handover = self._handover
        deadline = time.monotonic() + max_wait
        while True:
            if self._closed:
                raise Closed(f"{self.source}: the subscription is closed")
            if not self._flow.stopped and (taken := handover.take(max_messages)):
                if self._owner.resting and self._flow.room():
                    self._owner.nudge()
                return taken
            if handover.failure is not None:
                raise handover.failure
            wait = deadline - time.monotonic()
            if wait <= 0:
                return []
            await handover.wait(wait, even_if_ready=self._flow.stopped)

    async def settle(self, batch: Sequence[Settlement]) -> Sequence[Outcome]:
        """See `Subscription.settle`."""
        outcomes = [OK] * len(batch)
        released: list[Delivery] = []
        done = 0
        with self._assignment.lock:
            for index, (delivery, verdict) in enumerate(batch):
                partition: Partition | None = delivery.token
                if partition is None:
                    continue  # settled before: the first verdict has won
                if (
                    not partition.live
                ):  # never reused: what was delivered under an earlier assignment points to that one
                    delivery.lost = True
                    outcomes[index] = STALE
                    self.stale += 1
                elif verdict.__class__ is Ack:
                    delivery.token = None
                    partition.tracker.open.pop(delivery.position, None)  # type: ignore[arg-type]
                    partition.bytes_out += delivery.size
                    done += 1
                elif isinstance(verdict, Release):
                    if verdict.died:
                        partition.vigil.died(delivery.position)  # type: ignore[arg-type]
                    released.append(new := delivery.again())  # type: ignore[attr-defined]
                    partition.tracker.open[delivery.position] = new  # type: ignore[index]
                    delivery.token = None
                else:
                    outcomes[index] = _NOT_OFFERED
        self._assignment.completed += done
        if released:
            released = [each for each in released if not each.token.draining]
            released.sort(key=lambda each: (each.stream, each.position))
            if released and not self._closed:
                self._handover.put_back(released)
        if self._owner.resting and self._flow.room():
            self._owner.nudge()
        return outcomes

    async def hand_off(self, batch: Sequence[HandOff]) -> Sequence[Outcome]:
        """See `Transacts.hand_off`."""
        if self._transactor is None:
            raise ConfigurationError(f"{self.source}: subscribed to without Window(transactional=True)")
        owners = [index for index, (_, copies) in enumerate(batch) for _ in copies]
        records, refused = await self._publisher.records([copy for _, copies in batch for copy in copies])
        outcomes: dict[int, Outcome] = {}
        for owner, outcome in zip(owners, refused, strict=True):
            if not outcome.ok:
                outcomes.setdefault(owner, outcome)
        asked = [index for index in range(len(batch)) if index not in outcomes]
        if len(asked) == len(batch):
            deliveries = [delivery for delivery, _ in batch]
            return await self._transactor.submit(deliveries, records, owners, self._owner.nudge)
        if asked:
            renamed = {index: number for number, index in enumerate(asked)}
            answered = await self._transactor.submit(
                [batch[index][0] for index in asked],
                [record for record in records if owners[record.place] in renamed],
                [renamed.get(owner, -1) for owner in owners],
                self._owner.nudge,
            )
            outcomes.update(zip(asked, answered, strict=True))
        return [outcomes[index] for index in range(len(batch))]

    @property
    def overdue(self) -> Owed | None:
        """See `Subscription.overdue`."""
        return self._standstill.overdue

    async def pause(self) -> None:
        """See `Subscription.pause`. What is buffered is held back, too."""
        self._flow.stopped = True
        self._owner.nudge()

    async def resume(self) -> None:
        """See `Subscription.resume`."""
        self._flow.stopped = False
        self._owner.nudge()
        self._handover.wake()

    async def close(self) -> None:
        """See `Subscription.close`."""
        if self._closed:
            await self._wait_left()
            return
        self._closed = True
        self._watching.cancel()
        self._handover.clear()
        self._owner.stop()
        self._handover.wake()
        if self._checking is not None:
            self._checking.cancel()
        await self._wait_left()

    # ----------------------------------------------------------------------------------- inside

    def _make_transactor(self, settings: Settings) -> Transactor:
        # As lasting as the membership. A member that is known by name comes back at once, so what it left open is ended at once;
        # another one's partitions are only given away when its session has timed out, and its transaction with it.
        member = settings.client.get("group.instance.id")
        identity = f"{self.source.group_name}.{self.source.channel.name}.{member or new_id()}"
        transactions = Transactions(settings.transactional(identity), lambda: self._closed)
        return Transactor(
            self._consumer,
            self._assignment,
            self._committer,
            transactions,
            missing=lambda topics: self._tell(self._publisher.missing, topics),
        )

    async def _wait_left(self) -> None:
        try:
            # A thread that waits in vain is not worth waiting for: it ends by itself.
            async with asyncio.timeout(0 if self._standstill.vain or self._reach.lost else CLOSE_WAIT_SECONDS):
                await self._left.wait()
        except TimeoutError:
            log.warning("%s: the client still waits for a broker that is gone; it ends by itself", self.source)
            return
        self._owner.join()  # it has nothing left to do

    def _watch(self) -> None:
        """While the thread waits for an answer it hears no report of the client: end what waits in vain."""
        self._watching = self._loop.call_later(_WATCH_SECONDS, self._watch)
        if self._standstill.vain:
            self._handover.fail(ConnectionLost(f"Kafka: waited in vain for {self._standstill.what}"))

    def _drain(self, partitions: Sequence[Partition], grace: float) -> concurrent.futures.Future[None]:
        return asyncio.run_coroutine_threadsafe(self._drained(partitions, grace), self._loop)

    async def _drained(self, partitions: Sequence[Partition], grace: float) -> None:
        for partition in partitions:
            partition.draining = True
        self._handover.purge()
        await self._listener.drain([partition.stream for partition in partitions], grace)

    def _failed(self, error: KafkaError) -> None:
        self._owner.error(error)

    def _committed(self, error: KafkaError | None, offsets: list[TopicPartition]) -> None:
        self._owner.committed(error, offsets)

    def _condition(self, state: str, detail: str) -> None:
        self._tell(self._listener.condition, state, detail)

    def _tell(self, function: Callable[..., None], *args: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to be told
            self._loop.call_soon_threadsafe(function, *args)

    def _verify(self) -> None:
        """The client does not find the topic. That may be news of a moment ago, so the broker is asked once more."""
        if self._checking is None or self._checking.done():
            self._checking = self._loop.create_task(self._check())

    async def _check(self) -> None:
        try:
            if not await self._exists(self.source.channel.name):
                self._handover.fail(NotFound(f"Kafka: topic {self.source.channel.name} does not exist (any more)"))
        except AtLeastOnceError as error:
            log.debug("%s: %s", self.source, error)
