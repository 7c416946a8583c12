"""How commands print: reports for people on stdout, JSON for programs on stdout, everything on the way on stderr."""

from __future__ import annotations

import logging
import sys
from typing import Any

import msgspec
from rich.console import Console


def print_json(value: Any) -> None:
    """One line of JSON on stdout."""
    sys.stdout.buffer.write(msgspec.json.encode(value) + b"\n")
    sys.stdout.buffer.flush()


def console(*, stderr: bool = False) -> Console:
    """Rich output without its guesses: texts are printed as they are, numbers are not coloured."""
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False)


def note(text: str) -> None:
    """A remark for the person at the terminal, out of the way of the output."""
    print(text, file=sys.stderr, flush=True)


def log_to_stderr(level: str) -> None:
    """Logs of the library, one line each."""
    logging.basicConfig(level=level, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
