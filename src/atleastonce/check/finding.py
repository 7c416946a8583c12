"""What a check says: a rule, and one place where it does not hold."""

from __future__ import annotations

from typing import Literal

import msgspec

Severity = Literal["refuse", "warn", "note"]


class Finding(msgspec.Struct, frozen=True):
    """One thing that a check found.

    Attributes:
        severity: ``"refuse"``: the service does not start with it, for a promise would certainly be broken; ``"warn"``: it
            starts and logs it, for it needs something else to go wrong; ``"note"``: nothing has to be done.
        code: of the rule, for scripts: it stays the same when words change.
        subject: the source, channel or broker that it is about, as it is called there.
        what: what is set, and what is asked for.
        why: what happens with it.
        change: what to write instead, and where.
        setting: the broker's name of the setting; "" where it is the policy's.
    """

    severity: Severity
    code: str
    subject: str
    what: str
    why: str
    change: str
    setting: str = ""

    @property
    def text(self) -> str:
        """One sentence: what it is about, what is wrong, what to change."""
        return "; ".join(filter(None, (f"{self.subject}: {self.what}" if self.subject else self.what, self.change)))


class Rule(msgspec.Struct, frozen=True):
    """What a check looks for.

    Attributes:
        code, severity, why: as in `Finding`.
        about: what it finds, for the table in the docs.
        asks: who has to be asked: ``"policy"`` nobody, ``"topology"`` what differs from what would be declared,
            ``"settings"`` the broker's own settings.
    """

    code: str
    severity: Severity
    about: str
    why: str
    asks: Literal["policy", "topology", "settings"]

    def found(self, subject: str, what: str, change: str, setting: str = "") -> Finding:
        """It does not hold for ``subject``."""
        return Finding(self.severity, self.code, subject, what, self.why, change, setting)
