"""The commands of ``atleastonce dlq``."""

from __future__ import annotations

import typer

from atleastonce.cli.dlq import look, move

app = typer.Typer(
    help="Dead letters: list, show, redrive, purge, export.", no_args_is_help=False, rich_markup_mode=None
)
app.command("list")(look.list_groups)
app.command("show")(look.show_letters)
app.command("redrive")(move.redrive)
app.command("purge")(move.purge)
app.command("export")(look.export)
