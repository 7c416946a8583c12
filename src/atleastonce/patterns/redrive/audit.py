"""What a redrive or purge did, one line for each message: who, when, which, from where to where, and how it ended."""

from __future__ import annotations

import base64
import getpass
import socket
import time
from collections.abc import Callable, Sequence
from typing import TypeAlias

import msgspec

from atleastonce.message import new_id
from atleastonce.patterns.redrive.letters import Letter


class AuditLine(msgspec.Struct, frozen=True, omit_defaults=True):
    """One message. Optional fields are left out where they say nothing.

    Attributes:
        at: seconds since the epoch.
        run: the same for all lines of one run.
        by: ``user@host``.
        action: redrive, purge.
        id, fingerprint, error_type: of the message and its failure.
        source: the dead-letter queue.
        destination: where the copy went.
        outcome: ``redriven``, ``purged``; ``failed`` with the reason in ``detail``, in which case it is still dead.
        redrives: how often it has come back now.
        detail: why it failed.
        original: the body before it was edited, base64.
    """

    at: float
    run: str
    by: str
    action: str
    id: str
    fingerprint: str
    error_type: str
    source: str
    outcome: str
    destination: str = ""
    redrives: int = 0
    detail: str = ""
    original: str | None = None


Audit: TypeAlias = Callable[[Sequence[AuditLine]], None]
"""Takes the lines of a batch after its copies are confirmed and before its letters are settled: a message that is gone from the
dead letters is in the audit. What it raises ends the run."""


class Auditor:
    """Writes the lines of one run."""

    def __init__(self, audit: Audit | None, action: str, source: str, destination: str = "") -> None:
        self._audit = audit
        self._action = action
        self._source = source
        self._destination = destination
        self._run = new_id()
        self._by = f"{_user()}@{socket.gethostname()}"
        self._lines: list[AuditLine] = []

    @property
    def wanted(self) -> bool:
        """Whether anybody is told."""
        return self._audit is not None

    def note(
        self, letter: Letter, outcome: str, *, redrives: int = 0, detail: str = "", original: bytes | None = None
    ) -> None:
        """One message; told with the rest of its batch."""
        if self._audit is None:
            return
        line = AuditLine(
            at=time.time(),
            run=self._run,
            by=self._by,
            action=self._action,
            id=letter.id,
            fingerprint=letter.obituary.fingerprint,
            error_type=letter.obituary.error_type,
            source=self._source,
            outcome=outcome,
            destination=self._destination,
            redrives=redrives,
            detail=detail,
            original=None if original is None else base64.b64encode(original).decode(),
        )
        self._lines.append(line)

    def tell(self) -> None:
        """Hand the batch's lines on."""
        if self._audit is not None and self._lines:
            lines, self._lines = self._lines, []
            self._audit(lines)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return "unknown"
