"""Leases and inbox in MySQL and MariaDB."""

from atleastonce.stores.mysql.store import MySQLStore

__all__ = ["MySQLStore"]
