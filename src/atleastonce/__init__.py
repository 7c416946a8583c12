"""Messaging patterns, each written once, over real brokers.

Everything a normal consumer or producer needs::

    from atleastonce import Service, Topic

The broker does not solve distributed-systems problems, it relocates them: design for at-least-once, make every consumer
idempotent, bound what is in flight, give every queue a dead-letter queue, and test the unhappy path.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atleastonce.broker import Broker, connect
    from atleastonce.channels import Channel, Queue, Source, Topic
    from atleastonce.context import Context
    from atleastonce.engine.backoff import Backoff
    from atleastonce.engine.limit import AdaptiveConcurrency
    from atleastonce.errors import (
        AtLeastOnceError,
        BrokerUnavailable,
        Closed,
        ConfigurationError,
        ConnectionLost,
        DeadLetter,
        DecodeError,
        Discard,
        EncodeError,
        HandlerCancelled,
        HandlerTimeout,
        IdempotencyMismatch,
        InvalidIdempotencyKey,
        InvalidMessage,
        InvalidOrderKey,
        MessageTooLarge,
        MissingExtra,
        NoResponder,
        NotFound,
        Overloaded,
        PermissionDenied,
        PublishError,
        QuorumMissed,
        Rejected,
        RemoteError,
        RequestError,
        RequestTimeout,
        RetryLater,
        StoreUnavailable,
        TransactionEnded,
        Unconfirmed,
    )
    from atleastonce.message import Headers, Message
    from atleastonce.outbox import Outbox
    from atleastonce.patterns.circuit_breaker import CircuitBreaker
    from atleastonce.patterns.failure import FailurePolicy, RetryChain
    from atleastonce.patterns.flood import DeadLetterPolicy
    from atleastonce.patterns.hot_keys import split_hot_key
    from atleastonce.patterns.once import Inbox, Lease
    from atleastonce.patterns.ordering import Ordered
    from atleastonce.patterns.outbox import RelayOptions
    from atleastonce.patterns.redrive import DeadLetters, Selection
    from atleastonce.requester import Requester
    from atleastonce.service import Service
    from atleastonce.stores.dynamodb import DynamoDBStore
    from atleastonce.stores.memory import MemoryStore
    from atleastonce.stores.mysql import MySQLStore
    from atleastonce.stores.postgres import PostgresStore
    from atleastonce.stores.redis import RedisStore
    from atleastonce.stores.sqlite import SQLiteStore
    from atleastonce.sync import SyncBroker, connect_sync

# Each name is loaded when it is first used: asyncio and msgspec alone cost most of a tenth of a second, which a program
# that only asks for --help does not need. Editors and type checkers read the imports above.
_NAMES = {
    "broker": "Broker connect",
    "channels": "Channel Queue Source Topic",
    "context": "Context",
    "engine.backoff": "Backoff",
    "engine.limit": "AdaptiveConcurrency",
    "errors": (
        "AtLeastOnceError BrokerUnavailable Closed ConfigurationError ConnectionLost DeadLetter DecodeError "
        "Discard EncodeError HandlerCancelled HandlerTimeout IdempotencyMismatch InvalidIdempotencyKey InvalidMessage "
        "InvalidOrderKey MessageTooLarge MissingExtra NoResponder NotFound Overloaded PermissionDenied PublishError "
        "QuorumMissed Rejected RemoteError RequestError RequestTimeout RetryLater StoreUnavailable TransactionEnded "
        "Unconfirmed"
    ),
    "message": "Headers Message",
    "outbox": "Outbox",
    "patterns.circuit_breaker": "CircuitBreaker",
    "patterns.failure": "FailurePolicy RetryChain",
    "patterns.hot_keys": "split_hot_key",
    "patterns.once": "Inbox Lease",
    "patterns.ordering": "Ordered",
    "patterns.outbox": "RelayOptions",
    "patterns.redrive": "DeadLetters Selection",
    "patterns.flood": "DeadLetterPolicy",
    "requester": "Requester",
    "service": "Service",
    "stores.dynamodb": "DynamoDBStore",
    "stores.memory": "MemoryStore",
    "stores.mysql": "MySQLStore",
    "stores.postgres": "PostgresStore",
    "stores.redis": "RedisStore",
    "stores.sqlite": "SQLiteStore",
    "sync": "SyncBroker connect_sync",
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names.split()}

__version__ = "0.1.0"

__all__ = [
    "AdaptiveConcurrency",
    "AtLeastOnceError",
    "Backoff",
    "Broker",
    "BrokerUnavailable",
    "Channel",
    "CircuitBreaker",
    "Closed",
    "ConfigurationError",
    "ConnectionLost",
    "Context",
    "DeadLetter",
    "DeadLetters",
    "DeadLetterPolicy",
    "DecodeError",
    "DynamoDBStore",
    "Discard",
    "EncodeError",
    "FailurePolicy",
    "HandlerCancelled",
    "HandlerTimeout",
    "Headers",
    "IdempotencyMismatch",
    "Inbox",
    "InvalidIdempotencyKey",
    "InvalidOrderKey",
    "InvalidMessage",
    "Lease",
    "Message",
    "MySQLStore",
    "MemoryStore",
    "MessageTooLarge",
    "MissingExtra",
    "NoResponder",
    "NotFound",
    "Ordered",
    "Outbox",
    "Overloaded",
    "PermissionDenied",
    "PostgresStore",
    "PublishError",
    "QuorumMissed",
    "Queue",
    "RedisStore",
    "Rejected",
    "RelayOptions",
    "RemoteError",
    "RequestError",
    "RequestTimeout",
    "Requester",
    "RetryChain",
    "RetryLater",
    "Selection",
    "Service",
    "Source",
    "SQLiteStore",
    "StoreUnavailable",
    "SyncBroker",
    "Topic",
    "TransactionEnded",
    "Unconfirmed",
    "__version__",
    "connect",
    "connect_sync",
    "split_hot_key",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
