"""One transaction of an inbox: how far it came, and the exceptions that end it on purpose."""

from __future__ import annotations

import enum
from typing import Any

from atleastonce.contract import Delivery
from atleastonce.stores.records import Entry


class Stage(enum.Enum):
    """How far a transaction has come."""

    CLAIM = "claim"
    HANDLER = "handler"
    OUTPUTS = "outputs"
    """The handler has succeeded: whether its transaction is whole, and the rows of what it published."""
    COMMIT = "commit"


class Run:
    """One transaction.

    Attributes:
        stage: how far it has come.
        driver: its connection.
        entries: what the claim said.
        unanswered: the claim was not answered in time. What a session makes of that at its end may tell nothing of it.
        held: of a handler that raised, whether the transaction was still the one it was given; None: the connection does not say.
        sure: ``held`` is the handler's doing, and not the database's.
        spoilt: of a handler that raised, whether its transaction could not go on.
    """

    def __init__(self) -> None:
        self.stage = Stage.CLAIM
        self.driver: Any = None
        self.entries: list[Entry] = []
        self.unanswered = False
        self.held: bool | None = True
        self.sure = self.spoilt = False


class Looked(Exception):
    """Ends a transaction that only looked."""


class Undo(Exception):
    """These messages failed by the handler's own account; the others are to run without them."""

    def __init__(self, failures: dict[Delivery, Exception]) -> None:
        self.failures = failures
