"""``atleastonce inbox``: the tables of a store of idempotency: made, looked at, and rid of what has expired."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated

import msgspec
import typer
from rich.table import Table

from atleastonce.cli.errors import DONE, Traceback
from atleastonce.cli.output import console, note, print_json
from atleastonce.cli.signals import gracefully, interruptible
from atleastonce.durations import seconds, whole
from atleastonce.errors import ConfigurationError
from atleastonce.stores import Count, LeaseStore, Stats, open_store
from atleastonce.urls import BrokerUrl

app = typer.Typer(help="Stores of idempotency: init, status, purge.", no_args_is_help=False, rich_markup_mode=None)

_PROGRESS_SECONDS = 1.0

StoreUrl = Annotated[str, typer.Argument(metavar="STORE_URL", help="Like postgresql://user:password@host/shop.")]
Prefix = Annotated[str | None, typer.Option(help="Begins the names of the tables or keys; default alo.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the report as JSON.")]


class Made(msgspec.Struct, frozen=True):
    """What `init` did."""

    store: str
    made: bool


class Purged(msgspec.Struct, frozen=True):
    """What `purge` did. ``finished``: nothing that has expired is left."""

    store: str
    removed: int
    batches: int
    seconds: float
    finished: bool


class Status(msgspec.Struct, frozen=True):
    """What `status` found: rows, and seconds since the record that expires first was made; None is unknown."""

    store: str
    leases: Count
    inbox: Count | None


def _store(url: str, prefix: str | None) -> LeaseStore:
    """The store. It is not made by looking at it."""
    parsed = BrokerUrl.parse(url)
    if parsed.scheme == "memory":
        raise ConfigurationError("memory:// is a store inside one process; name one that others can reach")
    options: dict[str, object] = {} if prefix is None else {"prefix": prefix}
    if parsed.scheme == "sqlite":
        options["create"] = False
    return open_store(url, options)


@app.command("init")
def init(
    url: StoreUrl,
    prefix: Prefix = None,
    sql: Annotated[
        bool, typer.Option("--sql", help="Print the schema, for your own migrations; ask no server.")
    ] = False,
    as_json: AsJson = False,
    traceback: Traceback = False,
) -> int:
    """Create the store's tables where they are missing. Never alters or deletes; safe when many do it at once."""
    store = _store(url, prefix)
    shown = str(BrokerUrl.parse(url))
    if sql:
        schema = getattr(store, "schema", None)
        if schema is None:
            raise ConfigurationError(f"{shown}: this store has no SQL; leave out --sql")
        text: str = schema()
        print_json({"store": shown, "sql": text}) if as_json else print(text, end="")
        return DONE
    interruptible(store.init())
    print_json(Made(shown, made=True)) if as_json else print(f"{shown}: its schema is there")
    return DONE


@app.command("status")
def status(url: StoreUrl, prefix: Prefix = None, as_json: AsJson = False, traceback: Traceback = False) -> int:
    """Size and age of the store's tables.

    The age is that of the record that expires first. Far above the ttl of your consumers it means that nobody purges.
    """

    async def look() -> Stats:
        async with _store(url, prefix) as store:
            return await store.stats()

    found = interruptible(look())
    shown = str(BrokerUrl.parse(url))
    if as_json:
        print_json(Status(shown, found.leases, found.inbox))
        return DONE
    table = Table("", "rows", "age of the oldest", "", box=None, pad_edge=False, header_style="bold")
    for name, count in (("leases", found.leases), ("inbox", found.inbox)):
        if count is not None:
            rows = "unknown" if count.rows is None else f"{count.rows:,}".replace(",", " ")
            table.add_row(name, rows, "" if count.oldest is None else _span(count.oldest), count.detail)
    print(shown)
    console().print(table)
    return DONE


@app.command("purge")
def purge(
    url: StoreUrl,
    prefix: Prefix = None,
    limit: Annotated[int, typer.Option(help="Rows of a table in one transaction.")] = 1000,
    pause: Annotated[str, typer.Option(help="Between two transactions, to leave room for others.")] = "0s",
    as_json: AsJson = False,
    traceback: Traceback = False,
) -> int:
    """Remove what has expired, in short transactions. Ctrl-C ends after the one under way; what is left is purged the next time."""
    size, wait = whole(limit, name="--limit", high=100_000), seconds(pause, name="--pause")

    async def work(stopping: asyncio.Event) -> Purged:
        begun = said = time.monotonic()
        removed = batches = 0
        finished = False
        async with _store(url, prefix) as store:
            while not stopping.is_set():
                count = await store.purge(size)
                removed += count
                batches += 1
                if not count:
                    finished = True
                    break
                if time.monotonic() - said >= _PROGRESS_SECONDS:
                    said = time.monotonic()
                    note(f"{removed} removed, {removed / (said - begun):.0f} a second")
                if wait:
                    await asyncio.sleep(wait)
        return Purged(str(BrokerUrl.parse(url)), removed, batches, round(time.monotonic() - begun, 3), finished)

    report, told = gracefully(work, "ending after this transaction; once more ends it at once")
    if as_json:
        print_json(report)
    else:
        rest = "" if report.finished else "; more is left"
        print(f"{report.store}: {report.removed} removed in {report.seconds:g} s{rest}")
    if told is not None:
        raise told
    return DONE


def _span(span: float) -> str:
    """``span`` seconds, in the unit in which it is a small number."""
    for unit, size in (("d", 86_400.0), ("h", 3_600.0), ("min", 60.0)):
        if span >= 2 * size:
            return f"{span / size:.1f} {unit}"
    return f"{span:.1f} s"
