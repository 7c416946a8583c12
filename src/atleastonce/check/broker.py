"""What a broker's settings can lose, whatever the policy: at a full disk, a failover, a restart."""

from __future__ import annotations

from collections.abc import Iterable

from atleastonce.check import rules
from atleastonce.check.finding import Finding, Rule
from atleastonce.contract import Fact, Trait
from atleastonce.durations import readable

_SHOWN = 3


def broker(facts: Iterable[Fact]) -> list[Finding]:
    """What follows from ``facts`` by themselves; channels with one setting in common are told in one finding."""
    groups: dict[tuple[Trait, str, str, float | None], list[Fact]] = {}
    for fact in dict.fromkeys(facts):
        if fact.trait in _RULES:
            groups.setdefault((fact.trait, fact.setting, fact.found, fact.amount), []).append(fact)
    return [_finding(members) for members in groups.values()]


_RULES: dict[Trait, tuple[Rule, str, str]] = {
    Trait.DROPS: (rules.DROPS_WHEN_FULL, "the oldest are removed", "let it refuse instead, or raise the limit"),
    Trait.VANISHES: (rules.VANISHES, "it is removed when it was idle for {time}", "take {setting} away"),
    Trait.REFUSES: (
        rules.NEVER_CONFIRMED,
        "there are {amount} copies",
        "lower {setting} to {amount} or less, or keep more copies",
    ),
    Trait.ONE_CONFIRMS: (rules.CONFIRMED_BY_ONE, "of {amount} copies one confirms", "set {setting}=2"),
    Trait.UNCLEAN: (rules.UNCLEAN_LEADERS, "", "set {setting}=false"),
    Trait.ONE_COPY: (rules.ONE_COPY, "one copy, on {amount} nodes", "keep three copies"),
    Trait.ONE_NODE: (rules.ONE_NODE, "", ""),
    Trait.VOLATILE: (rules.VOLATILE, "nothing of it is on a disk", "let it be kept on disk"),
    Trait.LATE_SYNC: (rules.LATE_SYNC, "", ""),
    Trait.EVICTS: (rules.EVICTS, "", "set {setting}=noeviction"),
    Trait.PROCESS: (rules.PROCESS_BOUND, "", ""),
    Trait.AUTO_CREATES: (rules.AUTO_CREATE, "", ""),
}


def _finding(members: list[Fact]) -> Finding:
    first = members[0]
    rule, what, change = _RULES[first.trait]
    amount = first.amount if first.amount is not None else 0.0
    filled = {"setting": first.setting, "amount": f"{amount:g}", "time": readable(amount)}
    names = sorted({fact.name for fact in members})
    subject = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    shown = f"{first.setting}={first.found}"
    if what:
        shown += f": {what.format(**filled)}"
    return rule.found(subject, shown, change.format(**filled), first.setting if len(names) == 1 else "")
