"""All commands in one place, and the one place where an error becomes a line and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

import atleastonce
from atleastonce.cli import brokers, check, doctor, explain, inbox, lag, outbox, publish, request, tail
from atleastonce.cli import run as run_command
from atleastonce.cli.demo import command as demo
from atleastonce.cli.dlq import command as dlq
from atleastonce.cli.errors import DONE, INTERRUPTED, ended_by
from atleastonce.cli.topology import command as topology

app = typer.Typer(
    name="atleastonce",
    help="Messaging patterns, each written once, over real brokers.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("run")(run_command.run)
app.command("check")(check.check)
app.command("explain")(explain.explain)
app.command("lag")(lag.lag)
app.command("demo")(demo.demo)
app.command("publish")(publish.publish)
app.command("request")(request.request)
app.command("tail")(tail.tail)
app.command("doctor")(doctor.doctor)
app.add_typer(brokers.app, name="brokers")
app.add_typer(dlq.app, name="dlq")
app.add_typer(outbox.app, name="outbox")
app.add_typer(topology.app, name="topology")
app.add_typer(inbox.app, name="inbox")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"atleastonce {atleastonce.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Messaging patterns, each written once, over real brokers."""


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; return its exit code: 0 done, 1 found a problem, 2 usage, 130 Ctrl-C."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = app(words or ["--help"], prog_name="atleastonce", standalone_mode=False)
        sys.stdout.flush()
        if code == INTERRUPTED:  # typer has made a return value of the KeyboardInterrupt
            return ended_by(KeyboardInterrupt())
        return code if isinstance(code, int) else DONE
    except BaseException as error:  # noqa: BLE001 - a traceback is for those who ask for it
        return ended_by(error)
