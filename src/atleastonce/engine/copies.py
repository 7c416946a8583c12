"""What becomes of a copy that could not be published: another decision, or the same again later."""

from __future__ import annotations

import logging
from collections.abc import Callable

from atleastonce.contract import Delivery, Fault
from atleastonce.engine.backoff import Backoff
from atleastonce.engine.decision import Decision

log = logging.getLogger("atleastonce.engine")

# Short at first, because most failures are hiccups; ten seconds at most, because a person may be watching the recovery.
_BACKOFF = Backoff("100ms", factor=2, maximum="10s")


class FailedCopies:
    """Counts how often the copies of each delivery have failed.

    Args:
        wait: gives a delivery and its decision back after so many seconds.
        refused: told that a copy was refused for good; whether something else was decided.
    """

    def __init__(
        self,
        wait: Callable[[float, Delivery, Decision], None],
        refused: Callable[[Delivery, Decision, Fault], bool],
    ) -> None:
        self._wait = wait
        self._refused = refused
        self._failures: dict[Delivery, int] = {}

    def __len__(self) -> int:
        return len(self._failures)

    def replaced(self, delivery: Delivery, decision: Decision, fault: Fault) -> bool:
        """Whether ``delivery`` ends another way, since a copy is refused for good."""
        try:
            replaced = self._refused(delivery, decision, fault)
        except Exception:  # the policy's own failure must not cost the message, nor the moves of others
            log.exception("deciding about the refused copy of %s failed", delivery.message.id)
            return False
        if replaced:
            self.forget(delivery)
        return replaced

    def again(self, delivery: Delivery, decision: Decision, fault: Fault | None) -> None:
        """Have the copies of ``decision`` published once more, later."""
        names = {copy.destination.name for copy in decision.copies}
        destinations = ", ".join(sorted(names)) if decision.draft is None else decision.draft.destination.name
        log.warning("%s could not be moved to %s (%s); trying again", delivery.message.id, destinations, fault)
        failures = self._failures[delivery] = self._failures.get(delivery, 0) + 1
        pause = _BACKOFF.wait(failures)
        assert pause is not None  # noqa: S101 - the back-off has no last attempt
        self._wait(pause, delivery, decision)

    def forget(self, delivery: Delivery) -> None:
        """The delivery has ended: stop counting its failures."""
        self._failures.pop(delivery, None)
