"""Ids for messages whose producer gave them none.

AMQP gives a message no identity that outlives a delivery, and its content is none: two equal orders are two orders. So each
delivery gets a fresh id, except where we know better: what this process gave back and is handed out again keeps its id.
"""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b

from atleastonce.message import Message, new_id

_REMEMBERED = 10_000


class Strays:
    """The ids of nameless messages that were given back."""

    def __init__(self) -> None:
        self._returned: OrderedDict[bytes, list[str]] = OrderedDict()

    def returned(self, message: Message) -> None:
        """``message``, whose id is ours, was given back. Equal ones may swap ids, which makes no difference."""
        content = _content(message.body)
        self._returned.setdefault(content, []).append(message.id)
        self._returned.move_to_end(content)
        if len(self._returned) > _REMEMBERED:
            self._returned.popitem(last=False)

    def identify(self, body: bytes, redelivered: bool) -> str:
        """The id of a nameless message with ``body``."""
        if redelivered and self._returned:
            content = _content(body)
            ids = self._returned.get(content)
            if ids:
                id = ids.pop()
                if not ids:
                    del self._returned[content]
                return id
        return new_id()


def _content(body: bytes) -> bytes:
    return blake2b(body, digest_size=16).digest()
