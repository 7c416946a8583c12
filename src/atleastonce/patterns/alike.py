"""Failures in a row that are alike, as all are while something is down: decided once, and what their copies share is said once.

Nothing is taken over that could differ: a failure is like the one before only if the policy would look at the same things.
"""

from __future__ import annotations

from typing import Any

from atleastonce import wire
from atleastonce.channels import Channel
from atleastonce.contract import Delivery
from atleastonce.message import NO_HEADERS, Headers, Message
from atleastonce.patterns.failure import FailurePolicy, Hop, is_plain
from atleastonce.patterns.history import History
from atleastonce.patterns.hops import first_at, first_waiting_copy, said, said_alike, waiting_copy, words


class Alike:
    """A hop that was decided, for the failures that follow.

    Attributes:
        waiting: the channel that the copies wait in.
    """

    __slots__ = ("_attempt", "_group", "_hop", "_kind", "_policy", "_said", "_source", "_tier", "_tries", "waiting")

    def __init__(
        self,
        policy: FailurePolicy,
        delivery: Delivery,
        attempt: int,
        kind: type[BaseException],
        hop: Hop,
        group: str,
        waiting: Channel[Any],
        tier: float,
    ) -> None:
        self._policy, self._source, self._kind = policy, delivery.source, kind
        self._attempt, self._tries = attempt, delivery.tries
        self._hop, self._group, self.waiting, self._tier = hop, group, waiting, tier
        # One object, replaced as a whole: handlers fail on several threads.
        self._said: tuple[object, int, str, Headers] = (None, 0, "", NO_HEADERS)

    @classmethod
    def to(
        cls,
        policy: FailurePolicy,
        delivery: Delivery,
        attempt: int,
        error: BaseException,
        hop: Hop,
        group: str,
        waiting: Channel[Any],
        tier: float,
    ) -> Alike | None:
        """What is alike to the failure of ``delivery``, of which ``policy`` has decided ``hop`` to the channel of ``tier`` seconds.
        None where that followed from more than the error's class, the attempt and the tries: from a time, or from what it says."""
        if policy.give_up_after is not None or not is_plain(policy, error):
            return None
        return cls(policy, delivery, attempt, type(error), hop, group, waiting, tier)

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

    def copy(self, delivery: Delivery, history: History, error: BaseException, now: float) -> Message:
        """The copy that waits, of ``delivery`` that failed ``now``: as `retry_copy` makes it."""
        first = first_at(history, now) if history.first_failed else ""
        return waiting_copy(delivery, history, self._saying(error, first, now))

    def first_copy(self, delivery: Delivery, error: BaseException, now: float) -> Message | None:
        """The same of what is alike and, by its header fields, never failed before; None of anything else."""
        if delivery.returned or not self.covers(delivery, 1, error):
            return None
        return first_waiting_copy(delivery, self._saying(error, "", now))

    def _saying(self, error: BaseException, first: str, now: float) -> Headers:
        """What the copies have in common of those that fail ``now`` with what ``error`` says, and failed ``first`` then."""
        before, millis, began, shared = self._said
        text = words(error)
        if (
            text.__class__ is not str
            or text != before
            or first != began
            or not millis - 1 < now * 1000 - wire.NOISE <= millis  # rounded up
        ):
            at = wire.millis(now)
            kind = self._kind.__name__
            shared = said_alike(self._group, kind, said(text), at, first or at, self._hop, self._tier)
            if text.__class__ is str:
                self._said = (text, int(at), first, shared)
        return shared
