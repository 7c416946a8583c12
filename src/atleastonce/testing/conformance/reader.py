"""A consumer as the cases use it: it takes, settles and checks, and every wait has a deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Iterable, Sequence

from atleastonce.channels import Source
from atleastonce.contract import ACK, Delivery, Listener, Outcome, Status, Subscription, Verdict


class Ear(Listener):
    """A listener that lets everything go at once and remembers what it was told."""

    def __init__(self) -> None:
        self.drained: list[str] = []
        self.gone: list[str] = []
        self.conditions: list[str] = []

    async def drain(self, streams: Collection[str], grace: float) -> None:
        self.drained.extend(streams)

    def lost(self, streams: Collection[str] | None) -> None:
        self.gone.extend(streams if streams is not None else ["*"])

    def condition(self, state: str, detail: str) -> None:
        self.conditions.append(state)


class Reader:
    """One subscription and all that it has handed out so far (``log``, in order)."""

    def __init__(self, subscription: Subscription, source: Source, ear: Ear, patience: float) -> None:
        self.subscription = subscription
        self.source = source
        self.ear = ear
        self.patience = patience
        self.log: list[Delivery] = []

    async def receive(self, most: int, wait: float) -> Sequence[Delivery]:
        """One `Subscription.receive`, which must keep its own time limit."""
        async with asyncio.timeout(wait + self.patience):
            got = await self.subscription.receive(most, wait)
        assert len(got) <= most, f"receive({most}) returned {len(got)} deliveries"
        self.log.extend(got)
        return got

    async def take(
        self, count: int, *, verdict: Verdict | None = None, within: float | None = None, most: int = 100
    ) -> list[Delivery]:
        """The next ``count`` deliveries, each settled with ``verdict`` if there is one.

        Raises:
            AssertionError: fewer came in time; says which.
        """
        deadline = time.monotonic() + (self.patience if within is None else within)
        taken: list[Delivery] = []
        while len(taken) < count:
            left = deadline - time.monotonic()
            assert left > 0, (
                f"{len(taken)} of {count} messages came from {self.source}: {[d.message.id for d in taken]}"
            )
            got = await self.receive(min(most, count - len(taken)), min(left, 1.0))
            if verdict is not None and got:
                await self.settle(got, verdict)
            taken.extend(got)
        return taken

    async def until(
        self, wanted: Iterable[str], *, verdict: Verdict | None = ACK, within: float | None = None
    ) -> list[Delivery]:
        """Take until every one of the message ids in ``wanted`` has come at least once; what else comes is kept too."""
        missing = set(wanted)
        deadline = time.monotonic() + (self.patience if within is None else within)
        taken: list[Delivery] = []
        while missing:
            left = deadline - time.monotonic()
            assert left > 0, f"{len(missing)} messages never came from {self.source}, among them {sorted(missing)[:5]}"
            got = await self.receive(100, min(left, 1.0))
            if verdict is not None and got:
                await self.settle(got, verdict)
            taken.extend(got)
            missing.difference_update(delivery.message.id for delivery in got)
        return taken

    async def silence(self, seconds: float) -> None:
        """Assert that nothing comes for ``seconds``: the only way to see that something does not happen."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            got = await self.receive(100, left)
            assert not got, f"nothing should come from {self.source}, and this did: {[d.message.id for d in got]}"

    async def outcomes(self, pairs: Sequence[tuple[Delivery, Verdict]]) -> Sequence[Outcome]:
        """One `Subscription.settle`, which must answer each item, in time."""
        async with asyncio.timeout(self.patience):
            outcomes = await self.subscription.settle(pairs)
        assert len(outcomes) == len(pairs), f"settle answered {len(outcomes)} of {len(pairs)} items"
        return outcomes

    async def settle(self, deliveries: Sequence[Delivery], verdict: Verdict = ACK) -> None:
        """Settle all alike; each must be answered ``ok``."""
        outcomes = await self.outcomes([(delivery, verdict) for delivery in deliveries])
        failed = [(d.message.id, o) for d, o in zip(deliveries, outcomes, strict=True) if o.status is not Status.OK]
        assert not failed, f"settling with {verdict} failed: {failed[:3]}"

    async def close(self) -> None:
        """Close the subscription."""
        async with asyncio.timeout(self.patience):
            await self.subscription.close()


def ids(deliveries: Iterable[Delivery]) -> list[str]:
    """The message ids of deliveries, in order."""
    return [delivery.message.id for delivery in deliveries]
