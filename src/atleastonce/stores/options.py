"""What the stores' constructors check alike."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Any

from atleastonce.errors import ConfigurationError

SCHEMA_VERSION = 1
"""Of the tables and keys of every store. A store that finds another one refuses to work with it."""

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,40}(\.[A-Za-z_][A-Za-z0-9_]{0,40})?")


def table_prefix(value: object, store: str) -> str:
    """``value`` if it can begin the names of tables (``alo``, ``messaging.alo``).

    Raises:
        ConfigurationError: it cannot.
    """
    if isinstance(value, str) and _IDENTIFIER.fullmatch(value):
        return value
    raise ConfigurationError(f"{store}: prefix={value!r} cannot begin a table's name; use letters, digits and _")


def wrong_version(store: str, where: str, found: object) -> ConfigurationError:
    """The error for a schema that is not ours."""
    return ConfigurationError(
        f"{store}: the schema in {where} has version {found}, this atleastonce needs {SCHEMA_VERSION}; "
        "install the atleastonce that made it, or give this one a prefix of its own"
    )


TABLES = ("store", "lease", "inbox", "outbox", "outbox_slot", "outbox_relay")
"""What the tables' names end in, in every store with SQL."""


def ensure_all(found: Collection[str], prefix: str, store: str, where: str) -> None:
    """Return if all `TABLES` of ``prefix`` are among ``found``, the names of tables.

    Raises:
        ConfigurationError: some are missing: they came later than the others, or a migration left them out.
    """
    name, there = prefix.rpartition(".")[2], {each.lower() for each in found}
    if missing := [f"{name}_{table}" for table in TABLES if f"{name}_{table}".lower() not in there]:
        raise ConfigurationError(
            f"{store}: {where} lacks the table{'s' if len(missing) > 1 else ''} {', '.join(missing)}; run `atleastonce inbox init` "
            "once, which makes what is missing and leaves the rest as it is, or apply the store's schema() with your migrations"
        )


def missing_schema(store: str, where: str) -> ConfigurationError:
    """The error for a schema that is not there."""
    return ConfigurationError(
        f"{store}: {where} has no schema yet; call the store's init() or `atleastonce inbox init` once, apply its schema() "
        "with your migrations, or open it with create=True"
    )


def only_known(given: Mapping[str, Any], known: Collection[str], store: str) -> None:
    """Refuse options that do not exist.

    Raises:
        ConfigurationError: naming the nearest that does.
    """
    for name in given:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f'; did you mean "{close[0]}"?' if close else f"; known: {', '.join(sorted(known))}"
            raise ConfigurationError(f'{store} store: unknown option "{name}"{hint}')
