"""Consumers that are idempotent, bound to a broker and a store: runs of their handlers inside transactions and under leases."""

from atleastonce.once.claims import Claims
from atleastonce.once.inbox import InboxBound
from atleastonce.once.lease import LeaseBound

__all__ = ["Claims", "InboxBound", "LeaseBound"]
