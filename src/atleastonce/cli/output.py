"""How commands print: reports for people on stdout, JSON for programs on stdout, everything on the way on stderr."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import Any

import msgspec
from rich.console import Console


def print_json(value: Any) -> None:
    """One line of JSON on stdout."""
    sys.stdout.buffer.write(json_line(value))
    sys.stdout.buffer.flush()


def json_line(value: Any) -> bytes:
    """``value`` as one line of JSON. A foreign header's name may hold bytes that are no UTF-8, which adapters keep as halves of
    surrogate pairs; JSON has no place for those, and they are escaped (``na\\udcffme``)."""
    try:
        return msgspec.json.encode(value) + b"\n"
    except UnicodeEncodeError:
        return msgspec.json.encode(_escaped(value)) + b"\n"


def _escaped(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, Mapping):
        return {_escaped(key): _escaped(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_escaped(each) for each in value]
    return _escaped(msgspec.structs.asdict(value)) if isinstance(value, msgspec.Struct) else value


def console(*, stderr: bool = False) -> Console:
    """Rich output without its guesses: texts are printed as they are, numbers are not coloured."""
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False)


def note(text: str) -> None:
    """A remark for the person at the terminal, out of the way of the output."""
    print(text, file=sys.stderr, flush=True)


def log_to_stderr(level: str) -> None:
    """Logs of the library, one line each."""
    logging.basicConfig(level=level, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
