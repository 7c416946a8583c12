"""What an export returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec


class Export(msgspec.Struct, frozen=True):
    """A document, and what whoever uses it has to know.

    Attributes:
        document: JSON, or a text that is written as it is.
        notes: a line each, for a person.
    """

    document: Mapping[str, Any] | str
    notes: tuple[str, ...] = ()
