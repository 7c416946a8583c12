"""Channels that are made of several, where the broker has no partitions of its own: once, for all adapters that need it.

A `Queue` or `Topic` with ``single_active`` and ``partitions=8`` is eight channels of the broker, ``orders.p0`` to ``orders.p7``.
A key is always in the same one (`part_number`), and each has one reader at a time, so that several processes share the channel
and every key keeps its order. What is above an adapter sees one channel: one source, one window, one dead-letter queue, one
backlog. An adapter asks `in_parts` and leads its calls through the functions here.
"""

from atleastonce.parts.backlog import backlog
from atleastonce.parts.looking import browse
from atleastonce.parts.names import is_parted, part_at, part_number, parts_of, pieces
from atleastonce.parts.readers import Readers
from atleastonce.parts.routing import routed
from atleastonce.parts.sharing import EVERY
from atleastonce.parts.subscription import PartedSubscription, subscribe
from atleastonce.parts.topology import declare, in_parts, may_have_parts

__all__ = [
    "EVERY",
    "PartedSubscription",
    "Readers",
    "backlog",
    "browse",
    "declare",
    "in_parts",
    "is_parted",
    "may_have_parts",
    "part_at",
    "part_number",
    "parts_of",
    "pieces",
    "routed",
    "subscribe",
]
