"""What an explanation consists of. Every text is one or more whole sentences."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import msgspec


class Attempt(msgspec.Struct, frozen=True):
    """One attempt of a message that fails for good.

    Attributes:
        number: from 1.
        after: seconds from the end of the first run to the start of this attempt, at least.
        wait: seconds that it waited before; 0 for the first.
        where: in which channel; "" where the broker keeps it in the source.
    """

    number: int
    after: float
    wait: float
    where: str = ""


class Crash(msgspec.Struct, frozen=True):
    """What a process that dies at one point leaves behind.

    Attributes:
        point: of the way of a message, the same words for all brokers: ``before-handler``, ``in-handler``, ``before-settle``,
            ``in-relay`` (only with an outbox), ``hop-before-settle``, ``dead-letter-before-settle``, ``in-redrive``,
            ``after-settle``.
        when: the same for people.
        then: what is seen afterwards.
        repeats: whether the handler runs again for what it has (partly) done.
    """

    point: str
    when: str
    then: str
    repeats: bool


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """What one handler may see.

    Attributes:
        handler, source: which one.
        delivery: the guarantee, and what bounds it.
        recipients: who gets a message.
        order: what order is kept, and what breaks it.
        attempts: when it is tried, for a message that always fails.
        tries: how often the handler runs within one attempt.
        ends: where a message ends, for each way to end.
        lost: what is lost by design.
        crashes: what each crash repeats.
        failover: what the broker's own failures can lose.
        shutdown: what a stop of the service does.
    """

    handler: str
    source: str
    delivery: list[str]
    recipients: list[str]
    order: list[str]
    attempts: list[Attempt]
    tries: str
    ends: list[str]
    lost: list[str]
    crashes: list[Crash]
    failover: list[str]
    shutdown: list[str]


@runtime_checkable
class Guard(Protocol):
    """What a consumer's ``idempotency`` may be, for its words to stand where a repeat would otherwise be told."""

    def on_repeat(self) -> str:
        """What happens when a message comes again whose handler has run, wholly or in part: one sentence."""
