"""Who waits here for somebody of this process to be done with the same key: woken by that, instead of asking again and again."""

from __future__ import annotations

from atleastonce.contract import Delivery
from atleastonce.engine.gate import Host


class Waiting:
    """The busy deliveries of one consumer, by key."""

    def __init__(self) -> None:
        self._by_key: dict[str, dict[Delivery, Host]] = {}

    def join(self, key: str, delivery: Delivery, host: Host) -> None:
        """``delivery`` of ``host`` waits in place for ``key``."""
        self._by_key.setdefault(key, {})[delivery] = host

    def leave(self, key: str, delivery: Delivery) -> None:
        """It waits no more."""
        waiting = self._by_key.get(key)
        if waiting is not None and waiting.pop(delivery, None) is not None and not waiting:
            del self._by_key[key]

    def wake(self, key: str) -> None:
        """``key`` is done, or free."""
        waiting = self._by_key.pop(key, None)
        if waiting is not None:
            for host in set(waiting.values()):
                host.hasten(waiting.__contains__)
