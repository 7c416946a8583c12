"""Text as a driver gives it back."""

from __future__ import annotations

from atleastonce.errors import ConfigurationError


def as_text(value: object) -> str:
    """``value`` as text. Drivers give bytes where a database says nothing of its encoding (``SQL_ASCII``), where the column is
    binary, or where a connection asks for them (``text_factory=bytes``).

    Raises:
        ConfigurationError: it is neither text nor UTF-8: something on the way changes what the database answers.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        try:
            return bytes(value).decode()
        except UnicodeDecodeError:
            pass
    raise ConfigurationError(
        f"the database answered with a {type(value).__name__} that is no text in UTF-8; give the store a connection that "
        "converts nothing"
    )


def shown(value: str | bytes) -> str:
    """``value`` for people: as far as it is text."""
    return value if isinstance(value, str) else value.decode("utf-8", "replace")
