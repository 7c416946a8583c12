"""What is raised for a message that was not published, or perhaps not."""

from __future__ import annotations

from atleastonce.channels import Topic
from atleastonce.contract import Code, Outcome, Outgoing, Status
from atleastonce.errors import MessageTooLarge, Overloaded, Rejected, Unconfirmed


def publish_error(item: Outgoing, outcome: Outcome) -> Rejected | Unconfirmed | Overloaded:
    """The exception for an outcome that is not ok."""
    text = f"{item.message.id} to {_name(item)}: {outcome.fault}"
    if outcome.fault is not None and outcome.fault.code is Code.OVERLOADED:  # the same whichever broker asks for less
        return Overloaded(f"{text}; publish less, or the same id again later")
    if outcome.status is Status.UNKNOWN:
        return Unconfirmed(f"{text}; publishing the same id again is safe for an idempotent consumer")
    if outcome.fault is not None and outcome.fault.code is Code.TOO_LARGE:
        return MessageTooLarge(f"{text}; send a reference to it instead, or raise the broker's limit")
    return Rejected(text)


def _name(item: Outgoing) -> str:
    kind = "topic" if isinstance(item.destination, Topic) else "queue"
    return f"{kind} {item.destination.name}"
