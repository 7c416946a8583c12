"""Failures in a row that are alike, as all are while something is down: decided once, and what their copies share is said once.

Nothing is taken over that could differ: a failure is like the one before only if the policy would look at the same things.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from atleastonce import wire
from atleastonce.channels import Channel, Source
from atleastonce.contract import Delivery, Outgoing
from atleastonce.engine.decision import Decision
from atleastonce.message import NO_HEADERS, Headers, Message
from atleastonce.patterns.failure import FailurePolicy, Hop, is_plain
from atleastonce.patterns.history import History, read_history, undecoded
from atleastonce.patterns.hops import first_at, first_waiting_copies, said, said_alike, waiting_copy, words


class _Said(msgspec.Struct, frozen=True):
    """What copies have in common, and of which failures: those with this ``text``, in the millisecond that ends ``until``, that
    failed ``first`` then."""

    text: object
    until: int
    first: str
    shared: Headers
    decision: Decision


class Alike:
    """A hop that was decided, for the failures that follow.

    Args:
        policy: has decided.
        delivery: about its failure.
        attempt: its, by its header fields or the broker's count.
        kind: of error.
        hop: was decided.
        home: of the consumer.
        waiting: the channel of ``tier`` seconds that the copies wait in.
        drafts: whether a decision may leave its copies to be written by the list.
    """

    __slots__ = (
        "_attempt",
        "_drafts",
        "_home",
        "_hop",
        "_kind",
        "_policy",
        "_said",
        "_source",
        "_tier",
        "_tries",
        "waiting",
    )

    def __init__(
        self,
        policy: FailurePolicy,
        delivery: Delivery,
        attempt: int,
        kind: type[BaseException],
        hop: Hop,
        home: Source,
        waiting: Channel[Any],
        tier: float,
        drafts: bool,
    ) -> None:
        self._policy, self._source, self._kind = policy, delivery.source, kind
        self._attempt, self._tries = attempt, delivery.tries
        self._hop, self._home, self.waiting, self._tier = hop, home, waiting, tier
        # On the main channel a first attempt is one whatever the header fields say (`read_history`): they are read by the list.
        self._drafts = drafts and attempt == 1 and delivery.source == home
        # One object, replaced as a whole: handlers fail on several threads.
        self._said = _Said(None, 0, "", NO_HEADERS, Decision())

    @classmethod
    def to(
        cls,
        policy: FailurePolicy,
        delivery: Delivery,
        attempt: int,
        error: BaseException,
        hop: Hop,
        home: Source,
        waiting: Channel[Any],
        tier: float,
        *,
        drafts: bool,
    ) -> Alike | None:
        """What is alike to the failure of ``delivery``, of which ``policy`` has decided ``hop`` to the channel of ``tier`` seconds.
        None where that followed from more than the error's class, the attempt and the tries: from a time, or from what it says."""
        if policy.give_up_after is not None or not is_plain(policy, error):
            return None
        return cls(policy, delivery, attempt, type(error), hop, home, waiting, tier, drafts)

    def covers(self, delivery: Delivery, attempt: int, error: BaseException) -> bool:
        """Whether the policy would decide about ``error`` as it did."""
        return (
            error.__class__ is self._kind  # which was plain
            and error.__cause__ is None
            and error.__context__ is None
            and attempt == self._attempt
            and delivery.tries == self._tries
            and delivery.source is self._source
        )

    def first(self, delivery: Delivery, error: BaseException, now: float) -> Decision | None:
        """The decision about ``error`` if it is the first of ``delivery``, on its main channel, and alike: one object for all of a
        millisecond, whose copies the list writes. None of anything else."""
        if not self._drafts or delivery.returned or not self.covers(delivery, 1, error):
            return None
        return self._saying(error, "", now).decision

    def copy(self, delivery: Delivery, history: History, error: BaseException, now: float) -> Message:
        """The copy that waits, of ``delivery`` that failed ``now``: as `retry_copy` makes it."""
        first = first_at(history, now) if history.first_failed else ""
        return waiting_copy(delivery, history, self._saying(error, first, now).shared)

    def _saying(self, error: BaseException, first: str, now: float) -> _Said:
        """Of what fails ``now`` with what ``error`` says, and failed ``first`` then."""
        known = self._said
        text = words(error)
        if (
            text.__class__ is not str
            or text != known.text
            or first != known.first
            or not known.until - 1 < now * 1000 - wire.NOISE <= known.until  # rounded up
        ):
            at = wire.millis(now)
            kind = self._kind.__name__
            shared = said_alike(self._home.group_name, kind, said(text), at, first or at, self._hop, self._tier)
            decision = Decision(name="retried", draft=Waiting(self._home, self.waiting, shared))
            known = _Said(text, int(at), first, shared, decision)
            if text.__class__ is str:
                self._said = known
        return known


class Waiting(msgspec.Struct, frozen=True):
    """Copies that wait, for what failed alike: a `Draft`.

    Attributes:
        home: of the consumer.
        destination: the channel that they wait in.
        shared: what they say alike.
    """

    home: Source
    destination: Channel[Any]
    shared: Headers

    def written(self, deliveries: Sequence[Delivery]) -> tuple[list[Outgoing], list[Delivery]]:
        """See `Draft.written`. What cannot be read has no copy: that would have lost its key and fields."""
        destination, shared = self.destination, self.shared
        copies: list[Outgoing] = []
        unread: list[Delivery] = []
        for delivery, first in zip(deliveries, first_waiting_copies(deliveries, shared), strict=True):
            if first is not None:
                copies.append(Outgoing(destination, first))
                continue
            history = read_history(delivery, self.home, counted=False)
            if undecoded(delivery) is None:
                copies.append(Outgoing(destination, waiting_copy(delivery, history, shared)))
            else:
                unread.append(delivery)
        return copies, unread
