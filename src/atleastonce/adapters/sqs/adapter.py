"""The adapter: one client, one pool of threads for polls, one for everything else."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from atleastonce.adapters.sqs import describing, faults, inspecting, names, topology
from atleastonce.adapters.sqs.clients import Clients
from atleastonce.adapters.sqs.config import Config
from atleastonce.adapters.sqs.directory import Directory
from atleastonce.adapters.sqs.inboxes import Inboxes
from atleastonce.adapters.sqs.moving import FASTEST, Move
from atleastonce.adapters.sqs.polls import Polls
from atleastonce.adapters.sqs.publisher import MAX_DELAY, Publisher
from atleastonce.adapters.sqs.scan import Scan
from atleastonce.adapters.sqs.settling import MAX_VISIBILITY, Settling
from atleastonce.adapters.sqs.subscription import SQSSubscription
from atleastonce.adapters.sqs.threads import Threads
from atleastonce.channels import Channel, Queue, Source
from atleastonce.contract import (
    Ability,
    Adapter,
    Backlog,
    Capabilities,
    Code,
    Counting,
    Delivery,
    Drift,
    Fact,
    Fault,
    Leasing,
    Level,
    Listener,
    Ordering,
    Outcome,
    Outgoing,
    Resource,
    Topology,
    Window,
)
from atleastonce.errors import AtLeastOnceError, BrokerUnavailable, Closed, ConfigurationError, MissingExtra
from atleastonce.urls import BrokerUrl

T = TypeVar("T")

_HANDLING: Final = 3600.0
"""Of a delivery's twelve hours this much is left to its handler: the rest is the longest delay of a retry."""

_FRAMING: Final = 1024
"""Bytes of attribute names and types that a message's own bytes do not count."""

# Between looks at a move that SQS makes; it counts no faster.
_LOOK: Final = 1.0

# PurgeQueue takes this long, and until then removes what is published, too.
_PURGE_SECONDS: Final = 60.0


class SQSAdapter(Adapter):
    """Amazon SQS, and SNS for topics; or an emulator of them. Options are those of `Config`."""

    scheme = "sqs"

    def __init__(self, config: Config) -> None:
        limit = config.max_message_bytes - _FRAMING
        self.capabilities = Capabilities(
            delay=Ability(Level.NATIVE, MAX_VISIBILITY - _HANDLING),
            publish_delay=Ability(Level.NATIVE, float(MAX_DELAY)),
            delivery_count=Counting.APPROXIMATE,
            counts_releases=True,
            lease=Leasing.EXTENDABLE,
            lease_seconds=float(config.lease),
            lease_limit=float(MAX_VISIBILITY),
            order=Ordering.GROUP,
            dead_letter=Level.NATIVE,
            addresses_groups=True,
            max_message_bytes=limit,
            binary_headers=True,
        )
        self._config = config
        self._clients = Clients(config)
        self._directory = Directory(config, self._clients)
        self._inboxes = Inboxes(self._clients, self._directory, config.prefix)
        self._limit = limit
        self._pools: tuple[Threads, Threads] | None = None
        self._publisher: Publisher | None = None
        self._subscriptions: set[SQSSubscription] = set()
        self._closed = False

    @classmethod
    def from_url(cls, url: BrokerUrl, options: Mapping[str, Any]) -> SQSAdapter:
        """The adapter for ``url``, not connected yet.

        Raises:
            ConfigurationError: an option that does not exist, or a bad value.
            MissingExtra: boto3 is not installed.
        """
        config = Config.build(url, options)
        if importlib.util.find_spec("boto3") is None:
            raise MissingExtra("sqs", "boto3")
        return cls(config)

    # -------------------------------------------------------------------------------------------------------- lifecycle

    async def open(self) -> None:
        """Make the client, which takes a tenth of a second on a thread, and ask one question."""
        if self._closed:
            raise Closed("the adapter is closed")
        if self._pools is None:
            alive = [2]

            def ended() -> None:
                alive[0] -= 1
                if not alive[0]:
                    self._clients.close()

            calls = Threads("atleastonce-sqs", self._config.threads, ended)
            polls = Threads("atleastonce-sqs-poll", self._config.polls, ended, linger=self._config.at_exit)
            self._pools = (polls, calls)
        patience = self._config.connect_timeout + 1.0
        what = self._config.address
        await self._run(lambda: self._clients.sqs, what, self._config.operation_timeout)
        await self._run(self._greet, what, patience)
        self._publisher = Publisher(self._config, self._clients, self._directory, self._pools[1], self._limit)

    def _greet(self) -> None:
        try:
            self._clients.sqs.list_queues(MaxResults=1)
        except Exception as error:
            # Who is known, and may not list queues, may still use some.
            code = getattr(error, "response", {}).get("Error", {}).get("Code", "")
            if code not in ("AccessDenied", "AccessDeniedException"):
                raise

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._publisher is not None:
            await self._publisher.close()
        for subscription in list(self._subscriptions):
            await subscription.close()
        if self._pools is not None:
            for pool in self._pools:
                pool.close()

    async def _run(self, call: Callable[[], T], what: str, patience: float) -> T:
        """``call`` on a thread, its errors as ours."""
        if self._closed or self._pools is None:
            raise Closed("the adapter is closed" if self._closed else "the adapter is not open")
        try:
            async with asyncio.timeout(patience):
                return await self._pools[1].submit(call)
        except (AtLeastOnceError, asyncio.CancelledError):
            raise
        except TimeoutError as error:
            raise BrokerUnavailable(f"{what}: no answer within {patience:g} s") from error
        except Exception as error:  # whatever boto3 makes of a failing network
            raise faults.as_error(error, what) from error

    # ------------------------------------------------------------------------------------------------------------ calls

    async def declare(self, topology_: Topology, *, create: bool = True) -> Sequence[Drift]:
        wanted = topology.plan(topology_, self._config)
        maker = topology.Maker(self._config, self._clients, self._directory, create)
        steps = 2 + len(wanted.queues) + len(wanted.topics)
        what = f"declaring on {self._config.address}"
        return await self._run(lambda: maker.make(wanted), what, self._config.operation_timeout * steps)

    def describe(self, topology_: Topology) -> Sequence[Resource]:
        """See `Describes`."""
        return describing.describe(topology_, self._config)

    def waiting_in(self, source: Source) -> Mapping[str, str]:
        """See `Describes`."""
        return {"queue": names.queue_name(source, self._config.prefix)}

    def server(self) -> Mapping[str, Any]:
        """See `Describes`."""
        return describing.server(self._config)

    async def inspect(self, topology_: Topology) -> Sequence[Fact]:
        """See `Inspects`."""
        wanted = topology.plan(topology_, self._config)
        read = inspecting.Reader(self._clients, self._directory, self._config)
        what = f"looking at queues on {self._config.address}"
        work = lambda: read.run(wanted, inspecting.shown(topology_, self._config))  # noqa: E731
        return await self._run(work, what, self._config.operation_timeout * (1 + len(wanted.queues)))

    async def send(self, batch: Sequence[Outgoing]) -> Sequence[Outcome]:
        if self._publisher is None or self._closed:
            raise Closed("the adapter is closed" if self._closed else "the adapter is not open")
        return await self._publisher.send(batch)

    async def subscribe(self, source: Source, window: Window, listener: Listener) -> SQSSubscription:
        queue = names.queue_name(source, self._config.prefix)
        dead = names.of_queue(source.dead_letter_channel, self._config.prefix)
        url = await self._run(lambda: self._there(queue), f"reading {source.name}", self._config.operation_timeout)
        if self._pools is None or self._closed:
            raise Closed("the adapter is closed")
        polls, calls = self._pools
        config, clients = self._config, self._clients
        settling = Settling(clients, self._directory, calls, url, dead, config.operation_timeout)
        await settling.ensure_allowed(source.name)
        if self._closed:
            raise Closed("the adapter is closed")
        if len(self._subscriptions) >= polls.limit:
            raise ConfigurationError(
                f"sqs: connections={config.connections} are enough for {polls.limit} subscriptions; give more"
            )
        subscription = SQSSubscription(
            source,
            queue,
            window,
            listener,
            config,
            lambda arrived: Polls(config, clients, polls, url, queue.endswith(names.FIFO), arrived),
            settling,
            clients.silence,
        )
        self._subscriptions.add(subscription)
        subscription.on_end = self._subscriptions.discard
        listener.condition("connected", config.address)
        return subscription

    def _there(self, queue: str) -> str:
        """The URL of a queue that exists now: a name is resolved for a while after its queue was deleted."""
        url = self._directory.find(queue)
        self._clients.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])
        return url

    async def keep_inbox(self, name: str) -> None:
        """See `KeepsInboxes`."""
        queue = names.of_queue(Queue(name), self._config.prefix)
        patience = self._config.operation_timeout * 4
        await self._run(lambda: self._inboxes.keep(queue), "keeping a queue for replies", patience)
        if self._pools is not None and self._inboxes.unswept:
            self._pools[1].run(self._inboxes.sweep)

    async def remove_inbox(self, name: str) -> None:
        """See `KeepsInboxes`."""
        await self.delete(Topology(sources=(Source(Queue(name)),)))

    async def backlog(self, source: Source) -> Backlog:
        """Approximate, and up to a minute old, as SQS counts. ``in_flight`` includes retries that wait for their time."""
        try:
            queue = names.queue_name(source, self._config.prefix)
            found = await self._run(lambda: self._count(queue), source.name, self._config.operation_timeout)
        except AtLeastOnceError as error:
            return Backlog(detail=str(error))
        return Backlog(
            waiting=int(found["ApproximateNumberOfMessages"]),
            in_flight=int(found["ApproximateNumberOfMessagesNotVisible"]),
            delayed=int(found["ApproximateNumberOfMessagesDelayed"]),
            detail="SQS tells the oldest message's age to CloudWatch only",
        )

    def _count(self, queue: str) -> dict[str, str]:
        wanted = ["", "NotVisible", "Delayed"]
        answer = self._clients.sqs.get_queue_attributes(
            QueueUrl=self._directory.url(queue),
            AttributeNames=[f"ApproximateNumberOfMessages{each}" for each in wanted],
        )
        found: dict[str, str] = answer["Attributes"]
        return found

    def classify(self, error: BaseException) -> Fault:
        return faults.classify(error)

    # ------------------------------------------------------------------------------------------------------------ tools

    async def scan(self, queue: Queue[Any]) -> AsyncGenerator[Sequence[Delivery]]:
        """See `Scans`. At most 120 000 entries: no more can be in flight."""
        name = names.of_queue(queue, self._config.prefix)
        what = f"reading {queue.name}"
        url = await self._run(lambda: self._there(name), what, self._config.operation_timeout)
        if self._pools is None:
            raise Closed("the adapter is closed")
        look = Scan(self._clients, self._pools[1], url, Source(queue), name)
        try:
            async with contextlib.aclosing(look.run()) as lists:
                async for found in lists:
                    yield found
        except AtLeastOnceError:
            raise
        except Exception as error:
            if not type(error).__module__.startswith("botocore."):
                raise  # the reader's own
            raise faults.as_error(error, what) from error

    async def move_all(
        self, queue: Queue[Any], to: Channel[Any] | Source, rate: float | None
    ) -> AsyncGenerator[tuple[int, int | None]]:
        """See `MovesAll`. From a standard queue to a standard queue, and only where the first is some queue's dead-letter
        queue by a redrive policy; what `net` makes are. 500 messages a second at most."""
        if rate is not None and not 1 <= rate <= FASTEST:
            raise ConfigurationError(f"rate={rate:g}: SQS moves 1 to {FASTEST} messages a second")
        prefix, what, patience = self._config.prefix, f"moving {queue.name}", self._config.operation_timeout
        target = to if isinstance(to, Source) else Source(to)
        source, name = names.of_queue(queue, prefix), names.queue_name(target, prefix)
        if name.endswith(names.FIFO) is not source.endswith(names.FIFO):
            raise ConfigurationError(f"SQS moves nothing from {source} to {name}: one is FIFO, the other is not")
        urls = [await self._run(lambda each=each: self._there(each), what, patience) for each in (source, name)]  # type: ignore[misc]
        move = Move(self._clients, urls[0], urls[1])
        await self._run(lambda: move.start(None if rate is None else int(rate)), what, patience)
        ended = False
        try:
            while not ended:
                moved, total, ended = await self._run(move.look, what, patience)
                yield moved, total
                if not ended:
                    await asyncio.sleep(_LOOK)
        finally:
            if not ended:
                await asyncio.shield(self._run(move.cancel, what, patience))

    async def purge(self, channel: Queue[Any]) -> int:
        """Remove all that is in ``channel``, what is in flight too; how much it was, SQS does not say.

        On AWS this takes a minute: for so long SQS removes what is published as well.

        Raises:
            NotFound: no such queue.
            BrokerUnavailable: it was purged less than a minute ago, or SQS does not answer.
        """
        name = names.of_queue(channel, self._config.prefix)
        await self._run(
            lambda: self._clients.sqs.purge_queue(QueueUrl=self._directory.find(name)),
            f"purging {channel.name}",
            self._config.operation_timeout,
        )
        if self._config.endpoint is None:
            await asyncio.sleep(_PURGE_SECONDS)
        return -1

    async def delete(self, topology_: Topology) -> None:
        """Remove the queues, topics and subscriptions of ``topology_``; on AWS a name is free again a minute later."""
        what = f"deleting on {self._config.address}"
        work = lambda: topology.remove(topology_, self._config, self._clients, self._directory)  # noqa: E731
        try:
            await self._run(work, what, self._config.operation_timeout * 4)
        except AtLeastOnceError as error:
            if faults.classify(error).code is not Code.NOT_FOUND:
                raise
