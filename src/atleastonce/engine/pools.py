"""What runs handlers, and what its kinds have in common: lane tasks for ``async def`` (`async_pool`), our own worker threads for
``def`` (`thread_pool`), tasks for lists (`batches`).

Which of them is decided once, at registration. Nothing is created for a message.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from atleastonce.contract import Delivery
from atleastonce.engine.decision import GIVE_BACK, Decision
from atleastonce.errors import HandlerCancelled

log = logging.getLogger("atleastonce.engine")

Ended = Callable[[Delivery, Decision], None]
Failed = Callable[[Delivery, BaseException], Decision]
Fatal = Callable[[BaseException], None]

# A handler that cancels itself is not failed and not finished: it runs again after this, without burning an attempt.
SELF_CANCELLED = Decision(again=1.0, name="released")
# A run that ends that way is a failure once the delivery has been run this often before. Smaller makes dead letters of messages
# that met a short trouble, such as a client that cancels its calls while it reconnects; larger holds one whose handler always does
# it, and the suspects behind it, for as many seconds longer in each attempt.
SELF_CANCELLED_RUNS = 5
# How long a stop waits for handlers to let go after they were cancelled. Smaller cuts off their clean-up; larger lets one
# that ignores its cancellation delay the end of the process.
CANCEL_SECONDS = 5.0


def self_cancelled(delivery: Delivery, cancelled: asyncio.CancelledError, failed: Failed, fatal: Fatal) -> Decision:
    """What follows when a run of ``delivery`` ended in ``cancelled``, and neither a timeout nor a stop of ours did it."""
    if delivery.tries <= SELF_CANCELLED_RUNS:
        return SELF_CANCELLED
    error = HandlerCancelled(
        f"run {delivery.tries} of this delivery ended in CancelledError, and nobody had cancelled it: it comes from the handler, "
        "or from something that it awaits; catch it there, and raise what it means"
    )
    error.__cause__ = cancelled
    # Never raised itself: where the other one came from is what tells dead letters of different places apart.
    return judged(delivery, error.with_traceback(cancelled.__traceback__), failed, fatal)


def judged(delivery: Delivery, error: Exception, failed: Failed, fatal: Fatal) -> Decision:
    """What ``failed`` says. As with any error of the policy, what it raises gives the message back, and the service is told."""
    try:
        return failed(delivery, error)
    except Exception as bug:
        log.exception("the handler or policy of %s ended the service; the message is given back", delivery.source)
        fatal(bug)
        return GIVE_BACK


class Pool(Protocol):
    """Runs the handlers of one worker."""

    ticks: bool
    """Whether `cancel_late` is to be called about 20 times a second while anything is out."""

    @property
    def busy(self) -> bool:
        """Whether a handler runs, or may start although the lanes are closed."""

    @property
    def vacant(self) -> bool:
        """Whether another handler could start."""

    def start(self) -> None:
        """Begin, on the running loop."""

    def wake(self) -> None:
        """Something was offered to the lanes, or finished in them."""

    def cancel_late(self, now: float) -> None:
        """Stop the runs that are past their timeout, where they can be stopped."""

    def reclaim(self, unwanted: Callable[[Delivery], bool]) -> list[Delivery]:
        """Take back what was handed to a thread, has not started, and is ``unwanted``."""

    async def stop(self) -> None:
        """Cancel what can be cancelled; what was running is given back."""
