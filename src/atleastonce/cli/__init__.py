"""The command line. `main` is the entry point of ``atleastonce`` and of ``python -m atleastonce``."""

from __future__ import annotations


def main() -> None:
    """Run the command line and end the process with its exit code: 0 done, 1 found a problem, 2 usage."""
    # Imported here, so that the demo's worker processes, which live in this package, load no terminal library.
    try:
        from atleastonce.cli.app import run

        code = run()
    except KeyboardInterrupt:  # so early that no command could put anything in order, nor had to
        code = 130
    raise SystemExit(code)
