"""Leases in Redis or Valkey."""

from atleastonce.stores.redis.store import RedisStore

__all__ = ["RedisStore"]
