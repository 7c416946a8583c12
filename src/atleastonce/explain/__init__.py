"""What each handler may see, in words: delivery, order, attempts, what every crash repeats. Pure: no IO.

All of it follows from the consumer's policy and its broker's `Capabilities`, and from the broker's settings where they were asked
for; nothing here knows a broker by name.
"""

from __future__ import annotations

from collections.abc import Sequence

from atleastonce.consumer import Consumer
from atleastonce.contract import Capabilities, Fact
from atleastonce.explain.crashes import crashes
from atleastonce.explain.delivery import delivery, order, recipients
from atleastonce.explain.model import Attempt, Crash, Explanation, Guard
from atleastonce.explain.outages import failover, shutdown
from atleastonce.explain.text import lines
from atleastonce.explain.timeline import attempts, ends, lost, tries


def explain(
    consumer: Consumer, capabilities: Capabilities, *, drain: float, facts: Sequence[Fact] | None = None
) -> Explanation:
    """What ``consumer`` may see on a broker with ``capabilities``.

    Args:
        consumer: as it was registered.
        capabilities: of the broker.
        drain: seconds that the service lets handlers go on when it stops.
        facts: the broker's settings; None where it was not asked.
    """
    return Explanation(
        handler=consumer.binding.name,
        source=str(consumer.home),
        delivery=list(delivery(consumer, capabilities)),
        recipients=list(recipients(consumer)),
        order=list(order(consumer, capabilities)),
        attempts=attempts(consumer, capabilities),
        tries=tries(consumer),
        ends=list(ends(consumer, capabilities)),
        lost=list(lost(consumer)),
        crashes=crashes(consumer, capabilities),
        failover=list(failover(facts)),
        shutdown=list(shutdown(consumer, capabilities, drain)),
    )


__all__ = ["Attempt", "Crash", "Explanation", "Guard", "explain", "lines"]
