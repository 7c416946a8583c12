"""What a command sends: bodies from arguments or stdin, and header fields."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator

import msgspec

from atleastonce.cli.output import note
from atleastonce.errors import ConfigurationError

SHOWN_PROBLEMS = 10
JSON, TEXT = "application/json", "text/plain; charset=utf-8"


def stdin() -> Iterable[bytes]:
    """Lines of stdin. Not of sys.stdin, whose lock a pending read would hold when the interpreter ends."""
    return open(sys.stdin.fileno(), "rb", closefd=False)


def lines(source: Iterable[bytes], counts: Counter[str]) -> Iterator[bytes]:
    """The bodies in ``source``, one a line; what is no JSON is named and counted as bad."""
    for number, line in enumerate(source, 1):
        body = line.strip()
        if not body:
            continue
        if reason := not_json(body):
            counts["bad"] += 1
            if counts["bad"] <= SHOWN_PROBLEMS:
                note(f"stdin:{number}: {reason}")
        else:
            yield body


def not_json(body: bytes) -> str:
    """Why ``body`` is no JSON; empty if it is."""
    try:
        msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return str(error)
    return ""


def headers_of(fields: list[str]) -> dict[str, str]:
    """``--header NAME=VALUE``, as often as given."""
    headers: dict[str, str] = {}
    for field in fields:
        name, equals, value = field.partition("=")
        if not equals:
            raise ConfigurationError(f'--header "{field}": write NAME=VALUE')
        headers[name] = value
    return headers
