"""Leases and inbox in PostgreSQL."""

from atleastonce.stores.postgres.store import PostgresStore

__all__ = ["PostgresStore"]
