"""The adapter: one gRPC channel that comes back by itself, for everything."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

import grpc

from atleastonce.adapters.pubsub import describing, faults, inboxes, inspecting
from atleastonce.adapters.pubsub.attributes import MAX_HEADER_BYTES
from atleastonce.adapters.pubsub.channel import GetSubscriptionRequest, Link, is_missing
from atleastonce.adapters.pubsub.config import MAX_DEADLINE, Config
from atleastonce.adapters.pubsub.declaring import Maker, remove
from atleastonce.adapters.pubsub.presence import ensure_topic
from atleastonce.adapters.pubsub.publisher import MAX_MESSAGE_BYTES, REQUEST_MESSAGES, Publisher
from atleastonce.adapters.pubsub.subscription import PubSubSubscription
from atleastonce.adapters.pubsub.topology import DEAD_LETTERS, plan
from atleastonce.channels import Queue, Source, Topic
from atleastonce.contract import (
    NONE,
    Ability,
    Adapter,
    Backlog,
    Capabilities,
    Code,
    Counting,
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
from atleastonce.errors import ConfigurationError
from atleastonce.urls import BrokerUrl

log = logging.getLogger("atleastonce.pubsub")

_REQUESTS: Final = 4
"""Of one list at a time. Fewer: the round trip shows. More: who publishes beside a long list waits for more of it."""

_epochs = itertools.count(1)


class PubSubAdapter(Adapter):
    """Google Pub/Sub, or an emulator of it. Made by `atleastonce.adapters.open_adapter`; options are those of `Config`.

    Not fork-safe, as gRPC is not: connect after the fork.
    """

    scheme = "pubsub"

    def __init__(self, config: Config) -> None:
        # Pub/Sub counts deliveries for subscriptions with a dead-letter policy alone. Without a count a message that is
        # redelivered natively would be redelivered for ever: then retries are copies, which carry their count.
        counted = config.max_delivery_attempts > 0
        self.capabilities = Capabilities(
            delay=Ability(Level.NATIVE, float(MAX_DEADLINE)) if counted else NONE,
            delivery_count=Counting.APPROXIMATE if counted else Counting.NONE,
            counts_releases=counted,
            lease=Leasing.EXTENDABLE,
            lease_seconds=config.lease,
            order=Ordering.GROUP,
            dead_letter=Level.NATIVE if counted else Level.NONE,
            max_message_bytes=MAX_MESSAGE_BYTES,
            max_header_bytes=MAX_HEADER_BYTES,
            binary_headers=True,
            max_send=REQUEST_MESSAGES * min(config.publishes, _REQUESTS),
        )
        self._config = config
        self._link = Link(config)
        self._link.on_state = self._state
        self._publisher = Publisher(config, self._link)
        self._subscriptions: set[PubSubSubscription] = set()

    @classmethod
    def from_url(cls, url: BrokerUrl, options: Mapping[str, Any]) -> PubSubAdapter:
        """The adapter for ``url``, not connected yet.

        Raises:
            ConfigurationError: an option that does not exist, or a bad value.
        """
        return cls(Config.build(url, options))

    async def open(self) -> None:
        await self._link.open()
        if self._config.redirected:
            log.warning(
                "PUBSUB_EMULATOR_HOST is set: project %s is the one of the emulator at %s, without TLS and credentials, and "
                "not the service's",
                self._config.project,
                self._config.endpoint,
            )

    async def close(self) -> None:
        await self._publisher.close()
        for subscription in list(self._subscriptions):
            await subscription.close()
        self._subscriptions.clear()
        await self._link.close()

    async def declare(self, topology: Topology, *, create: bool = True) -> Sequence[Drift]:
        wanted = plan(topology, self._config)
        maker = Maker(self._config, self._link, create)
        self._publisher.forget()
        await maker.run(wanted)
        if self._config.tls:
            await maker.check_permissions(wanted)
        return maker.drifts

    def describe(self, topology: Topology) -> Sequence[Resource]:
        """See `Describes`."""
        return describing.describe(topology, self._config)

    def waiting_in(self, source: Source) -> Mapping[str, str]:
        """See `Describes`."""
        return {"subscription": self._config.resource(source.name)}

    def server(self) -> Mapping[str, Any]:
        """See `Describes`. ``keys``: whether a file of credentials was given, in place of an identity."""
        config = self._config
        return {"project": config.project, "endpoint": config.endpoint, "keys": config.credentials_file is not None}

    async def inspect(self, topology: Topology) -> Sequence[Fact]:
        """See `Inspects`."""
        return await inspecting.inspect(self._link, plan(topology, self._config), self._config)

    async def send(self, batch: Sequence[Outgoing]) -> Sequence[Outcome]:
        return await self._publisher.send(batch)

    async def subscribe(self, source: Source, window: Window, listener: Listener) -> PubSubSubscription:
        config = self._config
        fifo = isinstance(source.channel, Queue | Topic) and source.channel.fifo
        deadline, ordered = float(config.deadline), fifo
        try:
            request = GetSubscriptionRequest(subscription=config.subscription(source.name))
            found = await self._link.call("GetSubscription", request, seconds=config.operation_timeout)
        except grpc.RpcError as error:
            # roles/pubsub.subscriber may read messages and not settings: then it is as we would have made it.
            if is_missing(error):
                self._publisher.forget()
            if faults.classify(error).code is not Code.PERMISSION or error.code() is grpc.StatusCode.UNAUTHENTICATED:
                raise faults.as_error(error, f"reading {source.name}") from error
        else:
            ensure_topic(found, source)
            counted = bool(found.dead_letter_policy.dead_letter_topic)
            uncounted = source.name.endswith(DEAD_LETTERS) or source.name.startswith(inboxes.PREFIX)
            if config.max_delivery_attempts and not counted and not uncounted:
                raise ConfigurationError(
                    f"subscription {source.name} has no dead-letter policy, so Pub/Sub does not count its deliveries and a "
                    "failing message would be tried for ever; give it one, or connect with max_delivery_attempts=0"
                )
            deadline, ordered = float(found.ack_deadline_seconds), found.enable_message_ordering
        subscription = PubSubSubscription(
            config,
            self._link,
            source,
            window,
            listener,
            next(_epochs),
            deadline=deadline,
            ordered=ordered,
            missing=self._publisher.forget,
        )
        self._subscriptions = {each for each in self._subscriptions if not each.closed} | {subscription}
        listener.condition("connected", config.address)
        return subscription

    async def keep_inbox(self, name: str) -> None:
        """See `KeepsInboxes`."""
        await inboxes.keep(name, self._config, self._link)

    async def remove_inbox(self, name: str) -> None:
        """See `KeepsInboxes`."""
        await inboxes.remove(name, self._config, self._link)

    async def backlog(self, source: Source) -> Backlog:
        """Unknown, always: Pub/Sub has no request for it."""
        return Backlog(
            detail="Pub/Sub tells its backlog to Cloud Monitoring alone, minutes late: "
            "pubsub.googleapis.com/subscription/num_undelivered_messages and oldest_unacked_message_age of subscription "
            f"{self._config.resource(source.name)}"
        )

    def classify(self, error: BaseException) -> Fault:
        return faults.classify(error)

    async def delete(self, topology: Topology) -> None:
        """Remove what `declare` made, nets included, with all messages; what is not there is fine."""
        self._publisher.forget()
        found = plan(topology, self._config)
        for source in topology.sources:  # a group that goes leaves its topic to the others
            if isinstance(source.channel, Topic) and source.channel not in topology.channels:
                found.topics.pop(self._config.topic(source.channel.name), None)
        await remove(found, self._config, self._link)

    def _state(self, state: str, detail: str) -> None:
        for subscription in list(self._subscriptions):
            if not subscription.closed:
                subscription.listener.condition(state, detail)
