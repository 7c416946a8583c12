"""Queues and groups read by share groups (KIP-932): each record has a lock of its own, and any number of members share a partition.

Preview, as long as the client calls it so. See ``docs/decisions/0027-share-groups.md``.
"""

from atleastonce.adapters.kafka.share.subscription import ShareSubscription

__all__ = ["ShareSubscription"]
