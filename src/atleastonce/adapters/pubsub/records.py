"""Between Pub/Sub's messages and ours."""

from __future__ import annotations

from typing import Any

from atleastonce.adapters.pubsub.attributes import EMPTY, read_attributes
from atleastonce.channels import Source
from atleastonce.contract import Delivery, Verdict
from atleastonce.message import Message
from atleastonce.wire import ID, read_id


class PubSubDelivery(Delivery):
    """A hand-out. Its message is made when somebody looks at it, as reading attributes costs more than all else.

    Attributes:
        verdict: the first one given; None while it is out.
    """

    __slots__ = ("_position", "verdict")

    def __init__(self, received: Any, source: Source, stream: str, epoch: int, lease_until: float, size: int) -> None:
        self.source = source
        self.stream = stream
        self.epoch = epoch
        self.token = received.ack_id
        self.count = received.delivery_attempt
        self.lease_until = lease_until
        self.lost = False
        self.raw = received
        self.returned = False
        self.size = size
        self.tries = 0
        self.settled = False
        self._message = self.unreadable = None
        self.verdict: Verdict | None = None
        self._position = ""

    @property
    def position(self) -> str:  # type: ignore[override]
        """See `Delivery.position`. Read when somebody looks at it."""
        return self._position or self.raw.message.message_id

    def read(self) -> Message:
        """See `Delivery.read`."""
        return read_message(self.raw.message)

    @property
    def body(self) -> bytes:
        """See `Delivery.body`."""
        data: bytes = self.raw.message.data
        return data

    def shed(self) -> None:
        """See `Delivery.shed`. The ordering key is kept: settling needs it."""
        self._position = self.position  # what it is read from goes
        kept = type(self.raw)(ack_id=self.token)
        kept.message.ordering_key = self.raw.message.ordering_key
        self.message = Message(self.message.id, b"")
        self.raw = kept


def read_message(found: Any) -> Message:
    """The message in ``found``."""
    headers, key = read_attributes(found.attributes, found.ordering_key)
    time = found.publish_time
    published_at = time.seconds + time.nanos / 1e9 if time.seconds else None
    identity = read_id(headers.get(ID)) or found.message_id
    return Message(identity, found.data, key, headers, published_at)


def write_message(message: Message, attributes: dict[str, str], ordering_key: str, request: Any) -> None:
    """Add ``message`` to a publish ``request``: made in its place, since putting it there copies it.

    Args:
        attributes: from `attributes_of`, with its key from `add_key`.
    """
    written = request.messages.add()
    written.data = message.body
    if ordering_key:
        written.ordering_key = ordering_key
    if not attributes and not message.body:
        attributes[EMPTY] = "1"
    # One by one they cost a third of what they cost the constructor.
    fields = written.attributes
    for name, value in attributes.items():
        fields[name] = value
