"""``atleastonce brokers``: brokers for development, native or in containers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.table import Table

from atleastonce.brokers import NAMES, Running, down, status, up
from atleastonce.cli.errors import DONE, PROBLEM, Traceback, one_line
from atleastonce.cli.output import console, note, print_json
from atleastonce.errors import ConfigurationError
from atleastonce.urls import mask

app = typer.Typer(help="Brokers for development: up, down, status.", no_args_is_help=False, rich_markup_mode=None)

Names = Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help=f"Of {', '.join(NAMES)}; default: all.")]
Json = Annotated[bool, typer.Option("--json", help="Print the report as JSON.")]


def _known(names: list[str] | None) -> list[str] | None:
    for name in names or ():
        if name not in NAMES:
            raise ConfigurationError(f'no broker "{name}"; there are {", ".join(NAMES)}')
    return names or None


@app.command("up")
def bring_up(
    names: Names = None,
    fixed_ports: Annotated[
        bool, typer.Option("--fixed-ports", help="The ports of compose.yaml instead of free ones.")
    ] = False,
    as_json: Json = False,
    traceback: Traceback = False,
) -> int:
    """Have brokers running: fetched, started or found, all in parallel. They outlive this command.

    An address in the environment (ALO_KAFKA_URL, ...) comes first, then a container, then a native process.
    """
    chosen = _known(names)
    try:
        found = up(chosen, fixed_ports=fixed_ports)
    except ValueError as error:  # what ALO_REQUIRE names
        raise ConfigurationError(str(error)) from None
    _report(found, as_json=as_json)
    for missing in found.unavailable.values():
        note(one_line(missing))
    return PROBLEM if found.unavailable else DONE


@app.command("down")
def bring_down(
    names: Names = None,
    purge: Annotated[bool, typer.Option("--purge", help="Remove their data and logs, too.")] = False,
    as_json: Json = False,
    traceback: Traceback = False,
) -> None:
    """End what `up` started. What the environment points to is left alone."""
    ended = down(_known(names), purge=purge)
    if as_json:
        print_json({"ended": ended})
    else:
        print(f"ended: {', '.join(ended)}" if ended else "nothing was running")


@app.command("status")
def show_status(names: Names = None, as_json: Json = False, traceback: Traceback = False) -> None:
    """The brokers that run now."""
    chosen = _known(names)
    _report({name: each for name, each in status().items() if chosen is None or name in chosen}, as_json=as_json)


def _report(found: Mapping[str, Running], *, as_json: bool) -> None:
    if as_json:
        print_json({name: each.report() for name, each in found.items()})
        return
    if not found:
        print("no broker is running; atleastonce brokers up NAME starts one")
        return
    table = Table(box=None, pad_edge=False)
    for title in ("broker", "version", "from", "url"):
        table.add_column(title)
    rows: list[dict[str, Any]] = [{"name": name, **each.report()} for name, each in found.items()]
    for row in rows:
        table.add_row(row["name"], row["version"] or "", row["from"], mask(row["url"]))
    console().print(table)
