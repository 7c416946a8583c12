"""Which of the received messages may run now: not what is due later."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from atleastonce.contract import Delivery
from atleastonce.engine.decision import Decision

log = logging.getLogger("atleastonce.engine")

# How late a message begins before its worker is behind, and for how long it stays so after the last one.
_LATE_SECONDS, _BEHIND_SECONDS = 0.05, 0.1

Due = Callable[[Delivery], "float | Decision"]


class Admission:
    """Asked by one worker, of whole lists.

    Args:
        due: when a delivery may run, in seconds since the epoch (0.0: now), or what becomes of it without a run; None
            where nothing is held.
        hold: keeps a delivery until then.
        ended: told what becomes of one without a run.
    """

    def __init__(
        self,
        due: Due | None,
        *,
        hold: Callable[[Delivery, float], None],
        ended: Callable[[Delivery, Decision], None],
    ) -> None:
        self.due = due
        self._hold = hold
        self._ended = ended
        self._late_at = 0.0

    @property
    def late(self) -> bool:
        """Whether a message has begun a good while after it was due, a moment ago."""
        return time.monotonic() - self._late_at < _BEHIND_SECONDS

    def held(self, batch: Sequence[Delivery], due: Due) -> list[Delivery]:
        """Put aside what is not ``due`` yet; return the rest."""
        now = time.time()
        latest = 0.0
        ready: list[Delivery] = []
        for delivery in batch:
            when: float | Decision
            try:
                when = due(delivery)
            except Exception as error:  # noqa: BLE001 - it reads what others wrote; one bad message harms no other
                log.warning("%s: when it is due cannot be told (%r); it runs now", delivery.message.id, error)
                when = 0.0
            if isinstance(when, Decision):
                self._ended(delivery, when)
            elif when > now:
                self._hold(delivery, when)
            else:
                latest = max(latest, now - when if when else 0.0)
                ready.append(delivery)
        if latest > _LATE_SECONDS:
            self._late_at = time.monotonic()
        return ready

    def due_at(self, delivery: Delivery) -> float:
        """When ``delivery`` may run, or be decided without a run; 0.0 for now. For what is to wait elsewhere until then."""
        try:
            when = 0.0 if self.due is None else self.due(delivery)
        except Exception:  # noqa: BLE001 - told by `held`, which is asked in the end
            return 0.0
        return 0.0 if isinstance(when, Decision) else when
