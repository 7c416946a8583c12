"""Google Pub/Sub over gRPC: unary pulls, leases kept by the engine, acknowledgements in batches. Needs ``atleastonce[pubsub]``."""

from __future__ import annotations

import google.pubsub_v1  # noqa: F401  # first: where the client is missing, its name has to be the one that is missed

from atleastonce.adapters.pubsub.adapter import PubSubAdapter

__all__ = ["PubSubAdapter"]
