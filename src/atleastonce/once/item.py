"""One message on its way through an inbox or a lease: decoded, and with the key by which it is known."""

from __future__ import annotations

from typing import Any

import msgspec

from atleastonce.bound import Bound
from atleastonce.contract import Delivery
from atleastonce.engine.decision import Decision
from atleastonce.errors import IdempotencyMismatch, InvalidIdempotencyKey
from atleastonce.patterns.hops import one_line
from atleastonce.patterns.once.keys import KeyReader, fingerprint
from atleastonce.patterns.once.options import Idempotency

DUPLICATE = Decision(name="duplicates")
"""Settled without a run: it was done before."""


class Item(msgspec.Struct, frozen=True):
    """A delivery, its payload where it was decoded, its key, and the fingerprint of what it says."""

    delivery: Delivery
    payload: Any
    key: str
    print: bytes


class Items:
    """Makes the items of one handler.

    Args:
        bound: the handler.
        asked: of its consumer.
        decode: whether payloads are wanted even where the key does not need them.
    """

    def __init__(self, bound: Bound, asked: Idempotency, *, decode: bool) -> None:
        binding = bound.consumer.binding
        self._bound = bound
        self._reader = KeyReader(asked.key, binding.name, binding.payload_type)
        self._decode = binding.decode if decode or self._reader.needs_payload else None
        self._compare = asked.compare

    def make(self, delivery: Delivery) -> Item | Decision:
        """The item, or what becomes of a message that cannot be one."""
        try:
            payload = self._decode(delivery.body) if self._decode is not None else None
            message = delivery.message
            key = self._reader(payload, message)
            return Item(delivery, payload, key, fingerprint(message) if self._compare else b"")
        except InvalidIdempotencyKey as error:
            return self._bound.park(delivery, "key", error)
        except Exception as error:  # noqa: BLE001 - one bad message costs only itself
            return self._bound.failed(delivery, error)

    def refused(self, item: Item, why: str) -> Decision:
        """What becomes of a message whose key its store refuses."""
        error = InvalidIdempotencyKey(f'the idempotency key "{one_line(item.key, 100)}": {why}')
        return self._bound.park(item.delivery, "key", error)

    def mismatch(self, item: Item) -> Decision:
        """What becomes of a message whose key is known with another body."""
        error = IdempotencyMismatch(f'the idempotency key "{one_line(item.key, 100)}" is known with another body')
        return self._bound.park(item.delivery, "mismatch", error)
