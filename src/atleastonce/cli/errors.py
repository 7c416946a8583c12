"""Errors as a person meets them: one line that names the thing and the remedy, and an exit code that scripts can use."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated

import typer

from atleastonce.brokers import RequiredBrokersMissing, Unavailable
from atleastonce.errors import AtLeastOnceError, ConfigurationError, EncodeError
from atleastonce.urls import mask

DONE, PROBLEM, USAGE, INTERRUPTED = 0, 1, 2, 130
TERMINATED = 143

_shown = False


def _show_tracebacks(wanted: bool) -> bool:
    global _shown
    _shown = wanted
    return wanted


Traceback = Annotated[
    bool,
    typer.Option("--traceback", help="Show the whole traceback of an error.", callback=_show_tracebacks, is_eager=True),
]
"""The option that every command has."""


class Terminated(Exception):
    """SIGTERM ended the command, after it had cleaned up."""


class Problem(AtLeastOnceError):
    """The command did what it should, and found something wrong."""


def one_line(text: object) -> str:
    """``text`` as one line, with the secrets of any URL in it masked."""
    return mask(" ".join(str(text).split()))


def describe(error: BaseException) -> tuple[str, int]:
    """The line and the exit code for ``error``."""
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return "interrupted", INTERRUPTED
    if isinstance(error, Terminated):
        return "terminated", TERMINATED
    if isinstance(error, typer.TyperException):
        return f"{error.format_message()} (see --help)", error.exit_code
    if isinstance(error, ConfigurationError | EncodeError):
        return str(error), USAGE
    if isinstance(error, AtLeastOnceError | Unavailable | RequiredBrokersMissing):
        return str(error), PROBLEM
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error), PROBLEM
    return f"{type(error).__name__}: {error} (--traceback shows where)", PROBLEM


def ended_by(error: BaseException) -> int:
    """Report ``error`` on stderr; return the exit code."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else PROBLEM if error.code else DONE
    if isinstance(error, typer.Exit):
        return error.exit_code
    if isinstance(error, BrokenPipeError):
        # Whoever read our output has seen enough. Keep the interpreter from complaining about it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    text, code = describe(error)
    if _shown:
        traceback.print_exception(error, file=sys.stderr)
    print(f"atleastonce: {one_line(text)}", file=sys.stderr, flush=True)
    return code
