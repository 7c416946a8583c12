"""What may stand between a worker and its lanes, and between its verdicts and the broker: somebody who is asked before a message
may run, and told how it ended before the broker is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from atleastonce.contract import Delivery, Verdict
from atleastonce.engine.decision import Decision


class Host(Protocol):
    """The worker behind a gate."""

    def admit(self, batch: Sequence[Delivery]) -> None:
        """These may run."""

    def ended(self, delivery: Delivery, decision: Decision) -> None:
        """That is what becomes of it instead."""

    def hasten(self, wanted: Callable[[Delivery], bool]) -> None:
        """Run now what waits to run again in place and is ``wanted``."""


class Gate(Protocol):
    """Everything is called on the event loop. A delivery enters each time that it is to run and has not run yet."""

    def attach(self, host: Host, settle: Callable[[Delivery, Verdict], None]) -> None:
        """Before anything else: who stands behind, and how the broker is told."""

    def enter(self, batch: Sequence[Delivery]) -> None:
        """These want to run: to be answered with `Host.admit` or `Host.ended`, in a while."""

    def settle(self, delivery: Delivery, verdict: Verdict) -> None:
        """It has ended, so the broker is to be told, once that may be. Its first verdict counts."""

    def purge(self, unwanted: Callable[[Delivery], bool]) -> list[Delivery]:
        """Remove and return what has entered, was not asked for, and is ``unwanted``."""

    def forget(self, batch: Sequence[Delivery]) -> None:
        """These are over, settled or not."""

    @property
    def idle(self) -> bool:
        """Whether nothing waits here to be settled."""

    async def run(self) -> None:
        """Ask and tell, until cancelled."""
