"""A policy against the settings that its channels really have."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from operator import itemgetter

from atleastonce.check import rules
from atleastonce.check.finding import Finding, Rule
from atleastonce.check.policy import leaves
from atleastonce.consumer import Consumer
from atleastonce.contract import Capabilities, DelayChannel, Fact, Level, Topology, Trait
from atleastonce.durations import format_duration, readable
from atleastonce.patterns.once.options import Idempotency, last_redelivery

_DAY = 86_400.0
_DIAGNOSTICS = 8192
"""Bytes by which a copy may be larger than its original: all our header fields together stay below that."""


def settings(
    consumer: Consumer, capabilities: Capabilities, topology: Topology, facts: Iterable[Fact]
) -> list[Finding]:
    """What ``consumer`` cannot keep with what its broker was found to be set to.

    Args:
        capabilities: of the broker.
        topology: what the consumer needs there.
        facts: from `Inspects.inspect`.
    """
    return list(_Look(consumer, capabilities, topology, facts).run())


def memory(
    consumer: Consumer, capabilities: Capabilities, topology: Topology, facts: Iterable[Fact] | None
) -> float | None:
    """For how many seconds ``consumer`` remembers a message; None if it does not.

    Args:
        facts: as in `settings`; None: the broker was not heard, and as much is remembered as it may keep.
    """
    asked = consumer.idempotency
    if asked is None:
        return None
    look = _Look(consumer, capabilities, topology, facts or ())
    return look.remembered(asked, _UNTOLD if facts is None else 0.0)


_UNTOLD = 31 * _DAY
"""The longest that any broker keeps what we make on it, unless it is for ever."""


_NOT_NEEDED = (("write", True, False), ("read", False, True))
"""Rights that a service does not use: it need not publish to what it reads, nor read its dead letters."""


class _Look:
    """One consumer's channels and what is known of them."""

    def __init__(
        self, consumer: Consumer, capabilities: Capabilities, topology: Topology, facts: Iterable[Fact]
    ) -> None:
        self._consumer = consumer
        self._policy = consumer.failure
        self._capabilities = capabilities
        self._delays: tuple[DelayChannel, ...] = topology.delays
        self._dead = [queue.name for queue in topology.dead_letters]
        self._home = dict.fromkeys((consumer.home.name, consumer.home.channel.name))
        self._suspects = consumer.home.suspects_channel.name
        self._facts: defaultdict[tuple[str, Trait], list[Fact]] = defaultdict(list)
        for fact in facts:
            self._facts[fact.name, fact.trait].append(fact)

    def _of(self, names: Iterable[str], trait: Trait) -> Iterator[tuple[Fact, float]]:
        for name in names:
            for fact in self._facts.get((name, trait), ()):
                yield fact, fact.amount if fact.amount is not None else 0.0

    @property
    def _copies(self) -> list[str]:
        return [*(delay.channel.name for delay in self._delays), self._suspects, *self._dead]

    def run(self) -> Iterator[Finding]:
        yield from self._waits()
        yield from self._chain()
        yield from self._dead_letters()
        yield from self._memory()
        yield from self._sizes()
        yield from self._compaction()
        yield from self._nets()
        yield from self._rights()

    def _waits(self) -> Iterator[Finding]:
        for delay in self._delays:
            for fact, kept in self._of([delay.channel.name], Trait.RETENTION):
                shown = f"{fact.setting}={fact.found} keeps messages for {readable(kept)}, and they wait {readable(delay.delay)}"
                if kept < delay.delay:
                    change = f"raise {fact.setting} to more than {readable(delay.delay + _DAY)}"
                    yield rules.RETENTION_BELOW_DELAY.found(fact.name, shown, change, fact.setting)
                elif delay.delay and kept < delay.delay + _DAY:
                    change = f"raise {fact.setting} to {readable(delay.delay + _DAY)} or more"
                    yield rules.RETENTION_NEAR_DELAY.found(fact.name, shown, change, fact.setting)

    def _chain(self) -> Iterator[Finding]:
        here = sum(wait for wait in self._policy.delays if not leaves(self._consumer, wait, self._capabilities))
        for fact, kept in self._of(self._home, Trait.RETENTION):
            if here and kept <= here:
                yield rules.RETENTION_BELOW_CHAIN.found(
                    fact.name,
                    f"{fact.setting}={fact.found} keeps messages for {readable(kept)}, and the chain waits {readable(here)} in it",
                    f"raise {fact.setting} to more than {readable(here + _DAY)}, or shorten the chain",
                    fact.setting,
                )

    def _dead_letters(self) -> Iterator[Finding]:
        source = [kept for _, kept in self._of(self._home, Trait.RETENTION)]
        longest = max([*source, _DAY])
        for fact, kept in self._of(self._dead, Trait.RETENTION):
            if kept < longest:
                than = f"and {self._consumer.home} for {readable(longest)}" if longest > _DAY else "less than a day"
                yield rules.DEAD_LETTERS_SHORT.found(
                    fact.name,
                    f"{fact.setting}={fact.found} keeps dead letters for {readable(kept)}, {than}",
                    f"raise {fact.setting} to {readable(longest)} or more",
                    fact.setting,
                )

    def _kept(self, asked: Idempotency) -> Iterator[tuple[float, Fact, Rule]]:
        """How late a message may come again by what the broker keeps, and why."""
        for fact, kept in self._of(self._home, Trait.RETENTION):
            yield kept, fact, rules.FORGOTTEN_BEFORE_DELETED
        if asked.redrive_within is None:  # else whoever redrives keeps to that, however long they are kept
            for fact, kept in self._of(self._dead, Trait.RETENTION):
                yield last_redelivery(self._policy, kept, dead_letter=True), fact, rules.FORGOTTEN_BEFORE_REDRIVE

    def remembered(self, asked: Idempotency, untold: float = 0.0) -> float:
        """For how many seconds a message is remembered; ``untold``: as if so long were kept, besides what is known."""
        said = last_redelivery(self._policy, asked.redrive_horizon, dead_letter=self._consumer.dead_letter)
        return asked.remembered(said, max((kept for kept, _, _ in self._kept(asked)), default=untold))

    def _memory(self) -> Iterator[Finding]:
        asked = self._consumer.idempotency
        if asked is None:
            return
        remembered, name = self.remembered(asked), type(asked).__name__
        late = [each for each in self._kept(asked) if each[0] > remembered]
        for rule, what in (
            (rules.FORGOTTEN_BEFORE_REDRIVE, "dead letters"),
            (rules.FORGOTTEN_BEFORE_DELETED, "messages"),
        ):
            some = [(needed, fact) for needed, fact, why in late if why is rule]
            if not some:
                continue
            needed, fact = max(some, key=itemgetter(0))
            verb = "raise" if asked.ttl is not None else "set"
            change = f"{verb} {name}'s ttl to {readable(needed)} or more"
            if rule is rules.FORGOTTEN_BEFORE_REDRIVE:
                change += ", or say with redrive_within= how late they are redriven at most"
            yield rule.found(
                fact.name,
                f"{fact.setting}={fact.found} keeps {what} for {readable(fact.amount or 0.0)}, and {name} forgets after "
                f"ttl={format_duration(remembered)}",
                change,
            )

    def _sizes(self) -> Iterator[Finding]:
        largest = [size for _, size in self._of(self._home, Trait.MAX_BYTES)]
        if not largest:
            return
        for fact, size in self._of(self._copies, Trait.MAX_BYTES):
            # What goes to the suspects gets few fields, and goes to the dead letters if even they are too many.
            needed = int(max(largest) + (_DIAGNOSTICS if fact.name != self._suspects else 0))
            what = f"{fact.setting}={fact.found}, and {self._consumer.home} takes messages of {int(max(largest))} bytes"
            change = f"raise {fact.setting} to {needed} or more"
            if size < max(largest):
                yield rules.COPIES_TOO_SMALL.found(fact.name, what, change, fact.setting)
            elif size < needed and fact.detail != "most":
                yield rules.COPIES_TIGHT.found(fact.name, what, change, fact.setting)

    def _compaction(self) -> Iterator[Finding]:
        for fact, _ in self._of(self._copies, Trait.COMPACTS):
            yield rules.COPIES_COMPACTED.found(
                fact.name, f"{fact.setting}={fact.found}", f"set {fact.setting}=delete", fact.setting
            )
        for fact, _ in self._of(self._home, Trait.COMPACTS):
            change = f"set {fact.setting}=delete, or take care that no key has two messages that matter"
            yield rules.SOURCE_COMPACTED.found(fact.name, f"{fact.setting}={fact.found}", change, fact.setting)

    def _nets(self) -> Iterator[Finding]:
        counts_retries = self._capabilities.delay.level is Level.NATIVE and self._consumer.order is None
        attempts = 1 + (len(self._policy.delays) if counts_retries else 0)
        suspected = self._consumer.suspected_from(self._capabilities)
        for fact, hands in self._of(self._home, Trait.NET):
            shown = f"{fact.setting}={fact.found}"
            if hands < attempts:
                yield rules.NET_BELOW_ATTEMPTS.found(
                    fact.name,
                    f"{shown}: the broker takes a message away after {hands:g} hand-outs, and the chain has {attempts} attempts",
                    f"raise {fact.setting} to {suspected + 1} or more, or shorten the chain",
                    fact.setting,
                )
            elif hands < suspected:
                yield self._early(fact, hands, suspected)
            if fact.detail not in self._dead and self._dead:
                where = f"leads to {fact.detail}" if fact.detail else "leads nowhere"
                change = f"let it lead to {self._dead[0]}"
                yield rules.NET_ELSEWHERE.found(fact.name, f"{shown} {where}", change)
        for fact, hands in self._of([self._suspects], Trait.NET):
            if hands <= self._policy.crash_limit:
                yield self._early(fact, hands, self._policy.crash_limit + 1)
        for fact, _ in self._of((*self._home, *self._dead), Trait.NET_POWERLESS):
            yield rules.NET_POWERLESS.found(
                fact.name, f"{fact.found} is not granted to the broker", f"grant it: {fact.detail}", fact.setting
            )
        for fact, most in self._of(self._home, Trait.HOLDS) if self._consumer.order is None else ():
            yield rules.RETRIES_HOLD_UP.found(
                fact.name,
                f"{fact.setting}={fact.found}: {most:g} messages that fail and wait stop all others",
                f"raise {fact.setting}, or make it unlimited: each reader keeps to max_in_flight by itself",
                fact.setting,
            )

    def _early(self, fact: Fact, hands: float, needed: int) -> Finding:
        return rules.NET_BELOW_CRASH_LIMIT.found(
            fact.name,
            f"{fact.setting}={fact.found}: the broker takes a message away after {hands:g} hand-outs, and a crash loop is told "
            f"after {needed}",
            f"raise {fact.setting} to {needed + 1} or more",
            fact.setting,
        )

    def _rights(self) -> Iterator[Finding]:
        for fact, _ in self._of((*self._home, *self._copies), Trait.DENIED):
            if (fact.found, fact.name in self._home, fact.name in self._dead) in _NOT_NEEDED:
                continue
            yield rules.NOT_PERMITTED.found(
                fact.name,
                f"this login may not {fact.found} it",
                fact.detail or f"grant {fact.setting} on it",
                fact.setting,
            )
