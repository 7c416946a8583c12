"""Into which part each message goes."""

from __future__ import annotations

from collections.abc import Sequence

from atleastonce.contract import Outgoing
from atleastonce.message import Message
from atleastonce.parts.names import is_parted, part_number, parts_of


def routed(batch: Sequence[Outgoing]) -> Sequence[Outgoing]:
    """``batch`` with parts as destinations, in the same order; itself where none is needed.

    What has no key goes by its id: evenly, and a message that is published again meets its first copy.
    """
    # By identity: to ask an equal channel for its hash would cost more than all else here, for each message.
    destinations = {id(item.destination): item.destination for item in batch}
    parted = {number: parts_of(each) for number, each in destinations.items() if is_parted(each)}
    if not parted:
        return batch
    found = []
    for item in batch:
        parts = parted.get(id(item.destination))
        if parts is None:
            found.append(item)
        else:
            message = item.message
            found.append(Outgoing(parts[part_number(_of(message), len(parts))], message, item.delay))
    return found


def _of(message: Message) -> bytes:
    return message.id.encode() if message.key is None else message.key
