"""What a command sends: bodies from arguments or stdin, and header fields."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Annotated, NamedTuple

import msgspec
import typer

from atleastonce.cli.output import note
from atleastonce.errors import ConfigurationError
from atleastonce.wire import CONTENT_TYPE

HeaderOption = Annotated[list[str] | None, typer.Option("--header", metavar="NAME=VALUE", help="May be repeated.")]
TextOption = Annotated[bool, typer.Option("--text", help="Send the payload as text though it looks like broken JSON.")]

SHOWN_PROBLEMS = 10
_JSON, _TEXT = "application/json", "text/plain; charset=utf-8"


class Given(NamedTuple):
    """What a command was given to send.

    Attributes:
        many: whether it is what stdin has, and not one argument.
        headers: of each, the content type among them.
        bodies: read as they are asked for.
    """

    many: bool
    headers: dict[str, str]
    bodies: Iterator[bytes]


def given(
    payload: str, header: list[str] | None, id: str | None, counts: Counter[str], *, text: bool, kind: str
) -> Given:
    """What ``payload`` is: a body, or ``-`` for one a line of stdin.

    Args:
        payload, header, id, text: as the options say.
        counts: where bad lines are counted.
        kind: what a body is called.

    Raises:
        ConfigurationError: JSON that is broken, header fields that are none, one id for many.
    """
    many = payload == "-"
    headers = _headers_of(header or ())
    reason = "" if many else _not_json(payload.encode())
    if reason and not text and payload.lstrip()[:1] in ("{", "[", '"'):
        raise ConfigurationError(
            f"the payload looks like JSON and is none ({reason}); mend it, or add --text to send it as text"
        )
    headers.setdefault(CONTENT_TYPE, _TEXT if reason else _JSON)
    if many and id is not None:
        raise ConfigurationError(f"--id is for one {kind}, and stdin has many; give the payload as an argument")
    if many and sys.stdin.isatty():
        note(f"reading {kind}s from the terminal, one JSON text per line; Ctrl-D ends")
    return Given(many, headers, _lines(_stdin(), counts) if many else iter([payload.encode()]))


def _stdin() -> Iterable[bytes]:
    # Not sys.stdin, whose lock a pending read would hold when the interpreter ends.
    return open(sys.stdin.fileno(), "rb", closefd=False)


def _lines(source: Iterable[bytes], counts: Counter[str]) -> Iterator[bytes]:
    """The bodies in ``source``, one a line; what is no JSON is named and counted as bad."""
    for number, line in enumerate(source, 1):
        body = line.strip()
        if not body:
            continue
        if reason := _not_json(body):
            counts["bad"] += 1
            if counts["bad"] <= SHOWN_PROBLEMS:
                note(f"stdin:{number}: {reason}")
        else:
            yield body


def _not_json(body: bytes) -> str:
    """Why ``body`` is no JSON; empty if it is."""
    try:
        msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return str(error)
    return ""


def _headers_of(fields: Iterable[str]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for field in fields:
        name, equals, value = field.partition("=")
        if not equals:
            raise ConfigurationError(f'--header "{field}": write NAME=VALUE')
        headers[name] = value
    return headers
