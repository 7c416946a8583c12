"""Google Pub/Sub: subscriptions with leases, a dead-letter policy and ordering keys."""

import asyncio
import secrets
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

pytest.importorskip("google.pubsub_v1", reason="google-cloud-pubsub is not installed")

import grpc
from google.api_core.client_options import ClientOptions
from google.api_core.exceptions import DeadlineExceeded
from google.auth.credentials import AnonymousCredentials
from google.pubsub_v1 import PublisherClient, PubsubMessage, SubscriberClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport

from atleastonce.adapters import open_adapter
from atleastonce.adapters.pubsub.config import Config
from atleastonce.brokers import Running
from atleastonce.brokers.addresses import from_environment, required
from atleastonce.channels import Queue
from atleastonce.contract import Adapter
from atleastonce.testing.brokers import can_kill, killable
from atleastonce.testing.conformance import ConformanceSuite, Harness, KillableBroker, RawMessage
from atleastonce.urls import BrokerUrl

NOBODY = "pubsub://127.0.0.1:1/nobody?connect_timeout=2s"


class RawPubSub:
    """Google's own synchronous client."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._local = config.endpoint if not config.tls else None

    def _publisher(self) -> PublisherClient:
        if self._local is None:
            return PublisherClient(client_options=ClientOptions(api_endpoint=self._config.endpoint))
        return PublisherClient(transport=PublisherGrpcTransport(channel=grpc.insecure_channel(self._local)))

    def _subscriber(self) -> SubscriberClient:
        if self._local is None:
            return SubscriberClient(client_options=ClientOptions(api_endpoint=self._config.endpoint))
        return SubscriberClient(transport=SubscriberGrpcTransport(channel=grpc.insecure_channel(self._local)))

    async def publish(self, queue: Queue[Any], message: RawMessage) -> None:
        def run() -> None:
            with self._publisher() as client:
                one = PubsubMessage(data=message.body, attributes=dict(message.headers))
                client.publish(topic=self._config.topic(queue.name), messages=[one])

        await asyncio.to_thread(run)

    async def read(self, queue: Queue[Any]) -> RawMessage:
        def run() -> RawMessage:
            name = self._config.subscription(queue.name)
            with self._subscriber() as client:
                for _ in range(10):
                    try:
                        got = client.pull(subscription=name, max_messages=1, timeout=5).received_messages
                    except DeadlineExceeded:
                        continue
                    if got:
                        client.acknowledge(subscription=name, ack_ids=[got[0].ack_id])
                        return RawMessage(got[0].message.data, None, dict(got[0].message.attributes))
            raise AssertionError("no message came")

        return await asyncio.to_thread(run)


class PubSubHarness(Harness):
    name = "pubsub"
    short_lease = {"lease": 2.0}  # noqa: RUF012
    lease = 2.0
    known_gaps = {  # noqa: RUF012
        "55": "pstest keeps everything in memory: what was confirmed is gone with the process",
        "55b": "pstest keeps everything in memory: its subscriptions are gone with the process",
        "60": "pstest has neither TLS nor credentials: everybody may do everything",
    }

    def __init__(self, broker: Running) -> None:
        self.url = broker.url
        self.killable = can_kill("pubsub")
        self._version = broker.version
        if from_environment("pubsub"):
            self.known_gaps = {}
            self.options = {"prefix": f"alo-test-{secrets.token_hex(4)}-"}
        self.raw = RawPubSub(Config.build(BrokerUrl.parse(self.url), self.options))

    def broker_version(self) -> str:
        return self._version or "Google Pub/Sub"

    def unreachable(self) -> Adapter:
        return self.adapter(url=NOBODY)

    def unauthorised(self) -> Adapter:
        """Without credentials. An emulator can be shown none: they are sent over TLS alone."""
        if not from_environment("pubsub"):
            return self.adapter()
        return open_adapter(self.url, {**self.options, "credentials": AnonymousCredentials()})

    def conflicting(self, name: str) -> tuple[Queue[Any], Queue[Any]]:
        return Queue(name), Queue(name, fifo=True)

    def own_broker(self) -> AbstractAsyncContextManager[KillableBroker]:
        return killable("pubsub")


class TestPubSub(ConformanceSuite):
    @pytest.fixture
    def harness(self, pubsub_broker: Running) -> Harness:
        return PubSubHarness(pubsub_broker)


class GoogleHarness(PubSubHarness):
    """Google's own emulator, where it is installed: a second opinion."""

    name = "pubsub (Google's emulator)"
    patience = 45.0
    """It goes on serving a pull whose client has cancelled it, as at each stop: what that takes comes after a lease of 10 s."""

    unsteady = {  # noqa: RUF012
        "44b": "of messages that are given back, the emulator hands out later ones of a key first: now and then, not always"
    }

    def __init__(self, broker: Running) -> None:
        super().__init__(broker)
        self.killable = can_kill("pubsub-google")
        self.known_gaps = {
            "55": "the emulator keeps everything in memory: what was confirmed is gone with the process",
            "55b": "the emulator keeps everything in memory: its subscriptions are gone with the process",
            "60": "the emulator has neither TLS nor credentials: everybody may do everything",
        }
        self.options = {}
        self.raw = RawPubSub(Config.build(BrokerUrl.parse(self.url), {}))

    def broker_version(self) -> str:
        return f"Google's Pub/Sub emulator {self._version or ''}".strip()

    def own_broker(self) -> AbstractAsyncContextManager[KillableBroker]:
        return killable("pubsub-google")


@pytest.mark.skipif(
    not required(["pubsub-google"]), reason="takes minutes, for leases of 10 s: python3 dev.py matrix pubsub-google"
)
@pytest.mark.timeout(300, func_only=True)
class TestGooglePubSub(ConformanceSuite):
    @pytest.fixture
    def harness(self, google_pubsub_broker: Running) -> Harness:
        return GoogleHarness(google_pubsub_broker)
