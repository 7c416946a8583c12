"""The commands of ``atleastonce topology``."""

from __future__ import annotations

import typer

from atleastonce.cli.topology import export, live

app = typer.Typer(
    help="What a service needs on its broker: plan, apply, export.", no_args_is_help=False, rich_markup_mode=None
)
app.command("plan")(live.plan)
app.command("apply")(live.apply)
app.add_typer(export.app, name="export")
