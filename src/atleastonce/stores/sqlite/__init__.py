"""Leases and inbox in one SQLite file."""

from atleastonce.stores.sqlite.store import SQLiteStore

__all__ = ["SQLiteStore"]
