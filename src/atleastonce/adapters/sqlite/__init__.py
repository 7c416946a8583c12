"""The SQLite broker: a durable, embedded broker in one file, shared by any number of processes of one machine."""

from atleastonce.adapters.sqlite.adapter import SQLiteAdapter

__all__ = ["SQLiteAdapter"]
