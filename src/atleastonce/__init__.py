"""Messaging patterns, each written once, over real brokers.

Everything a normal consumer or producer needs::

    from atleastonce import Service, Topic

The broker does not solve distributed-systems problems, it relocates them: design for at-least-once, make every
consumer idempotent,
bound what is in flight, give every queue a dead-letter queue, and test the unhappy path.
"""

from atleastonce.broker import Broker, connect
from atleastonce.channels import Channel, Queue, Source, Topic
from atleastonce.context import Context
from atleastonce.engine.backoff import Backoff
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
    HandlerTimeout,
    InvalidMessage,
    MessageTooLarge,
    MissingExtra,
    NotFound,
    Overloaded,
    PermissionDenied,
    PublishError,
    Rejected,
    RetryLater,
    Unconfirmed,
)
from atleastonce.message import Headers, Message
from atleastonce.patterns.failure import FailurePolicy, RetryChain
from atleastonce.service import Service
from atleastonce.sync import SyncBroker, connect_sync

__version__ = "0.1.0"

__all__ = [
    "AtLeastOnceError",
    "Backoff",
    "Broker",
    "BrokerUnavailable",
    "Channel",
    "Closed",
    "ConfigurationError",
    "ConnectionLost",
    "Context",
    "DeadLetter",
    "DecodeError",
    "Discard",
    "EncodeError",
    "FailurePolicy",
    "HandlerTimeout",
    "Headers",
    "InvalidMessage",
    "Message",
    "MessageTooLarge",
    "MissingExtra",
    "NotFound",
    "Overloaded",
    "PermissionDenied",
    "PublishError",
    "Queue",
    "Rejected",
    "RetryChain",
    "RetryLater",
    "Service",
    "Source",
    "SyncBroker",
    "Topic",
    "Unconfirmed",
    "__version__",
    "connect",
    "connect_sync",
]
