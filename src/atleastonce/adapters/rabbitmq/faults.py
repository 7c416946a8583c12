"""From reply codes and pika's exceptions to faults, and from faults to the errors that users catch."""

from __future__ import annotations

import re
import socket
import ssl
from typing import Final

from pika import exceptions as amqp
from pika.adapters.utils import connection_workflow as workflow

from atleastonce.contract import Code, Fault, Scope
from atleastonce.errors import AtLeastOnceError, BrokerUnavailable, Closed, ConnectionLost, NotFound, PermissionDenied
from atleastonce.urls import mask

# AMQP 0-9-1, section 1.2 "Reply codes", as RabbitMQ uses them: code and whether repeating may help.
_REPLIES: Final = {
    311: (Code.TOO_LARGE, False),
    312: (Code.UNROUTABLE, False),
    320: (Code.UNAVAILABLE, True),  # closed by an operator, or the node stops
    402: (Code.NOT_FOUND, False),
    403: (Code.PERMISSION, False),
    404: (Code.NOT_FOUND, False),
    405: (Code.CONFLICT, True),  # somebody has the queue to himself
    406: (Code.INVALID, False),
    501: (Code.INVALID, False),
    502: (Code.INVALID, False),
    503: (Code.INVALID, False),
    504: (Code.INTERNAL, True),
    505: (Code.INVALID, False),
    506: (Code.OVERLOADED, True),
    530: (Code.PERMISSION, False),
    540: (Code.INVALID, False),
    541: (Code.UNAVAILABLE, True),  # a queue's leader is away, a node lost its peers
}

CONTENT: Final = frozenset({311, 403, 404, 406, 501, 502, 503, 505, 530, 540})
"""With these the broker objects to *what was sent*; the others say something about itself."""

_INNER = re.compile(r"\((\d{3})\)\s*(['\"])(.*?)\2")


def reply_code(error: BaseException) -> int:
    """The broker's reply code, 0 where ``error`` is not the broker's word."""
    if isinstance(error, amqp.ChannelClosedByBroker | amqp.ConnectionClosedByBroker):
        return int(error.reply_code)
    return 0


def _reply(code: int, text: str, scope: Scope) -> Fault:
    known, retryable = _REPLIES.get(code, (Code.INTERNAL, False))
    if code == 406:
        if "inequivalent arg" in text:
            known = Code.CONFLICT
        elif "timed out" in text:
            known, retryable = Code.TIMEOUT, True
        elif "larger than" in text:
            known = Code.TOO_LARGE
        elif "unknown delivery tag" in text:
            known = Code.STALE
    elif code == 530 and "not found" in text:
        known = Code.NOT_FOUND
    elif code == 541 and "not found" in text:
        known, retryable = Code.NOT_FOUND, False
    return Fault(known, retryable, scope, mask(text))


def classify(error: BaseException) -> Fault:
    """The fault behind ``error``; `Code.INTERNAL` for what is not known."""
    unavailable = Code.UNAVAILABLE
    if isinstance(error, workflow.AMQPConnectionWorkflowFailed):
        return classify(_telling(error.exceptions))
    if isinstance(error, workflow.AMQPConnectorPhaseErrorBase):
        return classify(error.exception)
    if isinstance(error, workflow.AMQPConnectorStackTimeout):
        return Fault(Code.TIMEOUT, True, Scope.CONNECTION, "the broker did not finish the handshake in time")
    if isinstance(error, amqp.ChannelClosedByBroker):
        return _reply(error.reply_code, error.reply_text, Scope.SUBSCRIPTION)
    if isinstance(error, amqp.ConnectionClosedByBroker):
        return _reply(error.reply_code, error.reply_text, Scope.CONNECTION)
    if isinstance(error, amqp.ProbableAuthenticationError | amqp.ProbableAccessDeniedError):
        inner = _INNER.search(str(error))
        if inner is not None:
            return _reply(int(inner[1]), inner[3], Scope.CONNECTION)
        return Fault(Code.PERMISSION, False, Scope.CONNECTION, "the broker hung up during the login")
    if isinstance(error, amqp.AuthenticationError):
        return Fault(Code.PERMISSION, False, Scope.CONNECTION, "no common way to log in")
    if isinstance(error, amqp.IncompatibleProtocolError):
        # All that is known: our header was not answered. What answers otherwise fails in other ways.
        return Fault(
            unavailable,
            True,
            Scope.CONNECTION,
            "the connection was closed before an answer; is a broker behind this address, without TLS?"
            " (a proxy or balancer without one, a TLS port and other services end like this)",
        )
    if isinstance(error, amqp.ConnectionBlockedTimeout):
        return Fault(Code.OVERLOADED, True, Scope.CONNECTION, "blocked for too long: the broker lacks memory or disk")
    if isinstance(error, amqp.AMQPHeartbeatTimeout):
        return Fault(unavailable, True, Scope.CONNECTION, "no heartbeat from the broker")
    if isinstance(error, amqp.ConnectionClosedByClient | amqp.ChannelClosedByClient):
        return Fault(Code.CLOSED, False, Scope.CONNECTION, "closed by us")
    if isinstance(error, amqp.StreamLostError):
        return Fault(unavailable, True, Scope.CONNECTION, f"connection lost: {_tidy(error)}")
    if isinstance(error, ssl.SSLError):
        return Fault(unavailable, False, Scope.CONNECTION, f"TLS: {_tls(error)}")
    if isinstance(error, TimeoutError | socket.timeout | workflow.AMQPConnectorException):
        return Fault(Code.TIMEOUT, True, Scope.CONNECTION, "no answer in time")
    if isinstance(error, socket.gaierror):
        return Fault(unavailable, True, Scope.CONNECTION, f"the host's name does not resolve: {error.strerror}")
    if isinstance(error, OSError):
        return Fault(unavailable, True, Scope.CONNECTION, error.strerror or str(error))
    if isinstance(error, amqp.AMQPConnectionError | amqp.ChannelWrongStateError):
        return Fault(unavailable, True, Scope.CONNECTION, _tidy(error))
    if isinstance(error, PermissionDenied):
        return Fault(Code.PERMISSION, False, Scope.CONNECTION, str(error))
    if isinstance(error, NotFound):
        return Fault(Code.NOT_FOUND, False, Scope.SUBSCRIPTION, str(error))
    if isinstance(error, BrokerUnavailable):
        return Fault(unavailable, True, Scope.CONNECTION, str(error))
    if isinstance(error, Closed):
        return Fault(Code.CLOSED, False, Scope.CONNECTION, str(error))
    return Fault(Code.INTERNAL, False, Scope.MESSAGE, mask(f"{type(error).__name__}: {error}"))


def _telling(errors: tuple[BaseException, ...]) -> BaseException:
    """Of the failures of several hosts, the one that explains most: a refusal before a silence."""
    for error in errors:
        if classify(error).code in (Code.PERMISSION, Code.NOT_FOUND):
            return error
    return errors[-1]


def _tls(error: ssl.SSLError) -> str:
    return str(getattr(error, "verify_message", None) or getattr(error, "reason", None) or error)


def _tidy(error: BaseException) -> str:
    text = ", ".join(str(argument) for argument in error.args) or type(error).__name__
    return mask(text.removeprefix("Stream connection lost: "))


def as_error(error: BaseException, what: str, *, lost: bool = False) -> AtLeastOnceError:
    """The error that a user sees for ``error``: ``what`` was tried, and why it failed."""
    fault = classify(error)
    text = f"{what}: {fault.detail or fault.code.value}"
    if fault.code is Code.PERMISSION:
        return PermissionDenied(text)
    if fault.code is Code.NOT_FOUND:
        return NotFound(text)
    return ConnectionLost(text) if lost else BrokerUnavailable(text)
