"""What the broker's failures can lose, and what a stop of the service does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from atleastonce.check import broker
from atleastonce.consumer import Consumer
from atleastonce.contract import Capabilities, Fact, Level
from atleastonce.durations import readable

_NOT_OF_A_FAILOVER = frozenset({"auto-create"})


def failover(facts: Sequence[Fact] | None) -> Iterator[str]:
    """What follows from the broker's settings; ``facts`` is None where it was not asked, empty where it tells nothing."""
    yield (
        "A publish, a retry and a dead letter count as done when the broker has confirmed them. What it did not answer is repeated "
        "with the same id, so a lost connection may leave two copies and never none."
    )
    if facts is None:
        yield "What a confirmed message survives is the broker's own setting; it was not asked (--live does)."
        return
    found = [each for each in broker(facts) if each.code not in _NOT_OF_A_FAILOVER]
    if not found:
        yield (
            "The broker tells nothing by which a confirmed message could be lost."
            if facts
            else ("This broker does not tell its settings: what a confirmed message survives is not known here.")
        )
    for finding in found:
        yield f"{finding.subject}: {finding.what}; {finding.why}."


def shutdown(consumer: Consumer, capabilities: Capabilities, drain: float) -> Iterator[str]:
    """What SIGTERM does to what is under way."""
    yield (
        f"On SIGTERM nothing more is received, and running handlers have {readable(drain)} to end; what they finish is settled."
    )
    if consumer.binding.is_async:
        yield "What still runs then is cancelled and given back: it runs again elsewhere, from the beginning."
    else:
        yield "What still runs then is given back while its thread goes on: for a moment two handle it."
    costs = capabilities.counts_releases and capabilities.delay.level is Level.NATIVE and consumer.failure.delays
    if consumer.returns_copies(capabilities):
        yield (
            "What had not started is given back, and costs no attempt: since the broker counts every hand-out, it is published "
            "again and then settled, at the end of the line. A process that is killed in between leaves both."
        )
        return
    yield "What had not started is given back" + (
        ", which costs one of its attempts: the broker counts every hand-out." if costs else ", and costs no attempt."
    )
