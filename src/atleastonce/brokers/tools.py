"""Running the tools that fetch things: quietly, interruptibly, with the end of their output in the error."""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path

from .model import Unavailable

PINS = Path(__file__).parent / "pins"
"""What is fetched, with its digests."""

interrupted = threading.Event()
"""Set on Ctrl-C: whatever tool runs is ended, and no other is started."""


def run(
    name: str,
    what: str,
    argv: list[str],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    inherit: bool = True,
    seconds: float = 900,
) -> str:
    """Run a tool to its end and return what it printed. `env` is added to this process's environment, so that proxies,
    certificates and mirrors configured for pip, go or apt apply; with `inherit=False` it is all there is.

    Raises `Unavailable(name, ...)` naming `what` failed, with the last lines of its output.
    """
    with tempfile.TemporaryFile() as out:
        try:
            process = subprocess.Popen(
                argv,
                cwd=cwd,
                env={**(os.environ if inherit else {}), **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise Unavailable(name, f"{what} failed: {argv[0]}: {error.strerror}") from error
        waited = 0.0
        try:
            while True:
                try:
                    process.wait(0.1)
                    break
                except subprocess.TimeoutExpired:
                    waited += 0.1
                    if interrupted.is_set():
                        raise Unavailable(name, f"{what} was interrupted") from None
                    if waited > seconds:
                        raise Unavailable(name, f"{what} took more than {seconds:.0f} s") from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, 9)
                process.wait()
        out.seek(0)
        text = out.read().decode(errors="replace")
    if process.returncode:
        raise Unavailable(name, f"{what} failed ({argv[0]} ended with {process.returncode}): {last_lines(text, 4)}")
    return text


def last_lines(text: str, count: int) -> str:
    """The last lines that pip or apt mark as errors, else the last non-empty ones, joined with ` | `."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    marked = [line for line in lines if line.startswith(("ERROR: ", "E: "))]
    return " | ".join((marked or lines)[-count:])
