"""Messaging patterns, each written once, over real brokers.

Everything a normal consumer or producer needs::

    from atleastonce import Service, Topic

The broker does not solve distributed-systems problems, it relocates them: design for at-least-once, make every
consumer idempotent,
bound what is in flight, give every queue a dead-letter queue, and test the unhappy path.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

# Each name is loaded when it is first used: asyncio and msgspec alone cost most of a tenth of a second, which a program
# that only asks for --help does not need. Editors and type checkers read the imports above.
_NAMES = {
    "broker": "Broker connect",
    "channels": "Channel Queue Source Topic",
    "context": "Context",
    "engine.backoff": "Backoff",
    "errors": (
        "AtLeastOnceError BrokerUnavailable Closed ConfigurationError ConnectionLost DeadLetter DecodeError "
        "Discard EncodeError HandlerTimeout InvalidMessage MessageTooLarge MissingExtra NotFound Overloaded "
        "PermissionDenied PublishError Rejected RetryLater Unconfirmed"
    ),
    "message": "Headers Message",
    "patterns.failure": "FailurePolicy RetryChain",
    "service": "Service",
    "sync": "SyncBroker connect_sync",
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names.split()}

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


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
