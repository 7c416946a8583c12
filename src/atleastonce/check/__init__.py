"""What cannot be kept: a service against what its broker can, and against what is really there. Pure: no IO.

A start and ``atleastonce check`` say the same sentences, because both get them here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from atleastonce.check.broker import broker
from atleastonce.check.finding import Finding, Rule, Severity
from atleastonce.check.policy import in_place, leaves, policy, together, wanted, wants_order
from atleastonce.check.rules import RULES
from atleastonce.check.settings import memory, settings
from atleastonce.check.topology import impossible, topology
from atleastonce.errors import ConfigurationError

log = logging.getLogger("atleastonce")

_GRAVITY = ("note", "warn", "refuse")
_DIFFERENCES = frozenset(rule.code for rule in RULES if rule.asks == "topology")


def merge(findings: Iterable[Finding]) -> list[Finding]:
    """Each once, and no mere difference of a setting of which another finding says what follows from it."""
    each = list(dict.fromkeys(findings))
    explained = {
        (finding.subject, finding.setting): _GRAVITY.index(finding.severity)
        for finding in each
        if finding.setting and finding.code not in _DIFFERENCES
    }
    return [
        finding
        for finding in each
        if finding.code not in _DIFFERENCES
        or explained.get((finding.subject, finding.setting), -1) < _GRAVITY.index(finding.severity)
    ]


def refuse(findings: Sequence[Finding]) -> None:
    """Stop at the first of ``findings`` that no service may start with.

    Raises:
        ConfigurationError: there is one.
    """
    for finding in findings:
        if finding.severity == "refuse":
            raise ConfigurationError(finding.text)


def enforce(findings: Sequence[Finding]) -> None:
    """What a start does about ``findings``: it logs warnings.

    Raises:
        ConfigurationError: one of them is refused.
    """
    refuse(findings)
    for finding in findings:
        if finding.severity == "warn":
            log.warning("%s: %s", finding.text, finding.why)


__all__ = [
    "Finding",
    "RULES",
    "Rule",
    "Severity",
    "broker",
    "enforce",
    "impossible",
    "in_place",
    "leaves",
    "memory",
    "merge",
    "policy",
    "refuse",
    "settings",
    "together",
    "topology",
    "wanted",
    "wants_order",
]
