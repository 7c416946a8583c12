"""Stores of idempotency, one per database, found by URL scheme. Importing this imports no client library.

`atleastonce.stores.contract` is the manual of what they promise; `atleastonce.testing.stores` is the suite that shows it.
Third parties register theirs through the entry-point group ``atleastonce.stores``: the name is the scheme, the value a
callable ``(url, **options) -> LeaseStore``.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from atleastonce.errors import ConfigurationError
from atleastonce.stores.contract import LeaseStore, TransactionalStore
from atleastonce.stores.memory import MemoryStore
from atleastonce.stores.options import only_known
from atleastonce.stores.outbox import OutboxStats, OutboxStore, ParkedRow
from atleastonce.stores.records import (
    LOST,
    Claim,
    ClaimRequest,
    Completion,
    Count,
    Entry,
    Lease,
    Stats,
    Status,
    new_token,
    scope_key,
)
from atleastonce.urls import BrokerUrl


class _Known(NamedTuple):
    module: str
    cls: str


BUILT_IN: Mapping[str, _Known] = {
    "memory": _Known("atleastonce.stores.memory", "MemoryStore"),
    "sqlite": _Known("atleastonce.stores.sqlite", "SQLiteStore"),
    "postgresql": _Known("atleastonce.stores.postgres", "PostgresStore"),
    "mysql": _Known("atleastonce.stores.mysql", "MySQLStore"),
    "dynamodb": _Known("atleastonce.stores.dynamodb", "DynamoDBStore"),
    "redis": _Known("atleastonce.stores.redis", "RedisStore"),
}
ALIASES: Mapping[str, str] = {
    "postgres": "postgresql",
    "mariadb": "mysql",
    "rediss": "redis",
    "valkey": "redis",
    "valkeys": "redis",
}
_CLIENT_SCHEMES = {"valkey": "redis", "valkeys": "rediss"}


def open_store(url: str, options: Mapping[str, Any] | None = None) -> LeaseStore:
    """The store for ``url``, not yet connected: ``memory://``, ``sqlite:///path``, ``postgresql://``, ``mysql://``, ``redis://``.

    Each ``memory://`` is a store of its own.

    Raises:
        ConfigurationError: no such scheme, a bad URL, or an option that the store does not have.
    """
    parsed = BrokerUrl.parse(url)
    scheme = ALIASES.get(parsed.scheme, parsed.scheme)
    given = dict(options or {})
    known = BUILT_IN.get(scheme)
    if known is None:
        from importlib.metadata import entry_points

        for point in entry_points(group="atleastonce.stores"):
            if point.name == scheme:
                store: LeaseStore = point.load()(url, **given)
                return store
        raise ConfigurationError(
            f'store URL "{parsed}": unknown scheme "{scheme}"; known: {", ".join(sorted(BUILT_IN))}'
        )
    cls = getattr(importlib.import_module(known.module), known.cls)
    only_known(given, _parameters(cls), scheme)
    if scheme == "memory":
        built: LeaseStore = cls(**given)
    elif scheme == "sqlite":
        if parsed.hosts or not parsed.path:
            raise ConfigurationError(
                f'store URL "{parsed}": write it as sqlite:///relative.db or sqlite:////absolute.db'
            )
        built = cls(parsed.path, **given)
    else:
        head, _, tail = url.strip().partition("://")
        built = cls(f"{_CLIENT_SCHEMES.get(head.lower(), head)}://{tail}", **given)
    return built


def _parameters(cls: type) -> list[str]:
    from inspect import Parameter, signature

    return [
        name
        for name, each in signature(cls).parameters.items()
        if each.kind is Parameter.KEYWORD_ONLY or name == "clock"
    ]


__all__ = [
    "LOST",
    "Claim",
    "ClaimRequest",
    "Completion",
    "Count",
    "Entry",
    "Lease",
    "LeaseStore",
    "MemoryStore",
    "OutboxStats",
    "OutboxStore",
    "ParkedRow",
    "Stats",
    "Status",
    "TransactionalStore",
    "new_token",
    "open_store",
    "scope_key",
]
