"""What is to happen with a delivery after its handler ran (or was not allowed to): the word between patterns and
engine."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeAlias

import msgspec

from atleastonce.channels import Channel
from atleastonce.contract import ACK, DIED, RELEASE, Delivery, Fault, Outgoing, Verdict


class Draft(Protocol):
    """A copy that is written when its list leaves: of many deliveries at once, each out of the message and into the client."""

    @property
    def destination(self) -> Channel[Any]:
        """Where the copies go."""

    def written(self, deliveries: Sequence[Delivery]) -> tuple[list[Outgoing], list[Delivery]]:
        """A copy of each of ``deliveries``, in order; and those of which none can be written, which end another way: see
        `Rejection`."""


class Decision(msgspec.Struct, frozen=True, gc=False):
    """How a delivery ends, or goes on.

    Attributes:
        verdict: settled once every copy is confirmed.
        copies: published first. If one is not confirmed, the delivery stays unsettled and the handler is not run
            again for it:
            only the publish is repeated.
        draft: instead of ``copies``, for deliveries that have a copy each which is alike.
        again: None, or seconds to wait before the handler runs again in place, lease held; then there is no verdict
            yet.
        name: which counter it adds to: done, retried, dead, discarded, released.
    """

    verdict: Verdict = ACK
    copies: tuple[Outgoing, ...] = ()
    again: float | None = None
    name: str = "done"
    draft: Draft | None = None


DONE = Decision()
GIVE_BACK = Decision(RELEASE, name="released")
EXITED = Decision(DIED, name="exited")
"""Its handler raised ``SystemExit``: it is known who ends the process."""


AMONG_THEM = Decision(DIED, name="exited")
"""The handler of a list that it is in raised ``SystemExit``: one of them ends the process."""


def cut_off(stop: BaseException, members: int = 1) -> Decision:
    """What becomes of each of the ``members`` of a run that raised ``stop``, which is no failure and ends the service."""
    group = stop.subgroup(SystemExit) if isinstance(stop, BaseExceptionGroup) else None
    if not isinstance(stop, SystemExit) and group is None:
        return GIVE_BACK
    return EXITED if members == 1 else AMONG_THEM


def again(delivery: Delivery, wait: float, name: str) -> Decision:
    """Run ``delivery`` in place after ``wait`` seconds, as if it had not run now: no try and no attempt is burnt."""
    delivery.tries = max(0, delivery.tries - 1)
    return Decision(again=wait, name=name)


AsyncProcess: TypeAlias = Callable[[Delivery], Awaitable[Decision]]
SyncProcess: TypeAlias = Callable[[Delivery], Decision]


class Rejection(Protocol):
    """Asked for a new decision when the broker refuses a decision's copy for good (too large, no such channel), or its draft cannot
    be written."""

    def __call__(self, delivery: Delivery, decision: Decision, fault: Fault) -> Decision | None:
        """Another decision, or None to hold the delivery and try the same copies again later."""
