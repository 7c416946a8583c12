"""What runs handlers, and what its kinds have in common: lane tasks for ``async def`` (`async_pool`), our own worker threads for
``def`` (`thread_pool`), tasks for lists (`batches`).

Which of them is decided once, at registration. Nothing is created for a message.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from atleastonce.contract import Delivery
from atleastonce.engine.decision import Decision

Ended = Callable[[Delivery, Decision], None]
Failed = Callable[[Delivery, BaseException], Decision]
Fatal = Callable[[BaseException], None]

# A handler that cancels itself is not failed and not finished: it runs again after this, without burning an attempt.
SELF_CANCELLED = Decision(again=1.0, name="released")
# How long a stop waits for handlers to let go after they were cancelled. Smaller cuts off their clean-up; larger lets one
# that ignores its cancellation delay the end of the process.
CANCEL_SECONDS = 5.0


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
