"""Redis Streams: consumer groups, leases in the pending list, retries that never copy. Needs ``atleastonce[redis]``."""

from __future__ import annotations

from atleastonce.adapters.redis_streams.adapter import RedisAdapter

__all__ = ["RedisAdapter"]
