"""One gRPC channel, and the calls that are made over it with the client's raw protobuf classes.

Raw, because the client's own wrappers around them cost seven times as much for each message (20-30 µs against 3-4).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import grpc
from google.iam.v1 import iam_policy_pb2, policy_pb2
from google.protobuf import empty_pb2
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcAsyncIOTransport
from google.pubsub_v1.types import pubsub as types

from atleastonce.adapters.pubsub import faults
from atleastonce.adapters.pubsub.config import Config
from atleastonce.contract import Code
from atleastonce.errors import BrokerUnavailable, Closed, ConfigurationError
from atleastonce.silence import Silence

PublishRequest: Any = types.PublishRequest.pb()
PubsubMessage: Any = types.PubsubMessage.pb()
PullRequest: Any = types.PullRequest.pb()
PullResponse: Any = types.PullResponse.pb()
AcknowledgeRequest: Any = types.AcknowledgeRequest.pb()
ModifyAckDeadlineRequest: Any = types.ModifyAckDeadlineRequest.pb()
Topic: Any = types.Topic.pb()
Subscription: Any = types.Subscription.pb()
GetTopicRequest: Any = types.GetTopicRequest.pb()
DeleteTopicRequest: Any = types.DeleteTopicRequest.pb()
ListTopicSubscriptionsRequest: Any = types.ListTopicSubscriptionsRequest.pb()
ListTopicSubscriptionsResponse: Any = types.ListTopicSubscriptionsResponse.pb()
GetSubscriptionRequest: Any = types.GetSubscriptionRequest.pb()
DeleteSubscriptionRequest: Any = types.DeleteSubscriptionRequest.pb()
GetIamPolicyRequest: Any = iam_policy_pb2.GetIamPolicyRequest


class Pulled(NamedTuple):
    """What a pull brought.

    Attributes:
        messages: raw ones.
        size: bytes of all together, on the wire: asking each costs more than reading it.
    """

    messages: Sequence[Any]
    size: int

    @classmethod
    def read(cls, data: bytes) -> Pulled:
        """From a ``PullResponse``."""
        return cls(PullResponse.FromString(data).received_messages, len(data))


_PUBLISHER, _SUBSCRIBER = "/google.pubsub.v1.Publisher/", "/google.pubsub.v1.Subscriber/"
# Path, request, reader of the answer, and the field that tells the service where to route it.
_CALLS: Final[dict[str, tuple[str, Any, Any, str]]] = {
    "Publish": (_PUBLISHER, PublishRequest, types.PublishResponse.pb().FromString, "topic"),
    "CreateTopic": (_PUBLISHER, Topic, Topic.FromString, "name"),
    "GetTopic": (_PUBLISHER, GetTopicRequest, Topic.FromString, "topic"),
    "DeleteTopic": (_PUBLISHER, DeleteTopicRequest, empty_pb2.Empty.FromString, "topic"),
    "ListTopicSubscriptions": (
        _PUBLISHER,
        ListTopicSubscriptionsRequest,
        ListTopicSubscriptionsResponse.FromString,
        "topic",
    ),
    "Pull": (_SUBSCRIBER, PullRequest, Pulled.read, "subscription"),
    "Acknowledge": (_SUBSCRIBER, AcknowledgeRequest, empty_pb2.Empty.FromString, "subscription"),
    "ModifyAckDeadline": (_SUBSCRIBER, ModifyAckDeadlineRequest, empty_pb2.Empty.FromString, "subscription"),
    "CreateSubscription": (_SUBSCRIBER, Subscription, Subscription.FromString, "name"),
    "GetSubscription": (_SUBSCRIBER, GetSubscriptionRequest, Subscription.FromString, "subscription"),
    "DeleteSubscription": (_SUBSCRIBER, DeleteSubscriptionRequest, empty_pb2.Empty.FromString, "subscription"),
    "GetIamPolicy": ("/google.iam.v1.IAMPolicy/", GetIamPolicyRequest, policy_pb2.Policy.FromString, "resource"),
}
_KEEPALIVE_TIMEOUT: Final = 10_000
_NO_LIMIT: Final = -1
_UNHEARD: Final = (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


class HungUp(grpc.RpcError):  # type: ignore[misc]  # the library has no types
    """We closed the connection under a call: it may have happened."""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.CANCELLED

    def details(self) -> str:
        return "the connection was closed meanwhile"


class Link:
    """The connection, which comes back by itself.

    Attributes:
        on_state: told "connected" or "disconnected" with a detail, when that changes.
        silence: what was asked and is not answered, pulls aside: one that waits on an empty subscription is none.
    """

    def __init__(self, config: Config) -> None:
        self.on_state: Callable[[str, str], None] | None = None
        self.silence = Silence()
        self._config = config
        self._channel: Any = None
        self._stubs: dict[str, Any] = {}
        self._watcher: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Connect, and return once the server has answered a question.

        Raises:
            BrokerUnavailable, PermissionDenied, ConfigurationError: as named.
        """
        config = self._config
        what = f"Pub/Sub at {config.address}"
        try:
            async with asyncio.timeout(config.connect_timeout):
                self._channel = await self._make()
                await self._channel.channel_ready()
                try:
                    probe = GetTopicRequest(topic=config.topic("atleastonce-probe"))
                    await self.call("GetTopic", probe, seconds=config.connect_timeout)
                except grpc.RpcError as error:
                    # Whoever says "there is none", or "you may not look", has answered and knows who we are.
                    if error.code() not in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.PERMISSION_DENIED):
                        raise
        except TimeoutError:
            await self.close()
            raise BrokerUnavailable(f"{what}: no answer within {config.connect_timeout:g} s") from None
        except BaseException as error:
            await self.close()
            if isinstance(error, Exception):
                raise faults.as_error(error, what) from error
            raise
        self._watcher = asyncio.create_task(self._watch(self._channel), name="atleastonce-pubsub-watch")

    async def _make(self) -> Any:
        config = self._config
        options = [
            ("grpc.max_send_message_length", _NO_LIMIT),
            ("grpc.max_receive_message_length", _NO_LIMIT),
            ("grpc.keepalive_time_ms", int(config.keepalive * 1000)),
            ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT),
            ("grpc.http2.max_pings_without_data", 0),
            # Without these a server that was away for a while is not looked for again for up to two minutes.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", int(config.connect_timeout * 1000)),
            ("grpc.max_reconnect_backoff_ms", 2000),
            # Adapters share nothing, and one that is closed leaves nothing behind.
            ("grpc.use_local_subchannel_pool", 1),
            *config.channel_options,
        ]
        if not config.tls:
            return grpc.aio.insecure_channel(config.endpoint, options=options)

        def make() -> Any:
            # Default credentials are looked for in files and over the network: not on the event loop.
            return SubscriberGrpcAsyncIOTransport.create_channel(
                config.endpoint,
                credentials=config.credentials,
                credentials_file=config.credentials_file,
                options=options,
            )

        if config.credentials is None and config.credentials_file is None:
            import google.auth

            config_credentials, _ = await asyncio.to_thread(
                google.auth.default, scopes=SubscriberGrpcAsyncIOTransport.AUTH_SCOPES
            )
            return SubscriberGrpcAsyncIOTransport.create_channel(
                config.endpoint, credentials=config_credentials, options=options
            )
        try:
            return make()
        except ValueError as error:
            raise ConfigurationError(f"pubsub: credentials: {error}") from None

    def check_open(self) -> None:
        """Raises `Closed` where there is no connection and will be none."""
        if self._channel is None:
            raise Closed("the adapter is closed")

    async def call(self, name: str, request: Any, *, seconds: float, wait: bool = False) -> Any:
        """One call. With ``wait`` it waits for the connection to come back, within ``seconds``.

        Raises:
            grpc.RpcError: as the server or the client says.
            Closed: there is no connection.
        """
        self.check_open()
        stub = self._stubs.get(name)
        if stub is None:
            path, asks, answers, _ = _CALLS[name]
            stub = self._stubs[name] = self._channel.unary_unary(
                path + name, request_serializer=asks.SerializeToString, response_deserializer=answers
            )
        field = _CALLS[name][3]
        routing = (("x-goog-request-params", f"{field}={getattr(request, field)}"),)
        silence = self.silence
        asked = silence.asked(f"an answer to {name}", allowed=math.inf if name == "Pull" else 0.0)
        try:
            answer = await stub(request, timeout=seconds, wait_for_ready=wait, metadata=routing)
        except asyncio.CancelledError:
            silence.dropped(asked)
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise HungUp from None  # the client says so with a cancellation that nobody asked for
        except grpc.RpcError as error:
            # Made up by the client, or said by the server: nobody can tell.
            (silence.missed if error.code() in _UNHEARD else silence.answered)(asked)
            raise
        silence.answered(asked)
        return answer

    async def close(self) -> None:
        """Hang up. Idempotent."""
        watcher, self._watcher = self._watcher, None
        channel, self._channel = self._channel, None
        self._stubs.clear()
        if watcher is not None:
            watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watcher
        if channel is not None:
            await channel.close()

    async def _watch(self, channel: Any) -> None:
        state = grpc.ChannelConnectivity.READY
        connected = True
        while state is not grpc.ChannelConnectivity.SHUTDOWN:
            await channel.wait_for_state_change(state)
            state = channel.get_state(try_to_connect=True)
            ready = state is grpc.ChannelConnectivity.READY
            # An idle connection that was closed is being made anew, which is no loss until it fails.
            failed = state is grpc.ChannelConnectivity.TRANSIENT_FAILURE
            if (ready and not connected) or (failed and connected):
                connected = ready
                if self.on_state is not None:
                    detail = self._config.address if ready else f"{self._config.address} does not answer"
                    self.on_state("connected" if ready else "disconnected", detail)


def is_missing(error: BaseException) -> bool:
    """Whether the server says that something does not exist."""
    return isinstance(error, grpc.RpcError) and faults.classify(error).code is Code.NOT_FOUND
