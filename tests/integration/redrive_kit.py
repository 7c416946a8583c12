"""What the tests of redrive have in common, those with faults and kills included."""

from __future__ import annotations

import time
from collections import Counter

from atleastonce import Broker, Source
from atleastonce.contract import ACK, Window
from atleastonce.patterns.redrive.passage import _Listener


async def taken(broker: Broker, source: Source, wanted: int, *, within: float = 60.0) -> Counter[str]:
    """All that is in ``source``, taken out, and how often each: until nothing more comes and it is ``wanted`` messages, or the
    seconds are over."""
    found: Counter[str] = Counter()
    end, quiet = time.monotonic() + within, 0
    subscription = await broker.adapter.subscribe(source, Window(2000, 64 << 20), _Listener())
    try:
        while quiet < 4 or (len(found) < wanted and time.monotonic() < end):
            batch = await subscription.receive(1000, 0.5)
            quiet = 0 if batch else quiet + 1
            found.update(delivery.message.id for delivery in batch)
            await subscription.settle([(delivery, ACK) for delivery in batch])
    finally:
        await subscription.close()
    return found
