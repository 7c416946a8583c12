"""A relay in a process of its own, that may kill itself: ``python relay_child.py ORDERS`` (JSON).

Orders: ``store``, ``options``, ``broker``, ``lease``, ``die``: kill -9 itself in the n-th removal, after the broker has confirmed
and before the row is gone; 0 for never. Ends in good order when its input is closed.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from atleastonce import RelayOptions, connect
from atleastonce.patterns.outbox import Relay
from atleastonce.stores import OutboxStore, open_store
from atleastonce.stores.outbox import OutboxRow


async def main(orders: dict[str, Any]) -> None:
    store = open_store(orders["store"], orders["options"])
    assert isinstance(store, OutboxStore)
    remove, left = store.outbox_remove, int(orders["die"])

    async def remove_or_die(rows: Sequence[OutboxRow]) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        await remove(rows)

    store.outbox_remove = remove_or_die  # type: ignore[method-assign]
    async with store, connect(orders["broker"]) as broker:
        options = RelayOptions(batch=20, poll="20ms", lease=orders["lease"])
        relay = Relay(store, broker.send, name=f"child {os.getpid()}", options=options)
        relay.start()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)
        await relay.stop(10)


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
