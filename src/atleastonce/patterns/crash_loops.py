"""Who ended the process: suspicion is cheap and may be wrong, judgement needs a run alone.

A process that dies leaves a count behind on everything it held: the one message that killed it, and all its neighbours. So the
count of an ordinary hand-out *never* condemns. It makes a suspect: the message is moved to a channel of suspects, from which
each is handed out alone, while nothing else runs in that process. What dies there is to blame, and nothing else is touched by
it. After `FailurePolicy.crash_limit` such deaths it is a dead letter, before it runs again.

The rules are pure, and hold whatever counts come in: a count that is too high makes more suspects, which cost time; one that is
too low makes a later one.
"""

from __future__ import annotations

from atleastonce import wire
from atleastonce.channels import Source
from atleastonce.contract import Delivery
from atleastonce.message import Headers, HeaderValue, Message
from atleastonce.patterns.failure import FailurePolicy
from atleastonce.patterns.history import History, origin

ACCIDENTS = 2
"""Hand-outs without a known failure that make a suspect. With 1, every lost connection and every restarted node would send a
whole window through the slow way; with more, a message that kills takes that many more processes with it before it is looked at.
"""

RELEASES = 3
"""On top of `ACCIDENTS`, where a broker also counts what was given back unstarted: what is far back in the window is given back by
each process that stops, and a few deploys within a minute are no crash. With fewer, they send whole windows through the slow way;
with more, as many processes more die of one message before it is looked at."""

ACCIDENTS_IN_ORDER = 5
"""`ACCIDENTS` of an ordered consumer. More, because moving a suspect aside lets later messages of its key go by; with far more, as
many processes die of one message before it is looked at."""

RELEASES_IN_ORDER = 10
"""`RELEASES` of an ordered consumer. More, because messages far back in a long line are given back by
each process that stops."""


def suspected_from(policy: FailurePolicy, *, counted: bool, ordered: bool = False, releases: bool = False) -> int:
    """The delivery count from which on a delivery is suspected.

    Args:
        policy: the consumer's.
        counted: whether the broker's count also rises with each retry of the chain (it redelivers natively): then as many as
            the chain has are no accidents.
        ordered: whether the consumer keeps order, which a suspect loses.
        releases: whether the count may also rise with what was given back.
    """
    if ordered:
        return 1 + ACCIDENTS_IN_ORDER + (RELEASES_IN_ORDER if releases else 0)
    return 1 + ACCIDENTS + (RELEASES if releases else 0) + (len(policy.delays) if counted else 0)


def is_guilty(policy: FailurePolicy, count: int) -> bool:
    """Whether a message that was handed out alone ``count`` times, this time included, has ended its process too often."""
    return count > policy.crash_limit


def suspect_copy(delivery: Delivery, home: Source, history: History, *, now: float, deaths: int = 0) -> Message:
    """The copy that waits to be run alone: the message with its history so far, and a count that begins anew. ``deaths`` are those
    that the count does not say: runs that ended in ``SystemExit``."""
    fields: dict[str, HeaderValue] = {
        wire.ID: delivery.message.id,
        wire.GROUP: home.group_name,
        wire.ATTEMPT: str(min(history.attempt, wire.MAX_ATTEMPT)),
        wire.SUSPECTED_AT: wire.millis(now),
    }
    if deaths:
        fields[wire.DEATHS] = str(min(deaths, wire.MAX_ATTEMPT))
    gone = {wire.DUE, wire.WAIT, wire.FIRST_FAILED, wire.DEATHS, wire.GIVEN_BACK, *fields}
    if history.first_failed is not None:
        fields[wire.FIRST_FAILED] = wire.millis(history.first_failed)
    if not history.ours:  # what others wrote of ours would be believed in a channel that only we write to
        gone |= {wire.ORIGIN, wire.REDRIVES}
        fields[wire.ORIGIN] = origin(delivery)
    message = delivery.message
    kept = [item for item in message.headers.items() if item[0] not in gone]
    return Message(message.id, message.body, message.key, Headers([*kept, *fields.items()]), None, message.native)
