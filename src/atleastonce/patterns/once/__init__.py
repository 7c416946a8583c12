"""The idempotent consumer: each message has its effects once, however often it is delivered."""

from atleastonce.patterns.once.options import Idempotency, Inbox, Lease

__all__ = ["Idempotency", "Inbox", "Lease"]
