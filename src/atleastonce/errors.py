"""Every error that a user can catch, and the three exceptions a handler raises to steer its message.

All errors derive from `AtLeastOnceError`. Programs act on the class; the text is for people and says what to change.
"""

from __future__ import annotations

from collections.abc import Sequence


def ends_process(error: BaseException) -> bool:
    """Whether ``error`` says that the process is to end, alone or in a group, and is never a failure of what was called.

    Where a function is called and not awaited, everything else is one: nobody can cancel it, or throw it away with its loop.
    """
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup((SystemExit, KeyboardInterrupt)) is not None
    return isinstance(error, SystemExit | KeyboardInterrupt)


class AtLeastOnceError(Exception):
    """Base of every error that this library raises."""


class ConfigurationError(AtLeastOnceError):
    """What was asked for cannot be: a typo, a contradiction, or a promise that the broker cannot keep.

    Raised before the first message moves. The command line turns it into one line and exit code 2.
    """


class MissingExtra(ConfigurationError):
    """A client library is not installed; the text names the extra that brings it."""

    def __init__(self, extra: str, module: str) -> None:
        super().__init__(f'{module} is not installed; run: pip install "atleastonce[{extra}]"')
        self.extra = extra


class InvalidMessage(ConfigurationError):
    """A message that no broker may be handed: a header with CR, LF or NUL, a reserved name, a key of a wrong type."""


class BrokerUnavailable(AtLeastOnceError):
    """The broker cannot be reached, or refuses the connection. Trying again later may work."""


class ConnectionLost(BrokerUnavailable):
    """The connection or subscription ended under the caller. What was unsettled will be delivered again."""


class StoreUnavailable(AtLeastOnceError):
    """A store of idempotency (inbox, leases, outbox) cannot be reached or did not answer. Trying again later may work."""


class NotFound(AtLeastOnceError):
    """A channel, group or queue that does not exist on the broker, where creating it was not asked for."""


class PermissionDenied(AtLeastOnceError):
    """The broker knows who asks and refuses: wrong credentials, missing rights. Trying again does not help."""


class Closed(AtLeastOnceError):
    """The broker, subscription or service was closed already."""


class DecodeError(AtLeastOnceError):
    """A payload that does not decode to the type its handler asks for. Such a message goes straight to the DLQ."""


class InvalidIdempotencyKey(AtLeastOnceError):
    """A message whose idempotency key is missing, null or no key. It goes straight to the DLQ, stage ``key``."""


class InvalidOrderKey(AtLeastOnceError):
    """A message whose order key is missing, or cannot be read. It goes straight to the DLQ, stage ``key``: run out of its order it
    would break a promise."""


class KeyParked(AtLeastOnceError):
    """An earlier message of its key was given up, and ``park=True`` says that it follows: why it is a dead letter, never raised."""


class IdempotencyMismatch(AtLeastOnceError):
    """A message under a known key with another body. It never runs and goes to the DLQ, stage ``mismatch``."""


class TransactionEnded(AtLeastOnceError):
    """A handler committed or rolled back ``ctx.tx`` itself, whatever it did then. Nobody can tell which of its effects there are:
    its message goes to the DLQ and does not run again by itself."""


class CrashLoop(AtLeastOnceError):
    """A message that ended its process again and again: why it is a dead letter, never raised."""


class EncodeError(AtLeastOnceError):
    """A payload that cannot be encoded. Nothing was sent."""


class PublishError(AtLeastOnceError):
    """Base of what a publish can raise."""


class Rejected(PublishError):
    """The message is certainly *not* in the broker, and publishing it again unchanged would fail again.

    Too large, no such channel, no permission, unroutable.
    """


class MessageTooLarge(Rejected):
    """The message exceeds what the broker takes; found out before any IO where the limit is known."""


class Unconfirmed(PublishError):
    """Nobody knows whether the message is in the broker: the confirmation was lost or never came.

    Publishing the same ``id`` again is safe for an idempotent consumer.
    """


class Overloaded(PublishError):
    """Too much: publishes or requests were pending for as long as the caller was ready to wait, or the broker has no room for more:
    its memory, its disk, a quota, a full queue.

    Publish less, or later. What did not even leave is said to be *not sent*. For the rest publishing the same ``id`` again is safe
    for an idempotent consumer.
    """


class RequestError(AtLeastOnceError):
    """Base of what a request can end in, besides an answer."""


class RequestTimeout(RequestError):
    """No answer came in time. The responder may have handled the request all the same, or may handle it yet."""


class NoResponder(RequestError):
    """Nobody reads the channel that was asked, as the broker tells: the request was handled by no one."""


class RemoteError(RequestError):
    """The responder could not answer, and said why. A responder's handler may raise one, to choose what its asker sees.

    Attributes:
        type: the name of the error over there.
        message: one line.
        retryable: whether asking again later may help, as the responder sees it.
    """

    def __init__(self, type: str, message: str = "", *, retryable: bool = False) -> None:  # noqa: A002 - as it is called
        super().__init__(f"{type}: {message}" if message else type)
        self.type = type
        self.message = message
        self.retryable = retryable


class QuorumMissed(RequestTimeout):
    """Fewer than the wanted number of responders answered in time.

    Attributes:
        replies: the answers that came.
        errors: the errors that came instead of answers, and a `DecodeError` for each answer that does not decode.
    """

    def __init__(self, text: str, replies: Sequence[object], errors: Sequence[RequestError | DecodeError]) -> None:
        super().__init__(text)
        self.replies = replies
        self.errors = errors


class HandlerTimeout(AtLeastOnceError):
    """A handler ran longer than its ``timeout``; its message is treated as failed."""


class HandlerCancelled(AtLeastOnceError):
    """A handler ended in ``CancelledError`` again and again, although nobody cancelled it; its message is treated as failed."""


class DrainTimeout(AtLeastOnceError):
    """Handlers were still running when the time for draining was over; their messages will be delivered again."""


class Control(AtLeastOnceError):
    """Base of the exceptions that a handler raises on purpose: they are decisions, not failures."""


class RetryLater(Control):
    """Run this message again after ``delay`` (a duration such as ``"10m"``; default: the policy's next delay).

    ``count=False`` leaves the attempt counter alone, where the broker lets it be left alone.
    """

    def __init__(self, delay: str | float | None = None, *, count: bool = True) -> None:
        super().__init__("retry later" if delay is None else f"retry after {delay}")
        self.delay = delay
        self.count = count


class DeadLetter(Control):
    """Move this message to the dead-letter queue now, with ``reason``."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Discard(Control):
    """Done with this message without handling it: acknowledged and counted, with ``reason``."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
