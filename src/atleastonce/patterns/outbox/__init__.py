"""The relay of an outbox: from rows that were committed to messages that the broker has confirmed."""

from atleastonce.patterns.outbox.options import RelayOptions
from atleastonce.patterns.outbox.relay import Relay, RelayStatus

__all__ = ["Relay", "RelayOptions", "RelayStatus"]
